"""Tell what a training will need, before it starts: parameters, memory, disk, steps and epochs.

Parameters and checkpoints are exact, since they follow from the network's plan; nothing is allocated. The memory is an
estimate. The time is not known before some steps have been measured (`training.run`).
"""

import sys
from dataclasses import dataclass
from math import ceil, prod

from tqdm import tqdm

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import ema_rates
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks.registry import kept_numbers, state_shapes
from guided_diffusion_core.networks.state import is_buffer
from guided_diffusion_core.system.devices import CPU
from guided_diffusion_core.system.room import free_bytes, memory_limit, size_text
from guided_diffusion_core.training.rates import last_step

# Steps after the first one from which the time of a step is known. The first is left out: Jittor compiles in it.
STEPS_TIMED = 5
FLOAT = 4  # bytes of a number in float32
FRAMEWORK = 350 * 2**20  # bytes that a process with a framework takes before it has a network, about
# The estimate of the activations is right within this factor; what is beyond it is impossible, not only doubtful.
UNCERTAIN = 2


@dataclass(frozen=True)
class Needs:
    """The needs of a training.

    parameters:  number of trained numbers.
    state:       bytes of weights, gradients, the two moments of AdamW and the moving averages.
    activations: bytes that a forward pass keeps for the backward pass; None if nobody counted them.
    at_once:     examples of a forward pass.
    checkpoint:  bytes of one checkpoint.
    written:     checkpoints that will be written.
    kept:        checkpoints that the folder will hold at the end.
    existing:    those of them that it holds already.
    start:       number of steps so far. first: step of the first checkpoint. steps: step of the end.
    batch:       examples of a step, over all processes.
    examples:    those of the data.
    validates:   the training samples masks in between, with a network of its own.
    """

    parameters: int
    state: int
    activations: int | None
    at_once: int
    checkpoint: int
    written: int
    kept: int
    existing: int
    start: int
    first: int
    steps: int
    batch: int
    examples: int
    validates: bool

    @property
    def memory(self):
        """Return the bytes of a process, about."""
        validation = FLOAT * self.parameters if self.validates else 0
        return FRAMEWORK + self.state + validation + (self.activations or 0)

    @property
    def disk(self):
        """Return the bytes that the checkpoints to come need at least, beside those that are there."""
        if not self.written:
            return 0
        # One is written before another one is removed.
        return max(1, self.held - self.existing) * self.checkpoint

    @property
    def held(self):
        """Return the number of checkpoints that the folder has to hold at once."""
        return max(self.kept, min(2, self.existing + self.written))

    def lines(self, out_dir):
        """Return the text for the user, a list of lines."""
        root = checkpoints.root_of(out_dir)
        activations = (
            "an unknown amount for activations"
            if self.activations is None
            else f"{size_text(self.activations)} for the activations of {_counted(self.at_once, 'example')}"
        )
        epochs = self.steps * self.batch / self.examples
        return [
            f"parameters: {self.parameters:,}",
            f"memory: about {size_text(self.memory)} in each process: {size_text(self.state)} for weights, gradients, "
            f"averages and AdamW, {activations}; this machine gives {size_text(memory_limit())}",
            f"disk: {_counted(self.kept, 'checkpoint')} of {size_text(self.checkpoint)} in {root}, where "
            f"{size_text(free_bytes(out_dir))} are free",
            f"length: {_counted(self.steps, 'step')} of {_counted(self.batch, 'example')}, {epochs:,.1f} epochs of "
            f"{_counted(self.examples, 'example')}; the first checkpoint after step {self.first}",
            f"time: known after step {self.start + 1 + STEPS_TIMED}",
        ]

    def require_possible(self, out_dir, device=CPU, freed=0):
        """Raise `UserError` for a training that cannot fit into this machine's memory or disk.

        device: its name; on a GPU, this machine's memory holds no more than a checkpoint.
        freed:       bytes of the checkpoints that will be removed first.
        """
        limit = memory_limit()
        held = self.state if device == CPU else self.checkpoint
        if held > limit:
            raise found_expected(
                "the network",
                f"{self.parameters:,} parameters, which need at least {size_text(held)} of this machine's memory",
                f"at most the {size_text(limit)} that it gives",
                "Choose a smaller network, such as a smaller --num_channels.",
            )
        if device == CPU and held + (self.activations or 0) / UNCERTAIN > limit:
            raise found_expected(
                "--batch_size",
                f"forward passes of {self.at_once:,} examples, which need about {size_text(self.memory)} of memory",
                f"at most {size_text(limit)}, the memory of this machine",
                "Give a smaller --batch_size, --microbatch or --image_size, or --use_checkpoint True.",
            )
        free = free_bytes(out_dir) + freed
        if self.disk > free:
            raise found_expected(
                f"--out_dir {out_dir}",
                f"{size_text(free)} free",
                f"{size_text(self.disk)} for the checkpoints: {self.held} of {size_text(self.checkpoint)} at once",
                "Make room, choose another --out_dir, or give a smaller --keep_checkpoints or a larger "
                "--save_interval.",
            )


def say_needs(folder, config, examples, step, device):
    """Print what a training needs, on stderr. Raises `UserError` if this machine does not have it.

    folder: `RunFolder`.
    config, examples, step: as `estimate` takes them.
    device: `Device`, or the value of `--device`: which device "auto" means is known when the framework has started.
    """
    needs = estimate(config, examples, folder, step)
    for line in needs.lines(folder.path):
        tqdm.write(line, file=sys.stderr)
    needs.require_possible(folder.path, str(device).split()[0], folder.freed())


def estimate(config, examples, folder, step=0):
    """Return the `Needs` of a training.

    config:    `Config`. examples: number of examples of the data.
    folder:    `RunFolder`, which may hold checkpoints. step: number of steps so far.
    """
    training = config.training
    shapes = state_shapes(config.model)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    parameters = sum(size for name, size in sizes.items() if not is_buffer(name))
    averages = len(ema_rates(training))
    steps = last_step(training)
    at_once = training.microbatch if training.microbatch > 0 else training.batch_size
    written = ceil(steps / training.save_interval) - step // training.save_interval if steps > step else 0
    existing = len(checkpoints.folders_until(folder.path, step)) if step else 0
    kept = existing + written
    if training.keep_checkpoints:
        # the best one stays beside the newest ones
        kept = min(kept, training.keep_checkpoints + folder.validates)
    return Needs(
        parameters=parameters,
        # weights, gradients and two moments, and the averages
        state=FLOAT * (parameters * (4 + averages) + sum(sizes.values()) - parameters),
        activations=_activations(config, at_once),
        at_once=at_once,
        # the network and its averages with their buffers, and two moments
        checkpoint=FLOAT * ((1 + averages) * sum(sizes.values()) + 2 * parameters),
        written=written,
        kept=kept,
        existing=min(existing, kept),
        start=step,
        first=min((step // training.save_interval + 1) * training.save_interval, steps),
        steps=steps,
        batch=training.batch_size * config.processes,
        examples=examples,
        validates=folder.validates,
    )


def _activations(config, examples):
    """Return the bytes that a forward pass of some examples keeps, or None."""
    kept = kept_numbers(config.model)
    if kept is None:
        return None
    size = FLOAT if config.compute.mixed_precision == "no" else FLOAT // 2
    return kept * size * examples


def _counted(count, noun):
    return f"{count:,} {noun}{'s' * (count != 1)}"
