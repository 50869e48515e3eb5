"""A toy batch, its noise and the process in numpy, for the tests of the diffusion's identities."""

import numpy as np
from support.toy import ToyData, tensor

from guided_diffusion_core.diffusion.schedule import DiffusionTables, get_named_beta_schedule

X_START = ToyData().x_start().astype(np.float64)
NOISE = ToyData().noise.astype(np.float64)
TABLES = DiffusionTables(get_named_beta_schedule("linear", 100))


def posterior_mean(x_start, x_t, t):
    """Return the mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, arXiv:2006.11239, eq. 7)."""
    return per_case(TABLES.posterior_mean_coef1, t) * x_start + per_case(TABLES.posterior_mean_coef2, t) * x_t


def noised(t):
    """Return the mask at t, noised by NOISE."""
    return (
        per_case(TABLES.sqrt_alphas_cumprod, t) * X_START[:, -1:]
        + per_case(TABLES.sqrt_one_minus_alphas_cumprod, t) * NOISE
    )


def per_case(table, t):
    """Look up table (T,) at t (N,), as factors (N, 1, 1, 1)."""
    return table[t].reshape(-1, 1, 1, 1)


def network_like(backend, out):
    """Return a network that predicts `out` for any input."""
    return lambda x, t: (tensor(backend, out), tensor(backend, np.full(x[:, -1:].shape, 0.5)))


def close(found, expected, tolerance=1e-10):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
