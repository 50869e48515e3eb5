"""The folder of a training: its name, its lock, and the refusal to write over another training.

config.json                     the resolved configuration
progress.jsonl, progress.csv    the log
progress.png                    its curves
tensorboard/                    the log for TensorBoard
split.json                      names of the cases for training and for validation
validation/                     masks and scores of the newest validation
checkpoints/                    see `checkpoints/files.py`
"""

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from guided_diffusion_core.checkpoints import pointers
from guided_diffusion_core.data.splits import parse_folder
from guided_diffusion_core.errors import found_expected, join_names
from guided_diffusion_core.results.outputs import remove_outputs
from guided_diffusion_core.sampling.folder import find_reports
from guided_diffusion_core.system.files import clear_unfinished, is_local, read_bytes, write_atomic
from guided_diffusion_core.system.locks import locked_folder, require_unlocked

CONFIG = "config.json"
LOG = "progress.jsonl"
TABLE = "progress.csv"
CURVES = "progress.png"
BOARD = "tensorboard"
VALIDATION = "validation"
SUMMARY = "summary.json"
SPLIT = "split.json"
DEFAULT_ROOT = "results"
# What is left of the name of a folder without the word of a split; it says nothing without that of the folder above it.
_NAMELESS = ("", "data", "images")
_WRITTEN_BY_OTHERS = "Choose another --out_dir, or move it."


