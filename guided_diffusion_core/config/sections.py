"""The settings as tables: name, default, range and help text, in the sections of a configuration.

Names and defaults are the original's wherever the original has the setting.
"""

from dataclasses import dataclass

from guided_diffusion_core.diffusion.solvers import SOLVERS
from guided_diffusion_core.methods import METHODS
from guided_diffusion_core.networks.medsegdiff.settings import ModelConfig
from guided_diffusion_core.options import option

FLIPS = ("none", "vertical", "horizontal", "both")
SAMPLERS = tuple(SOLVERS)
LR_SCHEDULES = ("constant", "linear", "cosine", "cosine-restarts")
ORIENTATION_WORDS = ("auto", "stored")  # besides codes such as RAS, see `data/formats/grids.py`
MOST_STEPS = 100_000  # of a diffusion, which makes tables of all its steps
FUSIONS = ("mean", "majority", "staple", "upstream")  # see `results/fusion.py`


@dataclass(frozen=True)
class DiffusionConfig:
    """Settings of the diffusion process and of the training objective."""

    diffusion_steps: int = option(1000, "steps of the diffusion that the network is trained on", low=1, high=MOST_STEPS)
    noise_schedule: str = option("linear", "schedule of the variances that the steps add", ("linear", "cosine"))
    timestep_respacing: str = option(
        "", "train on a subset of the steps: counts per section as in 10,15,20, or ddimN; empty: all"
    )
    use_kl: bool = option(False, "train on the variational bound only")
    predict_xstart: bool = option(False, "the network predicts the mask (True) or the noise (False)")
    rescale_timesteps: bool = option(False, "scale the network's time input to 0 to 1000")
    rescale_learned_sigmas: bool = option(False, "weigh the variational term by steps / 1000")


