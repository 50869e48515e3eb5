"""Test the configuration: presets, overrides, ranges, and the way through a checkpoint's JSON."""

import dataclasses
import json
import math

import pytest

from guided_diffusion_core import command_line
from guided_diffusion_core import config as configuration
from guided_diffusion_core.config import (
    PRESETS,
    Config,
    SamplingConfig,
    from_dict,
    resolve,
    setting_names,
    split_settings,
)
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.registry import state_shapes
from guided_diffusion_core.networks.state import is_buffer

# Names and defaults of the original's model_and_diffusion_defaults().
ORIGINAL_DEFAULTS = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "in_ch": 5,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "version": "new",
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}


def test_defaults_are_the_originals():
    defaults = configuration.model_and_diffusion_defaults()
    assert {name: defaults[name] for name in ORIGINAL_DEFAULTS} == ORIGINAL_DEFAULTS
    assert set(defaults) - set(ORIGINAL_DEFAULTS) == {"highway_dropout", "mask_channels"}
    assert defaults["highway_dropout"] == 0.5  # a constant of the original's highway network
    assert defaults["mask_channels"] == 1


def test_a_configuration_survives_json():
    config = resolve({"lr": 3e-4, "image_size": 96, "seed": 7, "normalisation": "RGB / 255"}, preset="fast")
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_set_their_values_and_flags_override_them():
    # the default samples otherwise: the original's sampler spoils the masks of a short training
    original = resolve({}, preset="original")
    assert original.sampling == SamplingConfig(sampler="ancestral", sample_steps=0, eta=0.0)
    assert dataclasses.replace(original, preset="none", sampling=SamplingConfig()) == Config()
    fast = resolve({}, preset="fast")
    names = setting_names()
    for name, value in PRESETS["fast"].items():
        assert getattr(getattr(fast, names[name]), name) == value
    assert resolve({"sample_steps": 25}, preset="fast").sampling.sample_steps == 25


@pytest.mark.parametrize(
    "preset, flags, parameters",
    [
        (
            "MedSegDiff-B",
            "--image_size 256 --num_channels 128 --class_cond False --num_res_blocks 2 --num_heads 1 "
            "--learn_sigma True --use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 "
            "--noise_schedule linear --rescale_learned_sigmas False --rescale_timesteps False --lr 5e-5 --batch_size 8 "
            "--num_ensemble 5",
            129_400_450,
        ),  # the golden entry keys_new_256_isic.json
        (
            "MedSegDiff++",
            "--image_size 256 --num_channels 512 --class_cond False --num_res_blocks 12 --num_heads 8 "
            "--learn_sigma True --use_scale_shift_norm True --attention_resolutions 16 --batch_size 64 "
            "--num_ensemble 25",
            8_034_581_154,
        ),
    ],
)
def test_presets_of_the_originals_readme(preset, flags, parameters):
    """Compare with the command lines of the original's README; only the attention of the second one differs."""
    parser = command_line.add_run_flags(command_line.CommandParser("Test."), *configuration.SECTIONS)
    given = command_line.given_settings(parser.parse_args(flags.split()))
    resolved = resolve({}, preset=preset)
    assert dataclasses.replace(resolve(given), preset=preset, sampling=resolved.sampling) == resolved
    assert resolved.sampling.num_ensemble == given["num_ensemble"]
    shapes = state_shapes(resolve({"in_ch": 4}, preset=preset).model)
    assert sum(math.prod(shape) for name, shape in shapes.items() if not is_buffer(name)) == parameters
    assert any("qkv" in name for name in shapes), "it has attention"


def test_the_preset_without_attention_in_the_original_says_so(capsys):
    parser = command_line.add_run_flags(command_line.CommandParser("Test."), "model")
    assert command_line.chosen_preset(parser.parse_args(["--preset", "MedSegDiff++"])) == "MedSegDiff++"
    said = capsys.readouterr().err
    assert "attention at 16 px" in said and "attention_resolutions 24" in said and said.count("\n") == 1
    assert "attention_resolutions 24" in " ".join(parser.format_help().split())
    assert command_line.chosen_preset(parser.parse_args([])) is None and not capsys.readouterr().err
    assert command_line.chosen_preset(parser.parse_args(["--preset", "fast"])) == "fast" and not capsys.readouterr().err


