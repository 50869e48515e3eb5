"""Sampling of whole ensembles."""

import numpy as np

from guided_diffusion_core.noise import SAMPLE_INITIAL, SAMPLE_STEP
from guided_diffusion_jt import runtime
from guided_diffusion_jt.respace import with_sampling_steps
from guided_diffusion_jt.runtime import jt


class EnsembleSampler:
    """Draws an ensemble of masks for each image, all members of all images as one batch.

    model:     the network, in eval mode. diffusion: the process that it was trained on.
    sampling:  `SamplingConfig`.
    tape:      NoiseTape. A sample's noise is keyed by its case and member alone.
    """

    def __init__(self, model, diffusion, sampling, tape):
        self.model = model
        self.diffusion = with_sampling_steps(diffusion, sampling.sample_steps)
        self.sampling = sampling
        self.tape = tape

    def __call__(self, images, keys):
        """Sample masks.

        images: (N, C, S, S) float32. keys: N strings, the cases' names on the tape.
        Returns (M, N, K, S, S) float32, M = `num_ensemble`, K channels of the mask; values about 0 to 1.
        """
        ensemble = self.sampling.num_ensemble
        n, _, height, width = images.shape
        channels = self.diffusion.mask_channels
        cases = list(keys) * ensemble
        members = np.repeat(np.arange(ensemble), n)
        rows = np.tile(images, (ensemble, 1, 1, 1))  # member by member
        img = np.concatenate([rows, np.zeros((len(rows), channels, height, width), np.float32)], axis=1)

        def draw(site, step):
            noise = self.tape.normal_batch(site, (channels, height, width), step=step, cases=cases, members=members)
            return runtime.to_tensor(noise, dtype=runtime.precision())

        known = {
            "noise": draw(SAMPLE_INITIAL, 0),
            "step_noise": lambda t: draw(SAMPLE_STEP, t),
            "clip_denoised": self.sampling.clip_denoised,
            "model_kwargs": self._conditioning(images),
        }
        img = runtime.to_tensor(img, dtype=runtime.precision())
        result = self._sample_loop(self.model, tuple(img.shape), img, **known)
        masks = runtime.to_numpy(result[0]).astype(np.float32)
        return masks.reshape(ensemble, n, channels, height, width)

    def _conditioning(self, images):
        """What the network makes of the images alone, once for all steps and members: its keyword arguments."""
        with runtime.no_grad():
            parts = self.model.condition(runtime.to_tensor(images, dtype=runtime.precision()))
        if parts is None:
            return {}
        return {"conditioning": tuple(jt.concat([part] * self.sampling.num_ensemble, dim=0) for part in parts)}

    def _sample_loop(self, *args, **known):
        """The configured sampler's loop of the process."""
        if self.sampling.sampler == "dpm-solver++":
            return self.diffusion.dpm_solver_sample_loop_known(
                *args, dynamic_thresholding=self.sampling.dynamic_thresholding, **known
            )
        if self.sampling.sampler == "ddim":
            return self.diffusion.ddim_sample_loop_known(*args, eta=self.sampling.eta, **known)
        return self.diffusion.p_sample_loop_known(*args, **known)
