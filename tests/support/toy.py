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
    """Import torch or jittor."""
    backend.module("runtime")  # prepares the import of Jittor
    return importlib.import_module(BACKENDS[backend.name].framework)


def tensor(backend, array, dtype=None):
    return backend.module("runtime").to_tensor(np.asarray(array), dtype=dtype)


def array(backend, value):
    return backend.module("runtime").to_numpy(value)


def gradient_of(backend, loss, value):
    """Return d loss / d value, numpy of the shape of value."""
    if backend.name == "pytorch":
        return array(backend, framework(backend).autograd.grad(loss, value, retain_graph=True)[0])
    return array(backend, framework(backend).grad(loss, value))


class ToyNetwork:
    """A network in three formulas, where m is the noised mask and c the mean of the image's channels:

        eps   = 0.8 m + 0.2 c cos(0.01 t)
        sigma = 0.5 sin(m + 0.001 t), a second channel, if it is learned
        cal   = sigmoid(2 c)

    Several masks are treated one by one.

    `weights` holds the four factors as one tensor, whose gradient can be taken. `times` collects the time steps of
    all calls.
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
        # numpy computes them: Jittor would round the factors to float32.
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
        """Return d loss / d weights, numpy (4,)."""
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
    """Build a `SpacedDiffusion` on the linear schedule.

    steps:     steps of the whole process.
    respacing: steps that are kept, as `space_timesteps` takes them; None keeps all.
    visits:    number of these that `sampling_timesteps` chooses; 0 keeps all.
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
    """Build a process of any alpha_bar.

    alphas_cumprod: (T,), descending.
    times:          (T,), time input of the network at each step, whole or fractional.
    """
    diffusion = backend.module("gaussian_diffusion").GaussianDiffusion(
        betas=1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]),
        model_mean_type=mean,
        model_var_type=variance,
        loss_type=LossType.MSE,
    )
    diffusion.timestep_map = tuple(times)
    return diffusion


class ToyData:
    """A toy batch in numpy: img (2, 3, 8, 8), mask and noise (2, 1, 8, 8) in float32, and time steps t (2,)."""

    def __init__(self):
        rs = np.random.RandomState(11)
        self.img = rs.uniform(size=(2, 3, 8, 8)).astype(np.float32)
        self.mask = (rs.uniform(size=(2, 1, 8, 8)) > 0.6).astype(np.float32)
        self.noise = np.random.RandomState(12).standard_normal(self.mask.shape).astype(np.float32)
        self.t = np.array([3, 17])

    def x_start(self):
        """Return image and mask (2, 4, 8, 8)."""
        return np.concatenate([self.img, self.mask], axis=1)


def draws(seed, count, shape=(2, 1, 8, 8)):
    """Return `count` successive draws of the golden runs, float32."""
    rs = np.random.RandomState(seed)
    return [rs.standard_normal(shape).astype(np.float32) for _ in range(count)]


def relative_rms(found, expected):
    """Return the RMS of the difference divided by the RMS of the expected values."""
    found = np.asarray(found, np.float64)
    expected = np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
