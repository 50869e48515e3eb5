"""The numbers of a diffusion process, one per time step, in numpy float64.

The index t of a time step runs from 0 (least noise) to T - 1. beta_t is the variance that step t adds, alpha_t =
1 - beta_t, and alpha_bar_t the product of alpha up to t. Papers: DDPM (Ho et al. 2020, arXiv:2006.11239),
DDIM (Song et al. 2021, arXiv:2010.02502), Improved DDPM (Nichol & Dhariwal 2021, arXiv:2102.09672),
DPM-Solver (Lu et al. 2022, arXiv:2206.00927), DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095).
"""

import enum
import math

import numpy as np

from guided_diffusion_core.errors import found_expected


class ModelMeanType(enum.Enum):
    """The quantity that the network predicts."""

    START_X = enum.auto()  # x_0
    EPSILON = enum.auto()  # the noise in x_t


class ModelVarType(enum.Enum):
    """The variance of a reverse step."""

    FIXED_SMALL = enum.auto()  # that of the posterior
    FIXED_LARGE = enum.auto()  # beta
    LEARNED_RANGE = enum.auto()  # between the two, by the network's second channel (Improved DDPM, eq. 15)


class LossType(enum.Enum):
    """The training objective."""

    MSE = enum.auto()  # squared error of the prediction, and the variational bound if the variance is learned
    RESCALED_MSE = enum.auto()  # the same, with the term of the bound times T / 1000
    RESCALED_KL = enum.auto()  # only the variational bound, times T: an estimate of the whole bound

    def is_vb(self):
        """Return whether the variational bound is the whole objective."""
        return self == LossType.RESCALED_KL


def betas_for_alpha_bar(steps, alpha_bar, max_beta=0.999):
    """Return the betas whose alpha_bar follows a function of time, float64 (steps,) (Improved DDPM, eq. 17 and below).

    steps:     number of betas.
    alpha_bar: function of time in [0, 1].
    max_beta:  upper limit, below 1.
    """
    betas = []
    for i in range(steps):
        kept = alpha_bar((i + 1) / steps) / alpha_bar(i / steps)  # 1 - beta, the ratio of successive alpha_bar
        betas.append(min(1 - kept, max_beta))
    return np.array(betas)


def get_named_beta_schedule(name, steps):
    """Return the betas of a schedule, float64 (steps,).

    name:  "linear" (DDPM, section 4, with its end points scaled by 1000 / steps) or "cosine" (Improved DDPM, eq. 17).
    steps: T.
    Raises `UserError` for another name, and for a linear schedule so short that beta would reach 1.
    """
    if name == "linear":
        scale = 1000 / steps
        if scale * 0.02 >= 1:  # the last beta is a variance and has to stay below 1
            raise found_expected(
                "--diffusion_steps",
                steps,
                "more than 20 steps for the linear schedule",
                "Give more steps, or take --noise_schedule cosine.",
            )
        return np.linspace(scale * 0.0001, scale * 0.02, steps, dtype=np.float64)
    if name == "cosine":
        return betas_for_alpha_bar(steps, lambda time: math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2)
    raise found_expected("--noise_schedule", repr(name), "linear or cosine", "Choose one of them.")


class DiffusionTables:
    """All numbers that follow from the betas, one float64 value per time step.

    betas: (T,), each above 0 and below 1; other values raise ValueError.
    """

    def __init__(self, betas):
        betas = np.array(betas, dtype=np.float64)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas must be a non-empty vector of values between 0 and 1")
        self.betas = betas
        self.num_timesteps = len(betas)
        self.log_betas = np.log(betas)
        self.alphas_cumprod = np.cumprod(1.0 - betas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self._set_marginals()
        self._set_posterior()

    def _set_marginals(self):
        """Set the coefficients of q(x_t | x_0) and of its inversions (DDPM, eq. 4)."""
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1.0 - self.alphas_cumprod)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1)

    def _set_posterior(self):
        """Set the coefficients of q(x_{t-1} | x_t, x_0) (DDPM, eq. 6 and 7) and the fixed variances of a reverse step.

        The variance of the posterior is 0 at t = 0. Its logarithm and the large variance have the value of t = 1
        there, or that of beta in a process of one step.
        """
        scale = 1.0 - self.alphas_cumprod  # variance of the noise in x_t
        remaining = 1.0 - self.alphas_cumprod_prev  # variance of the noise in x_{t-1}
        self.posterior_variance = self.betas * remaining / scale
        first = self.posterior_variance[1] if self.num_timesteps > 1 else self.betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(first, self.posterior_variance[1:]))
        self.posterior_mean_coef1 = self.betas * np.sqrt(self.alphas_cumprod_prev) / scale
        self.posterior_mean_coef2 = remaining * np.sqrt(1.0 - self.betas) / scale
        self.fixed_large_variance = np.append(first, self.betas[1:])
        self.fixed_large_log_variance = np.log(self.fixed_large_variance)


