"""The suite of MedSegDiff: its ladder of cases, from single weights to fused masks.

Most cases have small networks (32 px, width 32) with random weights without zeros, so that every parameter takes part.
`forward/full-size` has the original's settings. The families that `parity/families.py` does not have are
in `parity/medsegdiff_families.py` and `parity/medsegdiff_checkpoints.py`.
"""

import numpy as np

from guided_diffusion_core.backends import backend_module
from guided_diffusion_core.networks.family import as_prediction
from guided_diffusion_core.networks.registry import family_of, state_shapes
from guided_diffusion_core.noise import NoiseTape
from parity.medsegdiff_checkpoints import FAMILIES as CHECKPOINT_FAMILIES
from parity.medsegdiff_families import FAMILIES, network_settings
from parity.protocol import Case, Port

SMALL = {
    "image_size": 32,
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_heads": 2,
    "in_ch": 4,
    "dropout": 0.1,
    "channel_mult": "1,2",
    "attention_resolutions": "16",
    "use_scale_shift_norm": False,
    "learn_sigma": True,
}
FLAGS_TURNED = {
    **SMALL,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "use_new_attention_order": True,
    "num_head_channels": 16,
    "in_ch": 2,
    "learn_sigma": False,
    "dropout": 0.0,
    "num_res_blocks": 2,
}
V1 = {**SMALL, "version": "1", "channel_mult": "1,1,2,2"}
TWO_LABELS = {**SMALL, "mask_channels": 2, "in_ch": 5}
TWO_LABELS_V1 = {**V1, "mask_channels": 2, "in_ch": 5}
FULL_SIZE = {"image_size": 64, "num_channels": 128, "learn_sigma": True, "in_ch": 4}
TRAINING = {
    "batch_size": 4,
    "microbatch": 2,
    "lr": 1e-3,
    "lr_anneal_steps": 10,
    "weight_decay": 0.05,
    "ema_rate": "0.9,0.99",
    "ema_warmup": False,
    "seed": 3,
}
# A rotated image is 0 outside its borders. Its case has images with mean 0, so that this is an ordinary value:
# otherwise leaky ReLUs come near their kinks (below).
AUGMENTED = {
    "augment_flip": "both",
    "augment_rotation": 30.0,
    "augment_scale": 0.2,
    "augment_brightness": 0.1,
    "augment_contrast": 0.2,
    "augment_gamma": 0.3,
}
# At the kink of a leaky ReLU rounding decides the gradient. The batch norms of the highway network move each channel
# this far to one side of it, in standard deviations.
KINK_DISTANCE = 4.5


def _objective(name, about, model=SMALL, **diffusion):
    return Case(f"loss/{name}", about, {"model": model, "diffusion": diffusion})


def _sampler(name, about, steps=6, members=2, model=SMALL, **sampling):
    return Case(
        f"sampling/{name}",
        about,
        {
            "model": model,
            "sampling": {
                "sampler": "ancestral",
                "eta": 0.0,
                "sample_steps": steps,
                "num_ensemble": members,
                **sampling,
            },
        },
        training=False,
    )


def _masks(layout, model, labels=""):
    return Case(
        f"masks/{layout.lower()}",
        f"fused masks, Dice and IoU on phantoms in {layout} layout{labels}",
        {
            "layout": layout,
            "model": model,
            "sampling": {"sampler": "ddim", "eta": 0.0, "sample_steps": 3, "num_ensemble": 2},
        },
        precisions=("float32",),
        training=False,
    )


