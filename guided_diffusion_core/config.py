"""Every setting of the software, once: its name, default and help text.

The command lines are built from these dataclasses (`cli.py`), a checkpoint carries them as JSON,
and a preset is a named set of values for them. Names and defaults are the original's wherever
the original has the setting.
"""
import dataclasses
from dataclasses import dataclass

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.schedule import space_timesteps

NUM_CLASSES = 2  # classes of a class-conditional network, as in the original
FLIPS = ("none", "vertical", "horizontal", "both")
AUGMENT_SHARES = ("augment_scale", "augment_contrast", "augment_gamma")  # settings from 0 to below 1
SOLVERS = ("use_ddim", "dpm_solver")  # settings that choose another sampler than the ancestral one
LR_SCHEDULES = ("constant", "linear", "cosine", "cosine-restarts")
FUSIONS = ("mean", "majority", "staple", "upstream")  # `fusion.py`


def option(default, help, choices=None):
    """A dataclass field with the help text (and choices) that its command-line flag shows."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of the network: all that its parameters' names and shapes depend on, and
    the dropout rates."""

    image_size: int = option(64, "side of the square network input in pixels, a multiple of 32")
    num_channels: int = option(128, "base width of the network, a multiple of 32")
    num_res_blocks: int = option(2, "residual blocks per resolution")
    num_heads: int = option(4, "attention heads")
    in_ch: int = option(5, "image channels plus those of the noised mask; set from the data if not given")
    mask_channels: int = option(1, "channels of the mask, one for each of its labels; set from the data if not given")
    num_heads_upsample: int = option(-1, "attention heads on the way up; -1: as num_heads")
    num_head_channels: int = option(-1, "channels per attention head, instead of num_heads; -1: unused")
    attention_resolutions: str = option(
        "16,8", "resolutions in pixels at which attention works, separated by commas")
    channel_mult: str = option(
        "", "width multipliers per resolution, separated by commas; empty: chosen by image size")
    dropout: float = option(0.0, "dropout rate in the residual blocks, 0 to 1")
    class_cond: bool = option(False, "condition the network on a class label (two classes)")
    use_checkpoint: bool = option(
        False, "recompute activations in the backward pass instead of keeping them: half the memory or less, for a "
               "second forward pass; the same numbers")
    use_scale_shift_norm: bool = option(True, "time embedding scales and shifts (True) or is added (False)")
    resblock_updown: bool = option(False, "residual blocks for down- and upsampling")
    use_new_attention_order: bool = option(False, "split queries, keys and values before the heads")
    version: str = option(
        "new", "network version: new adds the highway's features at the input, 1 at the bottleneck", ("new", "1"))
    learn_sigma: bool = option(False, "the network also predicts the variance of the reverse step")
    highway_dropout: float = option(
        0.5, "channel dropout rate in the encoder of the highway network, 0 to 1")


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process and the objective."""

    diffusion_steps: int = option(1000, "steps of the diffusion that the network is trained on")
    noise_schedule: str = option("linear", "schedule of the betas", ("linear", "cosine"))
    timestep_respacing: str = option(
        "", "train on a subset of the steps: counts per section as in 10,15,20, or ddimN; empty: all")
    use_kl: bool = option(False, "train on the variational bound alone")
    predict_xstart: bool = option(False, "the network predicts the mask (True) or the noise (False)")
    rescale_timesteps: bool = option(False, "scale the network's time input to 0 to 1000")
    rescale_learned_sigmas: bool = option(False, "weigh the variational term by steps / 1000")


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how it becomes network input."""

    data_name: str = option(
        "BRATS", "layout of the data, see docs/data.md: ISIC, BRATS, BRATS_SLICES, REFUGE2, DDTI, IMAGES, VOLUMES or "
                 "NNUNET; any other name is a plain folder, IMAGES or VOLUMES by what it holds")
    data_dir: str = option("", "folder of the data")
    labels: str = option(
        "", "names of the labels to segment, separated by commas, a mask for each; empty: the layout's default")
    slices: str = option(
        "all", "volumes: which axial slices, filters separated by commas that all must hold: all, even, "
               "odd, brain (some image voxel), tumour (some labelled voxel), START:STOP:STEP")
    upstream_compat: bool = option(
        False, "resize masks bilinearly and take all that is above zero, as the original does")


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is trained."""

    max_steps: int = option(100_000, "optimizer steps, after which training ends")
    schedule_sampler: str = option(
        "uniform", "how time steps are drawn: all alike, or more often where losses are large",
        ("uniform", "loss-second-moment"))
    lr: float = option(1e-4, "learning rate of AdamW")
    weight_decay: float = option(0.0, "decoupled weight decay of AdamW")
    lr_schedule: str = option(
        "linear", "how the learning rate falls over lr_anneal_steps: linear or cosine to zero, cosine-restarts in "
                  "lr_cycles cosines that each begin at lr, or constant", LR_SCHEDULES)
    lr_anneal_steps: int = option(
        0, "steps over which the learning rate falls to zero and training ends; 0: constant rate")
    lr_cycles: int = option(4, "cosines of lr_schedule cosine-restarts, all of one length")
    batch_size: int = option(1, "examples per optimizer step, of each process where a launcher starts several")
    microbatch: int = option(
        -1, "examples per forward pass of a process, whose gradients are summed up; -1: batch_size")
    ema_rate: str = option("0.9999", "rates of the moving averages of the weights, separated by commas")
    ema_warmup: bool = option(False, "limit the rate of the moving average to (1 + n) / (10 + n) at step n")
    log_interval: int = option(100, "steps between two lines of the log")
    save_interval: int = option(5000, "steps between two checkpoints")
    keep_checkpoints: int = option(0, "how many checkpoints may stay, the newest ones and the best one; 0: all")
    val_dir: str = option(
        "", "folder of validation data, laid out as data_dir; the Dice of masks sampled from it goes to the log, and "
            "checkpoints/best names the checkpoint with the highest; empty: no validation")
    val_interval: int = option(1000, "steps between two validations")
    val_slices: str = option("all", "slices of the validation data, as in slices")
    val_cases: int = option(0, "validate on the first so many cases; 0: on all")
    val_steps: int = option(
        0, "network evaluations per image in validation, with the preset's sampler; 0: sample_steps, but at most 10")
    num_workers: int = option(0, "loader processes; 0: load in the training process")
    augment_flip: str = option(
        "none", "mirror examples, each direction with probability 1/2: vertical (rows; x of a volume), horizontal "
                "(columns; y of a volume) or both", FLIPS)
    augment_rotation: float = option(0.0, "rotate examples by up to so many degrees either way, 0 to 180")
    augment_scale: float = option(0.0, "scale examples by 1 - this to 1 + this, 0 to below 1")
    augment_brightness: float = option(
        0.0, "shift intensities by up to this: a share of the range in colour images, standard deviations in volumes")
    augment_contrast: float = option(
        0.0, "stretch intensities about their mean by 1 - this to 1 + this, 0 to below 1")
    augment_gamma: float = option(
        0.0, "raise intensities, between their extremes, to a power of 1 - this to 1 + this, 0 to below 1")


@dataclass(frozen=True)
class SamplingConfig:
    """How masks are sampled from a trained network."""

    # Why this sampler and so many steps: logs/samplers-brats2021-64px/README.md.
    use_ddim: bool = option(
        True, "sample by DDIM; neither this nor dpm_solver: by the ancestral sampler, which takes all steps unless "
              "sample_steps says otherwise: in fewer a learned variance can spoil the mask")
    dpm_solver: bool = option(
        False, "sample by DPM-Solver++, for which 10 to 20 sample_steps do; diffusion_steps, given beside it, means "
               "sample_steps then")
    dynamic_thresholding: bool = option(
        False, "DPM-Solver++: scale a predicted mask that leaves [-1, 1] by its 0.995 quantile instead of clipping it")
    sample_steps: int = option(
        20, "network evaluations per sample, at most one for each step of the diffusion; 0: so many")
    eta: float = option(
        1.0, "noise of DDIM: 0 deterministic, 1 as the ancestral sampler with the posterior's variance")
    clip_denoised: bool = option(True, "clip the predicted mask to [-1, 1] in each step")
    num_ensemble: int = option(5, "samples per case, which are fused into one")
    fusion: str = option(
        "mean", "how the samples of a case are fused: by their mean; by majority, the share of their votes; by STAPLE, "
                "which weighs them by how well they agree (SimpleITK); upstream: by the square of the mean, as in the "
                "original", FUSIONS)
    threshold: float = option(0.5, "probability from which on a pixel belongs to the mask, in (0, 1)")


@dataclass(frozen=True)
class ComputeConfig:
    """How the numbers are computed; of a training, the resumed run keeps it, and sampling may choose anew."""

    mixed_precision: str = option(
        "no", "type in which the layers of the network compute: no (float32), bf16, or fp16 with a scaled loss; "
              "weights, norms, losses and averages stay in float32 (PyTorch; Jittor refuses both)",
        ("no", "bf16", "fp16"))


SECTIONS = {
    "model": ModelConfig,
    "diffusion": DiffusionConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "sampling": SamplingConfig,
    "compute": ComputeConfig,
}
LATER_SECTIONS = ("compute",)  # those that checkpoints of older versions lack

# The original's recipe to the letter, and the one that learns in minutes (UPSTREAM rulings:
# parity/ledger.py, "recipe"). A flag on the command line overrides its preset.
PRESETS = {
    "original": {
        "use_ddim": False,
        "dpm_solver": False,
        "dynamic_thresholding": False,
        "eta": 0.0,
        "sample_steps": 0,
    },
    "fast": {
        "predict_xstart": True,
        "highway_dropout": 0.0,
        "ema_warmup": True,
        "use_ddim": True,
        "eta": 0.0,
        "sample_steps": 5,
    },
    # the two settings that the original's README recommends
    "MedSegDiff-B": {
        "image_size": 256,
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 1,
        "learn_sigma": True,
        "use_scale_shift_norm": False,
        "attention_resolutions": "16",
        "lr": 5e-5,
        "batch_size": 8,
        "num_ensemble": 5,
    },
    "MedSegDiff++": {
        "image_size": 256,
        "num_channels": 512,
        "num_res_blocks": 12,
        "num_heads": 8,
        "learn_sigma": True,
        "use_scale_shift_norm": True,
        "attention_resolutions": "16",
        "batch_size": 64,
        "num_ensemble": 25,
    },
}
# What a preset changes in the recipe that it is named after; shown in the help and where it is chosen.
PRESET_NOTES = {
    "MedSegDiff++": "attention at 16 px; the original's attention_resolutions 24 is no resolution of its network, "
                    "which then has no attention at all",
}


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run, as it is written into its checkpoints."""

    preset: str = "none"
    seed: int = 0
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    compute: ComputeConfig = ComputeConfig()
    normalisation: str = ""  # the rule by which the dataset scaled its intensities
    processes: int = 1  # those of the launcher; batch_size and microbatch are of each

    def to_dict(self):
        """The configuration as nested dicts of JSON values."""
        return dataclasses.asdict(self)

    def replace(self, **values):
        """A copy with some settings changed; names are unique over all sections."""
        return resolve(values, base=self)


