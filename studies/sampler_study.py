"""Samplers compared on trained networks: masks and the course of every sampling.

A point of the study is one network, one sampler and one number of network evaluations. Its folder holds
the masks, what sampling writes beside them, and `course.json`: what the network was given and what it
answered at each evaluation.
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

# Name -> settings of a sampler. DDIM with eta 1 is the ancestral one with the posterior's variance instead of the
# learned one; the last is the ancestral one with a learned variance that stays between its two bounds.
SAMPLERS = {
    "ancestral": {"sampler": "ancestral"},
    "ddim": {"sampler": "ddim", "eta": 0.0},
    "ddim-eta1": {"sampler": "ddim", "eta": 1.0},
    "dpm-solver": {"sampler": "dpm-solver++"},
    "ancestral-limited": {"sampler": "ancestral"},
}
PROBED = (1, 2, 5, 10, 20, 50, 100, 300, 999)  # time steps
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
        """The name of its folder."""
        return f"{self.network}-{self.backend}-{self.sampler}-{self.evaluations:04d}"


def measure(point, model_path, data, out_dir):
    """Sample one point, unless that is done.

    model_path: of the checkpoint. data: `DataConfig` of the slices. out_dir: folder of the point.
    """
    out_dir = Path(out_dir)
    if (out_dir / "course.json").is_file():
        return
    shutil.rmtree(out_dir, ignore_errors=True)  # what an interrupted one has left
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
    # a spoiled sample may overflow; it counts as an empty mask
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
    """Compare the learned variance with the one that the network's own errors ask for, unless that is done.

    The slices' true masks are noised to a few time steps of the whole process. For each, `probe.json` of
    out_dir / network holds what `_probed` returns. Arguments as of `measure`, in PyTorch.
    """
    out_file = Path(out_dir) / network / "probe.json"
    if out_file.is_file():
        return
    script_util, runtime = (backend_module("pytorch", name) for name in ("script_util", "runtime"))
    model, process, config = script_util.load_model_and_diffusion(checkpoints.find(model_path))
    dataset = open_dataset(data, config.model.image_size, "Test", need_masks=True)
    examples = [dataset[index] for index in range(len(dataset))]
    images, truth = (np.stack([getattr(example, name) for example in examples]) for name in ("image", "mask"))
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
    """A dict for one time step, over the pixels where the learned share is above 1: pixels, their part of all;
    error, the root mean square of the predicted x_0's; share, the median learned; asked, the share at which the
    variance is the posterior's plus the mean square of the error that the step's mean makes, which is what
    minimises the variational bound; None where there are no such pixels."""
    share = (values[:, 1:] + 1) / 2
    above = share > 1
    row = {"t": t, "pixels": float(above.mean()), "error": None, "share": None, "asked": None}
    if above.any():
        square = np.mean((_predicted_xstart(process, t, values, x_t) - truth)[above] ** 2)
        smallest = process.posterior_log_variance_clipped[t]
        largest = process.log_betas[t]
        variance = np.exp(smallest) + process.posterior_mean_coef1[t] ** 2 * square
        row.update(
            error=float(np.sqrt(square)),
            share=float(np.median(share[above])),
            asked=float((np.log(variance) - smallest) / (largest - smallest)),
        )
    return row


def _predicted_xstart(process, index, values, x_t):
    """x_0 of the network's output, (N, 1, S, S)."""
    if process.model_mean_type != ModelMeanType.EPSILON:
        return values[:, :1]
    alpha_bar = process.alphas_cumprod[index]
    return (x_t - np.sqrt(1 - alpha_bar) * values[:, :1]) / np.sqrt(alpha_bar)


class Watched:
    """A network that keeps the course of the sampling that calls it, one dict per evaluation.

    model: the network. point: `Point`. truth: (N, 1, S, S), the masks of its batch, 0 or 1.
    process: the diffusion process that is sampled, set before the first call; it reads the network's
             prediction as the process' own tables say, in numpy.

    A dict holds: t, the time step of the whole process; alpha_bar there; noise_ratio, the standard
    deviation of what the noised mask holds beside the true mask over what the schedule says; share, the
    5%, 50% and 95% quantiles of where the learned variance's logarithm lies between the posterior's (0)
    and beta (1); noise_added, the standard deviation of the noise that an ancestral step would add, in
    quantiles too; dice_xstart, Dice of the predicted mask at the network's size.
    """

    def __init__(self, model, point, truth):
        self.model = model
        self.sampler = point.sampler
        self.truth = truth
        self.runtime = backend_module(point.backend, "runtime")
        self.process = None
        self.course = []

    def condition(self, image):
        """The network's own, which sampling computes once."""
        return self.model.condition(image)

    def __call__(self, x, t, **keywords):
        out, cal = self.model(x, t, **keywords)
        values = self.runtime.to_numpy(out)
        x_t = self.runtime.to_numpy(x)[:, -1:]
        if self.sampler == "ancestral-limited":
            values[:, 1:] = values[:, 1:].clip(-1, 1)
            out = self.runtime.to_tensor(values)
        index = self.process.timestep_map.index(int(self.runtime.to_numpy(t)[0]))
        self.course.append(self._entry(index, values, x_t))
        return out, cal

    def _entry(self, index, values, x_t):
        process = self.process
        alpha_bar = process.alphas_cumprod[index]
        share = (values[:, 1:].astype(np.float64) + 1) / 2
        smallest = process.posterior_log_variance_clipped[index]
        deviation = np.exp((share * process.log_betas[index] + (1 - share) * smallest) / 2) * (index > 0)
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
    """A number or an array as JSON values: None for what is not finite."""
    if np.ndim(value):
        return [_finite(one) for one in value]
    return float(value) if np.isfinite(value) else None
