"""Families of MedSegDiff's cases: the process, the objective, training, the optimizer, sampling and masks.

Each is a function(port, case, weights, inputs, recorder) that runs in a backend's own process.
"""

import contextlib
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from guided_diffusion_core.config import DataConfig, SamplingConfig, resolve
from guided_diffusion_core.data import list_truths, open_dataset
from guided_diffusion_core.data.dataset import Example
from guided_diffusion_core.data.phantoms import write_brats_phantom, write_isic_phantoms, write_refuge2_phantoms
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.evaluation import evaluate
from guided_diffusion_core.results.outputs import MASK, PROBABILITY, UNCERTAINTY, find_output, read_output
from guided_diffusion_core.sampling.run import SamplingRun
from parity.capture import is_floating, is_tensor
from parity.families import prepare, record_state

# Methods of the process whose results are recorded, each under its own name.
OBSERVED = (
    "q_sample",
    "q_posterior_mean_variance",
    "_variance",
    "_predict_xstart",
    "_target",
    "_vb_term",
    "p_mean_variance",
)


def network_settings(case):
    """Return the settings of a case's network, a `NetworkConfig` of any family."""
    return resolve(case.settings["model"]).model


class Images:
    """A `Dataset` of random images around the case's `mean`, and random masks."""

    normalisation = "none"

    def __init__(self, case, length=12):
        model = network_settings(case)
        generator = np.random.default_rng(5)
        masks = model.mask_channels
        size = model.image_size
        self.in_channels = model.image_channels
        low = case.settings.get("mean", 0.5) - 0.5
        self.images = generator.uniform(low, low + 1, (length, self.in_channels, size, size)).astype(np.float32)
        self.masks = (generator.uniform(size=(length, masks, size, size)) > 0.7).astype(np.float32)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Example(self.images[index], self.masks[index], f"case{index}")


