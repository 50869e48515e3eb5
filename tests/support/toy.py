"""The toy network and data of `tests/golden/diffusion.npz`, for either backend."""

import importlib

import numpy as np

from guided_diffusion_core.backends import BACKENDS
from guided_diffusion_core.diffusion.schedule import (
    LossType,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
    sampling_timesteps,
    space_timesteps,
)

WEIGHTS = (0.8, 0.2, 0.5, 2.0)


def framework(backend):
    """torch or jittor."""
    backend.module("runtime")  # makes Jittor ready to be imported
    return importlib.import_module(BACKENDS[backend.name].framework)


def tensor(backend, array, dtype=None):
    return backend.module("runtime").to_tensor(np.asarray(array), dtype=dtype)


def array(backend, value):
    return backend.module("runtime").to_numpy(value)


def gradient_of(backend, loss, value):
    """d loss / d value, numpy of value's shape."""
    if backend.name == "pytorch":
        return array(backend, framework(backend).autograd.grad(loss, value, retain_graph=True)[0])
    return array(backend, framework(backend).grad(loss, value))


class ToyNetwork:
    """eps = 0.8 m + 0.2 c cos(0.01 t); with a learned sigma a second channel 0.5 sin(m + 0.001 t);
    cal = sigmoid(2 c). m is the noised mask, c the mean of the image's channels. Of several masks each
    is treated as if it were alone.

    `weights` holds the four factors as one tensor, whose gradient can be taken. `times` collects
    the time steps of all calls.
    """

    def __init__(self, backend, learn_sigma=True, dtype="float32", masks=1):
        self.backend = backend
        self.learn_sigma = learn_sigma
        self.dtype = dtype
        self.masks = masks
        self.math = framework(backend)
        self.weights = tensor(backend, WEIGHTS, dtype=dtype)
        self.weights.requires_grad = True
        self.times = []

    def __call__(self, x, t):
        self.times.append(array(self.backend, t))
        times = self.times[-1].astype(np.float64).reshape(-1, 1, 1, 1)
        # in numpy: Jittor would round the factors to float32
        cosine = tensor(self.backend, np.cos(0.01 * times), self.dtype)
        shift = tensor(self.backend, 0.001 * times, self.dtype)
        mask = x[:, -self.masks :]
        image = x[:, : -self.masks].mean(1).unsqueeze(1)
        w = self.weights
        out = [w[0] * mask + w[1] * image * cosine]
        if self.learn_sigma:
            out.append(w[2] * self.math.sin(mask + shift))
        return self.math.concat(out, dim=1), self.math.sigmoid(w[3] * self.math.concat([image] * self.masks, dim=1))

    def gradient(self, loss):
        """d loss / d weights, numpy (4,)."""
        return gradient_of(self.backend, loss, self.weights)


def make_diffusion(
    backend,
    steps=100,
    respacing=None,
    mean=ModelMeanType.EPSILON,
    variance=ModelVarType.LEARNED_RANGE,
    loss=LossType.MSE,
    rescale_timesteps=False,
    masks=1,
    visits=0,
):
    """A `SpacedDiffusion` on the linear schedule.

    respacing: as of `space_timesteps`, None for all. visits: as many of these, as of `sampling_timesteps`; 0: all.
    """
    kept = space_timesteps(steps, respacing or [steps])
    return backend.module("respace").SpacedDiffusion(
        [kept[index] for index in sampling_timesteps(len(kept), visits)],
        betas=get_named_beta_schedule("linear", steps),
        model_mean_type=mean,
        model_var_type=variance,
        loss_type=loss,
        rescale_timesteps=rescale_timesteps,
        mask_channels=masks,
    )


def process_through(backend, alphas_cumprod, times, mean=ModelMeanType.EPSILON, variance=ModelVarType.LEARNED_RANGE):
    """A process of any alpha_bar, descending, at whose steps the network is given `times`, whole or not."""
    diffusion = backend.module("gaussian_diffusion").GaussianDiffusion(
        betas=1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]),
        model_mean_type=mean,
        model_var_type=variance,
        loss_type=LossType.MSE,
    )
    diffusion.timestep_map = tuple(times)
    return diffusion


class ToyData:
    """img (2, 3, 8, 8), mask (2, 1, 8, 8), noise and time steps t (2,), numpy, float32 values."""

    def __init__(self):
        rs = np.random.RandomState(11)
        self.img = rs.uniform(size=(2, 3, 8, 8)).astype(np.float32)
        self.mask = (rs.uniform(size=(2, 1, 8, 8)) > 0.6).astype(np.float32)
        self.noise = np.random.RandomState(12).standard_normal(self.mask.shape).astype(np.float32)
        self.t = np.array([3, 17])

    def x_start(self):
        """Image and mask (2, 4, 8, 8)."""
        return np.concatenate([self.img, self.mask], axis=1)


def draws(seed, count, shape=(2, 1, 8, 8)):
    """`count` successive draws of the golden runs, float32."""
    rs = np.random.RandomState(seed)
    return [rs.standard_normal(shape).astype(np.float32) for _ in range(count)]


def relative_rms(found, expected):
    """RMS of the difference over RMS of the expected values."""
    found = np.asarray(found, np.float64)
    expected = np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
