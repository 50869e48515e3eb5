"""The family of version `new`: the highway's features are added to the first ones of the diffusion network."""

from guided_diffusion_core.networks.medsegdiff.versions import medsegdiff_family

FAMILY = medsegdiff_family("medsegdiff_new", version="new", network="unet:UNetModel_newpreview")