def setting_names(*sections):
    """Name -> section of every setting of the given sections (all sections if none given)."""
    return {
        field.name: section
        for section in sections or SECTIONS
        for field in dataclasses.fields(SECTIONS[section])
    }


def resolve(values, preset=None, base=None):
    """Build a `Config`: defaults (or `base`), then the preset, then `values`.

    values: dict of setting names (of any section; also "seed", "normalisation", "processes").
    preset: a name of `PRESETS`, or None to keep the base's.
    Raises KeyError for an unknown name and `UserError` for an unknown preset or value.
    """
    base = base or Config()
    if preset is not None and preset not in PRESETS:
        raise found_expected("--preset", repr(preset), " or ".join(PRESETS), "Choose one of them.")
    below = dataclasses.asdict(base.sampling)
    merged = take_over(values, take_over(PRESETS[preset], below) if preset else below)
    where = setting_names()
    top = {"preset": preset or base.preset}
    changed = {section: {} for section in SECTIONS}
    for name, value in merged.items():
        if name in ("seed", "normalisation", "processes"):
            top[name] = value
        else:
            changed[where[name]][name] = value
    for section, settings in changed.items():
        top[section] = dataclasses.replace(getattr(base, section), **settings)
    config = dataclasses.replace(base, **top)
    if "sample_steps" not in {**PRESETS.get(preset, {}), **values}:
        steps = min(config.sampling.sample_steps, process_steps(config.diffusion))
        config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, sample_steps=steps))
    _check(config)
    return config


