"""Operators that are faster or more exact than PyTorch's own on a CPU. Each backend needs its own kernels:
this folder has no twin."""
