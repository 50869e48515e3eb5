"""The harness that compares the two backends with each other and with the original."""
