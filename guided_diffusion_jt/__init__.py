"""MedSegDiff in Jittor. Twin of `guided_diffusion_pt`, name for name."""
