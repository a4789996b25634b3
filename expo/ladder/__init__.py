"""The small synthetic language: its problems and their oracle."""
