"""MedSegDiff's network, version `1`; what both versions share is in `networks/medsegdiff/`."""
