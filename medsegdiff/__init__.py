"""MedSegDiff in PyTorch and Jittor: segmentation of medical images by diffusion."""

__version__ = "0.1.0"
