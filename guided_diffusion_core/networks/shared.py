"""Make the family of a network that one source describes for all backends."""

import importlib
from functools import partial

from guided_diffusion_core import networks
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks import nn
from guided_diffusion_core.networks.family import Family, as_prediction, check_channels
from guided_diffusion_core.networks.registry import family_of


def shared_family(name, settings, name_of_values=str, **rest):
    """Return the `Family` of the class `Network` in `networks/NAME/network.py`, which is built from the settings.

    settings:       subclass of `NetworkConfig`; it is the plan too.
    name_of_values: function from the name of a parameter to the name whose first values it gets: its own by default.
    rest:           other fields of `Family`. Everything else follows from a call of the network on shapes.
    """
    return Family(
        name=name,
        settings=settings,
        plan=partial(_checked, name),
        state_shapes=lambda plan: {key: value.shape for key, value in _built(name, plan).parameters().items()},
        initial_state=partial(_initial_state, name, name_of_values),
        smallest_batch=partial(_smallest_batch, name),
        operations=lambda plan: _called(name, plan)[1],
        **rest,
    )


def _built(name, plan):
    """Return the network whose tensors are shapes."""
    return importlib.import_module(f"{networks.__name__}.{name}.network").Network(plan)


def _called(name, plan):
    """Return (network, operations of its call, `Prediction` of shapes) for one example."""
    network = _built(name, plan)
    before = nn.Count.total
    shapes = family_of(plan).inputs(plan).values()
    output = network(*(nn.Shape(1, *shape) for shape in shapes))
    return network, nn.Count.total - before, as_prediction(output)


def _checked(name, settings):
    """Return the settings. Raises `UserError` if the network cannot be built from them, or its shapes do not fit."""
    check_channels(settings)
    advice = f"Change --image_size or the flags --{name}.*."
    try:
        _, _, prediction = _called(name, settings)
    except (ValueError, ZeroDivisionError) as error:
        raise found_expected(f"--network {name}", error, "settings whose shapes fit", advice) from error
    size = settings.image_size
    for value, channels in zip(prediction, (settings.out_channels, settings.mask_channels)):
        if value is not None and value.shape != (1, channels, size, size):
            raise found_expected(
                f"--network {name}", f"an output of shape {value.shape}", (1, channels, size, size), advice
            )
    return settings


def _initial_state(name, name_of_values, plan, tape):
    parameters = _built(name, plan).parameters()
    return {key: value.rule(tape, name_of_values(key), value.shape) for key, value in parameters.items()}


def _smallest_batch(name, plan):
    network = _called(name, plan)[0]
    fewest = [module.fewest for _, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    # A batch norm that sees one value per channel and example needs two examples to have a variance.
    return 2 if min(fewest, default=2) < 2 else 1