def test_a_chosen_sampler_replaces_the_one_below():
    solver = resolve({"sampler": "dpm-solver++", "dynamic_thresholding": True}, preset="fast")
    assert solver.sampling == SamplingConfig(sampler="dpm-solver++", dynamic_thresholding=True, sample_steps=5, eta=0.0)
    fast = SamplingConfig(sampler="ddim", sample_steps=5, eta=0.0)
    assert solver.replace(sampler="ddim").sampling == resolve({}, preset="fast", base=solver).sampling == fast
    assert solver.replace(eta=0.0).sampling == solver.sampling
    assert resolve({}, preset="original", base=solver).sampling == SamplingConfig(
        sampler="ancestral", sample_steps=0, eta=0.0
    )


def test_the_ancestral_sampler_takes_all_steps_unless_told():
    """Require all steps after a change of sampler: those of a default, preset or checkpoint are too few for it."""
    all_steps = SamplingConfig(sampler="ancestral", sample_steps=0)
    solver = resolve({"sampler": "dpm-solver++"})
    assert resolve({"sampler": "ancestral"}).sampling == all_steps
    assert resolve({"sampler": "ancestral"}, preset="fast").sampling == dataclasses.replace(all_steps, eta=0.0)
    assert solver.replace(sampler="ancestral").sampling == all_steps
    assert resolve({"sampler": "ancestral", "sample_steps": 9}).sampling.sample_steps == 9
    assert resolve({"sampler": "ancestral", "sample_steps": 9}).replace(sampler="ancestral").sampling.sample_steps == 9


@pytest.mark.parametrize(
    "written, sampler",
    [
        ({"use_ddim": True, "dpm_solver": False}, "ddim"),
        ({"use_ddim": False, "dpm_solver": True}, "dpm-solver++"),
        ({"use_ddim": False, "dpm_solver": False}, "ancestral"),
        ({}, SamplingConfig.sampler),
    ],
)
def test_the_sampler_of_an_older_checkpoint(written, sampler):
    tree = json.loads(json.dumps(resolve({"sample_steps": 7}).to_dict()))
    del tree["sampling"]["sampler"]
    tree["sampling"] |= written
    assert from_dict(tree) == resolve({"sampler": sampler, "sample_steps": 7})


@pytest.mark.parametrize(
    "process, steps",
    [
        ({"diffusion_steps": 12, "noise_schedule": "cosine"}, 12),
        ({"timestep_respacing": "10,5"}, 15),
        ({"timestep_respacing": "ddim10"}, 10),
        ({"timestep_respacing": "ddim25"}, SamplingConfig.sample_steps),
        ({}, SamplingConfig.sample_steps),
    ],
)
def test_the_default_steps_are_no_more_than_the_process_has(process, steps):
    assert resolve(process).sampling.sample_steps == steps
    assert resolve({**process, "sample_steps": 60}).sampling.sample_steps == 60


def test_setting_names_are_unique_over_the_sections():
    sections = configuration.SECTIONS
    assert len(setting_names()) == sum(len(setting_names(section)) for section in sections)


