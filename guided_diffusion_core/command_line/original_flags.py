"""Flags of the original that have no function here: accepted at their default, refused with advice otherwise."""

import argparse
import dataclasses


@dataclasses.dataclass(frozen=True)
class OriginalFlag:
    """A flag of the original without a function here.

    Its default value is accepted without a word, so that old command lines run; any other is
    refused with `instead`, which says what to do.
    """

    default: object
    instead: str


# `parity/ledger.py` gives the reasons.
ORIGINAL_FLAGS = {
    "use_fp16": OriginalFlag(False, "use --mixed_precision fp16, or bf16, which needs no scaled loss."),
    "fp16_scale_growth": OriginalFlag(
        1e-3, "the loss scale of --mixed_precision fp16 doubles after 2000 steps without overflow; leave the flag out."
    ),
    "gpu_dev": OriginalFlag("0", "the device cannot be chosen here; leave the flag out."),
    "multi_gpu": OriginalFlag(
        "", "start the command with torchrun, or mpirun for --backend jittor; leave the flag out."
    ),
    "resume_checkpoint": OriginalFlag("", "use --resume last, or --resume with the folder of a checkpoint or a run."),
    "debug": OriginalFlag(False, "probability and uncertainty are always written; leave the flag out."),
    "num_samples": OriginalFlag(1, "every case is sampled; use --num_ensemble for the samples per case."),
}


class RefuseOriginal(argparse.Action):
    """Accept an `OriginalFlag` at its default value alone."""

    def __init__(self, *args, flag, **kwargs):
        super().__init__(*args, **kwargs)
        self.flag = flag

    def __call__(self, parser, namespace, value, option_string=None):
        if value != self.flag.default:
            parser.error(f"{option_string} {value}: {self.flag.instead}")
