"""Names and types of other software's state dicts and files, brought to those of a network."""

import re
from pathlib import PurePath

import numpy as np

from guided_diffusion_core import checkpoints
from guided_diffusion_core.errors import found_expected

PARALLEL = "module"  # first part of the names of a network inside DataParallel or DistributedDataParallel
COMPILED = "_orig_mod"  # part of the names of a network, or of a part of it, that torch.compile has made
COUNTER = "num_batches_tracked"  # end of the name of a batch norm's counter
_AVERAGED = "n_averaged"  # number beside the names of an average by torch.optim.swa_utils

# Names of files: savedmodel050000 and emasavedmodel_0.9999_050000 of the original, model050000 and ema_0.9999_050000 of
# guided diffusion, from which it comes. Browsers add " (1)" to the name of a second download.
_FILE_NAME = re.compile(r"(?:ema(?:savedmodel)?_(?P<rate>\d+(?:\.\d+)?)_|(?:saved)?model)(?P<step>\d+)(?: ?\(\d+\))?")


def network_and_step(path):
    """Return (network, step) according to the names of the original's files; step 0 for any other name."""
    found = _FILE_NAME.fullmatch(PurePath(str(path)).stem)
    if not found:
        return checkpoints.NETWORK, 0
    network = checkpoints.average_name(found["rate"]) if found["rate"] else checkpoints.NETWORK
    return network, int(found["step"])


def normalised(raw, path):
    """Return (arrays under the names and in the types of a network, notes).

    raw: name -> numpy array.
    """
    arrays = {}
    notes = []
    removed = set()
    if _AVERAGED in raw and all(name == _AVERAGED or name.startswith(f"{PARALLEL}.") for name in raw):
        raw = {name: value for name, value in raw.items() if name != _AVERAGED}
    for name, value in raw.items():
        bare, prefixes = _bare(name)
        removed |= prefixes
        if bare in arrays:
            raise found_expected(
                path,
                f"{bare} with and without a prefix ({PARALLEL}., {COMPILED}.)",
                "each name once",
                "Save the network again.",
            )
        arrays[bare] = value
    for prefix in sorted(removed):
        notes.append(f"The prefix {prefix}. was removed.")
    half = [name for name, value in arrays.items() if value.dtype == np.float16]
    if half:
        notes.append(f"{len(half)} tensors were widened from float16 to float32, which is exact.")
        arrays |= {name: arrays[name].astype(np.float32) for name in half}
    for name, value in arrays.items():
        if name.endswith(COUNTER) and value.dtype.kind == "i" and value.size == 1:
            # Jittor saves a counter as int32 of shape (1,)
            arrays[name] = value.astype(np.int64).reshape(())
    return arrays, notes


def _bare(name):
    """Return (name without the prefixes of DataParallel and torch.compile, set of the prefixes that it had)."""
    parts = name.split(".")
    kept = [part for part in parts if part != COMPILED]
    removed = {COMPILED} if len(kept) < len(parts) else set()
    while len(kept) > 1 and kept[0] == PARALLEL:
        kept = kept[1:]
        removed.add(PARALLEL)
    return ".".join(kept), removed
