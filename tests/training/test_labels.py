"""Test masks of several labels: each label's channel is treated as if it were the only one, from loss to files."""

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.small import NETWORK, NETWORK_V1, RandomDataset, random_state, small_config
from support.toy import ToyData, ToyNetwork, array, make_diffusion, tensor

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import ModelConfig
from guided_diffusion_core.diffusion.schedule import LossType, ModelMeanType, ModelVarType
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.medsegdiff.plan import make_plan
from guided_diffusion_core.networks.medsegdiff.state_shapes import state_shapes
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.sampling.run import check_dataset, sampling_config
from guided_diffusion_core.training import fit_to_data

LABELS = ("whole_tumour", "tumour_core", "enhancing")
THREE = {"mask_channels": 3, "in_ch": 6}
# Relative: one sum over three channels instead of three means; measured below 1e-15
TOLERANCE = 1e-13


def masks_of(data):
    """Return masks and noise of three labels (2, 3, 8, 8); the first label is that of the toy data."""
    generator = np.random.default_rng(8)
    shape = (2, 2, 8, 8)
    return (
        np.concatenate([data.mask, generator.random(shape) > 0.7], axis=1),
        np.concatenate([data.noise, generator.standard_normal(shape)], axis=1),
    )


@pytest.mark.parametrize("version", ["new", "1"])
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_names_and_shapes_of_the_network(version, learn_sigma):
    """Require more channels only in the layers that read or write the mask."""
    network = {**(NETWORK_V1 if version == "1" else NETWORK), "learn_sigma": learn_sigma}
    one, three = (state_shapes(make_plan(ModelConfig(**{**network, **settings}))) for settings in ({}, THREE))
    outputs = 6 if learn_sigma else 3
    wider = {
        "input_blocks.0.0.weight": (32, 6, 3, 3),
        "out.2.weight": (outputs, 32, 3, 3),
        "out.2.bias": (outputs,),
        "hwm.seg_outputs.0.weight": (3, *one["hwm.seg_outputs.0.weight"][1:]),
    }
    assert three == {**one, **wider} and list(three) == list(one)


def test_forward_shapes_and_the_highway_sees_no_mask(backend):
    plan = make_plan(ModelConfig(**{**NETWORK, **THREE}))
    runtime = backend.module("runtime")
    model = backend.module("unet").make_network(plan)
    runtime.load_state(model, random_state(state_shapes(plan)))
    model.eval()
    x = np.random.default_rng(0).standard_normal((2, 6, 32, 32))
    found = []
    for masks in (x[:, 3:], -x[:, 3:]):
        given = runtime.to_tensor(np.concatenate([x[:, :3], masks], axis=1), "float32")
        with runtime.no_grad():
            found.append([runtime.to_numpy(value) for value in model(given, runtime.to_tensor(np.array([3, 700])))])
    assert found[0][0].shape == (2, 6, 32, 32) and found[0][1].shape == (2, 3, 32, 32)
    assert np.abs(found[0][0] - found[1][0]).max() > 1e-3
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    "mean, variance, loss",
    [
        (ModelMeanType.EPSILON, ModelVarType.LEARNED_RANGE, LossType.MSE),
        (ModelMeanType.START_X, ModelVarType.FIXED_LARGE, LossType.RESCALED_KL),
    ],
)
def test_losses_are_the_means_of_the_labels(backend, float64, mean, variance, loss):
    """Compare with the losses of single labels; equal labels have the loss of one."""
    data = ToyData()
    learned = variance == ModelVarType.LEARNED_RANGE
    masks, noise = masks_of(data)

    def losses(chosen):
        network = ToyNetwork(backend, learned, "float64", masks=len(chosen))
        diffusion = make_diffusion(backend, mean=mean, variance=variance, loss=loss, masks=len(chosen))
        x_start = np.concatenate([data.img, masks[:, chosen]], axis=1)
        terms, prediction = diffusion.training_losses_segmentation(
            network,
            None,
            tensor(backend, x_start, "float64"),
            tensor(backend, np.array([0, 60])),
            noise=tensor(backend, noise[:, chosen], "float64"),
        )
        assert prediction.shape[1] == len(chosen)
        return {name: array(backend, value) for name, value in terms.items()}

    together = losses([0, 1, 2])
    alone = [losses([k]) for k in range(3)]
    for name, value in together.items():
        assert value.shape == (2,) and value.dtype == np.float64
        expected = np.mean([terms[name] for terms in alone], axis=0)
        np.testing.assert_allclose(value, expected, rtol=TOLERANCE)
        np.testing.assert_allclose(losses([1, 1, 1])[name], alone[1][name], rtol=TOLERANCE)