@dataclass(frozen=True)
class DataConfig:
    """Settings of the data and of how it becomes network input."""

    data_name: str = option(
        "BRATS",
        "layout of the data, see docs/data.md: {layouts}. Any other name means a plain folder: VOLUMES if it "
        "holds volumes, otherwise IMAGES",
        usual="what the folder holds; in sampling, the layout of the training",
    )
    data_dir: str = option("", "folder of the data", path=True)
    labels: str = option(
        "", "names of the labels to segment, separated by commas; each gets its own mask; empty: the layout's default"
    )
    slices: str = option(
        "all",
        "axial slices of a volume to use: one or several conditions separated by commas, which must all be "
        "true: all, even, odd, brain (an image voxel above 0), tumour (a labelled voxel), START:STOP:STEP",
    )
    orientation: str = option(
        "auto",
        "how a network sees volumes: auto turns all of them to the orientation that most volumes of the training "
        "have; stored takes each as its file has it; or an orientation such as RAS, LPS. A checkpoint keeps it",
    )
    mask_threshold: float = option(
        0.0,
        "smallest value of the foreground in mask files of one label with fractions, such as probabilities or "
        "linearly resampled masks; 0: fractions are refused",
        low=0,
    )
    upstream_compat: bool = option(
        False, "resize masks as the original does: bilinearly; every pixel above zero then belongs to the mask"
    )


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the training."""

    max_steps: int = option(100_000, "optimizer steps after which training ends", low=1)
    init_from: str = option(
        "",
        "checkpoint whose weights a new training starts with, such as a training's --out_dir or a file that medsegdiff "
        "convert has written; weights of other names or shapes are listed and drawn anew; empty: all are drawn",
        path=True,
    )
    method: str = option(
        "diffusion",
        "task that the network is trained for: diffusion trains it to remove noise from masks, and sampling starts "
        "from noise",
        tuple(METHODS),
    )
    schedule_sampler: str = option(
        "uniform",
        "how time steps are drawn: all equally often (uniform), or more often where losses are large",
        ("uniform", "loss-second-moment"),
    )
    lr: float = option(1e-4, "learning rate of AdamW", low=0)
    weight_decay: float = option(0.0, "decoupled weight decay of AdamW", low=0)
    lr_schedule: str = option(
        "linear",
        "how the learning rate falls over lr_anneal_steps: linear or cosine to zero, cosine-restarts in "
        "lr_cycles cosines that each begin at lr, or constant",
        LR_SCHEDULES,
    )
    lr_anneal_steps: int = option(
        0, "steps over which the learning rate falls to zero; training ends after them; 0: constant rate", low=0
    )
    lr_cycles: int = option(4, "number of equally long cosines of lr_schedule cosine-restarts", low=1)
    batch_size: int = option(1, "examples per optimizer step; with several processes, per step and process", low=1)
    microbatch: int = option(
        -1, "examples per forward pass of a process; the gradients of the passes are added up; -1: batch_size"
    )
    ema_rate: str = option("0.9999", "rates of the moving averages of the weights, separated by commas")
    ema_warmup: bool = option(False, "limit the rate of the moving averages to (1 + n) / (10 + n) at step n")
    log_interval: int = option(100, "steps between two lines of the log", low=1)
    save_interval: int = option(5000, "steps between two checkpoints", low=1)
    keep_checkpoints: int = option(3, "number of checkpoints to keep: the newest ones and the best one; 0: all", low=0)
    tensorboard: bool = option(False, "write the log for TensorBoard too, into out_dir/tensorboard (tensorboardX)")
    val_dir: str = option(
        "",
        "folder of validation data, in the same layout as data_dir; the log shows the Dice of masks sampled for it, "
        "and checkpoints/best names the checkpoint with the highest Dice; empty: the folders of "
        "data_dir that are named val",
        path=True,
    )
    val_share: float = option(
        0.0,
        "share of the patients of data_dir that are held out for validation instead of val_dir; the seed chooses them, "
        "and no patient is in both sets",
        low=0,
        below=1,
    )
    fold: int = option(
        -1,
        "fold of a five-fold cross-validation, 0 to 4: this fifth of the patients of data_dir is held out for "
        "validation; -1: none",
        low=-1,
        high=4,
    )
    val_interval: int = option(1000, "steps between two validations", low=1)
    val_slices: str = option("all", "slices of the validation data, written as for slices")
    val_cases: int = option(0, "number of cases to validate on, the first ones of the data; 0: all", low=0)
    val_steps: int = option(
        0,
        "network evaluations per image in validation, with the preset's sampler; 0: sample_steps, but at most 10",
        low=0,
    )
    num_workers: int = option(0, "processes that load examples; 0: load in the training process", low=0, high=1024)
    augment_flip: str = option(
        "none",
        "mirror examples, each direction with probability 1/2: vertical (rows; x of a volume), horizontal "
        "(columns; y of a volume) or both",
        FLIPS,
    )
    augment_rotation: float = option(
        0.0, "rotate examples by up to this angle in degrees in either direction", low=0, high=180
    )
    augment_scale: float = option(0.0, "scale examples by a factor from 1 - this to 1 + this", low=0, below=1)
    augment_brightness: float = option(
        0.0,
        "shift intensities by up to this: a share of the range in colour images, standard deviations in volumes",
        low=0,
    )
    augment_contrast: float = option(
        0.0, "stretch intensities about their mean by a factor from 1 - this to 1 + this", low=0, below=1
    )
    augment_gamma: float = option(
        0.0, "raise intensities, scaled to 0 to 1, to a power from 1 - this to 1 + this", low=0, below=1
    )


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampling of masks from a trained network."""

    # logs/samplers-brats2021-64px/README.md gives the reasons for this sampler and this number of steps.
    sampler: str = option(
        "ddim",
        "sampler of the masks: DDIM; DPM-Solver++, which needs only 10 to 20 sample_steps; or the original's "
        "ancestral sampler, which takes all steps unless sample_steps is given, because a learned variance can spoil "
        "the mask in fewer steps",
        SAMPLERS,
    )
    dynamic_thresholding: bool = option(
        False, "DPM-Solver++: divide a predicted mask that leaves [-1, 1] by its 0.995 quantile instead of clipping it"
    )
    sample_steps: int = option(
        20,
        "network evaluations per sample, at most one for each step of the diffusion; 0: one for each step",
        low=0,
        high=MOST_STEPS,
    )
    eta: float = option(
        1.0, "noise of DDIM: 0 is deterministic, 1 is the ancestral sampler with the posterior's variance", low=0
    )
    clip_denoised: bool = option(True, "clip the predicted mask to [-1, 1] in each step")
    num_ensemble: int = option(5, "samples per case, which are fused into one mask", low=1, high=10_000)
    fusion: str = option(
        "mean",
        "fusion of the samples of a case: mean; majority, the share of the samples that vote for a pixel; staple, "
        "which weighs the samples by their agreement (SimpleITK); upstream, the square of the mean, as in the original",
        FUSIONS,
    )
    threshold: float = option(0.5, "lowest probability of a pixel that belongs to the mask", above=0, below=1)


@dataclass(frozen=True)
class ComputeConfig:
    """Settings of the arithmetic. A resumed training keeps them but for the device; sampling may use others."""

    # The names are those of the arguments of `runtime.start`.

    device: str = option(
        "auto",
        "device that computes: cpu; cuda, a GPU, in several processes one for each; cuda:N, the GPU of that number; "
        "mps, Apple's GPU; auto, a GPU if one works, otherwise the CPU",
    )

    mixed_precision: str = option(
        "no",
        "number format of the network's layers: no (float32), bf16, or fp16 with a scaled loss; "
        "weights, norms, losses and averages stay in float32 (PyTorch; Jittor refuses both)",
        ("no", "bf16", "fp16"),
    )

    tf32: bool = option(
        False,
        "let NVIDIA's GPUs round the factors of float32 products and convolutions to 10 bits (TF32), which is several "
        "times faster (PyTorch)",
    )
    compile: bool = option(
        False,
        "compile the network for its shapes (torch.compile), which takes minutes at the start and needs a C++ compiler "
        "(PyTorch; Jittor always compiles)",
    )


SECTIONS = {
    "model": ModelConfig,
    "diffusion": DiffusionConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "sampling": SamplingConfig,
    "compute": ComputeConfig,
}
