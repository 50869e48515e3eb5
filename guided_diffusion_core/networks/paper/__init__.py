"""The network of the MedSegDiff paper (Wu et al. 2022, arXiv:2211.00611), with the names of lucidrains'
med-seg-diff-pytorch 0.3.3, whose checkpoints it loads."""
