"""Every accepted difference: between the two backends, and from the original.

Both lists are exact: a difference that is not listed fails a test, and so does an entry without
a difference behind it (`tests/test_mirror.py`, `tests/test_ledger.py`).
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class MirrorDifference:
    """A public name that the two backends do not share with the same parameters and defaults.

    name:    module, and the name in it, such as "runtime.prepare" or "nn.Dropout.__init__".
    pytorch: its signature there as Python writes it, "" for a name without one; None: absent.
    jittor:  the same.
    """

    name: str
    pytorch: str | None
    jittor: str | None
    reason: str


MIRROR_DIFFERENCES = (
    MirrorDifference("runtime.prepare", None, "()",
                     "Jittor reads its settings when it is imported; torch needs no preparation"),
    MirrorDifference("runtime.link_onednn", None, "(folder)",
                     "Jittor looks for oneDNN in one folder and else downloads it; torch brings its own"),
    MirrorDifference("runtime.jt", None, "", "Jittor, imported by `runtime` after the preparation"),
)


@dataclass(frozen=True)
class UpstreamDifference:
    """A place where this software does not do what the original does.

    where:    file, line or flag of the original (ImprintLab/MedSegDiff, commit 28b343f).
    original: what happens there.
    ours:     what happens here.
    reason:   why.
    test:     the test that shows it, "tests/test_x.py::test_name".
    """

    where: str
    original: str
    ours: str
    reason: str
    test: str


UPSTREAM_DIFFERENCES = ()