def process_steps(diffusion):
    """How many steps the process of a `DiffusionConfig` has."""
    every = [diffusion.diffusion_steps]
    return len(space_timesteps(diffusion.diffusion_steps, diffusion.timestep_respacing or every))


def take_over(values, below):
    """The settings `below` with `values` over them, both by name; a sampler that the values choose switches
    the one below off, so that one flag is enough to change it. Where the values leave none but the ancestral
    one, it takes all steps unless they say how many: a number meant for another sampler would spoil its masks.
    """
    if values.get("dpm_solver"):
        below = {**below, "use_ddim": False}
    elif values.get("use_ddim"):
        below = {**below, "dpm_solver": False, "dynamic_thresholding": False}
    elif "dpm_solver" in values:
        below = {**below, "dynamic_thresholding": False}
    chosen = {**below, **values}
    if any(below.get(name) for name in SOLVERS) and not any(chosen[name] for name in SOLVERS if name in chosen):
        chosen["sample_steps"] = values.get("sample_steps", 0)
    return chosen


def from_dict(tree, where="configuration"):
    """Inverse of `Config.to_dict`; `where` names the file in errors.

    A setting that an older version did not write has its default; one that is unknown here is refused.
    """
    try:
        tree = {**{name: {} for name in LATER_SECTIONS}, **tree}
        sections = {name: cls(**tree[name]) for name, cls in SECTIONS.items()}
        config = Config(**{**tree, **sections})
        for name in ("preset", "seed", "normalisation", "processes"):
            _check_type(name, getattr(config, name), getattr(Config, name))
        for section, cls in SECTIONS.items():
            for field in dataclasses.fields(cls):
                _check_type(field.name, getattr(sections[section], field.name), field.default)
        return config
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: the configuration inside is not one that this version reads ({error}); expected "
            f"the sections {', '.join(SECTIONS)}. Use a checkpoint written by segmentation_train.py."
        ) from error


