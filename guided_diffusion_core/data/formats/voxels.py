"""The rules that the voxels of every volume format follow: one number per voxel, three axes."""

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.room import memory_limit, size_text

WIDEST = 8  # bytes of a number; wider floats exist on some machines only


def require_numbers(path, dtype):
    """Raise `UserError` for voxels that are not plain numbers, such as colours or complex numbers."""
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= WIDEST):
        return
    if dtype.names:
        found = f"{len(dtype.names)} numbers per voxel ({', '.join(dtype.names)})"
    elif dtype.kind == "c":
        found = "complex numbers"
    else:
        found = f"voxels of the type {dtype}"
    raise not_numbers(path, found)


def not_numbers(path, found):
    """Return the `UserError` for voxels that are not plain numbers. found: what they are, in words."""
    return found_expected(
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


def require_memory(path, count):
    """Refuse a file whose header asks for more memory than this machine has; `UserError`. count: bytes."""
    limit = memory_limit()
    if count > limit:
        raise found_expected(
            path,
            f"a header that asks for {size_text(count)}",
            f"at most {size_text(limit)}, the memory of this machine",
            "Replace the file, or cut the volume.",
        )
