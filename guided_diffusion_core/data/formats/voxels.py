"""The rules that the voxels of every volume format follow: one number per voxel, three axes."""

from guided_diffusion_core.errors import found_expected

_KINDS = {"c": "complex numbers", "V": "several numbers per voxel (such as RGB24)", "O": "Python objects"}
WIDEST = 8  # bytes of a number; wider floats exist on some machines only


def require_numbers(path, dtype):
    """Raise `UserError` for voxels that are not plain numbers, such as colours or complex numbers."""
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= WIDEST):
        return
    found = _KINDS.get(dtype.kind, f"the type {dtype}")
    if dtype.kind == "f":
        found = f"floating point numbers of {8 * dtype.itemsize} bits"
    raise found_expected(
        path,
        found,
        "one number of at most 64 bits for each voxel",
        "Convert the file, for example each colour to a file of its own, or complex numbers to their magnitude.",
    )


def spatial_shape(path, shape, of_slice=False):
    """Return the (X, Y, Z) of a stored shape without the axes of length 1 that some software appends.

    of_slice: the file holds one slice, (X, Y) or (X, Y, 1); its shape is (X, Y, 1) then.
    Raises `UserError` for another number of axes, and for an axis of length 0.
    """
    stored = tuple(int(size) for size in shape)
    spatial = stored
    while len(spatial) > 3 and spatial[-1] == 1:
        spatial = spatial[:-1]
    if of_slice and len(spatial) == 2:
        spatial = (*spatial, 1)
    if len(spatial) != 3 or min(spatial) < 1 or (of_slice and spatial[2] > 1):
        wanted = "one slice with two axes" if of_slice else "a volume with three axes"
        advice = "Replace the file."
        if len(spatial) > 3:
            advice = "Write each channel or time to a separate file."
        elif of_slice:
            advice = "Use a layout for whole volumes."
        raise found_expected(path, f"an array of shape {stored}", wanted, advice)
    return spatial
