"""Measurements of the speed and memory of this software and of the original; README.md explains them."""
