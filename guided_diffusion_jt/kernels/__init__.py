"""What Jittor needs to start, to compile and to compute fast on a CPU. Each backend needs its own kernels: this
folder has no twin."""
