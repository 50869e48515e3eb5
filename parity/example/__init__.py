"""The parity suite on a network other than MedSegDiff: a small U-Net in plain torch.nn and in plain jittor.nn."""
