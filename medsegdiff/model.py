"""A trained network in Python: load a checkpoint, segment an array, a file or a folder."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from guided_diffusion_core import checkpoints, sampling
from guided_diffusion_core.backends import BACKENDS, backend_module, installed_backends, start_backend
from guided_diffusion_core.config import Config, setting_names
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.data.single import open_array, open_file
from guided_diffusion_core.errors import found_expected, join_names
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.results.fusion import fuse
from guided_diffusion_core.results.outputs import native_masks, to_native
from medsegdiff.sampling import folder_run, open_folder


@dataclass(frozen=True)
class Segmentation:
    """The masks of one image or volume, at its own size.

    In the shapes, (...) is (H, W) for a picture and (D, H, W) for a volume, D its axial slices. A network of K > 1
    labels puts the axis K first: (K, H, W) or (K, D, H, W).

    name:        the case's name.
    labels:      names of the K masks.
    mask:        bool (...): where the probability reaches the threshold.
    probability: float32 (...), 0 to 1: the fused ensemble.
    uncertainty: float32 (...), 0 to 0.5: the spread of the ensemble; zero for one member.
    members:     float32 (M, ...), 0 to 1: the M sampled masks.
    """

    name: str
    labels: tuple[str, ...]
    mask: np.ndarray
    probability: np.ndarray
    uncertainty: np.ndarray
    members: np.ndarray


class Model:
    """A trained network and its diffusion process, made by `load`.

    path:    the checkpoint's file.
    backend: name of the backend that computes.
    device:  name of the device that computes, such as "cpu" or "cuda:0".
    config:  `Config` of the training.
    """

    def __init__(self, path: Path, backend: str) -> None:
        self.path = path
        self.backend = backend
        self._device = backend_module(backend, "runtime").current.device
        self.device = self._device.name
        self._network, self.config = backend_module(backend, "build").load_network(path)

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}, backend={self.backend!r})"

    def segment(
        self,
        source: np.ndarray | str | PathLike,
        *,
        name: str | None = None,
        seed: int | None = None,
        batch_size: int = 1,
        **settings: Any,
    ) -> Segmentation:
        """Segment one image or volume.

        source:     a picture (H, W, C), C = 1 or 3: uint8 or uint16 as stored in a file, or floating point in [0, 1];
                    a volume (D, H, W, C) in the intensities of the files, D axial slices; or the path of a picture,
                    of a volume, or of a folder with one case in the layout of the training.
        name:       the name of an array's case, "array" by default. The noise is keyed by it: an array gets the masks
                    of a file of the same pixels only under the file's name without its ending.
        seed:       of the noise; None takes that of the training.
        batch_size: slices of a volume that are sampled at once.
        settings:   of the sampling, by the names of the flags of `medsegdiff sample`, such as num_ensemble=5,
                    sampler="ddim", sample_steps=10, threshold=0.5, fusion="mean".
        The result is that of `medsegdiff sample` on the same file with the same settings.
        Raises `UserError` for a source that is not clearly what the network was trained on, TypeError for an
        unknown setting.
        """
        config = self._sampling_config(settings, seed, "sampling")
        dataset = self._open(source, config, name)
        sampling.check_dataset(dataset, config, batch_size)
        sampling.check_ensemble(dataset, config, batch_size)
        [case] = dataset.cases()
        members = self._members(dataset, case, config, batch_size)
        return _segmentation(case, dataset.labels, members, config.sampling)

    def segment_folder(
        self,
        data_dir: str | PathLike,
        out_dir: str | PathLike,
        *,
        seed: int | None = None,
        batch_size: int = 1,
        resume: bool = False,
        **settings: Any,
    ) -> Path:
        """Segment every case of a folder, as `medsegdiff sample` does, and return the folder of the masks.

        data_dir:   the data, in the layout of the training unless data_name says another.
        out_dir:    folder for the masks, probabilities, uncertainties, overlays and run_report.json.
        batch_size: images at once.
        resume:     keep the cases whose masks are there; they must come from the same settings.
        settings:   as in `segment`, and those of the data: data_name, slices.
        Raises `UserError` as `medsegdiff sample` does, TypeError for an unknown setting.
        """
        given = {**settings, "data_dir": str(data_dir)}
        config = self._sampling_config(given, seed, "sampling", "data")
        dataset = open_folder(config, batch_size)
        run = folder_run(
            self.backend,
            self.path,
            config,
            dataset,
            out_dir,
            batch_size,
            resume=resume,
            device=str(self._device),
            gpu_memory_mib=backend_module(self.backend, "runtime").gpu_memory_mib,
        )
        run.run(self._sampler(config))
        return Path(out_dir)

    def _sampling_config(self, given: dict, seed: int | None, *sections: str) -> Config:
        known = setting_names(*sections)
        unknown = [name for name in given if name not in known]
        if unknown:
            raise TypeError(f"unknown settings: {join_names(unknown)}; known are {', '.join(known)}")
        chosen = given if seed is None else {**given, "seed": seed}
        return sampling.sampling_config(self.path, chosen)

    def _open(self, source, config: Config, name: str | None):
        """Return the dataset of one case."""
        if not isinstance(source, str | PathLike):
            return open_array(source, config, name or "array")
        if name is not None:
            raise found_expected("name", repr(name), "none for a path, whose case has the file's name", "Leave it out.")
        if not Path(source).is_dir():
            return open_file(source, config)
        dataset = open_dataset(config.replace(data_dir=str(source)).data, config.model.image_size, "Test", False)
        cases = [case.name for case in dataset.cases()]
        if len(cases) != 1:
            raise found_expected(source, f"{len(cases)} cases ({join_names(cases)})", "one", "Use segment_folder.")
        return dataset

    def _sampler(self, config: Config):
        # another model of this process may compute elsewhere
        backend_module(self.backend, "runtime").set_device(self._device)
        method = backend_module(self.backend, "methods").create_method(config)
        return method.sampler(self._network, config.sampling, NoiseTape(config.seed))

    def _members(self, dataset, case, config: Config, batch_size: int) -> np.ndarray:
        """Sample all examples of a case: (M, n, K, S, S)."""
        sampler = self._sampler(config)
        # a batch is filled up to this size, so that a mask does not depend on how many examples are left
        size = min(batch_size, len(case.indices))
        batches = []
        for start in range(0, len(case.indices), size):
            examples = [dataset[index] for index in case.indices[start : start + size]]
            batches.append(sampling.sample_batch(sampler, examples, size))
        return np.concatenate(batches, axis=1)


def load(path: str | PathLike, backend: str | None = None, device: str = "auto", threads: int | None = None) -> Model:
    """Load a trained network.

    path:    a training's folder (its last checkpoint), a checkpoint's folder or file, or OUT_DIR/checkpoints/best.
    backend: "pytorch" or "jittor"; None takes the first one that is installed.
    device:  "auto", which takes a GPU if one works; "cpu", "cuda", "cuda:N" or "mps".
    threads: how many compute; None leaves that to the framework.
    Raises `UserError` for a path without a checkpoint, for a backend that is not installed, and for a device that is
    not there.
    """
    backend = choose_backend(backend)
    path = checkpoints.find(str(path))
    start_backend(backend, threads=threads, device=device)
    return Model(path, backend)


def choose_backend(backend: str | None) -> str:
    """Return the name of a backend, the first installed one for None. Raises `UserError` for an unknown name."""
    if backend is None:
        return installed_backends()[0]
    if backend not in BACKENDS:
        raise found_expected("backend", repr(backend), " or ".join(BACKENDS), "Choose one of them.")
    return backend


def _segmentation(case, labels, members, settings) -> Segmentation:
    """Return the result of the members (M, n, K, S, S) of a case, at its native size."""
    probability, uncertainty = fuse(members, settings.fusion)  # (n, K, S, S) each
    probability = to_native(case, probability, len(labels))
    arrays = {
        "mask": native_masks(case, probability, settings.threshold),
        "probability": probability,
        "uncertainty": to_native(case, uncertainty, len(labels)),
        "members": np.stack([to_native(case, np.clip(member, 0, 1), len(labels)) for member in members]),
    }
    if case.is_volume:
        arrays = {name: np.moveaxis(array, -1, -3) for name, array in arrays.items()}  # (X, Y, Z) -> (D, H, W)
    if len(labels) == 1:
        arrays = {name: array.squeeze(1 if name == "members" else 0) for name, array in arrays.items()}
    return Segmentation(case.name, tuple(labels), **{name: np.ascontiguousarray(a) for name, a in arrays.items()})
