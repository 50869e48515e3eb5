"""Test the study of the samplers: its points, its measurements, and that finished parts are not repeated."""

import importlib.util
import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from support.backends import BACKENDS, ROOT
from support.small import random_state, small_config

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data.phantoms import write_brats_phantom
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.registry import state_shapes
from studies import sampler_study
from studies.sampler_study import PROBED, Point, Watched, measure, probe


@pytest.fixture(scope="module")
def script():
    """Import `studies/record_samplers.py` as a module."""
    spec = importlib.util.spec_from_file_location("record_samplers", ROOT / "studies" / "record_samplers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_points_of_the_study(script):
    points = script.points(["x0", "epsilon"], 1000)
    pytorch = {(point.network, point.sampler, point.evaluations) for point in points if point.backend == "pytorch"}
    expected = {
        (network, sampler, count)
        for network in ("x0", "epsilon")
        for sampler, counts in (
            *(
                (name, (1, 2, 3, 5, 10, 20, 50, 100, 250, 1000))
                for name in ("ancestral", "ddim", "ddim-eta1", "dpm-solver")
            ),
            ("ancestral-limited", (10, 20, 50, 100)),
        )
        for count in counts
    }
    assert pytorch == expected
    jittor = {(point.network, point.sampler, point.evaluations) for point in points if point.backend != "pytorch"}
    assert len(jittor) == 8 and jittor < pytorch, "each has its twin"
    assert len(points) == len({point.name for point in points}) == len(expected) + 8, "a folder for each, none twice"
    assert {point.sampler for point in points} == sampler_study.SAMPLERS.keys()
    counts = [point.evaluations for point in points]
    assert counts == sorted(counts), "cheap ones first"


def test_fewer_points(script):
    every = script.points(["x0", "epsilon"], 1000)
    assert script.points(["epsilon"], 10) == [
        point for point in every if point.network == "epsilon" and point.evaluations <= 10
    ]
    assert script.points(["x0"], 0) == []


# In what follows numbers are exact but for a float32 network's output and input: about 6e-8 of a value, which the
# division by sqrt(1 - alpha_bar) = 0.01 at t = 0 makes 6e-6.
ROUNDING = 2e-5


def make_process(backend, **settings):
    return backend.module("script_util").create_gaussian_diffusion(learn_sigma=True, **settings)


class Constant:
    """A network that always returns the same arrays."""

    def __init__(self, runtime, mask, share):
        self.runtime = runtime
        self.out = np.concatenate([mask, np.full_like(mask, 2 * share - 1)], axis=1)

    def __call__(self, x, t):
        return self.runtime.to_tensor(self.out), None


def made_batch():
    """Return true masks (2, 1, 32, 32) of 0 and 1, and noise of -1 and 1, whose root mean square is exactly 1."""
    generator = np.random.default_rng(3)
    truth = (generator.uniform(size=(2, 1, 32, 32)) > 0.7).astype(np.float32)
    return truth, np.sign(generator.standard_normal(truth.shape))


def watch(backend, process, t, share, sampler="ancestral", size=1.0, answer=None):
    """Return (output of `Watched`, its entry of the course) for one evaluation of a network at t.

    size:   deviation of the noise in its input, over the schedule's.
    answer: first channel of its output; None for the true mask.
    """
    runtime = backend.module("runtime")
    truth, signs = made_batch()
    alpha_bar = process.alphas_cumprod[t]
    x_t = np.sqrt(alpha_bar) * truth + np.sqrt(1 - alpha_bar) * size * signs
    network = Constant(runtime, truth if answer is None else answer, share)
    watched = Watched(network, Point("net", sampler, 1, backend.name), truth)
    watched.process = process
    x = np.concatenate([np.zeros((2, 3, 32, 32)), x_t], axis=1).astype(np.float32)
    steps = np.full(2, process.timestep_map[t])
    out, _ = watched(runtime.to_tensor(x), runtime.to_tensor(steps))
    return runtime.to_numpy(out), watched.course[0]


@pytest.mark.parametrize("t, share, size", [(0, 0.25, 1.0), (2, 4.0, 3.0), (4, 0.0, 0.5)])
def test_an_evaluation_in_numbers(backend, t, share, size):
    process = make_process(backend, predict_xstart=True, timestep_respacing="5")
    _, entry = watch(backend, process, t, share, size=size)
    assert entry["t"] == process.timestep_map[t] and entry["alpha_bar"] == process.alphas_cumprod[t]
    assert entry["noise_ratio"] == pytest.approx(size, rel=ROUNDING)
    np.testing.assert_allclose(entry["share"], [share] * 3, rtol=1e-6)
    posterior = np.exp(process.posterior_log_variance_clipped[t])
    beta = process.betas[t]
    expected = np.sqrt(posterior ** (1 - share) * beta**share) if t else 0.0
    np.testing.assert_allclose(entry["noise_added"], [expected] * 3, rtol=1e-5)
    assert entry["dice_xstart"] == 1.0


def test_the_predicted_mask_of_a_network_of_the_noise(backend):
    """Solve x_t = sqrt(a) x_0 + sqrt(1 - a) noise for x_0, with a network that does not know the noise."""
    process = make_process(backend, timestep_respacing="5")
    truth, signs = made_batch()
    answer = np.random.default_rng(4).uniform(-1, 1, truth.shape).astype(np.float32)
    for t, size in ((1, 1.0), (2, 0.5)):
        _, entry = watch(backend, process, t, 0.5, size=size, answer=answer)
        predicted = truth + np.sqrt(1 / process.alphas_cumprod[t] - 1) * (size * signs - answer) >= 0.5
        dice = 2 * np.sum(predicted & (truth > 0)) / (predicted.sum() + truth.sum())
        assert 0.2 < dice < 0.9 and entry["dice_xstart"] == pytest.approx(dice)


@pytest.mark.parametrize("share, kept", [(4.0, 1.0), (-3.0, 0.0), (0.3, 0.3)])
def test_a_limited_share_is_handed_on_and_noted(backend, share, kept):
    process = make_process(backend, predict_xstart=True, timestep_respacing="5")
    for sampler, expected in (("ancestral-limited", kept), ("ancestral", share)):
        out, entry = watch(backend, process, 2, share, sampler)
        np.testing.assert_allclose(out[:, 1:], 2 * expected - 1, rtol=1e-6)
        np.testing.assert_allclose(entry["share"], expected, rtol=1e-5, atol=1e-7)


def test_what_is_not_finite_is_none(backend):
    process = make_process(backend, predict_xstart=True, timestep_respacing="5")
    _, entry = watch(backend, process, 2, np.nan)
    assert entry["share"] == [None] * 3 and json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize("t", [1, 20, 300])
def test_the_share_that_is_asked_for_minimises_the_bound(backend, t):
    """Minimise the mean of log(v) + (posterior + (c * 0.2)^2) / v, for a network whose x_0 is wrong by 0.2."""
    process = make_process(backend, predict_xstart=True)
    error = 0.2
    truth = (np.random.default_rng(1).uniform(size=(2, 1, 8, 8)) > 0.5).astype(np.float64)
    share = np.full_like(truth, 3.0)
    share[0] = 0.5  # of no interest
    found = sampler_study._probed(process, t, np.concatenate([truth + error, 2 * share - 1], axis=1), truth, truth)
    low = process.posterior_log_variance_clipped[t]
    high = np.log(process.betas[t])
    square = np.exp(low) + (process.posterior_mean_coef1[t] * error) ** 2

    def bound(asked):
        logarithm = low + asked * (high - low)
        return logarithm + square * np.exp(-logarithm)

    best = minimize_scalar(bound, bracket=(found["asked"] - 1, found["asked"] + 0.5)).x
    assert found["asked"] == pytest.approx(best, rel=1e-4)
    assert (found["t"], found["pixels"], found["share"]) == (t, 0.5, 3.0)
    assert found["error"] == pytest.approx(error)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return (folder of a run with a checkpoint of random weights, `DataConfig` of two slices of a phantom)."""
    folder = tmp_path_factory.mktemp("study")
    config = small_config(in_ch=5, data_name="BRATS", predict_xstart=True)
    state = {
        name: value.astype(np.float32) if value.dtype.kind == "f" else value
        for name, value in random_state(state_shapes(config.model)).items()
    }
    checkpoints.save(folder / "net", 1, config, {checkpoints.NETWORK: state})
    write_brats_phantom(folder / "data", "BraTS2021_00001", (40, 40, 8), seed=1)
    return folder / "net", DataConfig(data_name="BRATS", data_dir=str(folder / "data"), slices="2:6:2")


def test_a_finished_point_is_kept_and_an_unfinished_one_begun_anew(backend, trained, tmp_path):
    network, data = trained
    point = Point("net", "ddim-eta1", 3, backend.name)
    folder = tmp_path / point.name
    folder.mkdir()
    (folder / "BraTS2021_00009_mask.nii.gz").write_bytes(b"of an interrupted one")
    measure(point, network, data, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [
            *(
                f"BraTS2021_00001_{kind}"
                for kind in (
                    "mask.nii.gz",
                    "probability.nii.gz",
                    "uncertainty.nii.gz",
                    "overlay.png",
                    "uncertainty_map.png",
                )
            ),
            "course.json",
            "run_report.json",
        ]
    )
    course = json.loads((folder / "course.json").read_text())
    assert [entry["t"] for entry in course] == [999, 500, 0]
    # pure noise of 2048 values: its deviation is 1 to within 1 / sqrt(2 * 2048) = 0.016, here 4 times that
    assert course[0]["noise_ratio"] == pytest.approx(1, abs=0.07)
    report = json.loads((folder / "run_report.json").read_text())
    assert (report["backend"], report["sampler"], report["finished"]) == (backend.name, "ddim-eta1", True)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    measure(point, tmp_path / "nowhere", data, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    (folder / "course.json").unlink()
    with pytest.raises(UserError, match="nowhere"):
        measure(point, tmp_path / "nowhere", data, folder)


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="probes in PyTorch")
def test_a_finished_probe_is_kept(trained, tmp_path):
    network, data = trained
    probe("net", network, data, tmp_path)
    rows = json.loads((tmp_path / "net" / "probe.json").read_text())
    assert [row["t"] for row in rows] == list(PROBED)
    assert all((row["pixels"] == 0) == (row["asked"] is None) for row in rows)
    stamp = (tmp_path / "net" / "probe.json").stat().st_mtime_ns
    probe("net", tmp_path / "nowhere", data, tmp_path)
    assert (tmp_path / "net" / "probe.json").stat().st_mtime_ns == stamp
