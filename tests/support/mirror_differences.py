"""Every accepted difference between the two backends.

The list is exact: a difference that is not listed fails `tests/house/test_mirror.py`, and so does an entry without
a difference behind it. `docs/differences.md` lists the differences from the original.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MirrorDifference:
    """A public name that the two backends do not share with the same parameters and defaults.

    name:    module, and the name in it, such as "runtime.autocast" or "nn.Dropout.__init__".
    pytorch: its signature there as Python writes it, "" for a name without one; None: absent.
    jittor:  the same.
    """

    name: str
    pytorch: str | None
    jittor: str | None
    reason: str


_HALF = "Jittor refuses 16 bits: on a CPU bfloat16 is wrong, float16 hundreds of times slower"

MIRROR_DIFFERENCES = (
    MirrorDifference(
        "runtime.__getattr__",
        None,
        "(name)",
        "Jittor reads its settings when it is imported: modules ask `runtime` for it, which starts it first",
    ),
    MirrorDifference("runtime.Current.jittor", None, "", "the imported Jittor; torch is imported as any package"),
    MirrorDifference("runtime.Current.is_started", "", None, "Jittor is started where it is imported"),
    MirrorDifference("runtime.Current.mixed_precision", "", None, _HALF),
    MirrorDifference("runtime.Current.compile", "", None, "Jittor compiles its operators in any case"),
    MirrorDifference("runtime.mixed_precision", "()", None, _HALF),
    MirrorDifference("runtime.autocast", "(tensor, enabled=True)", None, _HALF),
    MirrorDifference("runtime.widened", "(tensor)", None, _HALF),
    MirrorDifference("train_util.SCALE", "", None, _HALF),
    MirrorDifference("optim.all_finite", "(tensors)", None, _HALF),
    MirrorDifference("dist_util.PATIENCE", "", None, "MPI waits as long as it takes; torch has to be told"),
    MirrorDifference(
        "dist_util.Group.sum_into",
        None,
        "(self, values, total)",
        "MPI sums numpy arrays, in the midst of Jittor's graph too; torch sums its own tensors",
    ),
    MirrorDifference("nn.Conv1d", None, "", "torch's own serves"),
    MirrorDifference(
        "nn.Conv1d.__init__",
        None,
        "(self, in_channels, out_channels, kernel_size)",
        "torch's own serves; Jittor's ignores a bias that is assigned after construction",
    ),
    MirrorDifference("nn.Conv1d.forward", None, "(self, x)", "torch's own serves"),
    MirrorDifference("nn.kernel_format", "(network)", None, "Jittor has only one order in memory"),
)