CASES = (
    Case("weights/new", "parameters and buffers as they come back, bit by bit", {"model": SMALL}),
    Case("weights/v1", "the same of version 1", {"model": V1}),
    Case("forward/new", "every module's output, training mode", {"model": SMALL}),
    Case("forward/new-sampling", "every module's output, sampling mode", {"model": SMALL}, training=False),
    Case("forward/new-flags", "every module's output with every flag turned", {"model": FLAGS_TURNED}),
    Case("forward/v1", "every module's output in version 1, training mode", {"model": V1}),
    Case("forward/new-two-labels", "every module's output with masks of two labels", {"model": TWO_LABELS}),
    Case(
        "forward/full-size",
        "every module's output at width 128 and 64 px, sampling mode",
        {"model": FULL_SIZE, "batch": 1},
        precisions=("float32",),
        training=False,
    ),
    Case("table/linear", "the numbers of the process, bit by bit", {"diffusion": {}}),
    Case(
        "table/cosine",
        "the same, cosine schedule of 40 steps, respaced",
        {"diffusion": {"steps": 40, "noise_schedule": "cosine", "timestep_respacing": "10,5"}},
    ),
    _objective("mse", "terms of the objective with learned variance"),
    _objective(
        "rescaled", "the same, bound rescaled, time steps rescaled", rescale_learned_sigmas=True, rescale_timesteps=True
    ),
    _objective("bound", "the variational bound alone", use_kl=True),
    _objective(
        "xstart",
        "the network predicts the mask, variance not learned",
        model={**SMALL, "learn_sigma": False},
        predict_xstart=True,
    ),
    _objective("two-labels", "the terms with masks of two labels", model=TWO_LABELS),
    Case("gradients/new", "gradient of every parameter and module input", {"model": SMALL}),
    Case("gradients/new-flags", "the same with every flag turned", {"model": FLAGS_TURNED}),
    Case("gradients/v1", "the same in version 1: through the Fourier transform", {"model": V1}),
    Case("gradients/v1-two-labels", "the same with masks of two labels", {"model": TWO_LABELS_V1}),
    Case(
        "training/new",
        "two batches in microbatches: losses and gradients",
        {"model": SMALL, "training": TRAINING, "steps": 2},
    ),
    Case(
        "training/checkpointing",
        "the same in version 1 with activations recomputed in the backward pass",
        {"model": {**V1, "use_checkpoint": True}, "training": TRAINING, "steps": 1},
    ),
    Case(
        "training/augmented",
        "one batch mirrored, turned, scaled and of other intensities",
        {"model": SMALL, "training": {**TRAINING, **AUGMENTED}, "steps": 1, "mean": 0.0},
    ),
    Case(
        "optimizer/adamw",
        "steps on given gradients: rate, updates, moments, averages",
        {"model": SMALL, "training": TRAINING, "steps": 3},
    ),
    Case(
        "optimizer/restarts",
        "the same: cosines with restarts, one moving average that warms up",
        {
            "model": SMALL,
            "steps": 3,
            "training": {
                **TRAINING,
                "lr_anneal_steps": 4,
                "lr_schedule": "cosine-restarts",
                "lr_cycles": 2,
                "ema_rate": "0.99",
                "ema_warmup": True,
            },
        },
    ),
    Case(
        "training/second-moment",
        "time steps by their losses; the network predicts the mask, bound and time rescaled",
        {
            "model": SMALL,
            "steps": 1,
            "diffusion": {
                "timestep_respacing": "5",
                "predict_xstart": True,
                "rescale_learned_sigmas": True,
                "rescale_timesteps": True,
            },
            "training": {**TRAINING, "schedule_sampler": "loss-second-moment"},
        },
    ),
    Case(
        "training/bound",
        "one batch on the variational bound alone",
        {"model": SMALL, "steps": 1, "diffusion": {"use_kl": True}, "training": {**TRAINING, "microbatch": -1}},
    ),
    Case(
        "resume/new",
        "a step, a checkpoint, a step of a fresh loop from it; the rate falls by a cosine",
        {"model": SMALL, "half": 1, "steps": 2, "training": {**TRAINING, "lr_schedule": "cosine"}},
    ),
    Case(
        "validation/new",
        "masks of the moving average between two steps at a constant rate",
        {
            "model": SMALL,
            "steps": 2,
            "training": {**TRAINING, "lr_schedule": "constant", "lr_anneal_steps": 0},
            "sampling": {"sampler": "ddim", "sample_steps": 2, "num_ensemble": 1},
        },
    ),
    Case(
        "conversion/new",
        "a checkpoint through .pt, .pkl and .safetensors and back into a network",
        {"model": SMALL},
        precisions=("float32",),
        training=False,
    ),
    Case(
        "steps/new",
        "training steps end to end: losses, updates, averages, buffers",
        {"model": SMALL, "training": TRAINING, "steps": 3},
    ),
    Case(
        "steps/new-two-labels",
        "the same with masks of two labels",
        {"model": TWO_LABELS, "training": TRAINING, "steps": 2},
    ),
    _sampler("ancestral", "trajectory of the ancestral sampler, state by state"),
    _sampler("ddim", "trajectory of DDIM", sampler="ddim"),
    _sampler(
        "ddim-noisy", "trajectory of DDIM with eta 1, without clipping", sampler="ddim", eta=1.0, clip_denoised=False
    ),
    _sampler("dpm-solver", "trajectory of DPM-Solver++", sampler="dpm-solver++"),
    _sampler(
        "dpm-solver-thresholding",
        "the same with dynamic thresholding instead of clipping",
        sampler="dpm-solver++",
        dynamic_thresholding=True,
    ),
    _sampler("two-labels", "trajectory of the ancestral sampler with masks of two labels", model=TWO_LABELS),
    _sampler(
        "two-labels-dpm-solver",
        "the same of DPM-Solver++ with dynamic thresholding",
        model=TWO_LABELS,
        sampler="dpm-solver++",
        dynamic_thresholding=True,
    ),
    _masks("ISIC", SMALL),
    _masks("BRATS", {**SMALL, "in_ch": 5}),
    _masks("REFUGE2", TWO_LABELS, ", of two labels"),
)