@pytest.mark.parametrize(
    "values, named",
    [
        ({"max_steps": 0}, "--max_steps"),
        ({"batch_size": 0}, "--batch_size"),
        ({"lr": -1.0}, "--lr"),
        ({"dropout": 1.0}, "--dropout"),
        ({"highway_dropout": -0.1}, "--highway_dropout"),
        ({"threshold": 0.0}, "--threshold: found 0.0; expected a number above 0 and below 1"),
        ({"threshold": 1.0}, "--threshold"),
        ({"augment_rotation": 180.5}, "--augment_rotation: found 180.5; expected a number from 0 to 180"),
        ({"augment_scale": 1.0}, "--augment_scale: found 1.0; expected a number from 0 to below 1"),
        ({"augment_brightness": -0.1}, "--augment_brightness: found -0.1; expected a number of at least 0"),
        ({"weight_decay": float("nan")}, "--weight_decay"),
        ({"ema_rate": "0.9,1.5"}, "--ema_rate"),
        ({"ema_rate": "x"}, "--ema_rate"),
        ({"noise_schedule": "quadratic"}, "linear or cosine"),
        ({"version": "2"}, "--version"),
        ({"num_ensemble": 0}, "--num_ensemble"),
        ({"sample_steps": -1}, "--sample_steps"),
        ({"lr_schedule": "step"}, "--lr_schedule"),
        ({"lr_schedule": "cosine"}, "--lr_anneal_steps"),
        ({"lr_schedule": "constant", "lr_anneal_steps": 5}, "--max_steps"),
        ({"lr_cycles": 0}, "--lr_cycles"),
        ({"sampler": "euler"}, "--sampler"),
        ({"dynamic_thresholding": True}, "--sampler dpm-solver"),
    ],
)
def test_values_out_of_range_are_refused(values, named):
    with pytest.raises(UserError, match=named):
        resolve(values)


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match="original or fast"):
        resolve({}, preset="quick")


def test_settings_that_an_older_version_did_not_write_have_their_defaults():
    config = resolve({"lr": 3e-4, "image_size": 96, "seed": 7}, preset="fast")
    tree = config.to_dict()
    del tree["normalisation"], tree["training"]["lr_schedule"], tree["sampling"]["dynamic_thresholding"]
    del tree["compute"]["device"]
    assert from_dict(tree) == config


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"])
def test_the_device_is_part_of_the_configuration(device):
    config = resolve({"device": device})
    assert config.compute.device == device and from_dict(config.to_dict()) == config


@pytest.mark.parametrize("device", ["gpu", "cuda:", "0", "Cuda:1"])
def test_a_name_of_no_device_is_refused(device):
    with pytest.raises(UserError, match=f"--device: found '{device}'; expected auto, cpu, cuda, cuda:N or mps"):
        resolve({"device": device})


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {**Config().to_dict(), "model": {"image_size": 64, "wide": True}},
        {**Config().to_dict(), "flavour": 1},
        {name: value for name, value in Config().to_dict().items() if name != "training"},
    ],
)
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


@pytest.mark.parametrize("version, network", [("new", "medsegdiff_new"), ("1", "medsegdiff_v1")])
def test_the_version_and_the_network_name_the_same_family(version, network):
    by_version = resolve({"version": version, "num_channels": 64})
    assert by_version.network == network and by_version == resolve({"network": network, "num_channels": 64})
    assert by_version.to_dict()["network"] == network
    other = {"new": "1", "1": "new"}[version]
    with pytest.raises(UserError, match=f"--network: found {network}; expected medsegdiff"):
        resolve({"network": network, "version": other})
    assert resolve({"network": network}, base=resolve({"version": other, "num_channels": 64})) == by_version


def test_an_unknown_network_is_refused():
    with pytest.raises(UserError, match="--network: found 'unet'; expected medsegdiff_new or medsegdiff_v1"):
        resolve({"network": "unet"})
    with pytest.raises(UserError, match="some.file: found a network 'unet'; expected medsegdiff_new or medsegdiff_v1"):
        from_dict({**Config().to_dict(), "network": "unet"}, where="some.file")


def test_classes_of_older_files_are_read_where_they_are_off():
    tree = Config().to_dict()
    del tree["network"]  # as older versions wrote
    tree["model"]["class_cond"] = False
    assert from_dict(tree) == Config()
    tree["model"]["class_cond"] = True
    with pytest.raises(UserError, match="some.file: found a class-conditional network; expected one without"):
        from_dict(tree, where="some.file")
