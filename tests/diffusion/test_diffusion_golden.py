"""Compare both backends with the recorded values of the original on the toy network, in float32."""

import numpy as np
import pytest
from support.backends import ROOT
from support.toy import ToyData, ToyNetwork, array, draws, make_diffusion, process_through, relative_rms, tensor

from guided_diffusion_core.diffusion.schedule import (
    DiffusionTables,
    LossType,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
    respace,
    space_timesteps,
)
from guided_diffusion_core.diffusion.solvers import SOLVERS

GOLDEN = dict(np.load(ROOT / "tests" / "golden" / "diffusion.npz"))
TABLE_TOLERANCE = 1e-12  # recorded in float64
TOLERANCE = 1e-5  # relative RMS; recorded in float32

SCHEDULES = {"linear_1000": ("linear", 1000), "linear_100": ("linear", 100), "cosine_1000": ("cosine", 1000)}
TABLES = (
    "betas",
    "alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)
RESPACINGS = {
    "ddim50_of_1000": ("ddim50", 1000),
    "10,15,20_of_300": ("10,15,20", 300),
    "25_of_1000": ("25", 1000),
    "100_of_1000": ("100", 1000),
}
RESPACED = ("steps", "betas", "timestep_map")
CASES = {
    "sigma": {},
    "nosigma": {"variance": ModelVarType.FIXED_LARGE},
    "rescaled": {"loss": LossType.RESCALED_MSE},
    "xstart": {"mean": ModelMeanType.START_X},
    "rescale_t": {"rescale_timesteps": True},
    "respaced": {"steps": 1000, "respacing": "25"},
}
SAMPLED = ("sigma", "nosigma", "xstart", "respaced")  # whose trajectories were recorded
ETAS = (0.0, 0.5)
TRAJECTORY = ("trajectory", "final", "last_pred_xstart")
REVERSE_STEP = ("mean", "variance", "log_variance", "pred_xstart")
SOLVER_STEPS = (10, 20, 50)
FUSION = {"fusion/input", "fusion/upstream"}  # in test_fusion.py


def terms(case):
    return ("loss_diff", "loss_cal", "loss") + (() if case == "nosigma" else ("vb",))


def setting(backend, case):
    """Return diffusion, network and data of a case."""
    return make_diffusion(backend, **CASES[case]), ToyNetwork(backend, case != "nosigma"), ToyData()


def check(found, key):
    """Require that `found` agrees with the golden entry; the message gives the difference."""
    error = relative_rms(found, GOLDEN[key])
    assert error <= TOLERANCE, f"{key}: relative RMS error {error:.1e}"


def test_every_recorded_number_is_checked():
    checked = {f"schedule/{name}/{table}" for name in SCHEDULES for table in TABLES}
    checked |= {f"respace/{name}/{part}" for name in RESPACINGS for part in RESPACED}
    checked |= {"losses/normal_kl", "losses/discretized_gaussian_log_likelihood"}
    for case in CASES:
        checked |= {f"train/{case}/{term}" for term in terms(case)} | {f"q_sample/{case}"}
        checked |= {f"p/{case}/{part}" for part in REVERSE_STEP}
    checked |= {f"ddpm/{case}/{part}" for case in SAMPLED for part in TRAJECTORY}
    checked |= {f"ddim/eta{eta}/final" for eta in ETAS}
    checked |= {f"dpm/steps{steps}_thr{thr}/final" for steps in SOLVER_STEPS for thr in (0, 1)}
    assert not checked & FUSION
    assert checked | FUSION == GOLDEN.keys()


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    tables = DiffusionTables(get_named_beta_schedule(*SCHEDULES[name]))
    for table in TABLES:
        np.testing.assert_allclose(
            getattr(tables, table), GOLDEN[f"schedule/{name}/{table}"], rtol=TABLE_TOLERANCE, atol=0, err_msg=table
        )


@pytest.mark.parametrize("name", RESPACINGS)
def test_respacing(name):
    spec, steps = RESPACINGS[name]
    kept = space_timesteps(steps, spec)
    betas, timestep_map = respace(get_named_beta_schedule("linear", steps), kept)
    assert kept == tuple(GOLDEN[f"respace/{name}/steps"])
    assert timestep_map == tuple(GOLDEN[f"respace/{name}/timestep_map"])
    np.testing.assert_allclose(betas, GOLDEN[f"respace/{name}/betas"], rtol=TABLE_TOLERANCE, atol=0)


def test_losses(backend):
    losses = backend.module("losses")
    a, b, c, e = (tensor(backend, draw) for draw in draws(3, 4, (4, 5)))
    check(array(backend, losses.normal_kl(a, b, c, e)), "losses/normal_kl")
    likelihood = losses.discretized_gaussian_log_likelihood(a.clamp(-1.0, 1.0), means=c, log_scales=0.3 * b - 1.0)
    check(array(backend, likelihood), "losses/discretized_gaussian_log_likelihood")


@pytest.mark.parametrize("case", CASES)
def test_training_terms(backend, case):
    diffusion, network, data = setting(backend, case)
    found, _ = diffusion.training_losses_segmentation(
        network, None, tensor(backend, data.x_start()), tensor(backend, data.t), noise=tensor(backend, data.noise)
    )
    assert set(found) == set(terms(case))
    for term in found:
        check(array(backend, found[term]), f"train/{case}/{term}")


@pytest.mark.parametrize("case", CASES)
def test_marginal_and_reverse_step(backend, case):
    diffusion, network, data = setting(backend, case)
    t = tensor(backend, data.t)
    x_t = array(backend, diffusion.q_sample(tensor(backend, data.mask), t, tensor(backend, data.noise)))
    check(x_t, f"q_sample/{case}")
    found = diffusion.p_mean_variance(network, tensor(backend, np.concatenate([data.img, x_t], axis=1)), t)
    for part in REVERSE_STEP:
        check(array(backend, found[part]), f"p/{case}/{part}")


@pytest.mark.parametrize("case", SAMPLED)
def test_ancestral_sampling(backend, case):
    diffusion, network, data = setting(backend, case)
    steps = diffusion.num_timesteps
    initial, *fresh = (tensor(backend, draw) for draw in draws(21, 1 + steps))
    noise_of = dict(zip(reversed(diffusion.timestep_map), fresh))
    x_noisy = tensor(backend, np.concatenate([data.img, array(backend, initial)], axis=1))
    outs = list(diffusion.p_sample_loop_progressive(network, None, x_noisy, noise_of.get))
    states = [array(backend, out["sample"]) for out in outs]  # the recorded ones: t a multiple of steps // 5
    check(np.stack(states[steps // 5 - 1 :: steps // 5]), f"ddpm/{case}/trajectory")
    check(states[-1], f"ddpm/{case}/final")
    check(array(backend, outs[-1]["pred_xstart"]), f"ddpm/{case}/last_pred_xstart")


@pytest.mark.parametrize("eta", ETAS)
def test_ddim_sampling(backend, eta):
    data = ToyData()
    network = ToyNetwork(backend)
    diffusion = make_diffusion(backend, steps=1000, respacing="ddim25")
    initial, *fresh = (tensor(backend, draw) for draw in draws(22, 26))
    noise_of = dict(zip(reversed(diffusion.timestep_map), fresh))
    sample, *_ = diffusion.ddim_sample_loop_known(
        network, None, tensor(backend, data.x_start()), initial, noise_of.get, eta=eta
    )
    check(array(backend, sample), f"ddim/eta{eta}/final")


@pytest.mark.parametrize("steps", SOLVER_STEPS)
@pytest.mark.parametrize("thresholding", [False, True])
def test_dpm_solver_sampling(backend, steps, thresholding):
    """Repeat the authors' solver with the rows of ours, at their times.

    It takes n steps between n + 1 evenly spaced times, which need not be whole; log alpha_bar is linear between the
    trained ones. It ends at the first trained time, one step before x_0.
    """
    trained = DiffusionTables(get_named_beta_schedule("linear", 1000)).alphas_cumprod
    times = np.linspace(0, 999, steps + 1)
    diffusion = process_through(backend, np.exp(np.interp(times, np.arange(1000), np.log(trained))), times)
    rows = SOLVERS["dpm-solver++"](diffusion, diffusion.times(0), None)
    solver = backend.module("solver").Solver(diffusion, rows, False, thresholding)
    evaluate = backend.module("process").on_image(ToyNetwork(backend), tensor(backend, ToyData().img))
    outs = list(solver.run(evaluate, tensor(backend, draws(23, 1)[0])))
    check(array(backend, outs[-2]["sample"]), f"dpm/steps{steps}_thr{int(thresholding)}/final")
