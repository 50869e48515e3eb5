"""The programs that made the recorded runs of `logs/`, and their tables, plots and pictures."""
