"""The parts that both versions of MedSegDiff's network share; no family by itself."""
