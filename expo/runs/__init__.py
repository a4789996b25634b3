"""Run directories as data, without torch: found, listed, read, and judged (health)."""
