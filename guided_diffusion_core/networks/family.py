"""A family of networks: everything that the rest of the software needs to know about it, without a framework.

Each folder `networks/NAME/` with a module `family.py` holds one, under the name `FAMILY`; `registry.py` finds it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.options import option

# The upper bounds of settings lie far above all that is trained. A file whose configuration exceeds them is refused
# before anything is allocated for it.
MOST_PIXELS = 8192


@dataclass(frozen=True)
class NetworkConfig:
    """The settings that all networks share: the shapes of their inputs and outputs.

    A family adds its own in a subclass.
    """

    image_size: int = option(64, "side of the square network input in pixels", high=MOST_PIXELS)
    in_ch: int = option(5, "image channels plus those of the noised mask; set from the data if not given", high=8192)
    mask_channels: int = option(
        1, "channels of the mask, one for each of its labels; set from the data if not given", high=4096
    )
    learn_sigma: bool = option(False, "the network also predicts the variance of the reverse step")

    @property
    def image_channels(self):
        """Channels of the image in the network's input."""
        return self.in_ch - self.mask_channels

    @property
    def out_channels(self):
        """Channels of the network's output: the prediction and, where it is learned, the variance."""
        return self.mask_channels * (2 if self.learn_sigma else 1)


def check_channels(config):
    """Refuse settings whose masks or images have no channel; `UserError`."""
    if config.mask_channels < 1:
        raise found_expected(
            "--mask_channels", config.mask_channels, "at least 1", "Leave it out: it follows from the data."
        )
    if config.in_ch <= config.mask_channels:
        masks = "the mask's" if config.mask_channels == 1 else f"the {config.mask_channels} of the mask"
        raise found_expected(
            "--in_ch",
            config.in_ch,
            f"at least one image channel and {masks}",
            "Leave it out: it follows from the data.",
        )


class Prediction(NamedTuple):
    """The output of a network.

    value:       (N, out_channels, S, S). calibration: (N, mask_channels, S, S) in (0, 1), or None.
    """

    value: Any
    calibration: Any = None


def as_prediction(output):
    """Return the `Prediction` that a network's forward pass means: only a tensor, or (value, calibration)."""
    return Prediction(*output) if isinstance(output, (tuple, list)) else Prediction(output)


class Inferred(NamedTuple):
    """Settings of a network, read from the names and shapes of its state dict, by the names of their flags.

    shown: those that the weights prove. guessed: those that fit them best.
    """

    shown: dict
    guessed: dict


def noised_inputs(settings):
    """Return the shapes of one example's inputs: the image's and the noised mask's channels x, and the time step t."""
    return {"x": (settings.in_ch, settings.image_size, settings.image_size), "t": ()}


def image_inputs(settings):
    """Return the shape of one example's input for a network that sees only the image x."""
    return {"x": (settings.image_channels, settings.image_size, settings.image_size)}


def _one_example(plan):
    return 1


def _as_it_is(expected, arrays, where):
    return arrays


@dataclass(frozen=True)
class Family:
    """Everything that training, sampling, checkpoints, conversion and comparison need of a kind of network.

    name:           of `--network`, and of its folder.
    settings:       subclass of `NetworkConfig`.
    plan:           settings -> plan, from which everything below follows. Raises `UserError` for settings that
                    make no network.
    state_shapes:   plan -> dict name -> shape of every parameter and buffer, in order.
    initial_state:  (plan, tape) -> dict name -> array that each parameter and buffer starts with; tape:
                    `NoiseTape`, so that only the seed and the name decide.
    fixed:          values of settings that tell this family from another with the same dataclass.
    prefix:         of the flags of its own settings; "" for none, None for "NAME.".
    network:        "module:class" within a backend's package; the class is built from the plan. The default is
                    class `Network` in `network.py` of the family's folder, one source for all backends.
    inputs:         settings -> dict name -> shape of each argument of a forward pass on one example, in order:
                    `noised_inputs` or `image_inputs`.
    smallest_batch: plan -> examples that a forward pass in training needs.
    repair:         (expected shapes, arrays, file) -> arrays, for files of other software that lack some.
    infer:          (shapes, given settings, file) -> `Inferred`, or None if the weights are not of this family; None
                    for a family that cannot be told by its weights.
    operations:     plan -> multiplications and additions of one evaluation; None if nobody counted them.
    kept_numbers:   plan -> numbers that a step of training keeps of one example for its backward pass, about; None if
                    nobody counted them.
    """

    name: str
    settings: type
    plan: Callable
    state_shapes: Callable
    initial_state: Callable
    fixed: dict = field(default_factory=dict)
    prefix: str | None = None
    network: str = ""
    inputs: Callable = noised_inputs
    smallest_batch: Callable = _one_example
    repair: Callable = _as_it_is
    infer: Callable | None = None
    operations: Callable | None = None
    kept_numbers: Callable | None = None

    def flags(self):
        """Return a dict: name of the flag (without dashes) -> name of the field in `settings`."""
        shared = {item.name for item in fields(NetworkConfig)}
        prefix = f"{self.name}." if self.prefix is None else self.prefix
        names = [item.name for item in fields(self.settings)]
        return {name if name in shared else prefix + name: name for name in names}

    def has(self, settings):
        """Return whether settings are of this family."""
        fits = (getattr(settings, name) == value for name, value in self.fixed.items())
        return type(settings) is self.settings and all(fits)

    def source(self):
        """Return (module, class) of the network within a backend's package."""
        module, _, name = (self.network or f"networks.{self.name}.network:Network").partition(":")
        return module, name
