"""What every room stands on: problems, files, progress, the processes of a run (ranks). Of expo it imports
`config.errors` alone."""
