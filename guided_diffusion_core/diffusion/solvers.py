"""Samplers as tables: the numbers of each step from noise to a mask, in numpy float64.

Every sampler here is a row of numbers per network evaluation (`Steps`). A new one is a function and an entry in
`SOLVERS`; the loop that combines tensors with these numbers is the same for all (`solver.py` of each backend).
Papers: DDPM (Ho et al. 2020, arXiv:2006.11239), DDIM (Song et al. 2021, arXiv:2010.02502), DPM-Solver (Lu et
al. 2022, arXiv:2206.00927), DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095).
"""

from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.diffusion.process import end_points
from guided_diffusion_core.diffusion.schedule import ModelVarType
from guided_diffusion_core.errors import found_expected


@dataclass(frozen=True)
class Steps:
    """The steps of a sampler in their order: arrays (S,), one row per network evaluation.

    A step goes from x_t to x = xstart x_0 + before x_0' + x_t x_t + noise eps, where x_0 is the mask predicted at
    this row's time, x_0' the one of the row before (in the first row: x_0), and eps fresh standard normal noise.

    times:        times of the network evaluations, see `Process`.
    log_variance: None, or (smallest, largest), arrays (S,), for a learned variance: the network chooses the logarithm
                  of the variance between the two, and `noise` multiplies the standard deviation.
    """

    times: np.ndarray
    xstart: np.ndarray
    before: np.ndarray
    x_t: np.ndarray
    noise: np.ndarray
    log_variance: tuple | None = None


def ancestral(process, times, settings):
    """Return the `Steps` of the ancestral sampler: draws of q(x_s | x_t, x_0) (DDPM, eq. 6 and 7, algorithm 2).

    With s the next time, q(x_t | x_s) has the mean r x_s, r = a_t / a_s, and the variance v = b_t^2 - (r b_s)^2.
    The variance of the step is the posterior's, v, or learned between the two (Improved DDPM, eq. 15).
    """
    a, b, a_next, b_next = end_points(process, times)
    ratio = a / a_next  # r
    added = b**2 - (ratio * b_next) ** 2  # v, beta of the whole step
    posterior = added * (b_next / b) ** 2
    # The last step ends at x_0 and adds no noise. The logarithm of its variance 0 would be infinite, so that the
    # variance of the step before takes its place; `noise` is 0 there.
    adds_noise = (b_next > 0).astype(np.float64)
    posterior[-1] = posterior[-2] if len(times) > 1 else added[-1]
    smallest = np.log(posterior)
    largest = np.log(added)
    means = {"times": times, "xstart": a_next * added / b**2, "before": 0 * a, "x_t": ratio * (b_next / b) ** 2}
    if process.model_var_type == ModelVarType.LEARNED_RANGE:
        return Steps(**means, noise=adds_noise, log_variance=(smallest, largest))
    fixed = smallest if process.model_var_type == ModelVarType.FIXED_SMALL else largest
    return Steps(**means, noise=adds_noise * np.exp(0.5 * fixed))


def ddim(process, times, settings):
    """Return the `Steps` of DDIM (eq. 12): x_s = a_s x_0 + sqrt(b_s^2 - sigma^2) (x_t - a_t x_0) / b_t + sigma eps.

    settings: has `eta`, from 0 (deterministic) to 1 (the posterior's variance), which gives sigma (eq. 16).
    Raises `UserError` for an eta outside its range.
    """
    eta = settings.eta
    if not 0 <= eta <= 1:
        raise found_expected("--eta", eta, "a number from 0 (deterministic) to 1 (ancestral)", "Give such a number.")
    a, b, a_next, b_next = end_points(process, times)
    # sigma^2 / b_s^2, the share of the noise in x_s that is drawn again
    fresh = eta**2 * (1.0 - (a * b_next / (a_next * b)) ** 2)
    x_t = b_next * np.sqrt(1.0 - fresh) / b
    return Steps(times, a_next - x_t * a, 0 * a, x_t, b_next * np.sqrt(fresh))


def dpm_solver(process, times, settings):
    """Return the `Steps` of DPM-Solver++ (2M), which extrapolates from the masks predicted at two successive times.

    It is algorithm 2 of DPM-Solver++; h is the length of a step in half the logarithm of the signal-to-noise ratio,
    lambda = log(a / b) (DPM-Solver, section 2.2). The first step has no earlier mask and the last one ends at
    an infinite lambda. Both are therefore of first order, which is DDIM with eta 0, and the last one gives x_0.
    """
    a, b, a_next, b_next = end_points(process, times)
    x_t = b_next / b
    xstart = a_next - x_t * a  # a_s (1 - exp(-h))
    h = np.diff(np.log(a / b))  # (S - 1,), the last step has none
    extrapolation = np.zeros(len(times))
    extrapolation[1:-1] = h[1:] / (2.0 * h[:-1])  # 1 / (2 r) with r = h before / h
    return Steps(times, xstart * (1.0 + extrapolation), -xstart * extrapolation, x_t, 0 * a)


# Name -> function(process, times, settings); times: see `Process.times`; settings: a `SamplingConfig`.
SOLVERS = {"ancestral": ancestral, "ddim": ddim, "dpm-solver++": dpm_solver}
