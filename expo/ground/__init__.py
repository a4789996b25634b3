"""What every room stands on and imports nothing of expo: problems, files, progress, the processes of a run (ranks)."""
