"""Where a run's scalars go besides its directory: W&B and others (trackers)."""
