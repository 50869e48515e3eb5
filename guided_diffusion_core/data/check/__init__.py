"""Check a whole data set: list its files, examine each one, report problems, and take a fingerprint."""
