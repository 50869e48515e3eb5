"""Every accepted difference: between the two backends, and from the original.

Both lists are exact: a difference that is not listed fails a test, and so does an entry without
a difference behind it (`tests/house/test_mirror.py`, `tests/house/test_ledger.py`).
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


_HALF = "Jittor refuses 16 bits: on a CPU bfloat16 is wrong, float16 hundreds of times slower"

MIRROR_DIFFERENCES = (
    MirrorDifference(
        "runtime.prepare", None, "()", "Jittor reads its settings when it is imported; torch needs no preparation"
    ),
    MirrorDifference(
        "runtime.link_onednn",
        None,
        "(folder)",
        "Jittor looks for oneDNN in one folder and else downloads it; torch brings its own",
    ),
    MirrorDifference("_compiling", None, "", "Jittor compiles itself and its operators on the machine that it runs on"),
    MirrorDifference(
        "_kernels",
        None,
        "",
        "Jittor's chains of operators for normalisation, SiLU and AdamW cost time and memory; torch's own serve",
    ),
    MirrorDifference(
        "_group_norm",
        "",
        None,
        "group normalisation of large images with the channels last; Jittor knows one order in memory",
    ),
    MirrorDifference("runtime.jt", None, "", "Jittor, imported by `runtime` after the preparation"),
    MirrorDifference("runtime.mixed_precision", "()", None, _HALF),
    MirrorDifference("runtime.autocast", "(tensor, enabled=True)", None, _HALF),
    MirrorDifference("runtime.widened", "(tensor)", None, _HALF),
    MirrorDifference("train_util.SCALE", "", None, _HALF),
    MirrorDifference("dist_util.PATIENCE", "", None, "MPI waits as long as it takes; torch has to be told"),
    MirrorDifference(
        "dist_util.Group.sum_into",
        None,
        "(self, values, total)",
        "MPI sums numpy arrays, in the midst of Jittor's graph too; torch sums its own tensors",
    ),
    MirrorDifference("nn.Conv1d", None, "", "torch's own serves"),
    MirrorDifference(
        "nn.Conv1d.__init__",
        None,
        "(self, in_channels, out_channels, kernel_size)",
        "torch's own serves; Jittor's ignores a bias that is assigned after construction",
    ),
    MirrorDifference("nn.Conv1d.forward", None, "(self, x)", "torch's own serves"),
    MirrorDifference("nn.SUM_LENGTH", None, "", "of `mean_last`"),
    MirrorDifference("nn.mean_last", None, "(x)", "torch sums in blocks; Jittor's one long float32 sum loses digits"),
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
        "the solver's state after its last step, which is x_0, without a graph; the calibration mask beside it",
        "the mask is what is asked for",
        "tests/diffusion/test_samplers.py::test_samplers_converge_to_one_solution",
    ),
    UpstreamDifference(
        "gaussian_diffusion.py:530, --dpm_solver True --diffusion_steps 50",
        "samples on a schedule of 50 steps, of which the network knows nothing; NaN with 20",
        "50 steps of the solver on the trained schedule, and a line that says so",
        "it is what the flags are used for",
        "tests/commands/test_cli.py::test_diffusion_steps_with_dpm_solver_are_the_solvers",
    ),
    UpstreamDifference(
        "dpm_solver.py, time steps",
        "evenly spaced times between the trained ones, the last of them one step before x_0",
        "trained time steps, those of every other sampler, and then x_0; the same numbers at the same times",
        "one set of times for all samplers, all of which the network was trained on",
        "tests/diffusion/test_diffusion_golden.py::test_dpm_solver_sampling",
    ),
    UpstreamDifference(
        "unet.py:1035, --use_fp16 True",
        "half meets float in the highway network and training crashes",
        "--mixed_precision bf16 or fp16 by PyTorch's autocast; the flag is refused and names it, and Jittor refuses both",
        "weights, norms, softmax and losses have to stay in float32; on a CPU Jittor is wrong in bfloat16",
        "tests/training/test_mixed_precision.py::test_training",
    ),
    UpstreamDifference(
        "train_util.py:106 and dist_util.py, --gpu_dev, --multi_gpu",
        "world size fixed at 1, and DataParallel inside DistributedDataParallel",
        "torchrun, or mpirun for Jittor, starts several processes, which compute what one would with the whole batch; "
        "the flags are refused and name the launchers",
        "one process was all that ran there; a launcher is what people start several with",
        "tests/system/test_processes.py::test_two_processes_equal_one_with_twice_the_batch",
    ),
    UpstreamDifference(
        "train_util.py, batch norm of the highway network under DistributedDataParallel",
        "would take each process' own statistics, and each process its own random numbers",
        "statistics of all processes' examples, forward and backward; one tape for all",
        "the number of processes must not change what is trained",
        "tests/system/test_processes.py::test_two_processes_equal_one_with_twice_the_batch",
    ),
    UpstreamDifference(
        "segmentation_train.py:20",
        "needs a visdom server when it is imported",
        "imports the standard library and the framework-free core; logs go to files",
        "a training must not depend on a server",
        "tests/house/test_imports.py::test_help_loads_no_framework",
    ),
    UpstreamDifference(
        "unet.py:2492, version 1",
        "adds a random 1x1 convolution of the highway's bottleneck, drawn anew in every forward pass",
        "a layer of its own, hwm.bottleneck_embed; a checkpoint without it is read with zeros there, and a line "
        "says so",
        "two evaluations of one input have to agree, and what is added has to be learned",
        "tests/checkpoints/test_checkpoint.py::test_a_file_of_version_1_without_the_random_layer",
    ),
    UpstreamDifference(
        "unet.py:786 and 2355 to 2362, version 1",
        "skips and sizes written down for 256 px, width 128 and two blocks a level; an IndexError elsewhere",
        "the output of every downsampling but the last, FF-Parsers of its size, and a highway network with as many "
        "poolings as there are downsamplings: the same at 256 px, and any size and width runs",
        "small networks train on a laptop",
        "tests/networks/test_plan.py::test_both_networks_of_version_1_meet_at_the_same_resolutions_and_widths",
    ),
    UpstreamDifference(
        "unet.py:460, FFParser",
        "needs square features and computes in float32 whatever the network does; its spatial_size has no effect",
        "any sides, in the precision of the network; no such argument",
        "a float64 comparison must not be rounded on the way",
        "tests/networks/test_fourier.py::test_filter_and_gradients_in_float64",
    ),
    UpstreamDifference(
        "unet.py:2492, version new",
        "draws a random 1x1 convolution in every forward pass, whose output it throws away",
        "no such layer",
        "it has no influence but on the random state",
        "tests/networks/test_network_golden.py::test_state_dict_has_the_originals_names_shapes_and_order",
    ),
    UpstreamDifference(
        "gaussian_diffusion.py, p_sample_loop",
        "timestep_respacing gives an IndexError; more than one case per batch is refused",
        "both work",
        "the trained schedule is sampled in fewer steps and larger batches",
        "tests/diffusion/test_diffusion_golden.py::test_ancestral_sampling",
    ),
    UpstreamDifference(
        "gaussian_diffusion.py, ddim_sample_loop_known",
        "cannot run: three of five values, time step 499 and the shape (1, 5, 224, 224) are fixed",
        "equation 12 of Song et al. (arXiv:2010.02502), same signature and result as the ancestral sampler",
        "few steps are what makes sampling affordable",
        "tests/diffusion/test_diffusion_golden.py::test_ddim_sampling",
    ),
    UpstreamDifference(
        "gaussian_diffusion.py:590",
        "blends the calibration mask by a Dice taken over the whole batch",
        "by the Dice of each case",
        "a case's mask must not depend on its neighbours",
        "tests/diffusion/test_diffusion.py::test_calibration_is_blended_case_by_case",
    ),
    UpstreamDifference(
        "script_util.py, timestep_respacing in sampling",
        "few sampling steps need a respaced process of their own",
        "--sample_steps visits that many of the trained steps, first and last included",
        "one checkpoint, any number of network evaluations",
        "tests/diffusion/test_samplers.py::test_sampling_steps_of_an_unspaced_process",
    ),
    UpstreamDifference(
        "unet.py:1095",
        "adds the anchors as 32 + 32 + 64 channels, so only num_channels 128 runs",
        "the highway's base width is num_channels // 4, the same at 128; every multiple of 32 runs",
        "small networks train on a laptop, MedSegDiff++ needs 512",
        "tests/networks/test_plan.py::test_anchors_of_every_width_add_up_to_it",
    ),
    UpstreamDifference(
        "script_util.py:168",
        "image sizes of 64, 128, 256 and 512 px alone",
        "any multiple of 32, with the same channel_mult at those four",
        "the architecture does not need more",
        "tests/networks/test_plan.py::test_every_image_size_has_a_whole_resolution_at_each_level",
    ),
    UpstreamDifference(
        "script_util.py:181",
        "always two output channels: with learn_sigma False training broadcasts silently, sampling asserts",
        "as many output channels as learn_sigma needs",
        "the default has to work",
        "tests/networks/test_plan.py::test_learn_sigma_decides_the_output_channels",
    ),
    UpstreamDifference(
        "script_util.py, attention_resolutions",
        "a resolution that the network does not have means silently no attention",
        "an error that names the valid values",
        "a silent change of the architecture costs a training",
        "tests/networks/test_plan.py::test_settings_that_make_no_network_are_refused",
    ),
    UpstreamDifference(
        "README.md, MedSegDiff++: --attention_resolutions 24",
        "24 px is no resolution of the network, so that it has no attention at all",
        "the preset MedSegDiff++ has attention at 16 px, and a line says so",
        "what is called the full potential has the attention that it names",
        "tests/config/test_config.py::test_the_preset_without_attention_in_the_original_says_so",
    ),
    UpstreamDifference(
        "utils.py, staple",
        "fuses by mean of member x mean under the name of STAPLE: 3 of 5 votes become 0.36",
        "the mean of the members; --fusion upstream for the old rule, --fusion staple for STAPLE itself",
        "the mean is the probability that the threshold of 0.5 is meant for",
        "tests/results/test_fusion.py::test_the_originals_rule_gives_its_recorded_values",
    ),
    UpstreamDifference(
        "gaussian_diffusion.py and unet.py, x[:, -1:]",
        "one mask channel, so that all classes are merged into one",
        "--labels: a channel for each label, in the network, the objective, the samplers and the files; one label is "
        "what it was",
        "labels overlap, and are asked for by name",
        "tests/training/test_labels.py::test_losses_are_the_means_of_the_labels",
    ),
    UpstreamDifference(
        "segmentation_sample.py, interrupted or run twice",
        "begins again, over whatever lies in the folder",
        "--continue goes on, --num_parts shares the cases, and masks of other settings are not overwritten",
        "a folder of masks must be of one run",
        "tests/sampling/test_sampling_folder.py::test_kill_9_and_continue_give_the_files_of_an_uninterrupted_run",
    ),
    UpstreamDifference(
        "bratsloader.py and isicloader.py, masks",
        "resize masks bilinearly and take all above zero, which grows every ground truth",
        "nearest neighbour; --upstream_compat True keeps the old rule",
        "the truth must stay the truth",
        "tests/data/test_data_isic.py::test_upstream_rule_grows_masks",
    ),
    UpstreamDifference(
        "train_util.py:260",
        "returns inside the loop over microbatches: only the first one trains",
        "all microbatches, the gradient of the whole batch",
        "what the flag promises",
        "tests/training/test_training.py::test_every_microbatch_takes_part_by_its_share",
    ),
    UpstreamDifference(
        "train_util.py:160, 286, 296, 334",
        "three files per save under names that its own resume does not look for",
        "one folder per checkpoint, with the whole configuration inside, renamed when complete",
        "weights are read back with the architecture that they belong to, in either backend",
        "tests/checkpoints/test_checkpoint.py::test_a_file_loads_into_either_backend",
    ),
    UpstreamDifference(
        "train_util.py, while it trains",
        "pictures of training batches in visdom; no score",
        "--val_dir: the Dice of sampled masks every --val_interval steps, and a pointer to the best checkpoint",
        "the loss does not tell when masks get better or worse",
        "tests/training/test_validation.py::test_log_and_best_checkpoint",
    ),
    UpstreamDifference(
        "dist_util.py, load_state_dict",
        "torch.load, which before PyTorch 2.6 executes what a file asks for; the file holds no configuration",
        "scripts/convert_checkpoint.py reads it without PyTorch, by a table of permitted names, infers the "
        "architecture and writes a .safetensors file that holds it",
        "old checkpoints serve both backends, and a downloaded file must not be able to run anything",
        "tests/conversion/test_convert_hostile.py::TestHostileFiles::test_nothing_is_executed",
    ),
    UpstreamDifference(
        "train_util.py, lr_anneal_steps 0",
        "training never ends",
        "--max_steps with a finite default, and an ETA",
        "a job has to end",
        "tests/training/test_training.py::test_log_and_checkpoints",
    ),
    UpstreamDifference(
        "segmentation_sample.py",
        "needs CUDA timers and ground truth; writes one JPEG per batch under the first case's name",
        "any device; one lossless file per case; label-free folders",
        "inference is on cases without a truth, and masks are not photographs",
        "tests/results/test_outputs.py::test_image_files",
    ),
    UpstreamDifference(
        "bratsloader.py",
        "fails on BraTS 2021 names, assumes 155 slices, reads five volumes per slice, does not normalise",
        "tolerant names, any depth, cached volumes, a stated normalisation that the checkpoint carries",
        "the public data has those names; intensities of MR have no unit",
        "tests/data/test_data_real.py::test_normalisation_and_labels",
    ),
    UpstreamDifference(
        "bratsloader.py, label > 0",
        "merges all classes of the tumour",
        "the same by default; --labels names the regions whole_tumour, tumour_core and enhancing",
        "the regions are what the challenge scores",
        "tests/data/test_data_volume_layouts.py::TestBratsNames::test_regions_of_every_year",
    ),
    UpstreamDifference(
        "bratsloader.py, folders of slices",
        "each slice is a case; its corners are cut to 224 px",
        "the slices of a case make its volume again, results lie on its grid; nothing is cut",
        "a score is of a patient, and a mask of the picture that it was made for",
        "tests/data/test_data_volume_layouts.py::TestBratsSlices::test_slices_of_a_case_make_its_volume",
    ),
    UpstreamDifference(
        "custom_dataset_loader.py",
        "pairs by the order of names, lengths unchecked; PNG alone; the class for volumes gets a wrong number of arguments",
        "pairs by name, in PNG, JPEG, BMP and TIFF; volumes work; all that is unpaired is listed in one error",
        "one missing file shifts all pairs behind it without a word",
        "tests/data/test_data_pictures.py::TestPairing::test_every_mask_goes_to_the_image_of_its_name",
    ),
    UpstreamDifference(
        "isicloader.py",
        "needs a csv of another part of the challenge in gbk encoding",
        "pairs found in the folders, or a csv, each pair checked",
        "the data comes without such a file",
        "tests/data/test_data_isic.py::test_pairs_of_each_split",
    ),
    UpstreamDifference(
        "segmentation_env.py",
        "mean over thresholds 0.1 to 0.9 at 256 px, divided by the maximum: NaN on an empty mask",
        "one stated threshold, at the ground truth's own size; two empty masks counted apart; `--protocol upstream` "
        "gives the original's figure, but for the JPEG that it scores",
        "a score that others can reproduce",
        "tests/evaluation/test_evaluation.py::test_scores_at_the_size_of_the_truth",
    ),
    UpstreamDifference(
        "segmentation_train.py, recipe (epsilon, highway dropout 0.5, EMA 0.9999 from the start)",
        "masks are noise after hours of training",
        "the preset `original` is the same, and so is a training without a preset; `fast` predicts x0 without that "
        "dropout, warms the EMA up",
        "it learns in minutes what the defaults do not learn in hours",
        "tests/config/test_config.py::test_presets_set_their_values_and_flags_override_them",
    ),
    UpstreamDifference(
        "unet.py:297 and 362, --use_checkpoint",
        "recomputes each residual block's activations with the flag and each attention block's without it too; not "
        "those of the highway network, whose running statistics would count every batch twice",
        "with the flag all blocks of the network and all stages of the highway network, in both backends, statistics "
        "counting once; without it nothing",
        "the flag is there to save memory, of which the highway network takes a share",
        "tests/networks/test_recompute.py::test_numbers_are_the_same",
    ),
    UpstreamDifference(
        "segmentation_sample.py, sampler",
        "the ancestral one, 1000 steps, if nothing else is said",
        "DDIM with eta 1, 20 steps: the ancestral one with the posterior's variance; the preset `original` and "
        "--sampler ancestral sample as the original",
        "the learned variance of a short training spoils the last of few ancestral steps, and a thousand are slow",
        "tests/diffusion/test_samplers.py::test_a_share_above_1_spoils_few_ancestral_steps_and_no_ddim_step",
    ),
    UpstreamDifference(
        "gaussian_diffusion.py, loss_type KL",
        "raises NotImplementedError: --use_kl True cannot train",
        "the variational bound alone, plus the calibration mask's term",
        "the flag exists",
        "tests/diffusion/test_diffusion.py::test_variational_bound_alone",
    ),
    UpstreamDifference(
        "train_util.py, _anneal_lr",
        "sets the rate after the step, so that the first two steps have the same one",
        "step n of N has the rate lr * (1 - n / N)",
        "a rate that falls linearly",
        "tests/training/test_training.py::test_averages_rates_and_gradients_over_steps",
    ),
    UpstreamDifference(
        "unet.py:2480, anchors of the highway network",
        "brings all four decoder stages to full size and uses two",
        "the two that are used",
        "the same numbers with less memory",
        "tests/networks/test_network_golden.py::test_every_modules_samples",
    ),
    UpstreamDifference(
        "gaussian_diffusion.py, get_named_beta_schedule, linear with 20 steps or fewer",
        "betas of 1 and more, NaN",
        "an error that names the flag",
        "it cannot train",
        "tests/diffusion/test_schedule.py::test_impossible_schedule_is_refused",
    ),
)


@dataclass(frozen=True)
class Rule:
    """The multiples of `parity/rule.py`.

    multiple:         of the reference's own float32 error.
    last_places:      eps of the tensor's scale, in float32. gate_last_places: the same in float64.
    calibration:      the runs that they come from.
    """

    multiple: float
    last_places: float
    gate_last_places: float
    calibration: str


RULE = Rule(
    multiple=16.0,
    last_places=32.0,
    gate_last_places=1024.0,
    calibration="with 8, 8 and 512 in their place the largest ratios of a correct port were: running free 0.88 "
    "in float32 (a batch norm's bias gradient) and 1.44 in float64 (an AdamW update), every layer "
    "alone 1.55 in float32 (gradient of attention) and 0.34 in float64; of 24000 tensors on an AMD EPYC. "
    "Layers alone were then judged by one run. The draws that are beside it now allow them a fifth more in "
    "the median, and a bias of one channel, whose error was 50 times smaller in that run than in a draw, "
    "5 times as much: 0.20 instead of 1.06. "
    "A float64 batch norm sums 2048 values in one chain in PyTorch: 150 eps. Doubling leaves other "
    "processors as much room again",
)
