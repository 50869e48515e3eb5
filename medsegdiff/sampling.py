"""Sampling of a folder, for the command and for `Model.segment_folder`."""

from hashlib import sha256

from guided_diffusion_core import command_line, sampling
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.system.files import read_bytes
from guided_diffusion_core.system.processes import Alone


def open_folder(config, batch_size):
    """Return the dataset of a configuration's data_dir, checked against the network. Raises `UserError`."""
    dataset = open_dataset(config.data, config.model.image_size, "Test", need_masks=False)
    sampling.check_dataset(dataset, config, batch_size)
    return dataset


def summary_of(backend, path, config, dataset, out_dir, batch_size):
    """Return the resolved configuration of a sampling as a JSON text, for its report."""
    return command_line.configuration_text(
        config,
        backend=backend,
        model_path=str(path),
        model_sha256=sha256(read_bytes(path)).hexdigest(),
        out_dir=str(out_dir),
        batch_size=batch_size,
        images=len(dataset),
    )


def sample_folder(
    sampler, backend, path, config, dataset, out_dir, batch_size, part_id=0, num_parts=1, resume=False, group=None
):
    """Sample the cases of a dataset into a folder; the arguments are those of `sampling.run_sampling`."""
    sampling.run_sampling(
        sampler,
        dataset,
        str(out_dir),
        batch_size,
        config.sampling.threshold,
        summary_of(backend, path, config, dataset, out_dir, batch_size),
        config.sampling.fusion,
        part_id,
        num_parts,
        resume,
        group or Alone(),
    )
