"""Named sets of values. A flag on the command line overrides its preset."""

# The original's recipe to the letter, and the one that learns in minutes (see
# docs/differences.md, "recipe").
PRESETS = {
    "original": {
        "sampler": "ancestral",
        "dynamic_thresholding": False,
        "eta": 0.0,
        "sample_steps": 0,
    },
    "fast": {
        "predict_xstart": True,
        "highway_dropout": 0.0,
        "ema_warmup": True,
        "sampler": "ddim",
        "eta": 0.0,
        "sample_steps": 5,
    },
    # the two settings that the original's README recommends
    "MedSegDiff-B": {
        "image_size": 256,
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 1,
        "learn_sigma": True,
        "use_scale_shift_norm": False,
        "attention_resolutions": "16",
        "lr": 5e-5,
        "batch_size": 8,
        "num_ensemble": 5,
    },
    "MedSegDiff++": {
        "image_size": 256,
        "num_channels": 512,
        "num_res_blocks": 12,
        "num_heads": 8,
        "learn_sigma": True,
        "use_scale_shift_norm": True,
        "attention_resolutions": "16",
        "batch_size": 64,
        "num_ensemble": 25,
    },
}
# What a preset changes in the recipe that it is named after; shown in the help and where it is chosen.
PRESET_NOTES = {
    "MedSegDiff++": "attention at 16 px; the original's attention_resolutions 24 is no resolution of its network, "
    "which then has no attention at all",
}
