"""The programs that produced the recorded runs in `logs/`, with their tables, plots and pictures."""
