"""Every accepted difference: between the two backends, and from the original.

Both lists are exact: a difference that is not listed fails a test, and so does an entry without
a difference behind it (`tests/test_mirror.py`, `tests/test_ledger.py`).
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class MirrorDifference:
    """A public name that the two backends do not share with the same parameters and defaults.

    name:    module, and the name in it, such as "runtime.prepare" or "nn.Dropout.__init__".
    pytorch: its signature there as Python writes it, "" for a name without one; None: absent.
    jittor:  the same.
    """

    name: str
    pytorch: str | None
    jittor: str | None
    reason: str


_FORWARD = "torch's class is the base and has this method; Jittor's own is not used: {}"

MIRROR_DIFFERENCES = (
    MirrorDifference("runtime.prepare", None, "()",
                     "Jittor reads its settings when it is imported; torch needs no preparation"),
    MirrorDifference("runtime.link_onednn", None, "(folder)",
                     "Jittor looks for oneDNN in one folder and else downloads it; torch brings its own"),
    MirrorDifference("runtime.jt", None, "", "Jittor, imported by `runtime` after the preparation"),
    MirrorDifference("nn.GroupNorm32.forward", None, "(self, x)",
                     _FORWARD.format("its variance E[x^2] - E[x]^2 cancels")),
    MirrorDifference("nn.BatchNorm2d.forward", None, "(self, x)",
                     _FORWARD.format("its running variance is the biased one, and its variance cancels")),
    MirrorDifference("nn.Conv1d", None, "", "torch's own serves"),
    MirrorDifference("nn.Conv1d.__init__", None, "(self, in_channels, out_channels, kernel_size)",
                     "torch's own serves; Jittor's ignores a bias that is assigned after construction"),
    MirrorDifference("nn.Conv1d.forward", None, "(self, x)", "torch's own serves"),
    MirrorDifference("nn.SUM_LENGTH", None, "", "of `mean_last`"),
    MirrorDifference("nn.mean_last", None, "(x)",
                     "torch sums in blocks; Jittor's one long float32 sum loses digits"),
)


@dataclass(frozen=True)
class UpstreamDifference:
    """A place where this software does not do what the original does.

    where:    file, line or flag of the original (ImprintLab/MedSegDiff, commit 28b343f).
    original: what happens there.
    ours:     what happens here.
    reason:   why.
    test:     the test that shows it, "tests/test_x.py::test_name".
    """

    where: str
    original: str
    ours: str
    reason: str
    test: str


UPSTREAM_DIFFERENCES = (
    UpstreamDifference(
        "dpm_solver.py, end of sample; --dpm_solver True",
        "throws the solved mask away and returns one more network output, with its graph",
        "the flag is refused and names DDIM with few steps instead",
        "a sampler that does not sample is worse than none",
        "tests/test_cli.py::test_flags_of_the_original_without_function_say_what_to_do"),
    UpstreamDifference(
        "unet.py:1035, --use_fp16 True",
        "half meets float in the highway network and training crashes",
        "the flag is refused",
        "half precision has no use on a CPU",
        "tests/test_cli.py::test_flags_of_the_original_without_function_say_what_to_do"),
    UpstreamDifference(
        "train_util.py:106 and dist_util.py, --gpu_dev, --multi_gpu",
        "world size fixed at 1, and DataParallel inside DistributedDataParallel",
        "one device; the flags are refused",
        "what ran there was one process on one device too",
        "tests/test_cli.py::test_flags_of_the_original_without_function_say_what_to_do"),
    UpstreamDifference(
        "segmentation_train.py:20",
        "needs a visdom server when it is imported",
        "imports the standard library and the framework-free core; logs go to files",
        "a training must not depend on a server",
        "tests/test_imports.py::test_help_loads_no_framework"),
    UpstreamDifference(
        "unet.py:2492",
        "draws a random 1x1 convolution in every forward pass, whose output version `new` throws away",
        "no such layer",
        "it has no influence but on the random state",
        "tests/test_network_golden.py::test_state_dict_has_the_originals_names_shapes_and_order"),
    UpstreamDifference(
        "gaussian_diffusion.py, p_sample_loop",
        "timestep_respacing gives an IndexError; more than one case per batch is refused",
        "both work",
        "the trained schedule is sampled in fewer steps and larger batches",
        "tests/test_diffusion_golden.py::test_ancestral_sampling"),
    UpstreamDifference(
        "gaussian_diffusion.py, ddim_sample_loop_known",
        "cannot run: three of five values, time step 499 and the shape (1, 5, 224, 224) are fixed",
        "equation 12 of Song et al. (arXiv:2010.02502), same signature and result as the ancestral sampler",
        "few steps are what makes sampling affordable",
        "tests/test_diffusion_golden.py::test_ddim_sampling"),
    UpstreamDifference(
        "gaussian_diffusion.py:590",
        "blends the calibration mask by a Dice taken over the whole batch",
        "by the Dice of each case",
        "a case's mask must not depend on its neighbours",
        "tests/test_diffusion.py::test_calibration_is_blended_case_by_case"),
    UpstreamDifference(
        "script_util.py, timestep_respacing in sampling",
        "few sampling steps need a respaced process of their own",
        "--sample_steps visits that many of the trained steps, first and last included",
        "one checkpoint, any number of network evaluations",
        "tests/test_diffusion.py::test_sampling_steps_of_an_unspaced_process"),
)
