"""The memory of a training step, counted: `python -m benchmarks memory` prints the table of docs/devices.md.

The forward pass and the loss run on the CPU, in the operators that a GPU takes too, and every tensor that is kept for
the backward pass is counted once. Not counted: what operators need on the way, gaps in the allocator's memory, and what
CUDA takes itself. A GPU keeps no weights of attention between positions, which are counted here.
"""

import gc
import itertools

from tqdm import tqdm

from benchmarks import cases
from guided_diffusion_core.backends import backend_module, start_backend
from guided_diffusion_core.config import resolve
from guided_diffusion_core.noise import NoiseTape

BACKEND = "pytorch"
GIB = 2**30
# Column of the table -> (mixed precision, --use_checkpoint).
COLUMNS = {"float32": ("no", False), "bf16": ("bf16", False), "float32, `--use_checkpoint True`": ("no", True)}
STATE = 5  # tensors for each parameter: weight, gradient, two moments of AdamW, moving average


def kept_bytes(case, mixed_precision="no", use_checkpoint=False):
    """Return (bytes of the parameters, bytes that a step keeps for its backward pass). The latter hold copies of the
    weights in 16 bits.

    case: `cases.Case`, with its batch. mixed_precision: "no", "bf16" or "fp16".
    use_checkpoint: activations are computed again in the backward pass.
    """
    import torch

    runtime = start_backend(BACKEND, mixed_precision=mixed_precision)
    runtime.use_generic(True)
    try:
        config = resolve({**cases.settings(case), "use_checkpoint": use_checkpoint})
        model, process = backend_module(BACKEND, "build").build(config, cases.weights(case))
        model.train()
        backend_module(BACKEND, "nn").set_dropout_noise(model, NoiseTape(0), 0, range(case.batch))
        inputs = cases.inputs(case)
        batch, noise = (runtime.to_tensor(inputs[name]) for name in ("x", "noise"))
        own = {value.untyped_storage().data_ptr() for value in model.parameters()}
        sizes = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # the terms hold the graph, and with it every tensor that was seen
            terms, _ = process.training_losses_segmentation(model, None, batch, inputs["t"], noise=noise)
        assert terms["loss"].requires_grad
        return sum(value.numel() * value.element_size() for value in model.parameters()), sum(sizes.values())
    finally:
        terms = None
        gc.collect()  # a network is a circle of references; without this the next one stands next to it
        runtime.use_generic(False)
        runtime.set_mixed_precision("no")


def table(widths, sizes):
    """Return the table as Markdown: GiB of the state, of each example in each of `COLUMNS`, and of a step's weights in
    16 bits."""
    heads = ["`--num_channels`", "`--image_size`", "state", *(f"each example, {name}" for name in COLUMNS), "copies"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for width, size in tqdm(list(itertools.product(widths, sizes)), unit="network"):
        examples = []
        for column in COLUMNS.values():
            # one example more, so that what a step keeps once does not count
            (parameters, one), (_, two) = (
                kept_bytes(cases.Case("training", "new", size, batch, width), *column) for batch in (1, 2)
            )
            examples.append(two - one)
            if column == COLUMNS["bf16"]:
                copies = 2 * one - two
        numbers = [STATE * parameters, *examples, copies]
        lines.append(f"| {width} | {size} | {' | '.join(f'{number / GIB:.2f}' for number in numbers)} |")
    return "\n".join(lines)
