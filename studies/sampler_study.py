"""Measure the points of the sampler study: sample masks, and record the course of every sampling.

A point of the study is one network, one sampler and one number of network evaluations. Its folder holds
the masks, the other files that sampling writes, and `course.json`: statistics of the network's input and output
at each evaluation.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guided_diffusion_core import checkpoints
from guided_diffusion_core.backends import backend_module
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.diffusion.gaussian import GaussianProcess
from guided_diffusion_core.diffusion.schedule import ModelMeanType, respace
from guided_diffusion_core.evaluation.metrics import count
from guided_diffusion_core.noise import SAMPLE_STEP, NoiseTape
from guided_diffusion_core.sampling.run import SamplingRun
from guided_diffusion_core.system.files import write_atomic

# Name -> settings of a sampler. DDIM with eta 1 is the ancestral sampler with the posterior's variance instead of the
# learned one. "ancestral-limited" is the ancestral sampler with a learned variance that stays between its two bounds.
SAMPLERS = {
    "ancestral": {"sampler": "ancestral"},
    "ddim": {"sampler": "ddim", "eta": 0.0},
    "ddim-eta1": {"sampler": "ddim", "eta": 1.0},
    "dpm-solver": {"sampler": "dpm-solver++"},
    "ancestral-limited": {"sampler": "ancestral"},
}
PROBED = (1, 2, 5, 10, 20, 50, 100, 300, 999)  # time steps at which `probe` looks at the learned variance
TRACED = ("t", "alpha_bar", "noise_ratio", "share", "noise_added", "dice_xstart")


@dataclass(frozen=True)
class Point:
    """One sampling: network is the folder of a training, sampler a name of `SAMPLERS`."""

    network: str
    sampler: str
    evaluations: int
    backend: str = "pytorch"

    @property
    def name(self):
        """Return the name of the point's folder."""
        return f"{self.network}-{self.backend}-{self.sampler}-{self.evaluations:04d}"


def measure(point, model_path, data, out_dir):
    """Sample one point, unless its folder is finished.

    point:      `Point`.
    model_path: path of the checkpoint.
    data:       `DataConfig` of the slices.
    out_dir:    folder of the point.
    """
    out_dir = Path(out_dir)
    if (out_dir / "course.json").is_file():
        return
    shutil.rmtree(out_dir, ignore_errors=True)  # `course.json` is written last: without it the folder is incomplete
    path = checkpoints.find(model_path)
    model, diffusion, config = backend_module(point.backend, "script_util").load_model_and_diffusion(path)
    chosen = {"num_ensemble": 1, "sample_steps": point.evaluations, **SAMPLERS[point.sampler]}
    config = config.replace(data_name=data.data_name, data_dir=data.data_dir, slices=data.slices, **chosen)
    dataset = open_dataset(data, config.model.image_size, "Test", need_masks=True)
    watched = Watched(model, point, np.stack([dataset[index].mask for index in range(len(dataset))]))
    sampler = backend_module(point.backend, "sample_util").EnsembleSampler(
        watched, diffusion, config.sampling, NoiseTape(config.seed)
    )
    watched.process = visited(diffusion, point.evaluations)
    settings = {"backend": point.backend, "model_path": str(path), "sampler": point.sampler, **config.to_dict()}
    # A spoiled sample can overflow. It counts as an empty mask.
    run = SamplingRun(dataset, out_dir, len(dataset), config.sampling.threshold, settings)
    run.run(lambda *batch: np.nan_to_num(sampler(*batch), nan=0.0))
    write_atomic(out_dir / "course.json", json.dumps(watched.course, allow_nan=False).encode())


def visited(process, evaluations):
    """Return the `GaussianProcess` that has only the steps of a process that a sampler visits."""
    kept = process.times(evaluations)
    betas, ascending = respace(process.betas, kept)
    spaced = GaussianProcess(betas, process.model_mean_type, process.model_var_type)
    spaced.timestep_map = tuple(process.timestep_map[t] for t in ascending)
    return spaced


def probe(network, model_path, data, out_dir):
    """Compare the learned variance with the best one for the network's errors, unless that is done, in PyTorch.

    The true masks of the slices are noised to a few time steps of the whole process. For each time step,
    out_dir / network / `probe.json` holds the result of `_probed`.

    network: folder of the training.
    model_path, data: see `measure`.
    out_dir: folder of all points.
    """
    out_file = Path(out_dir) / network / "probe.json"
    if out_file.is_file():
        return
    script_util = backend_module("pytorch", "script_util")
    runtime = backend_module("pytorch", "runtime")
    model, process, config = script_util.load_model_and_diffusion(checkpoints.find(model_path))
    dataset = open_dataset(data, config.model.image_size, "Test", need_masks=True)
    examples = [dataset[index] for index in range(len(dataset))]
    images = np.stack([example.image for example in examples])  # (N, C, S, S)
    truth = np.stack([example.mask for example in examples])  # (N, 1, S, S)
    tape = NoiseTape(config.seed)
    rows = []
    for t in PROBED:
        noise = tape.normal_batch(
            SAMPLE_STEP,
            truth.shape[1:],
            step=t,
            cases=[e.noise_key for e in examples],
            members=np.zeros(len(examples), np.int64),
        )
        # DDPM, eq. 4
        x_t = process.sqrt_alphas_cumprod[t] * truth + process.sqrt_one_minus_alphas_cumprod[t] * noise
        with runtime.no_grad():
            out, _ = model(
                runtime.to_tensor(np.concatenate([images, x_t], axis=1), dtype="float32"),
                runtime.to_tensor(np.full(len(x_t), t)),
            )
        rows.append(_probed(process, t, runtime.to_numpy(out).astype(np.float64), x_t, truth))
    out_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out_file, (json.dumps(rows, indent=2, allow_nan=False) + "\n").encode())


