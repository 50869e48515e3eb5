"""The devices that compute: what `--device` may name, and which one of a machine's that is.

A backend says which devices it finds and tries one (`find_devices` and `try_device` of its `runtime`); nothing here
depends on a framework.
"""

import os
import re
from dataclasses import dataclass

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.processes import launched

AUTO = "auto"
CPU = "cpu"
CUDA = "cuda"
MPS = "mps"  # the GPU of an Apple processor
KINDS = (CPU, CUDA, MPS)
FORMS = "auto, cpu, cuda, cuda:N or mps"  # of the flag's value, in words


@dataclass(frozen=True)
class Device:
    """A device that computes.

    name:  "cpu", "cuda:N" or "mps".
    about: its model, or why it was taken; "" if there is nothing to say.
    """

    name: str = CPU
    about: str = ""

    @property
    def kind(self):
        """Return the name without the number of the GPU."""
        return self.name.partition(":")[0]

    def __str__(self):
        return f"{self.name} ({self.about})" if self.about else self.name


@dataclass(frozen=True)
class Found:
    """The devices that a backend finds on this machine, next to the CPU.

    gpus:    the GPUs that CUDA counts, in the order of their numbers: texts such as "NVIDIA A100, 79.2 GiB".
    has_mps: there is the GPU of an Apple processor.
    missing: why there is no GPU, such as "no NVIDIA driver"; "" if there is one.
    """

    gpus: tuple = ()
    has_mps: bool = False
    missing: str = ""

    def devices(self):
        """Return the list of the `Device`s, the CPU included."""
        listed = [Device(CPU)]
        listed += [Device(f"{CUDA}:{number}", about) for number, about in enumerate(self.gpus)]
        if self.has_mps:
            listed.append(Device(MPS, "Apple GPU"))
        return listed


def visible():
    """Return a remark on the GPUs that the environment shows to CUDA, "" if it shows all."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if shown is None else f"; CUDA_VISIBLE_DEVICES is {shown!r}"


def parse(name):
    """Return (kind, number of the GPU or None) of a value of `--device`. Raises `UserError` for another one."""
    match = re.fullmatch(rf"({AUTO}|{CPU}|{CUDA}|{MPS})|{CUDA}:(\d{{1,4}})", name)
    if match is None:
        raise found_expected("--device", repr(name), FORMS, "Give one of them; cuda:0 is the first GPU.")
    kind, number = match.groups()
    return (kind, None) if kind else (CUDA, int(number))


def choose(wanted, find, attempt):
    """Return the `Device` that a value of `--device` means for this process.

    wanted:  "auto", "cpu", "cuda", "cuda:N" or "mps". "cuda" is the first GPU, or under a launcher the process' own:
             the one with the number of the process on its machine. "auto" is a GPU that works, otherwise the CPU.
    find:    function that returns the `Found` of this machine.
    attempt: function of a name that computes something small there and returns the error as a text, "" for success.
    Raises `UserError` for a device that is not there or does not work, and for more processes than GPUs.
    """
    kind, number = parse(wanted)
    if kind == CPU:
        return Device(CPU)  # looks at no GPU, which would take memory there
    found = find()
    if kind == AUTO:
        return _automatic(found, attempt)
    place = launched()
    if number is not None and place.size > 1:
        raise found_expected(
            f"--device {wanted}",
            f"one GPU for {place.size} processes of {place.launcher}",
            "a GPU for each",
            f"Give --device {CUDA}: each process then takes its own.",
        )
    device = _named(wanted, found, f"{CUDA}:{number or 0}" if kind == CUDA else MPS)
    if place.size > 1:
        device = _own(found, place)
    error = attempt(device.name)
    if error:
        raise found_expected(
            f"--device {wanted}",
            f"{device}, which does not work: {error}",
            "a GPU that computes",
            f"Mend it, or give --device {CPU}.",
        )
    return device


def _named(wanted, found, name):
    """Return the `Device` of a name. Raises `UserError` if it is not there."""
    for device in found.devices():
        if device.name == name:
            return device
    reason = f" ({found.missing})" if found.missing else ""
    raise found_expected(
        f"--device {wanted}",
        f"no such device{reason}",
        f"one that this backend finds here: {', '.join(map(str, found.devices()))}",
        "Give one of them, or leave the flag out; medsegdiff doctor lists the devices of each backend.",
    )


def _own(found, place):
    """Return the GPU of this process among several.

    found: `Found` with at least one GPU. place: `Processes`.
    Raises `UserError` if the processes on this machine are more than its GPUs.
    """
    gpus = found.devices()[1:]
    if place.local_size > len(gpus):
        raise found_expected(
            f"{place.local_size} processes of {place.launcher} on this machine",
            f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}: {', '.join(map(str, gpus))}",
            "at most one process for each GPU",
            "Start as many processes as GPUs, and let each see all of them (CUDA_VISIBLE_DEVICES); or give "
            f"--device {CPU}.",
        )
    return gpus[place.local_rank]


def _automatic(found, attempt):
    """Return the first GPU that works, in several processes only the own one; or the CPU, with the reason."""
    gpus = found.devices()[1:]
    place = launched()
    if gpus and place.size > 1:
        gpus = [_own(found, place)]
    errors = []
    for device in gpus:
        error = attempt(device.name)
        if not error:
            return device
        errors.append(f"{device} does not work: {error}")
    return Device(CPU, "; ".join(errors) or found.missing or "no GPU found")


def require_one_kind(group, device):
    """Raise the same `UserError` in all processes if they compute on devices of different kinds.

    group:  of `dist_util.setup_dist`. device: `Device` of this process.
    """
    kinds = [KINDS[int(number)] for number in group.gather([KINDS.index(device.kind)]).reshape(-1)]
    if len(set(kinds)) > 1:
        listed = ", ".join(f"process {rank} on {kind}" for rank, kind in enumerate(kinds))
        raise found_expected(
            "--device",
            listed,
            "one kind of device for all processes",
            f"Give --device {CPU}; or give --device {CUDA}, and each process without a GPU says why.",
        )
