"""Diffusion: a network learns to remove noise from a mask, and masks come out of noise."""

import torch as th

from guided_diffusion_core.noise import TRAIN_NOISE, TRAIN_TIMESTEP
from guided_diffusion_pt import runtime
from guided_diffusion_pt.build import build_process
from guided_diffusion_pt.gaussian_diffusion import weighted_total
from guided_diffusion_pt.resample import LossAwareSampler, UniformSampler, create_named_schedule_sampler
from guided_diffusion_pt.sample_util import EnsembleSampler

SAMPLER = "schedule_sampler"  # prefix of the names of arrays in a checkpoint


def create(config):
    """Return the `Diffusion` of a `Config`."""
    process = build_process(config.diffusion, config.model.learn_sigma, config.model.mask_channels)
    return Diffusion(process, create_named_schedule_sampler(config.training.schedule_sampler, process))


class Diffusion:
    """The `Method` that trains and samples a network on a process.

    process:          a process with the methods of `ProcessTensors`, such as a `GaussianDiffusion`.
    schedule_sampler: `ScheduleSampler`, from which training draws its times; None is uniform.
    """

    def __init__(self, process, schedule_sampler=None):
        self.process = process
        self.mask_channels = process.mask_channels
        self.schedule_sampler = schedule_sampler or UniformSampler(process)

    @property
    def observes(self):
        """Return whether the sampler of times follows the losses."""
        return isinstance(self.schedule_sampler, LossAwareSampler)

    def noise_shapes(self, size):
        """Return site -> shape of the noise of each mask of `size` x `size` pixels."""
        return {TRAIN_NOISE: (self.mask_channels, size, size)}

    def losses(self, network, images, masks, draws):
        """Return the terms of `training_losses_segmentation` and their weighted sum `total`, (N,) each.

        images: (N, C, S, S).
        masks:  (N, K, S, S), above 0 inside.
        draws:  `BatchDraws` of the examples.
        """
        t, weights = self.schedule_sampler.draw(draws.uniform(TRAIN_TIMESTEP))
        noise = runtime.to_tensor(draws.normal(TRAIN_NOISE, tuple(masks.shape[1:])), dtype=runtime.precision())
        x_start = th.cat([images, masks], dim=1)  # (N, C + K, S, S)
        terms, _ = self.process.training_losses_segmentation(network, None, x_start, t, noise=noise)
        return {"total": weighted_total(terms, runtime.to_tensor(weights)), **terms}

    def observe(self, draws, losses):
        """Pass the losses of an optimizer step to the sampler of times, which follows them."""
        t, _ = self.schedule_sampler.draw(draws.uniform(TRAIN_TIMESTEP))
        self.schedule_sampler.update_with_losses(t, losses["loss"])

    def state(self):
        """Return the state of the sampler of times, name -> numpy array."""
        return {f"{SAMPLER}/{name}": value for name, value in self.schedule_sampler.state().items()}

    def restore(self, arrays):
        """Continue from the arrays that `state` returned."""
        self.schedule_sampler.restore({name.removeprefix(f"{SAMPLER}/"): value for name, value in arrays.items()})

    def sampler(self, network, sampling, tape):
        """Return the `EnsembleSampler` of the network."""
        return EnsembleSampler(network, self.process, sampling, tape)
