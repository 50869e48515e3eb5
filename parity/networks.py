"""The ladder of cases for a network of any family, as `parity/medsegdiff.py` has it for MedSegDiff's.

A suite for a network is a module with

    from parity.medsegdiff import inputs, open_port, weights
    from parity.networks import ladder

    CASES = ladder({"network": NAME, "image_size": 32, "NAME.width": 8})

and `python -m parity run all --suite MODULE` runs it.
"""

from parity.medsegdiff import TRAINING
from parity.protocol import Case


def ladder(model):
    """Return the cases of a network, a tuple: weights, layers, gradients, training, sampling, conversion.

    model: settings by the names of their flags; "network" is the family. A small network without zeros at its
           initial weights makes every parameter take part.
    """
    settings = {"model": model}
    sampling = {"sampler": "ddim", "eta": 0.0, "sample_steps": 6, "num_ensemble": 2}
    name = model["network"]
    return (
        Case(f"weights/{name}", "parameters and buffers as they come back, bit by bit", settings),
        Case(f"forward/{name}", "every module's output, training mode", settings),
        Case(f"forward/{name}-sampling", "every module's output, sampling mode", settings, training=False),
        Case(f"gradients/{name}", "gradient of every parameter and module input", settings),
        Case(
            f"training/{name}",
            "two batches in microbatches: losses and gradients",
            {**settings, "training": TRAINING, "steps": 2},
        ),
        Case(
            f"steps/{name}",
            "training steps end to end: losses, updates, averages, buffers",
            {**settings, "training": TRAINING, "steps": 3},
        ),
        Case(
            f"sampling/{name}", "trajectory of DDIM, state by state", {**settings, "sampling": sampling}, training=False
        ),
        Case(
            f"conversion/{name}",
            "a checkpoint through .pt, .pkl and .safetensors and back into a network",
            settings,
            precisions=("float32",),
            training=False,
        ),
    )