@pytest.mark.parametrize(
    "sampler, settings",
    [("p", {}), ("ddim", {"eta": 0.5}), ("dpm_solver", {}), ("dpm_solver", {"dynamic_thresholding": True})],
)
def test_samplers_treat_each_label_as_if_it_were_alone(backend, float64, sampler, settings):
    data = ToyData()

    def sample(chosen):
        diffusion = make_diffusion(backend, steps=30, masks=len(chosen))
        img = np.concatenate([data.img, np.zeros((2, len(chosen), 8, 8))], axis=1)

        def draw(site, step):
            values = NoiseTape(7).normal(site, (2, 3, 8, 8), step=step)[:, chosen]
            return tensor(backend, 3 * values if site == "initial" else values, "float64")

        loop = getattr(diffusion, f"{sampler}_sample_loop_known")
        found = loop(
            ToyNetwork(backend, True, "float64", masks=len(chosen)),
            None,
            tensor(backend, img, "float64"),
            draw("initial", 0),
            lambda t: draw("step", t),
            **settings,
        )
        return [array(backend, found[k]) for k in (0, 3, 4)]  # sample, calibration mask and their blend

    for k in range(3):
        for together, alone in zip(sample([0, 1, 2]), sample([k])):
            assert together.shape == (2, 3, 8, 8)
            np.testing.assert_allclose(together[:, k : k + 1], alone, rtol=0, atol=TOLERANCE)


def test_calibration_is_blended_label_by_label(backend):
    """Use three labels: the first agrees with its calibration mask, the second does not, the third is empty in both."""
    cal = np.zeros((2, 3, 8, 8), np.float32)
    cal[:, :2, 2:6, 2:6] = 0.9
    sample = np.where(cal > 0, 0.7, -0.1).astype(np.float32)
    sample[:, 1] = -0.1
    sample[:, 1, 6:, 6:] = 0.7
    blend = backend.module("gaussian_diffusion").blend_calibration
    together = array(backend, blend(tensor(backend, sample), tensor(backend, cal)))
    expected = [(sample + cal) / 2, cal + sample / 4, (sample + cal) / 2]
    for k in range(3):
        np.testing.assert_allclose(together[:, k], expected[k][:, k].clip(0, 1), atol=1e-6)


