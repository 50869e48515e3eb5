"""Samplers compared on trained networks: masks, scores and the course of every sampling.

A point of the study is one network, one sampler and one number of network evaluations. Its folder holds
the masks, `summary.json` (scores), `run_report.json` (settings) and `course.json`: what the network was
given and what it answered at each evaluation.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guided_diffusion_core import checkpoint, cli, evaluation
from guided_diffusion_core.data import list_truths, open_dataset
from guided_diffusion_core.files import write_atomic
from guided_diffusion_core.metrics import count
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.sampling import run_sampling
from guided_diffusion_core.schedule import ModelVarType

# Name -> settings of a sampler. The last two are the ancestral one with another variance.
SAMPLERS = {
    "ancestral": {"use_ddim": False, "dpm_solver": False},
    "ddim": {"use_ddim": True, "eta": 0.0},
    "dpm-solver": {"dpm_solver": True},
    "ancestral-posterior": {"use_ddim": False, "dpm_solver": False},
    "ancestral-limited": {"use_ddim": False, "dpm_solver": False},
}
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
    """Sample and score one point, unless that is done.

    model_path: of the checkpoint. data: `DataConfig` of the slices. out_dir: folder of the point.
    """
    out_dir = Path(out_dir)
    if (out_dir / "course.json").is_file():
        return
    path = checkpoint.find(model_path)
    model, diffusion, config = cli.backend_module(point.backend, "script_util").load_model_and_diffusion(path)
    settings = {"num_ensemble": 1, "sample_steps": point.evaluations, **SAMPLERS[point.sampler]}
    config = config.replace(data_name=data.data_name, data_dir=data.data_dir, slices=data.slices, **settings)
    if point.sampler == "ancestral-posterior":
        diffusion.model_var_type = ModelVarType.FIXED_SMALL
    dataset = open_dataset(data, config.model.image_size, "Test", need_masks=True)
    watched = Watched(model, point, np.stack([dataset[index].mask for index in range(len(dataset))]))
    sampler = cli.backend_module(point.backend, "sample_util").EnsembleSampler(
        watched, diffusion, config.sampling, NoiseTape(config.seed))
    watched.process = sampler.diffusion
    summary = cli.configuration_text(config, backend=point.backend, model_path=str(path), sampler=point.sampler)
    run_sampling(sampler, dataset, out_dir, len(dataset), config.sampling.threshold, summary)
    scores = evaluation.evaluate(out_dir, list_truths(data), config.sampling.threshold)
    evaluation.write_summary(out_dir / "summary.json", scores)
    write_atomic(out_dir / "course.json", json.dumps(watched.course, allow_nan=False).encode())


class Watched:
    """A network that keeps the course of the sampling that calls it, one dict per evaluation.

    model: the network. point: `Point`. truth: (N, 1, S, S), the masks of its batch, 0 or 1.
    process: the diffusion process that is sampled, set before the first call; it reads the network's
             prediction as the process' own tables say, in numpy.

    A dict holds: t, the time step of the whole process; alpha_bar there; noise_ratio, the standard
    deviation of what the noised mask holds beside the true mask over what the schedule says; share, the
    5%, 50% and 95% quantiles of where the learned variance's logarithm lies between the posterior's (0)
    and beta (1); noise_added, the standard deviation of the noise that the ancestral step adds, in
    quantiles too; dice_xstart, Dice of the predicted mask at the network's size.
    """

    def __init__(self, model, point, truth):
        self.model, self.sampler, self.truth = model, point.sampler, truth
        self.runtime = cli.backend_module(point.backend, "runtime")
        self.process, self.course = None, []

    def __call__(self, x, t):
        out, cal = self.model(x, t)
        values, x_t = self.runtime.to_numpy(out), self.runtime.to_numpy(x)[:, -1:]
        if self.sampler == "ancestral-limited":
            values[:, 1:] = values[:, 1:].clip(-1, 1)
            out = self.runtime.to_tensor(values)
        elif self.sampler == "ancestral-posterior":
            out = out[:, :1]
        index = self.process.timestep_map.index(int(self.runtime.to_numpy(t)[0]))
        self.course.append(self._entry(index, values, x_t))
        return out, cal

    def _entry(self, index, values, x_t):
        process = self.process
        alpha_bar = process.alphas_cumprod[index]
        share = (values[:, 1:].astype(np.float64) + 1) / 2
        smallest = process.posterior_log_variance_clipped[index]
        if process.model_var_type == ModelVarType.FIXED_SMALL:
            share = 0 * share
        deviation = np.exp((share * process.log_betas[index] + (1 - share) * smallest) / 2) * process.adds_noise[index]
        predicted = values[:, :1]
        if process.model_mean_type.name == "EPSILON":
            predicted = (x_t - np.sqrt(1 - alpha_bar) * predicted) / np.sqrt(alpha_bar)
        residual = x_t.astype(np.float64) - np.sqrt(alpha_bar) * self.truth
        entry = (process.timestep_map[index], alpha_bar, np.sqrt(np.mean(residual ** 2) / (1 - alpha_bar)),
                 _quantiles(share), _quantiles(deviation), count(predicted >= 0.5, self.truth > 0.5).dice)
        return dict(zip(TRACED, map(_finite, entry)))


def _quantiles(values):
    return np.quantile(values, (0.05, 0.5, 0.95))


def _finite(value):
    """A number or an array as JSON values: None for what is not finite."""
    if np.ndim(value):
        return [_finite(one) for one in value]
    return float(value) if np.isfinite(value) else None