def default_folder(data_dir, resume=""):
    """Return the folder (str) of a training without `--out_dir`. Raises `UserError` if nothing names it.

    It is results/NAME after the folder of the data, so that the same command goes on with its training; a training that
    goes on from a checkpoint of another folder stays there.
    """
    if resume and resume != "last":
        folder = pointers.resolved(Path(resume))
        if folder.parent.name == pointers.root_of("").name:
            return str(folder.parent.parent)
    if not data_dir and resume:
        raise found_expected("--out_dir", "none, and no --data_dir", "the folder of the run", "Give one of the two.")
    path = Path(os.path.abspath(data_dir)) if is_local(data_dir) else PurePosixPath(data_dir)
    name = path.name
    split, rest = parse_folder(name)
    if (split or rest) and rest in _NAMELESS and path.parent.name:
        name = f"{path.parent.name}-{name}"
    return os.path.join(DEFAULT_ROOT, name or "run")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a training.

    path:      the folder (str).
    start:     folder (Path) of the checkpoint that the training goes on from, or None for a new training.
    overwrite: remove what another training has written there.
    validates: the training writes masks of a validation.
    """

    path: str
    start: Path | None = None
    overwrite: bool = False
    validates: bool = False

    def origin(self):
        """Return the folder (Path) of the training that goes on, or None."""
        return self.start and self.start.absolute().parents[1]

    @contextmanager
    def held(self):
        """Hold the folder's lock inside the block. Raises `UserError` for a folder that is in use or holds a run."""
        with locked_folder(self.path, "a training"):
            self.check()
            yield

    def require_free(self):
        """Raise `UserError` for a folder that is in use or holds a run, as `held` does, and change nothing."""
        require_unlocked(self.path)
        self.check()

    def check(self):
        """Raise `UserError` if this training would write over another one, or over files of other software."""
        self._require_own_files()
        if self.overwrite:
            return
        if self._goes_on():
            later = [folder.name for folder in self._later()]
            if later and not self._is_last(self.start):
                raise found_expected(
                    f"--out_dir {self.path}",
                    f"checkpoints after {self.start.name}: {join_names(later)}",
                    "none after the one to go on from",
                    "Give another --out_dir, or --overwrite to remove them.",
                )
            return
        found = self._found()
        if found:
            raise found_expected(
                f"--out_dir {self.path}",
                f"a training ({found})",
                "a folder without one",
                "Give --resume last to go on with it, another --out_dir, or --overwrite to remove it.",
            )

    def freed(self):
        """Return the bytes of the checkpoints that `overwrite` removes."""
        removed = []
        if self.overwrite:
            removed = self._later() if self._goes_on() else pointers.steps(self._root())
        return sum(path.stat().st_size for folder in removed for path in folder.iterdir() if path.is_file())

    def prepare(self, summary):
        """Remove what `overwrite` removes and killed runs have left, and write the configuration, a JSON text."""
        clear_unfinished(self.path)
        pointers.clear_unfinished(self.path)
        if self.overwrite and self._goes_on():
            self._remove_later()
        elif self.overwrite:
            self._remove_training()
        write_atomic(Path(self.path) / CONFIG, (summary + "\n").encode())

    def _goes_on(self):
        """Return whether the training goes on from a checkpoint of this folder."""
        return self.start is not None and self.start.resolve().parent == self._root().resolve()

    def _root(self):
        return pointers.root_of(self.path)

    def _is_last(self, folder):
        """Return whether a folder of a checkpoint is the last one of this folder."""
        last = pointers.last_folder(self.path)
        return last is not None and last.resolve() == folder.resolve()

    def _later(self):
        """Return the checkpoints after the one that the training goes on from."""
        step = pointers.step_of(self.start)
        return [folder for folder in pointers.steps(self._root()) if pointers.step_of(folder) > step]

    def _found(self):
        """Return what another training has left that cannot be made again at once, a text; "" for nothing."""
        steps = pointers.steps(self._root())
        if steps:
            return join_names(f"{folder.parent.name}/{folder.name}" for folder in steps)
        log = Path(self.path) / LOG
        return LOG if log.is_file() and log.stat().st_size else ""

    def _require_own_files(self):
        """Refuse files of other software that have the names of a training's files."""
        for name, is_own in ((CONFIG, _is_config), (LOG, _is_log), (TABLE, _is_table), (SPLIT, _is_split)):
            path = Path(self.path) / name
            if path.exists() and not (path.is_file() and is_own(read_bytes(path).decode("utf-8", "replace"))):
                raise found_expected(path, "a file that no training wrote", "none, or a training's", _WRITTEN_BY_OTHERS)
        masks = Path(self.path) / VALIDATION
        if self.validates and masks.is_dir() and any(masks.iterdir()) and not find_reports(masks):
            raise found_expected(
                masks, "files that no training wrote", "a folder for the masks of the validation", _WRITTEN_BY_OTHERS
            )

    def _remove_training(self):
        """Remove the files of a training. Those of others stay, and the folders that hold them."""
        folder = Path(self.path)
        # the pointers first: they never name a checkpoint that is gone
        for name in (pointers.LAST, pointers.BEST):
            (self._root() / name).unlink(missing_ok=True)
        for step in pointers.steps(self._root()):
            pointers.remove(step)
        clear_validation(folder / VALIDATION)
        for name in (LOG, TABLE, CURVES, SPLIT):
            (folder / name).unlink(missing_ok=True)
        for path in (folder / BOARD).glob("events.out.tfevents.*"):
            path.unlink()
        for path in (folder / VALIDATION, folder / BOARD, self._root()):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _remove_later(self):
        """Remove the checkpoints after the one that the training goes on from."""
        pointers.point(self._root() / pointers.LAST, self.start.name)
        later = self._later()
        best = self._root() / pointers.BEST
        if best.is_file() and pointers.pointed_to(best) in later:
            best.unlink()
        for folder in later:
            pointers.remove(folder)


def read_config_file(folder):
    """Return what the `config.json` in the folder of a training holds, nested dicts; {} if there is none to read.

    folder: None has none.
    """
    if folder is None:
        return {}
    try:
        tree = _parsed((Path(folder) / CONFIG).read_text("utf-8", errors="replace"))
    except OSError:
        return {}
    return {name: part for name, part in tree.items() if isinstance(part, dict)}


def clear_validation(folder):
    """Remove the masks, the scores and the report of a validation (Path). Files of others stay."""
    reports = find_reports(folder)
    if reports:
        remove_outputs(folder)
        (folder / SUMMARY).unlink(missing_ok=True)
    # last, because they tell that the masks are those of a validation
    for path in reports:
        os.remove(path)


def _is_config(text):
    return _parsed(text).keys() >= {"model", "training"}


def _is_split(text):
    return _parsed(text).keys() >= {"training", "validation"}


def _is_log(text):
    """Return whether a text is a training's log, which may have been cut by a kill."""
    first = text.split("\n", 1)[0]
    return not first or "step" in _parsed(first) or "\n" not in text and first.startswith('{"step"')


def _is_table(text):
    return not text or text.startswith("step,")


def _parsed(text):
    """Return the JSON object of a text, {} for any other text."""
    try:
        tree = json.loads(text)
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}
