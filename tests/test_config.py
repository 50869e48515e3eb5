"""Configuration: presets, overrides, ranges, and the way through a checkpoint's JSON."""
import json

import pytest

from guided_diffusion_core import config as configuration
from guided_diffusion_core.config import (
    PRESETS, Config, SamplingConfig, from_dict, resolve, setting_names, split_settings)
from guided_diffusion_core.errors import UserError

# Names and defaults of the original's model_and_diffusion_defaults().
ORIGINAL_DEFAULTS = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "in_ch": 5,
    "num_heads_upsample": -1, "num_head_channels": -1, "attention_resolutions": "16,8", "channel_mult": "",
    "dropout": 0.0, "class_cond": False, "use_checkpoint": False, "use_scale_shift_norm": True,
    "resblock_updown": False, "use_new_attention_order": False, "version": "new", "learn_sigma": False,
    "diffusion_steps": 1000, "noise_schedule": "linear", "timestep_respacing": "", "use_kl": False,
    "predict_xstart": False, "rescale_timesteps": False, "rescale_learned_sigmas": False,
}


def test_defaults_are_the_originals():
    defaults = configuration.model_and_diffusion_defaults()
    assert {name: defaults[name] for name in ORIGINAL_DEFAULTS} == ORIGINAL_DEFAULTS
    assert set(defaults) - set(ORIGINAL_DEFAULTS) == {"highway_dropout", "mask_channels"}
    assert defaults["highway_dropout"] == 0.5  # a constant of the original's highway network


def test_a_configuration_survives_json():
    config = resolve({"lr": 3e-4, "image_size": 96, "seed": 7, "normalisation": "RGB / 255"}, preset="fast")
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_set_their_values_and_flags_override_them():
    assert resolve({}, preset="original") == Config()
    fast = resolve({}, preset="fast")
    names = setting_names()
    for name, value in PRESETS["fast"].items():
        assert getattr(getattr(fast, names[name]), name) == value
    assert resolve({"sample_steps": 25}, preset="fast").sampling.sample_steps == 25


def test_a_chosen_sampler_replaces_the_one_below():
    solver = resolve({"dpm_solver": True, "dynamic_thresholding": True}, preset="fast")
    assert solver.sampling == SamplingConfig(dpm_solver=True, dynamic_thresholding=True, sample_steps=5)
    assert solver.replace(use_ddim=True).sampling == SamplingConfig(use_ddim=True, sample_steps=5)
    assert solver.replace(dpm_solver=False).sampling == SamplingConfig(sample_steps=5)
    assert resolve({}, preset="fast", base=solver).sampling == SamplingConfig(use_ddim=True, sample_steps=5)
    assert solver.replace(eta=0.0).sampling == solver.sampling


def test_setting_names_are_unique_over_the_sections():
    sections = configuration.SECTIONS
    assert len(setting_names()) == sum(len(setting_names(section)) for section in sections)


@pytest.mark.parametrize("values, named", [
    ({"max_steps": 0}, "--max_steps"), ({"batch_size": 0}, "--batch_size"), ({"lr": -1.0}, "--lr"),
    ({"dropout": 1.0}, "--dropout"), ({"highway_dropout": -0.1}, "--highway_dropout"),
    ({"threshold": 0.0}, "--threshold"), ({"ema_rate": "0.9,1.5"}, "--ema_rate"), ({"ema_rate": "x"}, "--ema_rate"),
    ({"noise_schedule": "quadratic"}, "linear or cosine"), ({"version": "2"}, "--version"),
    ({"num_ensemble": 0}, "--num_ensemble"), ({"sample_steps": -1}, "--sample_steps"),
    ({"lr_schedule": "step"}, "--lr_schedule"), ({"lr_schedule": "cosine"}, "--lr_anneal_steps"),
    ({"lr_schedule": "constant", "lr_anneal_steps": 5}, "--max_steps"), ({"lr_cycles": 0}, "--lr_cycles"),
    ({"use_ddim": True, "dpm_solver": True}, "one sampler"), ({"dynamic_thresholding": True}, "--dpm_solver True"),
])
def test_values_out_of_range_are_refused(values, named):
    with pytest.raises(UserError, match=named):
        resolve(values)


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match="original or fast"):
        resolve({}, preset="quick")


@pytest.mark.parametrize("tree", [{}, {**Config().to_dict(), "model": {"image_size": 64, "wide": True}}])
def test_a_foreign_configuration_is_refused_by_the_name_of_its_file(tree):
    with pytest.raises(UserError, match="some.safetensors"):
        from_dict(tree, where="some.safetensors")


def test_settings_are_split_and_what_is_not_available_is_refused():
    network, process = split_settings({"image_size": 64, "diffusion_steps": 10, "use_fp16": False})
    assert (network, process) == ({"image_size": 64}, {"diffusion_steps": 10})
    with pytest.raises(UserError, match="dpm_solver"):
        split_settings({"dpm_solver": True})
    with pytest.raises(TypeError, match="widht"):
        split_settings({"widht": 1})
