"""Trainings for `test_processes.py`, which run in one process, or in several that a launcher starts.

Usage: torchrun|mpirun ... tests/support/processes_worker.py BACKEND OUT_DIR. The processes write their results there.
"""

import sys
from hashlib import sha256
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.backends import Backend
from support.small import NETWORK_V1, RandomDataset, computing, small_config

STEPS = 2
# Sizes are those of each of two processes. The case has time steps that are drawn by their losses (from the second step
# on, since there are two), a smaller last microbatch, dropout in the highway network, and augmentation. The deepest
# batch norm of version new sees one value per channel and example at 32 px.
MICROBATCHES = {
    "schedule_sampler": "loss-second-moment",
    "timestep_respacing": "2",
    "batch_size": 3,
    "microbatch": 2,
    "highway_dropout": 0.2,
    "weight_decay": 0.01,
    "augment_flip": "both",
    "ema_rate": "0.9,0.99",
    "history_per_term": 3,
}
# Only PyTorch runs the cases that are slow in Jittor's float64: their code is the same in both backends.
TRAININGS = {
    "jittor": {"plain": {"batch_size": 2, "highway_dropout": 0.0}},
    "pytorch": {
        "plain": {"batch_size": 2, "highway_dropout": 0.0},
        "microbatches": MICROBATCHES,
        "v1-checkpointed": {**NETWORK_V1, "batch_size": 2, "use_checkpoint": True, "highway_dropout": 0.0},
    },
}


def settings(backend, name, processes):
    """Return (Config, history) of a training for one process of `processes`. Two processes share the batch.

    history: number of losses of each time step that the choice of time steps takes.
    """
    chosen = dict(TRAININGS[backend][name])
    history = chosen.pop("history_per_term", 10)
    for flag in ("batch_size", "microbatch"):
        if flag in chosen:
            chosen[flag] = chosen[flag] * 2 // processes
    return small_config(**chosen, max_steps=STEPS, processes=processes), history


def trained(backend, name, processes):
    """Train and return name -> float64 array: the values and gradients of each step, and the final state."""
    config, history = settings(backend.name, name, processes)
    loop = backend.module("train_util").create_train_loop(config, RandomDataset(length=7))
    sampler = loop.method.schedule_sampler
    if hasattr(sampler, "history"):
        loop.method.schedule_sampler = type(sampler)(loop.method.process, history_per_term=history)
    step = loop.opt.step
    seen = {}

    def recording(gradients, lr):
        seen.update(
            {
                f"gradient/{loop.step}/{parameter}": backend.module("runtime").to_numpy(gradient)
                for parameter, gradient in zip(loop.names, gradients)
            }
        )
        step(gradients, lr)

    loop.opt.step = recording
    for number, values in loop.run_loop(STEPS):
        seen.update({f"value/{number}/{term}": np.asarray(value) for term, value in values.items()})
    for kind, arrays in loop.networks().items():
        seen.update({f"{kind}/{parameter}": value for parameter, value in arrays.items()})
    return seen


def digest(arrays):
    """Return a checksum, by which two processes find that they have the same bits."""
    return sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()


def main():
    backend = Backend(sys.argv[1])
    out_dir = Path(sys.argv[2])
    backend.module("runtime")
    group = backend.module("dist_util").setup_dist()
    with computing("float64", backend):
        for name in TRAININGS[backend.name]:
            seen = trained(backend, name, group.size)
            (out_dir / f"{name}-{group.rank}.sha256").write_text(digest(seen))
            if group.rank == 0:
                np.savez(out_dir / f"{name}.npz", **seen)
    group.close()


if __name__ == "__main__":
    main()
