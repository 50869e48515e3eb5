"""Presets: named sets of values. A flag on the command line overrides the preset's value."""

PRESETS = {
    # exactly the original's recipe
    "original": {
        "sampler": "ancestral",
        "dynamic_thresholding": False,
        "eta": 0.0,
        "sample_steps": 0,
    },
    # the recipe that learns in minutes (docs/differences.md, "recipe")
    "fast": {
        "predict_xstart": True,
        "highway_dropout": 0.0,
        "ema_warmup": True,  # otherwise the average of a short training is its random start
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
# Differences between a preset and the recipe that it is named after. The help shows them, and so does a run that
# chooses the preset.
PRESET_NOTES = {
    "MedSegDiff++": "attention at 16 px; the original says attention_resolutions 24, which its network does not have, "
    "so that it has no attention at all",
}