@contextlib.contextmanager
def observed(recorder, owner, name_of_owner, names):
    """Record what some methods of an object are given and return while the context is open, call by call."""
    counts = {}

    def wrap(name, method):
        def call(*args, **keywords):
            number = counts[name] = counts.get(name, -1) + 1
            for k, value in enumerate(args):
                if is_tensor(value) and is_floating(value):
                    recorder.add("state", f"{name_of_owner}.{name}#{number} given {k}", value)
            result = method(*args, **keywords)
            _record_parts(recorder, f"{name_of_owner}.{name}#{number}", result)
            return result

        return call

    for name in names:
        setattr(owner, name, wrap(name, getattr(owner, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(owner, name)


def _record_parts(recorder, site, result):
    if isinstance(result, dict):
        parts = result.items()
    else:
        parts = enumerate(result) if isinstance(result, tuple) else [("", result)]
    for name, value in parts:
        if is_tensor(value):
            recorder.add("state", f"{site}.{name}" if name != "" else site, value)


def process(port, case):
    """Return the diffusion process of a case."""
    model = case.settings.get("model", {})
    settings = {
        "learn_sigma": model.get("learn_sigma", False),
        "mask_channels": model.get("mask_channels", 1),
        **case.settings.get("diffusion", {}),
    }
    return port.module("script_util").create_gaussian_diffusion(**settings)


def run_table(port, case, weights, inputs, recorder):
    """Record every number of the process by time step, as the backend has it."""
    diffusion = process(port, case)
    for name, value in vars(diffusion).items():
        if isinstance(value, (np.ndarray, tuple)):
            recorder.add("table", f"diffusion.{name}", np.asarray(value))


def run_loss(port, case, weights, inputs, recorder):
    """Record the terms of the objective for three examples, and the results of the process on the way."""
    verbs = recorder.verbs
    images = Images(case)
    model = prepare(port, case, weights)
    diffusion = process(port, case)
    batch = np.concatenate([images.images[:3], images.masks[:3]], axis=1)
    noise = np.random.default_rng(6).standard_normal(images.masks[:3].shape).astype(np.float32)
    port.nn.set_dropout_noise(model, recorder.tape(2), 0, (0, 1, 2))
    with observed(recorder, diffusion, "diffusion", OBSERVED), verbs.no_grad():
        terms, prediction = diffusion.training_losses_segmentation(
            model,
            None,
            verbs.to_tensor(batch, verbs.precision()),
            verbs.to_tensor(np.array([0, 1, 640])),
            noise=verbs.to_tensor(noise, verbs.precision()),
        )
    recorder.add("state", "prediction", prediction)
    for name, value in terms.items():
        recorder.add("loss", name, value)


def training_config(case):
    """Return the `Config` of a case's training."""
    return resolve(
        {**case.settings["model"], **case.settings["training"], **case.settings.get("diffusion", {}), "max_steps": 10}
    )


def training_loop(port, case, weights, recorder, step=0, networks=None):
    """Return the port's `TrainLoop` on random images, with the case's weights and a recorded tape.

    step, networks: content of a checkpoint from which it resumes.
    """
    training = port.module("train_util")
    model = prepare(port, case, weights)
    repeated = port.module("recompute").is_recomputing
    with (
        mock.patch.object(training, "build_network", lambda *given: model),
        mock.patch.object(training, "NoiseTape", lambda seed: recorder.tape(seed, repeated)),
    ):
        loop = training.create_train_loop(training_config(case), Images(case), step, networks)
    sampler = loop.method.schedule_sampler
    if sampler.state() and not networks:  # as after many steps
        sampler.restore(_full_history(sampler))
    return loop


def _full_history(sampler):
    """Return a full history of losses that differ among the time steps, in the form of a sampler's `state`."""
    state = sampler.state()
    losses = np.random.default_rng(8).uniform(0.1, 1, state["losses"].shape)
    return {
        "losses": losses * np.arange(1, len(losses) + 1)[:, None],
        "counts": np.full_like(state["counts"], losses.shape[1]),
    }


def record_forward_backward(loop, recorder):
    """Let a loop record each batch, its losses and its gradients."""
    inner = loop.forward_backward

    def forward_backward(batch, *rest):
        recorder.add("input", f"batch, step {loop.step}", batch)
        values, gradients = inner(batch, *rest)
        for name, value in values.items():
            recorder.add("loss", f"{name}, step {loop.step}", np.float64(value))
        for name, gradient in zip(loop.names, gradients):
            recorder.add("gradient", f"{name}, step {loop.step}", gradient)
        return values, gradients

    loop.forward_backward = forward_backward


def run_training(port, case, weights, inputs, recorder):
    """Record losses and gradients of the first batches, without optimizer steps between them."""
    loop = training_loop(port, case, weights, recorder)
    verbs = recorder.verbs
    record_forward_backward(loop, recorder)
    loop.opt.step = lambda gradients, lr: None
    for _ in loop.run_loop(case.settings["steps"]):
        pass
    record_state(port, loop.model, recorder, port.is_buffer, "buffer")
    verbs.synchronize()


def run_optimizer(port, case, weights, inputs, recorder):
    """Record optimizer steps on given gradients, which span ten orders of magnitude."""
    loop = training_loop(port, case, weights, recorder)
    verbs = recorder.verbs
    generator = np.random.default_rng(9)

    def given(batch, *rest):
        scale = [10.0 ** generator.uniform(-10, 0) for _ in loop.params]
        values = [generator.standard_normal(tuple(param.shape)) * size for param, size in zip(loop.params, scale)]
        return {}, [verbs.to_tensor(value.astype(np.float32), verbs.precision()) for value in values]

    loop.forward_backward = given
    record_steps(loop, case, recorder)


def run_steps(port, case, weights, inputs, recorder):
    """Record training steps end to end."""
    loop = training_loop(port, case, weights, recorder)
    record_forward_backward(loop, recorder)
    record_steps(loop, case, recorder)
    record_state(port, loop.model, recorder, port.is_buffer, "buffer")


def record_steps(loop, case, recorder):
    """Run a loop's steps and record rates, updates (not weights), moments and changes of the averages."""
    verbs = recorder.verbs
    before = _arrays(verbs, loop.params)
    means = [_arrays(verbs, averages) for averages in loop.ema_params]
    for step, values in loop.run_loop(case.settings["steps"]):
        recorder.add("learning rate", f"step {step}", np.float64(values["lr"]))
        after = _arrays(verbs, loop.params)
        first, second = (_arrays(verbs, moments) for moments in loop.opt.moments())
        for name, old, new, m, v in zip(loop.names, before, after, first, second):
            recorder.add("first moment", f"{name}, step {step}", m)
            recorder.add("second moment", f"{name}, step {step}", v)
            recorder.add("update", f"{name}, step {step}", new - old)
        for k, averages in enumerate(loop.ema_params):
            changed = _arrays(verbs, averages)
            for name, old, new in zip(loop.names, means[k], changed):
                recorder.add("average", f"{name}, rate {loop.ema_rate[k]}, step {step}", new - old)
            means[k] = changed
        before = after


def _arrays(verbs, tensors):
    return [verbs.to_numpy(tensor) for tensor in tensors]


def run_sampling_case(port, case, weights, inputs, recorder):
    """Record the trajectory of an ensemble, state by state."""
    sampling = SamplingConfig(**case.settings["sampling"])
    images = Images(case, 2)
    sampler = port.module("sample_util").EnsembleSampler(
        prepare(port, case, weights), process(port, case), sampling, recorder.tape(4)
    )
    with (
        observed(recorder, sampler.solver.process, "diffusion", OBSERVED),
        observed(recorder, sampler.solver, "solver", ("step",)),
    ):
        members = sampler(images.images, ["first", "second"])
    recorder.add("members", "ensemble", members.astype(recorder.verbs.precision()))


def run_masks(port, case, weights, inputs, recorder):
    """Record files and scores of phantoms in a dataset's layout, sampled and fused as the command does."""
    layout = case.settings["layout"]
    sampling = SamplingConfig(**case.settings["sampling"])
    with tempfile.TemporaryDirectory() as folder:
        if layout == "ISIC":
            _, source = write_isic_phantoms(folder, 1, 3, 40, seed=1)
            data = DataConfig(data_name="ISIC", data_dir=source)
        elif layout == "REFUGE2":
            eyes = write_refuge2_phantoms(Path(folder) / "eyes", 2, 40, seed=1)
            data = DataConfig(data_name="REFUGE2", data_dir=eyes)
        else:
            write_brats_phantom(folder, "BraTS2021_00001", (40, 40, 8), seed=1)
            data = DataConfig(data_name="BRATS", data_dir=folder, slices="tumour")
        dataset = open_dataset(data, network_settings(case).image_size, "Test", False)
        sampler = port.module("sample_util").EnsembleSampler(
            prepare(port, case, weights), process(port, case), sampling, recorder.tape(4)
        )
        out_dir = Path(folder) / "masks"
        SamplingRun(dataset, out_dir, 2, sampling.threshold, {}).run(sampler)
        _record_masks(recorder, dataset, out_dir, list_truths(data), sampling.threshold)


def _record_masks(recorder, dataset, out_dir, truths, threshold):
    """Record images, outputs and scores: those of a case at its name, of several labels at each "CASE LABEL"."""
    summary = evaluate(out_dir, truths, threshold)
    scores = {row["case"]: row["metrics"] for row in summary["metric_per_case"]}
    for index in range(len(dataset)):
        recorder.add("image", dataset[index].noise_key, dataset[index].image)
    recorder.add("table", "threshold", np.float64(threshold))
    for truth in truths:
        for label, true_mask in zip(summary["labels"], read_truth_masks(truth), strict=True):
            several = len(summary["labels"]) > 1
            site, in_name = (f"{truth.name} {label}", label) if several else (truth.name, None)
            for kind in (PROBABILITY, UNCERTAINTY, MASK):
                recorder.add(kind, site, read_output(find_output(out_dir, truth.name, kind, in_name)))
            recorder.add("truth", site, true_mask)
            for metric in ("Dice", "IoU"):
                recorder.add("score", f"{site} {metric.lower()}", np.float64(scores[truth.name][label][metric]))


FAMILIES = {
    "table": run_table,
    "loss": run_loss,
    "training": run_training,
    "optimizer": run_optimizer,
    "steps": run_steps,
    "sampling": run_sampling_case,
    "masks": run_masks,
}
