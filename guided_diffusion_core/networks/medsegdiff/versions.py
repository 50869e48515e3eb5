"""Make the families of both versions, which differ in their highway network."""

from functools import partial

from guided_diffusion_core.networks.family import Family
from guided_diffusion_core.networks.medsegdiff.activations import kept_numbers
from guided_diffusion_core.networks.medsegdiff.infer import infer
from guided_diffusion_core.networks.medsegdiff.initialization import initial_value
from guided_diffusion_core.networks.medsegdiff.operations import evaluation_operations
from guided_diffusion_core.networks.medsegdiff.plan import make_plan
from guided_diffusion_core.networks.medsegdiff.settings import ModelConfig
from guided_diffusion_core.networks.medsegdiff.state_shapes import state_shapes


def smallest_batch(plan):
    """Return 2 where the bottleneck of the highway network is one pixel, of which a batch norm needs two values."""
    return 2 if plan.image_size == 2**plan.highway.poolings else 1


def _initial_state(plan, tape):
    shapes = state_shapes(plan)
    return {name: initial_value(name, shapes, tape) for name in shapes}


def medsegdiff_family(name, version, network, **rest):
    """Return the `Family` of a version; its flags are the original's, so that both share them without a prefix."""
    return Family(
        name=name,
        settings=ModelConfig,
        plan=make_plan,
        state_shapes=state_shapes,
        initial_state=_initial_state,
        fixed={"version": version},
        prefix="",
        network=network,
        smallest_batch=smallest_batch,
        infer=partial(infer, version),
        operations=evaluation_operations,
        kept_numbers=kept_numbers,
        **rest,
    )
