"""The devices that a backend computes on."""

from guided_diffusion_core.errors import found_expected

DEVICES = ("cpu",)


def require_device(name):
    """Raise `UserError` unless a device of this name can compute."""
    if name not in DEVICES:
        raise found_expected("--device", repr(name), f"one of {', '.join(DEVICES)}", "Use cpu.")