def _probed(process, t, values, x_t, truth):
    """Return statistics of the learned variance at one time step, over the pixels whose share is above 1.

    The share places the logarithm of the learned variance between the posterior's (0) and beta (1).

    t: time step. values: (N, 2, S, S), output of the network. x_t: its noised mask, and truth: the true mask,
    (N, 1, S, S) each.
    Returns a dict with
    pixels: these pixels as a share of all,
    error:  root mean square error of the predicted x_0,
    share:  median of the learned share,
    asked:  the share that minimises the variational bound. Its variance is that of the posterior plus the mean
            square of the error in the mean of the step.
    The last three are None if there are no such pixels.
    """
    share = (values[:, 1:] + 1) / 2
    above = share > 1
    row = {"t": t, "pixels": float(above.mean()), "error": None, "share": None, "asked": None}
    if above.any():
        errors = _predicted_xstart(process, t, values, x_t) - truth
        square = np.mean(errors[above] ** 2)
        smallest = process.posterior_log_variance_clipped[t]
        largest = process.log_betas[t]
        # The mean of the step contains posterior_mean_coef1 x_0 (DDPM, eq. 7), and so this multiple of the error.
        variance = np.exp(smallest) + process.posterior_mean_coef1[t] ** 2 * square
        row.update(
            error=float(np.sqrt(square)),
            share=float(np.median(share[above])),
            asked=float((np.log(variance) - smallest) / (largest - smallest)),
        )
    return row


def _predicted_xstart(process, index, values, x_t):
    """Return the x_0 that a network's output means, (N, 1, S, S)."""
    if process.model_mean_type != ModelMeanType.EPSILON:
        return values[:, :1]
    alpha_bar = process.alphas_cumprod[index]
    # DDPM, eq. 4, solved for x_0
    return (x_t - np.sqrt(1 - alpha_bar) * values[:, :1]) / np.sqrt(alpha_bar)


class Watched:
    """A network that records the course of the sampling that calls it, one dict per evaluation.

    model: the network.
    point: `Point`.
    truth: (N, 1, S, S), the masks of its batch, 0 or 1.

    Attributes:
    process: the diffusion process that is sampled. It has to be set before the first call.
    course:  list of dicts with
             t:           the time step of the whole process,
             alpha_bar:   its alpha_bar,
             noise_ratio: standard deviation of the noised mask minus the scaled true mask, over that of the schedule,
             share:       5%, 50% and 95% quantiles of the place of the learned variance's logarithm between that of
                          the posterior (0) and beta (1),
             noise_added: standard deviation of the noise of an ancestral step, the same quantiles,
             dice_xstart: Dice of the predicted mask at the network's size.
    """

    def __init__(self, model, point, truth):
        self.model = model
        self.sampler = point.sampler
        self.truth = truth
        self.runtime = backend_module(point.backend, "runtime")
        self.process = None
        self.course = []

    def condition(self, image):
        """Return the conditioning of the network, which sampling computes once."""
        return self.model.condition(image)

    def __call__(self, x, t, **keywords):
        """Evaluate the network and add an entry to the course. Arguments and result are those of the network."""
        out, cal = self.model(x, t, **keywords)
        values = self.runtime.to_numpy(out)
        x_t = self.runtime.to_numpy(x)[:, -1:]  # the noised mask is the last channel
        if self.sampler == "ancestral-limited":
            # a share of 0 to 1, see below
            values[:, 1:] = values[:, 1:].clip(-1, 1)
            out = self.runtime.to_tensor(values)
        index = self.process.timestep_map.index(int(self.runtime.to_numpy(t)[0]))
        self.course.append(self._entry(index, values, x_t))
        return out, cal

    def _entry(self, index, values, x_t):
        process = self.process
        alpha_bar = process.alphas_cumprod[index]
        # Improved DDPM, eq. 15: the output, about -1 to 1, is a share of 0 to 1 between the two logarithms.
        share = (values[:, 1:].astype(np.float64) + 1) / 2
        smallest = process.posterior_log_variance_clipped[index]
        log_variance = share * process.log_betas[index] + (1 - share) * smallest
        deviation = np.exp(log_variance / 2) * (index > 0)  # the last step adds no noise
        predicted = _predicted_xstart(process, index, values, x_t)
        residual = x_t.astype(np.float64) - np.sqrt(alpha_bar) * self.truth
        entry = (
            process.timestep_map[index],
            alpha_bar,
            np.sqrt(np.mean(residual**2) / (1 - alpha_bar)),
            _quantiles(share),
            _quantiles(deviation),
            count(predicted >= 0.5, self.truth > 0.5).dice,
        )
        return dict(zip(TRACED, map(_finite, entry)))


def _quantiles(values):
    return np.quantile(values, (0.05, 0.5, 0.95))


def _finite(value):
    """Return a number or an array as JSON values, with None for values that are not finite."""
    if np.ndim(value):
        return [_finite(one) for one in value]
    return float(value) if np.isfinite(value) else None