def space_timesteps(num_timesteps, section_counts):
    """Choose the steps of a process that are kept, a sorted tuple of indices in 0 ... num_timesteps - 1.

    num_timesteps:  T.
    section_counts: number of evenly spaced steps in each of equal sections of the process, as numbers or as a string
                    such as "10,15,20"; or "ddimN" for N steps with one whole stride from 0 (DDIM, appendix D.2).
    Raises `UserError` if the process has no such steps.
    """
    wrong = found_expected(
        "--timestep_respacing",
        repr(section_counts),
        f"counts per section such as 10,15,20, or ddimN, that {num_timesteps} steps can give",
        "Give fewer steps.",
    )
    try:
        if isinstance(section_counts, str) and section_counts.startswith("ddim"):
            return _whole_stride(num_timesteps, int(section_counts[len("ddim") :]), wrong)
        if isinstance(section_counts, str):
            section_counts = section_counts.split(",")
        counts = [int(count) for count in section_counts]
    except ValueError:
        raise wrong from None
    if not counts or min(counts) < 0 or sum(counts) == 0:
        raise wrong
    # The first `extra` sections have one step more than the others.
    size, extra = divmod(num_timesteps, len(counts))
    kept = []
    start = 0
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if count > length:
            raise wrong
        stride = (length - 1) / (count - 1) if count > 1 else 1
        place = 0.0
        for _ in range(count):
            # A running sum, not i * stride: its rounding errors decide ties as in the original.
            kept.append(start + round(place))
            place += stride
        start += length
    return tuple(kept)


def _whole_stride(num_timesteps, count, wrong):
    """Return `count` steps 0, k, 2k, ... with the smallest stride k that gives this number."""
    for stride in range(1, num_timesteps):
        steps = range(0, num_timesteps, stride)
        if len(steps) == count:
            return tuple(steps)
    raise wrong


def respace(betas, use_timesteps):
    """Keep only some steps of a process, with the same alpha_bar at each of them.

    betas:         (T,), those of the whole process.
    use_timesteps: indices of the kept steps, 0 to T - 1.
    Returns (betas of the kept steps, their indices as a sorted tuple). Raises ValueError for an index outside the
    process.
    """
    timestep_map = tuple(sorted(set(use_timesteps)))
    if not timestep_map or timestep_map[0] < 0 or timestep_map[-1] >= len(betas):
        raise ValueError(f"time steps to keep must be among 0 to {len(betas) - 1}")
    kept = DiffusionTables(betas).alphas_cumprod[list(timestep_map)]
    # alpha_bar is a product of 1 - beta: each beta is 1 - alpha_bar / (alpha_bar of the kept step before).
    previous = np.append(1.0, kept[:-1])
    return 1 - kept / previous, timestep_map


def sampling_timesteps(num_timesteps, steps):
    """Return the time steps of a sampler, descending.

    num_timesteps: T.
    steps:         number of network evaluations. 0 takes all time steps; 1 takes only the last one (from pure noise to
                   x_0 at once); other numbers are spaced evenly from the first to the last one, and rounded.
    Raises `UserError` for a number that the process cannot give.
    """
    if not 0 <= steps <= num_timesteps:
        raise found_expected(
            "--sample_steps", steps, f"0 (all) to {num_timesteps}, the diffusion's steps", "Give fewer steps."
        )
    if steps == 1:
        return (num_timesteps - 1,)
    gaps = (steps or num_timesteps) - 1
    if gaps == 0:  # a process of one step
        return (0,)
    # i * last / gaps, rounded to the nearest in whole numbers
    last = num_timesteps - 1
    ascending = tuple((2 * i * last + gaps) // (2 * gaps) for i in range(gaps + 1))
    return ascending[::-1]


def quantile_place(count, quantile=0.995):
    """Find the place of a quantile among `count` ordered values, with the linear interpolation of numpy.quantile.

    quantile: 0 to 1; the default is that of the authors of DPM-Solver++ for dynamic thresholding.
    Returns (lower, upper, share): (1 - share) value[lower] + share value[upper] is the quantile.
    """
    place = quantile * (count - 1)
    lower = math.floor(place)
    return lower, min(lower + 1, count - 1), place - lower


def choose_timesteps(weights, uniforms):
    """Draw time steps by the inverse of the cumulative distribution.

    weights:  (T,) positive; their sum need not be 1.
    uniforms: (N,) values in [0, 1).
    Returns (indices, importance): int64 (N,), and float64 (N,) factors 1 / (T p), where p is the probability of the
    drawn step. A step that is drawn k times as often counts 1 / k as much, so that the mean of the losses stays
    unbiased.
    """
    weights = np.asarray(weights, dtype=np.float64)
    cumulative = np.cumsum(weights)
    total = cumulative[-1]
    # the first index whose cumulative probability is above the uniform value
    indices = np.searchsorted(cumulative / total, np.asarray(uniforms), side="right")
    importance = total / (len(weights) * weights[indices])  # 1 / (T p) with p = weight / total
    return indices.astype(np.int64), importance
