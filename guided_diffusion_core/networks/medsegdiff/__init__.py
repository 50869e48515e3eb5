"""MedSegDiff's network, both versions."""
