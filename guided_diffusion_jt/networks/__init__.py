"""The networks whose one source serves every backend: the folders of `guided_diffusion_core.networks`, imported
again under this package's name, where `from .. import nn` means the `nn` next to this file."""

from guided_diffusion_core import networks

_HERE = list(__path__)


def find_folders():
    """Let Python look for networks in every folder that is known to the core by now."""
    __path__[:] = [*_HERE, *networks.__path__]


find_folders()
