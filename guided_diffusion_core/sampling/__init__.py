"""Sampling without a framework: the checkpoint's configuration, batches over cases, the folder of masks."""

from guided_diffusion_core.sampling.batches import sample_batch
from guided_diffusion_core.sampling.run import SamplingRun, check_dataset, check_ensemble, sampling_config

__all__ = ["SamplingRun", "check_dataset", "check_ensemble", "sample_batch", "sampling_config"]
