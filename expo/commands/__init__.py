"""What each `expo` command parses and prints; what loads a model is in `jobs`."""
