"""From problems to the experience of a step (pipeline): rollouts, verdicts, rewards, hints, positives; then its
metrics."""
