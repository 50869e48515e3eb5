"""The settings, as tables: name, default and help text, in the sections of a configuration.

Names and defaults are the original's wherever the original has the setting.
"""

from dataclasses import dataclass

from guided_diffusion_core.diffusion.solvers import SOLVERS
from guided_diffusion_core.methods import METHODS
from guided_diffusion_core.networks.medsegdiff.settings import ModelConfig
from guided_diffusion_core.options import option

FLIPS = ("none", "vertical", "horizontal", "both")
AUGMENT_SHARES = ("augment_scale", "augment_contrast", "augment_gamma")  # settings from 0 to below 1
SAMPLERS = tuple(SOLVERS)
LR_SCHEDULES = ("constant", "linear", "cosine", "cosine-restarts")
FUSIONS = ("mean", "majority", "staple", "upstream")  # `fusion.py`


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process and the objective."""

    diffusion_steps: int = option(1000, "steps of the diffusion that the network is trained on")
    noise_schedule: str = option("linear", "schedule of the betas", ("linear", "cosine"))
    timestep_respacing: str = option(
        "", "train on a subset of the steps: counts per section as in 10,15,20, or ddimN; empty: all"
    )
    use_kl: bool = option(False, "train on the variational bound alone")
    predict_xstart: bool = option(False, "the network predicts the mask (True) or the noise (False)")
    rescale_timesteps: bool = option(False, "scale the network's time input to 0 to 1000")
    rescale_learned_sigmas: bool = option(False, "weigh the variational term by steps / 1000")


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how it becomes network input."""

    data_name: str = option(
        "BRATS",
        "layout of the data, see docs/data.md: {layouts}. Any other name stands for a plain folder: VOLUMES if it "
        "holds NIfTI files, otherwise IMAGES",
    )
    data_dir: str = option("", "folder of the data")
    labels: str = option(
        "", "names of the labels to segment, separated by commas; each gets its own mask; empty: the layout's default"
    )
    slices: str = option(
        "all",
        "which axial slices of a volume are used: one or several conditions separated by commas, which must all be "
        "true: all, even, odd, brain (an image voxel above 0), tumour (a labelled voxel), START:STOP:STEP",
    )
    upstream_compat: bool = option(
        False, "resize masks like the original: bilinearly, then take all that is above zero"
    )


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is trained."""

    max_steps: int = option(100_000, "optimizer steps, after which training ends")
    method: str = option(
        "diffusion",
        "what the network is trained for: diffusion, to remove noise from masks, so that masks come out of noise",
        tuple(METHODS),
    )
    schedule_sampler: str = option(
        "uniform",
        "how time steps are drawn: all alike, or more often where losses are large",
        ("uniform", "loss-second-moment"),
    )
    lr: float = option(1e-4, "learning rate of AdamW")
    weight_decay: float = option(0.0, "decoupled weight decay of AdamW")
    lr_schedule: str = option(
        "linear",
        "how the learning rate falls over lr_anneal_steps: linear or cosine to zero, cosine-restarts in "
        "lr_cycles cosines that each begin at lr, or constant",
        LR_SCHEDULES,
    )
    lr_anneal_steps: int = option(
        0, "steps over which the learning rate falls to zero and training ends; 0: constant rate"
    )
    lr_cycles: int = option(4, "cosines of lr_schedule cosine-restarts, all of one length")
    batch_size: int = option(1, "examples per optimizer step, of each process where a launcher starts several")
    microbatch: int = option(
        -1, "examples per forward pass of a process, whose gradients are summed up; -1: batch_size"
    )
    ema_rate: str = option("0.9999", "rates of the moving averages of the weights, separated by commas")
    ema_warmup: bool = option(False, "limit the rate of the moving average to (1 + n) / (10 + n) at step n")
    log_interval: int = option(100, "steps between two lines of the log")
    save_interval: int = option(5000, "steps between two checkpoints")
    keep_checkpoints: int = option(0, "how many checkpoints may stay, the newest ones and the best one; 0: all")
    val_dir: str = option(
        "",
        "folder of validation data, laid out as data_dir; the Dice of masks sampled from it goes to the log, and "
        "checkpoints/best names the checkpoint with the highest; empty: no validation",
    )
    val_interval: int = option(1000, "steps between two validations")
    val_slices: str = option("all", "slices of the validation data, as in slices")
    val_cases: int = option(0, "validate on the first so many cases; 0: on all")
    val_steps: int = option(
        0, "network evaluations per image in validation, with the preset's sampler; 0: sample_steps, but at most 10"
    )
    num_workers: int = option(0, "loader processes; 0: load in the training process")
    augment_flip: str = option(
        "none",
        "mirror examples, each direction with probability 1/2: vertical (rows; x of a volume), horizontal "
        "(columns; y of a volume) or both",
        FLIPS,
    )
    augment_rotation: float = option(0.0, "rotate examples by up to so many degrees either way, 0 to 180")
    augment_scale: float = option(0.0, "scale examples by 1 - this to 1 + this, 0 to below 1")
    augment_brightness: float = option(
        0.0, "shift intensities by up to this: a share of the range in colour images, standard deviations in volumes"
    )
    augment_contrast: float = option(0.0, "stretch intensities about their mean by 1 - this to 1 + this, 0 to below 1")
    augment_gamma: float = option(
        0.0, "raise intensities, between their extremes, to a power of 1 - this to 1 + this, 0 to below 1"
    )


@dataclass(frozen=True)
class SamplingConfig:
    """How masks are sampled from a trained network."""

    # Why this sampler and so many steps: logs/samplers-brats2021-64px/README.md.
    sampler: str = option(
        "ddim",
        "how masks are sampled: by DDIM; by DPM-Solver++, for which 10 to 20 sample_steps are enough; or by the "
        "original's ancestral sampler, which takes all steps unless sample_steps is given, since in fewer steps a "
        "learned variance can spoil the mask",
        SAMPLERS,
    )
    dynamic_thresholding: bool = option(
        False, "DPM-Solver++: scale a predicted mask that leaves [-1, 1] by its 0.995 quantile instead of clipping it"
    )
    sample_steps: int = option(
        20, "network evaluations per sample, at most one for each step of the diffusion; 0: so many"
    )
    eta: float = option(1.0, "noise of DDIM: 0 deterministic, 1 as the ancestral sampler with the posterior's variance")
    clip_denoised: bool = option(True, "clip the predicted mask to [-1, 1] in each step")
    num_ensemble: int = option(5, "samples per case, which are fused into one")
    fusion: str = option(
        "mean",
        "how the samples of a case are fused: by their mean; by majority, the share of their votes; by STAPLE, "
        "which weighs them by how well they agree (SimpleITK); upstream: by the square of the mean, as in the "
        "original",
        FUSIONS,
    )
    threshold: float = option(0.5, "probability from which on a pixel belongs to the mask, in (0, 1)")


@dataclass(frozen=True)
class ComputeConfig:
    """How the numbers are computed; of a training, the resumed run keeps it, and sampling may choose anew."""

    mixed_precision: str = option(
        "no",
        "type in which the layers of the network compute: no (float32), bf16, or fp16 with a scaled loss; "
        "weights, norms, losses and averages stay in float32 (PyTorch; Jittor refuses both)",
        ("no", "bf16", "fp16"),
    )


SECTIONS = {
    "model": ModelConfig,
    "diffusion": DiffusionConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "sampling": SamplingConfig,
    "compute": ComputeConfig,
}
