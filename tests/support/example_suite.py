"""The parity suite of the example network: `python -m parity run all --suite support.example_suite`."""

from pathlib import Path

from guided_diffusion_core.networks import registry
from parity.medsegdiff import inputs, open_port, weights  # noqa: F401
from parity.networks import ladder

# every process of a comparison imports its suite, which makes the family known there
registry.add_folder(Path(__file__).parent / "networks")

SHAPES = {"image_size": 16, "in_ch": 4, "learn_sigma": True}
CASES = ladder({"network": "example", **SHAPES, "example.width": 8, "example.dropout": 0.1})