def _check_type(name, value, default):
    """Raise TypeError for a value that is not of its default's type; a whole number is a float, too."""
    if type(value) not in {type(default), int if isinstance(default, float) else None}:
        raise TypeError(f"{name} is {value!r}")


def _check(config):
    """Refuse values outside their range; the network's own rules are in `unet_plan.py`."""
    for section, cls in SECTIONS.items():
        for field in dataclasses.fields(cls):
            value = getattr(getattr(config, section), field.name)
            choices = field.metadata["choices"]
            if choices and value not in choices:
                raise found_expected(f"--{field.name}", repr(value), " or ".join(choices), "Choose one of them.")
    training, sampling, model = config.training, config.sampling, config.model
    for flag, value, low in (
        ("diffusion_steps", config.diffusion.diffusion_steps, 1), ("batch_size", training.batch_size, 1),
        ("max_steps", training.max_steps, 1), ("log_interval", training.log_interval, 1),
        ("save_interval", training.save_interval, 1), ("val_interval", training.val_interval, 1),
        ("val_cases", training.val_cases, 0), ("val_steps", training.val_steps, 0), ("keep_checkpoints", training.keep_checkpoints, 0),
        ("num_workers", training.num_workers, 0), ("lr_anneal_steps", training.lr_anneal_steps, 0),
        ("lr_cycles", training.lr_cycles, 1), ("num_ensemble", sampling.num_ensemble, 1),
        ("sample_steps", sampling.sample_steps, 0), ("lr", training.lr, 0), ("eta", sampling.eta, 0),
        ("weight_decay", training.weight_decay, 0), ("augment_brightness", training.augment_brightness, 0),
    ):
        if value < low:
            raise found_expected(f"--{flag}", value, f"a number of at least {low}", "Give a larger one.")
    for flag, value in (("dropout", model.dropout), ("highway_dropout", model.highway_dropout),
                        *((name, getattr(training, name)) for name in AUGMENT_SHARES)):
        if not 0 <= value < 1:
            raise found_expected(f"--{flag}", value, "a rate from 0 to below 1", "Give such a rate.")
    if not 0 <= training.augment_rotation <= 180:
        raise found_expected("--augment_rotation", training.augment_rotation, "degrees from 0 to 180", "Give such a one.")
    if not 0 < sampling.threshold < 1:
        raise found_expected("--threshold", sampling.threshold, "a probability between 0 and 1", "Give such a one.")
    if training.lr_schedule.startswith("cosine") and not training.lr_anneal_steps:
        raise found_expected("--lr_anneal_steps", f"0 with --lr_schedule {training.lr_schedule}",
                             "the steps over which the rate falls", "Give for example that of --max_steps.")
    if training.lr_schedule == "constant" and training.lr_anneal_steps:
        raise found_expected("--lr_anneal_steps", f"{training.lr_anneal_steps} with --lr_schedule constant", "0",
                             "Leave it out, and end the training by --max_steps.")
    if sampling.use_ddim and sampling.dpm_solver:
        raise found_expected("--dpm_solver", "True beside --use_ddim True", "one sampler", "Leave one of them out.")
    if sampling.dynamic_thresholding and not sampling.dpm_solver:
        raise found_expected("--dynamic_thresholding", "True without --dpm_solver True", "both, or neither",
                             "Add --dpm_solver True, which it is for.")
    ema_rates(training)


