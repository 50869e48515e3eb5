"""The batches of a sampling: which examples are sampled together, and the call of the sampler."""

import numpy as np

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.room import memory_for


def batches_of(chosen, left, size):
    """Return the (case, index) of the chosen cases in batches, without the batches whose cases are all finished.

    A batch that is kept still has its finished cases: a mask can depend in the last bit on the other examples of its
    batch, and so must not depend on where an earlier run stopped.
    """
    queue = [(case, index) for case in chosen for index in case.indices]
    names = {case.name for case in left}
    batches = (queue[start : start + size] for start in range(0, len(queue), size))
    return [batch for batch in batches if any(case.name in names for case, _ in batch)]


def _require_finite(members, keys):
    """Refuse masks (M, N, ...) with NaN or infinity. Raises a `UserError` that names the first such example."""
    broken = ~np.isfinite(members).all(axis=(0, *range(2, members.ndim)))  # (N,)
    if broken.any():
        raise found_expected(
            f"sampling of {keys[int(np.argmax(broken))]}",
            "values in the mask that are not finite",
            "finite ones",
            "Use DDIM (--sampler ddim), which needs no learned variance, or more --sample_steps, or train longer.",
        )


def _less_memory():
    """Return what the user of a sampling can do when memory runs out."""
    return (
        "Give a smaller --batch_size or --num_ensemble, or --mixed_precision bf16, and another --out_dir; or free "
        "memory and go on with --continue."
    )


def sample_batch(sampler, examples, size):
    """Sample the masks of N examples in a batch of a fixed size, in which the examples are repeated until it is full.

    sampler:  see `run.SamplingRun.run`.
    examples: list of `Example`, at most `size`.
    Returns (members, N, K, S, S). Raises `UserError` for values that are not finite, and for too little memory.
    """
    filled = [examples[row % len(examples)] for row in range(size)]
    keys = [example.noise_key for example in filled]
    images = np.stack([example.image for example in filled])
    shape = f"{images.shape[-2]}x{images.shape[-1]}"
    with memory_for("sampling", f"--batch_size {size} at {shape} pixels, each image with its ensemble", _less_memory):
        members = sampler(images, keys)
    _require_finite(members, keys)
    return members[:, : len(examples)]
