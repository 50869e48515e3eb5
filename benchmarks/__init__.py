"""Measures this software, and beside it the original: see README.md of this folder."""