def weights(case):
    """Return name -> float32 array of every parameter and buffer: random, without zeros."""
    if "model" not in case.settings:
        return {}
    shapes = state_shapes(network_settings(case))
    generator = np.random.default_rng(case.settings.get("seed", 0))
    return {name: _weight(name, shape, generator) for name, shape in shapes.items()}


def _weight(name, shape, generator):
    if name.endswith("num_batches_tracked"):
        return np.array(3, np.int64)
    if name.endswith("complex_weight"):  # factors of frequencies: about one
        return generator.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    values = generator.uniform(0.05, 0.2, shape)
    if name.endswith("instnorm.bias"):
        values = np.where(np.arange(shape[0]) % 2, 1, -1) * KINK_DISTANCE + values
    return (values + (not name.endswith(("bias", "running_mean")))).astype(np.float32)


def inputs(case):
    """Return name -> array of the network's arguments, in order: x and, where it takes them, time steps t."""
    if "model" not in case.settings:
        return {}
    network = network_settings(case)
    batch = case.settings.get("batch", 2)
    generator = np.random.default_rng((case.settings.get("seed", 0), 1))
    arrays = {}
    for name, shape in family_of(network).inputs(network).items():
        if name == "t":
            arrays[name] = np.array([3, 700, 12, 999][:batch])
        else:
            arrays[name] = generator.standard_normal((batch, *shape)).astype(np.float32)
    return arrays


def open_port(backend):
    """Return the `Port` of one backend."""
    return MedSegDiffPort(backend)


class MedSegDiffPort(Port):
    """The port of either mirror: they have the same modules and names."""

    families = {**FAMILIES, **CHECKPOINT_FAMILIES}

    def __init__(self, backend):
        super().__init__(backend)
        self.runtime = self.module("runtime")
        self.nn = self.module("nn")

    def module(self, name):
        """Import a module of the backend's package."""
        return backend_module(self.backend, name)

    def build(self, case):
        return self.module("build").build_network(network_settings(case))

    def load(self, model, arrays):
        self.runtime.load_state(model, arrays)

    def state(self, model):
        return self.runtime.state_arrays(model)

    def run(self, model, tensors, tape):
        self.nn.set_dropout_noise(model, tape, 0, tuple(range(tensors["x"].shape[0])))
        prediction = as_prediction(model(*tensors.values()))
        outputs = {"out": prediction.value, "cal": prediction.calibration}
        return {name: value for name, value in outputs.items() if value is not None}

    def context(self, model):
        for _, module in model.named_modules():
            if isinstance(module, self.nn.Dropout) and module.noise is not None:
                tape, _, step, slots = module.noise
                return {"seed": tape.seed, "step": step, "slots": list(slots)}
        return None

    def restore(self, model, context):
        if context:
            self.nn.set_dropout_noise(model, NoiseTape(context["seed"]), context["step"], context["slots"])
