"""The dump: the recorded tensors of one backend, in files that can be read without a framework.

A dump is a folder with `manifest.json` and two files per section: a JSON file (the entries in order) and a
safetensors file (their tensors). `parity/README.md` describes the format for other implementations. A
section is one case in one precision, either as it runs or with every layer run by itself. Variants with
numbers perturbed by one ulp measure the rounding error of the reference; only their distances are kept.
"""

import json
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.files import write_atomic

FORMAT = "parity-dump"
VERSION = 1
MANIFEST = "manifest.json"
# Variants of a section: the case as it runs, and every layer run by itself.
PLAIN = "plain"
LAYERS = "layers"
# Further variants of each, which measure the error of the reference. As it runs: all weights perturbed by one ulp.
# Layers by themselves: their weights and inputs, each number up or down at random (equal numbers alike).
PERTURBED = {PLAIN: ("one ulp up", "one ulp down"), LAYERS: tuple(f"layers, one ulp, draw {k}" for k in (1, 2, 3))}


@dataclass(frozen=True)
class Entry:
    """One recorded tensor.

    rung:   kind of tensor: "output", "gradient", "update", ... site: its place, such as "hwm.td.0#0".
    tensor: its name in the section's file; several entries may share a tensor.
    dtype, shape: those in the file.
    """

    rung: str
    site: str
    tensor: str
    dtype: str
    shape: tuple

    @property
    def key(self):
        """Name of the entry, unique in its section."""
        return f"{self.rung}/{self.site}"


@dataclass
class SectionKey:
    """Base class of everything that belongs to one case, precision and variant."""

    case: str
    precision: str
    variant: str = PLAIN

    @property
    def key(self):
        """(case, precision, variant), which identifies a section in its dump."""
        return (self.case, self.precision, self.variant)


@dataclass
class Section(SectionKey):
    """One case in one precision, recorded once.

    entries:  list of `Entry` in the order of computation.
    draws:    the noise tape's draws in order: [site, step, case, member, digest].
    settings: of the case. types: module name -> class.
    uncalled: modules without children that were not called.
    checks:   results of the recording process's own checks, name -> bool.
    contexts: `Port.context` of each forward pass. arguments: call -> outline of its arguments.
    tensors:  name -> numpy array.
    errors:   only in perturbed variants, which have neither entries nor tensors: key -> distance from the
              plain float64 run, RMS and largest.
    """

    entries: list = field(default_factory=list)
    draws: list = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    types: dict = field(default_factory=dict)
    uncalled: list = field(default_factory=list)
    checks: dict = field(default_factory=dict)
    contexts: list = field(default_factory=list)
    arguments: dict = field(default_factory=dict)
    errors: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)

    def array(self, entry):
        """Return the numpy array of an entry."""
        return self.tensors[entry.tensor]

    def by_key(self):
        """Return the entries as a dict, key -> `Entry`."""
        return {entry.key: entry for entry in self.entries}


class Dump:
    """A dump on disk. Its manifest names the sections; `load` reads one.

    backend: name of the backend that computed it. versions, flags: dicts of text.
    files:   (case, precision, variant) -> name of the section's files, without suffix.
    """

    def __init__(self, folder, backend, versions, flags, files=()):
        self.folder = Path(folder)
        self.backend = backend
        self.versions = versions
        self.flags = flags
        self.files = dict(files)

    def load(self, *key):
        """Read the `Section` of (case, precision, variant); None if the dump does not have it.

        Raises `UserError` if its files do not match.
        """
        if key not in self.files:
            return None
        return read_section(self.folder / self.files[key])

    def cases(self):
        """Return the names of the cases, in order, each once."""
        return list(dict.fromkeys(case for case, _, _ in self.files))

    def add(self, key, stem):
        """Add a section that `write_section` has written to the manifest."""
        self.files[tuple(key)] = stem
        sections = [
            {"case": case, "precision": precision, "variant": variant, "file": file}
            for (case, precision, variant), file in self.files.items()
        ]
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "backend": self.backend,
            "versions": self.versions,
            "flags": self.flags,
            "sections": sections,
        }
        write_atomic(self.folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def section_stem(*key):
    """Return the name of the files of the section (case, precision, variant), without suffix."""
    return re.sub(r"[^A-Za-z0-9]+", "-", " ".join(key))


def write_section(folder, section):
    """Write the two files of a `Section`."""
    stem = Path(folder) / section_stem(*section.key)
    arrays = {name: np.require(array, requirements="C") for name, array in section.tensors.items()}
    write_atomic(f"{stem}.safetensors", save(arrays))
    tree = {name: value for name, value in vars(section).items() if name not in ("tensors", "entries")}
    tree["entries"] = [asdict(entry) for entry in section.entries]
    write_atomic(f"{stem}.json", json.dumps(tree, indent=0).encode())


def read_dump(folder):
    """Return the `Dump` in a folder. Raises `UserError` if the folder is not a dump or has no section."""
    path = Path(folder) / MANIFEST
    with _manifest_errors(path):
        tree = json.loads(path.read_text(encoding="utf-8"))
        if (tree["format"], tree["version"]) != (FORMAT, VERSION):
            raise found_expected(
                path,
                f"format {tree['format']} {tree['version']}",
                f"{FORMAT} {VERSION}",
                "Record the dump again with this version.",
            )
        files = {(row["case"], row["precision"], row["variant"]): row["file"] for row in tree["sections"]}
        dump = Dump(folder, tree["backend"], tree["versions"], tree["flags"], files)
    if not files:
        raise found_expected(path, "no section", "at least one recorded case", "Run a case first.")
    return dump


def read_section(stem):
    """Read the `Section` in STEM.json and STEM.safetensors. Raises `UserError` if they do not match."""
    section = _read_entries(Path(f"{stem}.json"))
    section.tensors = _read_tensors(f"{stem}.safetensors")
    _check_section(section, f"{stem}.safetensors")
    return section


def _read_entries(path):
    with _manifest_errors(path):
        tree = json.loads(path.read_text(encoding="utf-8"))
        entries = [Entry(**{**entry, "shape": tuple(entry["shape"])}) for entry in tree.pop("entries")]
        counts = Counter(entry.key for entry in entries)
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]} is recorded twice")
        return Section(**tree, entries=entries)


@contextmanager
def _manifest_errors(path):
    try:
        yield
    except OSError as error:
        raise found_expected(
            path, f"no readable file ({error.strerror})", "a dump that `run` has written", "Check the path."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise found_expected(
            path,
            f"something else ({type(error).__name__}: {error})",
            f"{FORMAT} {VERSION}",
            "See parity/README.md for the format.",
        ) from error


def _read_tensors(path):
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises different types, depending on its version
        raise found_expected(
            path, f"no readable tensors ({error})", "the file that the manifest names", "Record the dump again."
        ) from error


def _check_section(section, path):
    problems = []
    for entry in section.entries:
        array = section.tensors.get(entry.tensor)
        if array is None:
            problems.append(f"{entry.key}: no tensor {entry.tensor}")
        elif (str(array.dtype), array.shape) != (entry.dtype, entry.shape):
            problems.append(f"{entry.key}: {array.dtype} {array.shape}, the manifest says {entry.dtype} {entry.shape}")
    if problems:
        raise UserError(f"{path}: does not match its manifest: {'; '.join(problems[:5])}. Record the dump again.")
