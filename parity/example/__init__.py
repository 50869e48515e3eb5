"""The harness on a network that is not MedSegDiff: a small U-Net in plain torch.nn and plain jittor.nn."""
