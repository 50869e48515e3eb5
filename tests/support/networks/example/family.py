"""The settings of the example, and its family."""

from dataclasses import dataclass

from guided_diffusion_core.networks.family import NetworkConfig
from guided_diffusion_core.networks.shared import shared_family
from guided_diffusion_core.options import option


@dataclass(frozen=True)
class ExampleConfig(NetworkConfig):
    """A small encoder and decoder with attention in the middle."""

    width: int = option(16, "channels of the first features, a multiple of 4", low=4)
    dropout: float = option(0.0, "dropout rate, 0 to 1", low=0, below=1)


FAMILY = shared_family("example", ExampleConfig)
