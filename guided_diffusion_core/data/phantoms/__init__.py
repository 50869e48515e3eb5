"""Synthetic data with exact masks: a writer for each layout, with its real names, file types and codes.

Phantoms show that the software runs and learns; they say nothing about real patients. The same seed writes the same
files.
"""

from guided_diffusion_core.data.phantoms.pictures import (
    lesion_phantom,
    write_ddti_phantoms,
    write_image_phantoms,
    write_isic_phantoms,
    write_refuge2_phantoms,
)
from guided_diffusion_core.data.phantoms.volumes import (
    write_brats_phantom,
    write_brats_slices_phantom,
    write_nnunet_phantoms,
    write_volume_phantoms,
)

__all__ = [
    "lesion_phantom",
    "write_brats_phantom",
    "write_brats_slices_phantom",
    "write_ddti_phantoms",
    "write_image_phantoms",
    "write_isic_phantoms",
    "write_nnunet_phantoms",
    "write_refuge2_phantoms",
    "write_volume_phantoms",
]
