"""What the recorded runs of `logs/` and the demo measure and show: tables, plots, pictures."""