def test_gradients_against_finite_differences(backend, float64):
    """Differentiate the total loss of three labels along random directions of single parameters, through the network.

    The variance is not learned, since the prediction gets no gradient from that term of the loss.
    """
    runtime = backend.module("runtime")
    plan = make_plan(ModelConfig(**{**NETWORK, **THREE, "learn_sigma": False, "highway_dropout": 0.0}))
    model = backend.module("unet").make_network(plan)
    state = random_state(state_shapes(plan))
    diffusion = backend.module("script_util").create_gaussian_diffusion(mask_channels=3)
    generator = np.random.default_rng(2)
    x_start = np.concatenate([generator.random((2, 3, 32, 32)), generator.random((2, 3, 32, 32)) > 0.7], axis=1)
    noise = generator.standard_normal((2, 3, 32, 32))
    model.train()

    def total(arrays):
        runtime.load_state(model, arrays)
        terms, _ = diffusion.training_losses_segmentation(
            model,
            None,
            runtime.to_tensor(x_start, "float64"),
            runtime.to_tensor(np.array([10, 640])),
            noise=runtime.to_tensor(noise, "float64"),
        )
        return backend.module("gaussian_diffusion").total_loss(terms, runtime.to_tensor(np.ones(2), "float64"))

    loss = total(state)
    names = ("out.2.weight", "hwm.seg_outputs.0.weight", "input_blocks.0.0.weight")
    params = dict(model.named_parameters())
    found = backend.module("optim").gradients(loss, [params[name] for name in names])
    for name, gradient in zip(names, map(runtime.to_numpy, found)):
        direction = generator.standard_normal(state[name].shape)
        step = 1e-5 / np.linalg.norm(direction)
        higher, lower = (
            runtime.to_numpy(total({**state, name: state[name] + sign * step * direction})).item() for sign in (1, -1)
        )
        # the rounding of the loss (1e-15 of about 4, over 1e-5) and the curvature: measured 1e-10
        slope = (gradient * direction).sum() / np.linalg.norm(direction)
        norm = np.linalg.norm(gradient)
        assert abs((higher - lower) / 2e-5 - slope) <= 1e-8 * norm, name


def test_the_data_decides_the_masks_channels():
    dataset = RandomDataset(labels=LABELS)
    config = fit_to_data(small_config(), dataset, in_ch_given=False)
    assert (config.model.mask_channels, config.model.in_ch, config.data.labels) == (3, 6, ",".join(LABELS))
    assert fit_to_data(small_config(), RandomDataset(), in_ch_given=False) == small_config(normalisation="none")
    with pytest.raises(UserError, match="--mask_channels: found 1; expected 3 .*whole_tumour, tumour_core, enhancing"):
        fit_to_data(small_config(), dataset, in_ch_given=False, mask_channels_given=True)
    with pytest.raises(UserError, match="--in_ch: found 4; expected 6"):
        fit_to_data(small_config(), dataset, in_ch_given=True)


def test_data_with_other_labels_is_refused():
    config = small_config(**THREE, normalisation="none")
    check_dataset(RandomDataset(labels=LABELS), config, 1)
    with pytest.raises(UserError, match=r"--labels: found 1 labels \(mask\); expected 3"):
        check_dataset(RandomDataset(), config, 1)
    with pytest.raises(UserError, match="found 4 image channels; expected 3"):
        check_dataset(RandomDataset(in_channels=4, labels=LABELS), config, 1)


def test_training_and_sampling(tmp_path):
    """Require the number of labels in the checkpoint, and a channel for each label in every member.

    The cases in parity/medsegdiff.py compare the steps and samples of both backends.
    """
    backend = Backend(BACKENDS[0])
    dataset = RandomDataset(labels=LABELS)
    config = fit_to_data(
        small_config(preset="fast", max_steps=2, num_ensemble=2, sample_steps=2), dataset, in_ch_given=False
    )
    loop = backend.module("train_util").create_train_loop(config, dataset)
    values = [values for _, values in loop.run_loop(2)]
    assert np.isfinite([value["total"] for value in values]).all()
    path = checkpoints.save(tmp_path, 2, config, loop.networks()) / "model.safetensors"
    model, diffusion, config = backend.module("script_util").load_model_and_diffusion(path)
    sampler = backend.module("sample_util").EnsembleSampler(model, diffusion, config.sampling, NoiseTape(0))
    assert sampling_config(path, {}).data.labels == "whole_tumour,tumour_core,enhancing"
    with pytest.raises(UserError, match="--labels: found 'enhancing,tumour_core,whole_tumour'; expected 'whole"):
        sampling_config(path, {"labels": "enhancing,tumour_core,whole_tumour"})
    members = sampler(dataset.images[:2], ["a", "b"])
    assert members.shape == (2, 2, 3, 32, 32) and np.isfinite(members).all()
    assert np.abs(members[:, :, 0] - members[:, :, 1]).max() > 0
