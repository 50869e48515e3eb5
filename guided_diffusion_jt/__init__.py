"""MedSegDiff in Jittor. Twin of `guided_diffusion_pt`, name for name."""

# Jittor reads its settings when it is imported: `runtime` makes them, then imports it, and so it
# has to come before any other module of this package.
from guided_diffusion_jt import runtime  # noqa: F401
