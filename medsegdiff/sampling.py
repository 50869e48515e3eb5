"""Sampling of a folder or of one image, for the command and for `Model.segment_folder`."""

from hashlib import sha256

from guided_diffusion_core import sampling
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.data.dataset import say_remarks
from guided_diffusion_core.data.single import open_file
from guided_diffusion_core.data.walk import saying_left_out
from guided_diffusion_core.system.files import read_bytes


def open_folder(config, batch_size):
    """Return the dataset of a configuration's data_dir, checked against the network. Raises `UserError`."""
    with saying_left_out():
        dataset = open_dataset(config.data, config.model.image_size, "Test", need_masks=False)
    say_remarks(dataset)
    sampling.check_dataset(dataset, config, batch_size)
    sampling.check_ensemble(dataset, config, batch_size)
    return dataset


def open_image(path, config, batch_size):
    """Return the dataset of one picture or volume, checked against the network. Raises `UserError`."""
    dataset = open_file(path, config)
    say_remarks(dataset)
    sampling.check_dataset(dataset, config, batch_size)
    return dataset


def run_settings(backend, path, config, dataset, out_dir, batch_size):
    """Return the resolved configuration of a sampling, JSON values by name, for its report."""
    return {
        "backend": backend,
        "model_path": str(path),
        "model_sha256": sha256(read_bytes(path)).hexdigest(),
        "out_dir": str(out_dir),
        "batch_size": batch_size,
        "images": len(dataset),
        **config.to_dict(),
    }


def folder_run(backend, path, config, dataset, out_dir, batch_size, **rest):
    """Return the `SamplingRun` of the cases of a dataset into a folder; rest: further fields of it."""
    return sampling.SamplingRun(
        dataset,
        str(out_dir),
        batch_size,
        config.sampling.threshold,
        run_settings(backend, path, config, dataset, out_dir, batch_size),
        config.sampling.fusion,
        **rest,
    )
