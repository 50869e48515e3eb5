"""Sampling without a framework: the checkpoint's configuration, batches over cases, the folder of masks."""

from guided_diffusion_core.sampling.run import check_dataset, run_sampling, sample_batch, sampling_config

__all__ = ["check_dataset", "run_sampling", "sample_batch", "sampling_config"]
