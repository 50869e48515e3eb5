"""The weights that a new training takes from another network (`--init_from`), and what of them fits."""

import math
from dataclasses import dataclass

import numpy as np

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import setting, setting_names
from guided_diffusion_core.errors import found_expected, join_names
from guided_diffusion_core.networks import registry


@dataclass(frozen=True)
class InitialWeights:
    """The weights at the start of a training.

    arrays:    name -> array of every parameter and buffer.
    source:    the file (Path) that some of them come from.
    taken:     names of those.
    drawn:     texts about the others, which are drawn from the seed.
    left_out:  names in the file that the network does not have.
    differing: texts about settings that differ from those of the file.
    """

    arrays: dict
    source: object
    taken: list
    drawn: list
    left_out: list
    differing: list

    def record(self):
        """Return what `config.json` says about them, JSON values."""
        return {
            "file": str(self.source),
            "taken": len(self.taken),
            "drawn": self.drawn,
            "left_out": self.left_out,
            "differing_settings": self.differing,
        }

    def lines(self):
        """Return the lines that the command prints."""
        numbers = sum(math.prod(value.shape) for value in self.arrays.values())
        share = sum(math.prod(self.arrays[name].shape) for name in self.taken) / numbers
        lines = [
            f"--init_from: {len(self.taken)} of {len(self.arrays)} tensors are those of {self.source}, "
            f"{100 * share:.1f} % of all numbers"
        ]
        for title, names in (
            ("drawn anew", self.drawn),
            ("not in this network", self.left_out),
            ("settings that differ", self.differing),
        ):
            if names:
                lines.append(f"--init_from: {title}: {join_names(names)}")
        return lines


def initial_weights(config):
    """Return the `InitialWeights` of a new training, or None without `--init_from`.

    config: `Config` of the training, fit to its data.
    Raises `UserError` for a path without a checkpoint, and for one of which nothing fits, or not all is finite.
    """
    given = config.training.init_from
    if not given:
        return None
    source = checkpoints.find(given, "--init_from")
    trained, found = checkpoints.load(source)
    shapes = registry.state_shapes(config.model)
    taken = [name for name, shape in shapes.items() if name in found and found[name].shape == tuple(shape)]
    differing = _differing(config, trained)
    if not taken:
        raise found_expected(
            f"--init_from {given}",
            f"no tensor of this network's names and shapes among {len(found)}",
            "a network like this one",
            f"The settings that differ are: {join_names(differing)}.",
        )
    broken = [name for name in taken if not np.isfinite(found[name]).all()]
    if broken:
        raise found_expected(
            source,
            f"values that are not finite in {join_names(broken)}",
            "finite weights",
            "Use an earlier checkpoint of that training.",
        )
    arrays = registry.initial_state(config.model, config.seed)
    arrays |= {name: found[name].astype(arrays[name].dtype) for name in taken}
    drawn = []
    for name, shape in shapes.items():
        if name in found and found[name].shape != tuple(shape):
            drawn.append(f"{name} {tuple(shape)}, there {found[name].shape}")
        elif name not in found:
            drawn.append(name)
    left_out = [name for name in found if name not in shapes]
    return InitialWeights(arrays, source, taken, drawn, left_out, differing)


def _differing(config, trained):
    """Return texts about the settings of network, diffusion and intensities that differ between two configurations."""
    if config.network != trained.network:
        return [f"network {config.network}, there {trained.network}"]
    texts = []
    for name in ("normalisation", *setting_names("model", "diffusion", model=config.model)):
        here = setting(config, name)
        there = setting(trained, name)
        if here != there:
            texts.append(f"{name} {here!r}, there {there!r}")
    return texts
