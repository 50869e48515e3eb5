"""Checks of a whole data set: inventory, examination, report, fingerprint."""
