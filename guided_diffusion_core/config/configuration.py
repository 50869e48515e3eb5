"""The configuration of a run: from flags and presets, and to and from JSON."""

import dataclasses
from dataclasses import dataclass

from guided_diffusion_core.config.checks import check
from guided_diffusion_core.config.names import all_setting_names, of_another_network, setting_names
from guided_diffusion_core.config.older import current_data, current_model, current_sampling
from guided_diffusion_core.config.presets import PRESETS
from guided_diffusion_core.config.sections import (
    SECTIONS,
    ComputeConfig,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    SamplingConfig,
    TrainingConfig,
)
from guided_diffusion_core.diffusion.schedule import space_timesteps
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.networks import registry
from guided_diffusion_core.networks.family import NetworkConfig


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run, as it is written into its checkpoints."""

    preset: str = "none"
    seed: int = 0
    model: NetworkConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    compute: ComputeConfig = ComputeConfig()
    normalisation: str = ""  # the rule by which the dataset scaled its intensities
    processes: int = 1  # number that the launcher started; batch_size and microbatch count the examples of one

    @property
    def network(self):
        """Return the name of the network's family."""
        return registry.family_of(self.model).name

    def to_dict(self):
        """Return the configuration as nested dicts of JSON values."""
        return {**dataclasses.asdict(self), "network": self.network}

    def replace(self, **values):
        """Return a copy with some settings changed, by the names of their flags."""
        return resolve(values, base=self)


def resolve(values, preset=None, base=None):
    """Build a `Config`: defaults (or `base`), then the preset, then `values`.

    values: dict of setting names (of any section; also "seed", "normalisation", "processes").
    preset: a name of `PRESETS`, or None to keep the base's.
    Raises KeyError for an unknown name and `UserError` for an unknown preset or value.
    """
    base = base or Config()
    if preset is not None and preset not in PRESETS:
        raise found_expected("--preset", repr(preset), " or ".join(PRESETS), "Choose one of them.")
    preset_values = PRESETS[preset] if preset else {}
    # All settings of the sampling take part in the merge, since a change of the sampler drops some of them.
    merged = dataclasses.asdict(base.sampling)
    for layer in (preset_values, values):
        merged = _with_changes(merged, layer)
    model = _base_model(merged.pop("network", None), base.model)
    top, changed = _by_section(merged, model, values)
    for section, settings in changed.items():
        before = model if section == "model" else getattr(base, section)
        top[section] = dataclasses.replace(before, **settings)
    config = dataclasses.replace(base, **{"preset": preset or base.preset, **top})
    if "sample_steps" not in {**preset_values, **values}:
        config = _with_possible_steps(config)
    check(config)
    # Another setting, such as --version, can have chosen another family than --network.
    if values.get("network") not in (None, config.network):
        raise found_expected(
            "--network", values["network"], f"{config.network}, as other settings say", "Leave one of them out."
        )
    return config


def _base_model(network, model):
    """Return the settings of a network before flags and preset change them.

    network: name of the wanted family, or None. model: settings of the base configuration.
    If `model` is of the wanted family, it is returned. Otherwise the result has the defaults of the wanted family, and
    the settings that both families have keep their values.
    """
    if network in (None, registry.family_of(model).name):
        return model
    family = registry.family_named(network)
    names = [field.name for field in dataclasses.fields(family.settings)]
    # Both versions of MedSegDiff have one dataclass; two other families have only those of `NetworkConfig` in common.
    kept = model if isinstance(model, family.settings) else NetworkConfig
    shared = {field.name: getattr(model, field.name) for field in dataclasses.fields(kept) if field.name in names}
    return family.settings(**{**shared, **family.fixed})


