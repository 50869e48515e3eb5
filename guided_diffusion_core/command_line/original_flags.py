"""Accept the flags of the original.

The flags that choose a sampler are translated to `--sampler`, and the one that chooses a GPU to `--device`. The flags
without a function here are accepted at their default value and refused with advice at any other."""

import argparse
import dataclasses
import sys

from guided_diffusion_core.config import named_sampler
from guided_diffusion_core.errors import found_expected


@dataclasses.dataclass(frozen=True)
class OriginalFlag:
    """A flag of the original without a function here.

    default: accepted silently, so that old command lines run.
    instead: says what to do instead, when another value is refused.
    """

    default: object
    instead: str


# docs/differences.md gives the reasons.
ORIGINAL_FLAGS = {
    "use_fp16": OriginalFlag(False, "use --mixed_precision fp16, or bf16, which needs no scaled loss."),
    "fp16_scale_growth": OriginalFlag(
        1e-3, "the loss scale of --mixed_precision fp16 doubles after 2000 steps without overflow; leave the flag out."
    ),
    "class_cond": OriginalFlag(False, "the data sets have no class labels; leave the flag out."),
    "multi_gpu": OriginalFlag(
        "",
        "start the command with torchrun --nproc_per_node=N for N GPUs, or mpirun -np N for --backend jittor; leave "
        "the flag out.",
    ),
    "resume_checkpoint": OriginalFlag("", "use --resume last, or --resume with the folder of a checkpoint or a run."),
    "debug": OriginalFlag(False, "probability and uncertainty are always written; leave the flag out."),
    "num_samples": OriginalFlag(1, "every case is sampled; use --num_ensemble for the samples per case."),
}


class RefuseOriginal(argparse.Action):
    """Accept an `OriginalFlag` only at its default value."""

    def __init__(self, *args, flag, **kwargs):
        super().__init__(*args, **kwargs)
        self.flag = flag

    def __call__(self, parser, namespace, value, option_string=None):
        if value != self.flag.default:
            parser.error(f"{option_string} {value}: {self.flag.instead}")


# The original's flags in place of --sampler, and their help.
SAMPLER_FLAGS = {
    "use_ddim": "the original's flag: True is --sampler ddim, False --sampler ancestral",
    "dpm_solver": "the original's flag: True is --sampler dpm-solver++, and --diffusion_steps then means "
    "--sample_steps; False leaves the sampler to the other flags",
}

GPU_FLAG = "gpu_dev"
GPU_HELP = (
    "the original's flag: N is --device cuda:N; 0, the original's default, leaves the choice to --device, since the "
    "original takes the CPU where there is no GPU"
)


def translated_device(given):
    """Return the flags on a command line with `device` in place of the original's `gpu_dev`.

    given: dict of the flags on the command line, by name.
    Raises `UserError` for a value that is no number of a GPU, and for two flags that name different devices.
    """
    rest = {name: value for name, value in given.items() if name != GPU_FLAG}
    text = given.get(GPU_FLAG, "0")
    if not text.isascii() or not text.isdigit():
        raise found_expected(
            f"--{GPU_FLAG}",
            repr(text),
            "the number of one GPU",
            "Give --device cuda:N; for several GPUs, start the command with torchrun --nproc_per_node=N.",
        )
    if int(text) == 0:
        return rest
    device = f"cuda:{int(text)}"
    if rest.get("device", device) != device:
        raise found_expected(
            "--device", f"{rest['device']}, and --{GPU_FLAG} {text}", "one device", "Leave one of them out."
        )
    return {**rest, "device": device}


def translated_sampler(given):
    """Return the flags on a command line with `sampler` in place of `SAMPLER_FLAGS`.

    The original takes the number of the solver's steps from `diffusion_steps` if `dpm_solver` is on. This number
    becomes `sample_steps` here; the schedule remains the trained one, and a line on stderr says so.

    given: dict of the flags on the command line, by name.
    Raises `UserError` for two flags that name different samplers.
    """
    rest = {name: value for name, value in given.items() if name not in SAMPLER_FLAGS}
    use_ddim = given.get("use_ddim")
    dpm_solver = given.get("dpm_solver", False)
    if use_ddim is None and not dpm_solver:
        return rest
    if use_ddim and dpm_solver:
        raise found_expected("--dpm_solver", "True with --use_ddim True", "one sampler", "Leave one of them out.")
    sampler = named_sampler(use_ddim, dpm_solver)
    if rest.get("sampler", sampler) != sampler:
        raise found_expected(
            "--sampler", f"{rest['sampler']}, and the original's flags name {sampler}", "one sampler", "Leave one out."
        )
    rest["sampler"] = sampler
    return _with_solver_steps(rest) if dpm_solver else rest


def _with_solver_steps(given):
    """Return the flags with `sample_steps` in place of a `diffusion_steps` that says the same."""
    steps = given.get("diffusion_steps")
    # If both flags are given with two numbers, diffusion_steps means the schedule and is checked as such.
    if steps is None or given.get("sample_steps", steps) != steps:
        return given
    print(
        f"--diffusion_steps {steps} with --dpm_solver True: {steps} steps of the solver (as --sample_steps {steps}) "
        "on the trained schedule, which keeps its steps",
        file=sys.stderr,
    )
    rest = {name: value for name, value in given.items() if name != "diffusion_steps"}
    return {**rest, "sample_steps": steps}
