"""Predictions with their truths, for the tests of the scores."""

import numpy as np
from PIL import Image

from guided_diffusion_core.data.dataset import Truth
from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.results import outputs


def two_labels(folder):
    """Write three pictures with the labels 1 (disc) and 2 (cup, a part of the disc), and random masks of them.

    The cup of case c is empty in both. Returns the list of truths, and (case, label) -> mask as written to `folder`.
    """
    label_map = LabelMap(("disc", "cup"), (frozenset({1, 2}), frozenset({2})))
    generator = np.random.default_rng(3)
    truths = []
    written = {}
    for name in "abc":
        stored = generator.integers(0, 2 if name == "c" else 3, (9, 8)).astype(np.uint8)
        Image.fromarray(stored).save(folder / f"{name}.png")
        truths.append(Truth(name, str(folder / f"{name}.png"), label_map=label_map))
        for label in label_map.names:
            mask = generator.random((9, 8)) > (0.5 if (name, label) != ("c", "cup") else 1)
            path = outputs.output_path(folder, name, outputs.MASK, False, label)
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
            written[name, label] = mask
    return truths, written