def _by_section(merged, model, given):
    """Sort settings by the part of the configuration that holds them.

    merged: dict name -> value. model: the settings of the network. given: the part of `merged` that the user asked for.
    Returns (top-level fields of `Config` by name, section -> field -> value). Raises KeyError for an unknown name, and
    `UserError` for a given setting that the network does not have; in a preset such a setting is left out.
    """
    sections = setting_names(model=model)
    family = registry.family_of(model)
    fields = family.flags()
    known = all_setting_names()
    top = {}
    changed = {section: {} for section in SECTIONS}
    for name, value in merged.items():
        if name in ("seed", "normalisation", "processes"):
            top[name] = value
        elif name in sections:
            changed[sections[name]][fields.get(name, name)] = value
        elif name not in known:
            raise KeyError(name)
        elif name in given:
            raise of_another_network(name, family.name)
    return top, changed


def _with_possible_steps(config):
    """Return the configuration with at most as many `sample_steps` as the process has steps."""
    steps = min(config.sampling.sample_steps, process_steps(config.diffusion))
    return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, sample_steps=steps))


def process_steps(diffusion):
    """Return the number of steps of the process of a `DiffusionConfig`."""
    sections = diffusion.timestep_respacing or [diffusion.diffusion_steps]  # one section with all steps
    return len(space_timesteps(diffusion.diffusion_steps, sections))


def _with_changes(settings, changes):
    """Return `settings` with `changes` on top of them, both dicts by name.

    Settings that were meant for another sampler do not survive a change of the sampler. Example: over
    {"sampler": "dpm-solver++", "sample_steps": 10, "dynamic_thresholding": True} the change
    {"sampler": "ancestral"} gives all steps ("sample_steps": 0) without thresholding, because ten steps
    of the ancestral sampler would spoil the mask.
    """
    dropped = {}
    if changes.get("sampler", settings["sampler"]) != settings["sampler"]:
        dropped["dynamic_thresholding"] = False
        if changes["sampler"] == "ancestral":
            dropped["sample_steps"] = 0
    return {**settings, **dropped, **changes}


def from_dict(tree, where="configuration"):
    """Return the `Config` that `Config.to_dict` wrote.

    where: the file, for error messages.
    A setting that an older version did not write gets its default. Raises `UserError` for unknown settings and for
    values of the wrong type.
    """
    try:
        # Older versions wrote neither of the two.
        tree = {"compute": {}, "network": None, **tree}
        classes = {**SECTIONS, "model": _model_class(tree.pop("network"), where)}
        tree["model"] = current_model(tree["model"], where)
        tree["data"] = current_data(tree["data"])
        tree["sampling"] = current_sampling(tree["sampling"])
        sections = {name: cls(**tree[name]) for name, cls in classes.items()}
        config = Config(**{**tree, **sections})
        for name in ("preset", "seed", "normalisation", "processes"):
            _check_type(name, getattr(config, name), getattr(Config, name))
        for section, cls in classes.items():
            for field in dataclasses.fields(cls):
                _check_type(field.name, getattr(sections[section], field.name), field.default)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: this version cannot read the configuration inside ({error}); expected "
            f"the sections {', '.join(SECTIONS)}. Use a checkpoint written by medsegdiff train."
        ) from error
    return config


def from_checkpoint(tree, where):
    """Return the `Config` in a checkpoint's file, which may come from anyone, as `from_dict` does.

    Raises `UserError` also for values out of range and for an impossible network, before anything is allocated for it.
    """
    config = from_dict(tree, where)
    try:
        check(config)
        registry.make_plan(config.model)
    except UserError as error:
        raise found_expected(
            where,
            f"impossible settings ({error})",
            "a configuration that medsegdiff train has written",
            "Use another checkpoint.",
        ) from error
    return config


def _model_class(network, where):
    """Return the dataclass of a network's settings; a file that names no network holds MedSegDiff's."""
    if network is None:
        return ModelConfig
    if network not in registry.families():
        raise found_expected(
            where,
            f"a network {network!r}",
            " or ".join(registry.families()),
            "Install the package that contains this network.",
        )
    return registry.family_named(network).settings


def _check_type(name, value, default):
    """Raise TypeError for a value whose type is not that of its default; a whole number may stand for a float."""
    allowed = {float, int} if isinstance(default, float) else {type(default)}
    if type(value) not in allowed:  # isinstance would take True for a whole number
        raise TypeError(f"{name} is {value!r}")
