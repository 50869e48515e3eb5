"""What computes faster or more exactly than PyTorch's own operators on a CPU. Each backend needs its own kernels:
this folder has no twin."""
