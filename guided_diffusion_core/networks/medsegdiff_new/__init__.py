"""MedSegDiff's network, version `new`; what both versions share is in `networks/medsegdiff/`."""