def ema_rates(training):
    """The rates of `TrainingConfig.ema_rate` as floats, e.g. (0.9999,)."""
    try:
        rates = tuple(float(rate) for rate in training.ema_rate.split(","))
    except ValueError:
        rates = (-1.0,)
    if not all(0 <= rate < 1 for rate in rates):
        raise found_expected("--ema_rate", repr(training.ema_rate), "rates from 0 to below 1 separated by commas",
                             "Write for example 0.9999.")
    return rates


def model_and_diffusion_defaults():
    """Name -> default of every setting of the network and the diffusion, as the original's function
    of that name returns them."""
    return {field.name: field.default for section in ("model", "diffusion")
            for field in dataclasses.fields(SECTIONS[section])}


def split_settings(settings):
    """Settings by name as (those of `ModelConfig`, those of `DiffusionConfig`), two dicts.

    The original's `use_fp16` and `dpm_solver` are taken while they are off. Raises `UserError` where
    one is on, and TypeError for an unknown name.
    """
    settings = dict(settings)
    for name, why, mend in (
        ("use_fp16", "the network is the same in all precisions", "Call set_mixed_precision of `runtime`."),
        ("dpm_solver", "the process is the same for all samplers", "Call dpm_solver_sample_loop_known of the process."),
    ):
        if settings.pop(name, False):
            raise found_expected(name, True, f"False: {why}", mend)
    where = setting_names("model", "diffusion")
    unknown = [name for name in settings if name not in where]
    if unknown:
        raise TypeError(f"unknown settings: {', '.join(unknown)}")
    return tuple({name: value for name, value in settings.items() if where[name] == section}
                 for section in ("model", "diffusion"))


def model_and_diffusion_settings(config):
    """The same names with the values of a `Config`."""
    return {**dataclasses.asdict(config.model), **dataclasses.asdict(config.diffusion)}


def args_to_dict(args, keys):
    """The attributes `keys` of `args` as a dict."""
    return {key: getattr(args, key) for key in keys}
