"""MedSegDiff in PyTorch. Twin of `guided_diffusion_jt`, name for name."""
