"""The settings of the paper's network, and what follows from them for each of its levels."""

from dataclasses import dataclass
from itertools import pairwise

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks.family import NetworkConfig
from guided_diffusion_core.options import option

NONE = "none"
STATIC = "static"
DYNAMIC = "dynamic"
LAST = "last"
CONDITIONER_GROUPS = 8  # of the group norms in the conditioners, whatever `groups` is
MOST_TOKENS = 1024  # of a transformer in a conditioner, whose attention grows with their square


@dataclass(frozen=True)
class PaperConfig(NetworkConfig):
    """Settings of the paper's network. The defaults are those of lucidrains' package."""

    dim: int = option(64, "channels of the first level, a multiple of 8", low=8)
    dim_mults: str = option("1,2,4,8", "channels of each level as multiples of dim")
    heads: int = option(4, "heads of the attention in the encoders and the decoder", low=1)
    dim_head: int = option(32, "channels of such a head", low=1)
    full_attention: str = option(
        LAST, "levels that attend over all positions: last, none, or their numbers from 0 on, such as 2,3"
    )
    mid_depth: int = option(1, "layers of the transformer between encoder and decoder", low=1)
    groups: int = option(8, "groups of the group norms", low=1)
    ff_parser: str = option(
        STATIC,
        "filter of the spectrum in each conditioner: none; static, a learned map; dynamic, the map plus what a "
        "transformer makes of the spectra",
        choices=(NONE, STATIC, DYNAMIC),
    )
    conditioning: str = option(
        DYNAMIC,
        "what a conditioner does: dynamic, multiplies the image's features by the filtered ones of the mask; static, "
        "transforms the image's features alone",
        choices=(DYNAMIC, STATIC),
    )
    skip_conditions: bool = option(False, "the decoder also gets the image's features of each level")
    self_condition: bool = option(
        False, "the network also sees its prediction of one step before; so far it gets zeros in training and sampling"
    )
    vit_heads: int = option(4, "heads of the transformers of a dynamic FF-Parser", low=1)
    vit_dim_head: int = option(32, "channels of such a head", low=1)
    vit_depth: int = option(4, "layers of such a transformer", low=1)
    vit_patch: int = option(
        0, f"side of its patches; 0: at each level the smallest from 2 on with at most {MOST_TOKENS} of them", low=0
    )

    @property
    def dims(self):
        """Return the channels of the levels, and those after the last one: a tuple with one number more than levels."""
        multiples = [int(part) for part in self.dim_mults.split(",")]
        return (self.dim, *(self.dim * multiple for multiple in multiples))

    @property
    def sizes(self):
        """Return the side of each level's features in pixels, a tuple."""
        return tuple(self.image_size >> level for level in range(len(self.dims) - 1))

    @property
    def full_levels(self):
        """Return the numbers of the levels that attend over all positions, a set."""
        if self.full_attention == NONE:
            return set()
        if self.full_attention == LAST:
            return {len(self.sizes) - 1}
        return {int(part) for part in self.full_attention.split(",")}

    def patch(self, level):
        """Return the side of the patches of a level's dynamic FF-Parser."""
        size = self.sizes[level]
        if self.vit_patch:
            return self.vit_patch
        return next(
            side for side in range(min(2, size), size + 1) if size % side == 0 and (size // side) ** 2 <= MOST_TOKENS
        )


def check(settings):
    """Raise `UserError` for settings that make no network."""
    flag = "--paper.{}".format
    if settings.learn_sigma:
        raise found_expected("--learn_sigma", True, "False with --network paper", "Leave the flag out.")
    _check_numbers(flag("dim_mults"), settings.dim_mults)
    if settings.full_attention not in (LAST, NONE):
        _check_numbers(flag("full_attention"), settings.full_attention, lowest=0)
    levels = len(settings.sizes)
    if max(settings.full_levels, default=0) >= levels:
        raise found_expected(
            flag("full_attention"), settings.full_attention, f"levels from 0 to {levels - 1}", "Name others."
        )
    for groups, name in ((CONDITIONER_GROUPS, "the conditioners"), (settings.groups, flag("groups"))):
        if settings.dim % groups:
            raise found_expected(flag("dim"), settings.dim, f"a multiple of {groups} ({name})", "Change one of them.")
    step = 2 ** (levels - 1)
    if settings.image_size % step:
        raise found_expected(
            "--image_size", settings.image_size, f"a multiple of {step}, for {levels} levels", "Change it."
        )
    if settings.ff_parser == DYNAMIC and settings.conditioning == DYNAMIC:
        _check_patches(settings)


def _check_numbers(flag, text, lowest=1):
    """Refuse a text that is no list of whole numbers."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) >= lowest for part in parts):
        raise found_expected(flag, repr(text), f"whole numbers from {lowest} on, separated by commas", "Correct it.")


def _check_patches(settings):
    """Refuse patches that do not divide the sides of all levels."""
    sizes = settings.sizes
    if settings.vit_patch and any(size % settings.vit_patch for size in sizes):
        valid = [side for side in range(1, sizes[-1] + 1) if not any(size % side for size in sizes)]
        raise found_expected(
            "--paper.vit_patch",
            settings.vit_patch,
            f"a divisor of the levels' sides {', '.join(map(str, sizes))}, such as {', '.join(map(str, valid))}",
            "Choose one of them, or leave the flag out.",
        )


def skip_channels(settings):
    """Return the channels that the decoder gets from the encoders in each of its two steps at a level, by level."""
    copies = 2 if settings.skip_conditions else 1
    return [copies * dim for dim in settings.dims[:-1]]


def level_channels(settings):
    """Return (channels, channels of the next level) of each level."""
    return list(pairwise(settings.dims))
