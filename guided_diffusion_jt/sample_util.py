"""Sampling of ensembles of masks."""

import numpy as np

from guided_diffusion_core.diffusion.solvers import SOLVERS
from guided_diffusion_core.noise import SAMPLE_INITIAL, SAMPLE_STEP
from guided_diffusion_jt import runtime
from guided_diffusion_jt.process import on_image
from guided_diffusion_jt.runtime import jt
from guided_diffusion_jt.solver import Solver


class EnsembleSampler:
    """A sampler of an ensemble of masks for each image, with all members of all images in one batch.

    model:     the network, in eval mode.
    diffusion: the process that it was trained on (`ProcessTensors`).
    sampling:  `SamplingConfig`.
    tape:      `NoiseTape`. The noise of a sample depends only on its case and member.
    """

    def __init__(self, model, diffusion, sampling, tape):
        self.model = model
        self.sampling = sampling
        self.tape = tape
        times = diffusion.times(sampling.sample_steps)
        steps = SOLVERS[sampling.sampler](diffusion, times, sampling)
        self.solver = Solver(diffusion, steps, sampling.clip_denoised, sampling.dynamic_thresholding)

    def __call__(self, images, keys):
        """Sample masks.

        images: (N, C, S, S) float32.
        keys:   N strings, the names of the cases on the noise tape.
        Returns (M, N, K, S, S) float32, about 0 to 1, with the M members of the ensemble and K channels of the mask.
        """
        ensemble = self.sampling.num_ensemble
        n, _, height, width = images.shape
        channels = self.solver.process.mask_channels
        cases = list(keys) * ensemble
        members = np.repeat(np.arange(ensemble), n)

        def draw(site, step):
            """Return the noise (M * N, K, S, S) of a step from the tape."""
            noise = self.tape.normal_batch(site, (channels, height, width), step=step, cases=cases, members=members)
            return runtime.to_tensor(noise, dtype=runtime.precision())

        # All images of the first member come first: (N, C, S, S) to (M * N, C, S, S).
        repeated = runtime.to_tensor(np.tile(images, (ensemble, 1, 1, 1)), dtype=runtime.precision())
        evaluate = on_image(self.model, repeated, self._conditioning(images))
        for out in self.solver.run(evaluate, draw(SAMPLE_INITIAL, 0), lambda step: draw(SAMPLE_STEP, step)):
            masks = out["sample"]
        return runtime.to_numpy(masks).astype(np.float32).reshape(ensemble, n, channels, height, width)

    def _conditioning(self, images):
        """Return the keyword arguments of the network that depend only on the images.

        They are computed once for all steps and members.
        """
        with runtime.no_grad():
            parts = self.model.condition(runtime.to_tensor(images, dtype=runtime.precision()))
        if parts is None:
            return {}
        return {"conditioning": tuple(jt.concat([part] * self.sampling.num_ensemble, dim=0) for part in parts)}
