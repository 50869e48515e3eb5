"""Reading of any `.safetensors` file, of this and of other software."""

import json

import numpy as np
from safetensors import SafetensorError, deserialize

from guided_diffusion_core import checkpoints
from guided_diffusion_core.conversion.stand_ins import widened
from guided_diffusion_core.conversion.state_dicts import StateDict
from guided_diffusion_core.errors import found_expected, join_names

# The format's names of the types that numpy has, and bfloat16 as its bits.
_TYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": "u2",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "b1",
}


def read_safetensors(content, where):
    """Return (`StateDict`, metadata: dict of texts) of the bytes of a file.

    where: name of the file, for errors.
    The metadata is empty if the file was not written by `checkpoints.save`. Raises `UserError` if the file is not a
    whole safetensors file, or has tensors of a type that no network here has.
    """
    try:
        # The library checks that the tensors lie in the file one after another, and have the sizes of their shapes.
        tensors = dict(deserialize(content))
        # The file begins with 8 bytes, the length of its JSON header. `deserialize` drops the metadata there.
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        strange = [f"{name} {tensor['dtype']}" for name, tensor in tensors.items() if tensor["dtype"] not in _TYPES]
        arrays = {name: _array(tensor) for name, tensor in tensors.items() if tensor["dtype"] in _TYPES}
    except (SafetensorError, ValueError, RecursionError, MemoryError) as error:
        raise found_expected(
            where, f"no readable safetensors file ({error})", "a whole safetensors file", "Copy it again."
        ) from error
    if strange:
        raise found_expected(
            where,
            f"{len(strange)} tensors of another type: {join_names(strange)}",
            f"types among {', '.join(_TYPES)}",
            "Save the network again, in float32.",
        )
    half = sum(tensor["dtype"] == "BF16" for tensor in tensors.values())
    notes = [f"{half} tensors were widened from bfloat16 to float32, which is exact."] if half else []
    return StateDict(arrays, notes), metadata if metadata.get("format") == checkpoints.FORMAT else {}


def _array(tensor):
    """Return the array of a tensor: {"shape", "dtype", "data"}."""
    values = np.frombuffer(tensor["data"], np.dtype(_TYPES[tensor["dtype"]]).newbyteorder("<"))
    values = values.astype(values.dtype.newbyteorder("=")).reshape(tensor["shape"])
    return widened(values) if tensor["dtype"] == "BF16" else values
