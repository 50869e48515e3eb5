"""The configuration of a run: from flags and presets, and to and from JSON."""

import dataclasses
from dataclasses import dataclass

from guided_diffusion_core.config.checks import check
from guided_diffusion_core.config.names import all_setting_names, of_another_network, setting_names
from guided_diffusion_core.config.older import current_model, current_sampling
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
    processes: int = 1  # those of the launcher; batch_size and microbatch are of each

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
    merged = dataclasses.asdict(base.sampling)
    for layer in (PRESETS[preset] if preset else {}, values):
        merged = _with_changes(merged, layer)
    model = _base_model(merged.pop("network", None), base.model)
    where = setting_names(model=model)
    flags = registry.family_of(model).flags()
    known = all_setting_names()
    top = {"preset": preset or base.preset, "model": model}
    changed = {section: {} for section in SECTIONS}
    for name, value in merged.items():
        if name in ("seed", "normalisation", "processes"):
            top[name] = value
        elif name in where:
            changed[where[name]][flags.get(name, name)] = value
        elif name not in known:
            raise KeyError(name)
        elif name in values:
            raise of_another_network(name, registry.family_of(model).name)
    for section, settings in changed.items():
        top[section] = dataclasses.replace(top.get(section, getattr(base, section)), **settings)
    config = dataclasses.replace(base, **top)
    if "sample_steps" not in {**PRESETS.get(preset, {}), **values}:
        steps = min(config.sampling.sample_steps, process_steps(config.diffusion))
        config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, sample_steps=steps))
    check(config)
    if values.get("network") not in (None, config.network):
        raise found_expected(
            "--network", values["network"], f"{config.network}, as other settings say", "Leave one of them out."
        )
    return config


def _base_model(network, model):
    """Return the settings of a network that values are put over: `model`, or where another family is wanted, its
    defaults with what all networks share taken over."""
    if network in (None, registry.family_of(model).name):
        return model
    family = registry.family_named(network)
    names = [field.name for field in dataclasses.fields(family.settings)]
    kept = model if isinstance(model, family.settings) else NetworkConfig
    shared = {field.name: getattr(model, field.name) for field in dataclasses.fields(kept) if field.name in names}
    return family.settings(**{**shared, **family.fixed})


def process_steps(diffusion):
    """Return the number of steps of the process of a `DiffusionConfig`."""
    every = [diffusion.diffusion_steps]
    return len(space_timesteps(diffusion.diffusion_steps, diffusion.timestep_respacing or every))


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

    where: the file, for errors.
    A setting that an older version did not write gets its default. Raises `UserError` for unknown ones.
    """
    try:
        tree = {"compute": {}, "network": None, **tree}
        classes = {**SECTIONS, "model": _model_class(tree.pop("network"), where)}
        tree["model"] = current_model(tree["model"], where)
        tree["sampling"] = current_sampling(tree["sampling"])
        sections = {name: cls(**tree[name]) for name, cls in classes.items()}
        config = Config(**{**tree, **sections})
        for name in ("preset", "seed", "normalisation", "processes"):
            _check_type(name, getattr(config, name), getattr(Config, name))
        for section, cls in classes.items():
            for field in dataclasses.fields(cls):
                _check_type(field.name, getattr(sections[section], field.name), field.default)
        return config
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: the configuration inside is not one that this version reads ({error}); expected "
            f"the sections {', '.join(SECTIONS)}. Use a checkpoint written by medsegdiff train."
        ) from error


def _model_class(network, where):
    """Return the dataclass of a network's settings; a file that names none holds MedSegDiff's."""
    if network is None:
        return ModelConfig
    if network not in registry.families():
        raise found_expected(
            where,
            f"a network {network!r}",
            " or ".join(registry.families()),
            "Install what this network comes with.",
        )
    return registry.family_named(network).settings


def _check_type(name, value, default):
    """Raise TypeError for a value that is not of its default's type; a whole number is a float, too."""
    if type(value) not in {type(default), int if isinstance(default, float) else None}:
        raise TypeError(f"{name} is {value!r}")
