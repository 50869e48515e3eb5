"""Test the command lines: flags, refused values, and the end of a command."""

import json
import subprocess
import sys

import pytest
from support.backends import ROOT

from guided_diffusion_core import command_line, config
from guided_diffusion_core.backends import BACKENDS, Backend, advice_to_use, backend_module, register
from guided_diffusion_core.errors import UserError, found_expected, join_names

SECTIONS = tuple(config.SECTIONS)


def settings(*argv):
    return command_line.given_settings(
        command_line.add_run_flags(command_line.CommandParser("Test."), *SECTIONS).parse_args(argv)
    )


def refused(capsys, *argv):
    """Return the message of a wrong command line on stderr; it has to end with exit code 2."""
    with pytest.raises(SystemExit) as leave:
        settings(*argv)
    assert leave.value.code == 2
    return capsys.readouterr().err


def end_of(body, as_bytes=False):
    """Return exit code, stdout and stderr of a command with this body of `main`, as texts or bytes."""
    code = (
        "from guided_diffusion_core import command_line\nfrom guided_diffusion_core.errors import UserError\n"
        f"def main():\n    {body}\ncommand_line.run_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=not as_bytes, capture_output=True)
    return done.returncode, done.stdout, done.stderr


def test_every_setting_is_a_flag_with_help_range_and_default():
    text = " ".join(command_line.add_run_flags(command_line.CommandParser("Test."), *SECTIONS).format_help().split())
    for name in config.setting_names():
        assert f"--{name} " in text
    assert "(at least 0; default: 0.0001; MedSegDiff-B: 5e-05)" in text
    assert "(from 0 to below 1; default: 0.5; fast: 0.0)" in text, "presets that change a default are named"
    assert "--use_fp16" not in text


@pytest.mark.parametrize(
    "argv, used",
    [
        (["--preset", "fast", "--dpm_solver", "True"], "dpm-solver++"),
        (["--preset", "fast", "--sampler", "dpm-solver++"], "dpm-solver++"),
        (["--preset", "fast"], "ddim"),
        (["--preset", "original", "--dpm_solver", "True"], "dpm-solver++"),
        (["--preset", "original", "--dpm_solver", "False"], "ancestral"),
        (["--preset", "original", "--use_ddim", "True"], "ddim"),
        (["--dpm_solver", "False"], "ddim"),
        (["--dpm_solver", "True", "--use_ddim", "False"], "dpm-solver++"),
        (["--dpm_solver", "True", "--sampler", "dpm-solver++"], "dpm-solver++"),
        (["--dpm_solver", "False", "--use_ddim", "True"], "ddim"),
        (["--dpm_solver", "False", "--use_ddim", "False"], "ancestral"),
        ([], "ddim"),
        (["--use_ddim", "False"], "ancestral"),
        (["--sampler", "ancestral"], "ancestral"),
        (["--preset", "original"], "ancestral"),
    ],
)
def test_one_flag_changes_the_sampler(argv, used):
    args = command_line.add_run_flags(command_line.CommandParser("Test."), *SECTIONS).parse_args(argv)
    sampling = config.resolve(command_line.given_settings(args), getattr(args, "preset", None)).sampling
    assert sampling.sampler == used


def test_two_samplers_are_refused():
    with pytest.raises(UserError, match="one sampler"):
        settings("--use_ddim", "True", "--dpm_solver", "True")
    with pytest.raises(UserError, match="--sampler: found ancestral, .* name ddim"):
        settings("--use_ddim", "True", "--sampler", "ancestral")


def test_diffusion_steps_with_dpm_solver_are_the_solvers(capsys):
    """Use the flags as the original's users do; the trained schedule stays."""
    solver = {"sampler": "dpm-solver++"}
    flags = ("--dpm_solver", "True", "--diffusion_steps")
    assert settings(*flags, "50") == settings(*flags, "50", "--sample_steps", "50") == {**solver, "sample_steps": 50}
    assert capsys.readouterr().err.count("50 steps of the solver") == 2
    # two numbers: that of the schedule, which has to be the trained one, and that of the solver
    assert settings(*flags, "1000", "--sample_steps", "20") == {
        **solver,
        "diffusion_steps": 1000,
        "sample_steps": 20,
    }
    assert settings("--dpm_solver", "True", "--sample_steps", "9") == {**solver, "sample_steps": 9}
    assert settings("--sampler", "dpm-solver++", "--diffusion_steps", "50") == {**solver, "diffusion_steps": 50}
    assert not capsys.readouterr().err


def test_only_given_flags_are_settings():
    assert settings() == {}
    assert settings("--lr", "1e-3", "--seed=7", "--attention_resolutions", "16") == {
        "lr": 1e-3,
        "seed": 7,
        "attention_resolutions": "16",
    }


def test_given_flags_override_the_preset_and_nothing_else():
    args = command_line.add_run_flags(command_line.CommandParser("Test."), *SECTIONS).parse_args(
        ["--preset", "fast", "--sample_steps", "3"]
    )
    resolved = config.resolve(command_line.given_settings(args), args.preset)
    assert resolved.sampling.sample_steps == 3 and resolved.sampling.sampler == "ddim" and resolved.preset == "fast"


@pytest.mark.parametrize(
    "text, value",
    [
        ("True", True),
        ("true", True),
        ("yes", True),
        ("1", True),
        ("False", False),
        ("false", False),
        ("no", False),
        ("0", False),
    ],
)
def test_booleans_are_written_as_in_the_original(text, value):
    assert settings("--clip_denoised", text) == {"clip_denoised": value}


def test_negative_numbers_are_values():
    assert settings("--microbatch", "-1") == {"microbatch": -1}


def test_unknown_flag_suggests_the_nearest(capsys):
    assert "unknown flag --image_sise; did you mean --image_size?" in refused(capsys, "--image_sise", "64")
    assert "unknown flag --image_sise; did you mean --image_size?" in refused(capsys, "--image_sise=64")
    assert "unknown flag -lr; did you mean --lr?" in refused(capsys, "-lr", "1")
    assert "unknown flag --zzz\n" in refused(capsys, "--zzz")


def test_flags_are_not_abbreviated(capsys):
    assert "unknown flag --image" in refused(capsys, "--image", "64")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--lr", "fast"], "--lr: 'fast' is not a number"),
        (["--lr", "nan"], "--lr: 'nan' is not a number"),
        (["--batch_size", "1.5"], "--batch_size: '1.5' is not a whole number"),
        (["--use_kl", "maybe"], "--use_kl: 'maybe' is neither True nor False"),
        (["--noise_schedule", "sqrt"], "invalid choice: 'sqrt' (choose from 'linear', 'cosine')"),
        (["--lr"], "--lr: expected one argument"),
        (["stray"], "unrecognized arguments: stray"),
        (["--backend", "jax"], "invalid choice: 'jax'"),
    ],
)
def test_bad_value_is_named(capsys, argv, message):
    assert message in refused(capsys, *argv)


def test_flags_of_the_original_without_function_pass_at_their_default():
    assert (
        settings(
            "--gpu_dev",
            "0",
            "--use_fp16",
            "False",
            "--fp16_scale_growth",
            "1e-3",
            "--num_samples",
            "1",
            "--debug",
            "False",
            "--class_cond",
            "False",
        )
        == {}
    )


@pytest.mark.parametrize(
    "argv, instead",
    [
        (["--use_fp16", "True"], "use --mixed_precision fp16"),
        (["--fp16_scale_growth", "1e-2"], "--mixed_precision fp16 doubles after 2000 steps"),
        (["--class_cond", "True"], "the data sets have no class labels; leave the flag out"),
        (["--multi_gpu", "0,1"], "start the command with torchrun --nproc_per_node=N for N GPUs"),
        (["--resume_checkpoint", "a.pt"], "use --resume last"),
    ],
)
def test_flags_of_the_original_without_function_say_what_to_do(capsys, argv, instead):
    assert instead in refused(capsys, *argv)


@pytest.mark.parametrize("number, device", [("1", "cuda:1"), ("07", "cuda:7"), ("12", "cuda:12")])
def test_the_originals_number_of_a_gpu_is_the_device(number, device):
    assert settings("--gpu_dev", number) == {"device": device}
    assert settings("--gpu_dev", number, "--device", device) == {"device": device}
    assert settings("--gpu_dev", "0", "--device", device) == {"device": device}
    with pytest.raises(UserError, match=f"--device: found cpu, and --gpu_dev {number}; expected one device"):
        settings("--gpu_dev", number, "--device", "cpu")


@pytest.mark.parametrize("value", ["0,1", "cuda", "-1", "", "²"])
def test_what_is_no_number_of_a_gpu_is_refused(value):
    with pytest.raises(UserError, match="--gpu_dev: found .* expected the number of one GPU. Give --device cuda:N"):
        settings("--gpu_dev=" + value)


def test_dry_run_flag_needs_no_value():
    parser = command_line.add_run_flags(command_line.CommandParser("Test."), "model")
    assert parser.parse_args(["--dry_run"]).dry_run is True
    assert parser.parse_args(["--dry_run", "False"]).dry_run is False
    assert parser.parse_args([]).dry_run is False


def test_configuration_text_is_the_resolved_configuration():
    tree = json.loads(command_line.configuration_text(config.resolve({"lr": 0.5}), backend="jittor"))
    assert tree.pop("backend") == "jittor"
    assert config.from_dict(tree) == config.resolve({"lr": 0.5})


def test_command_ends_well():
    assert end_of("print('done')") == (0, "done\n", "")


def test_user_error_is_one_message_and_exit_code_2():
    assert end_of("raise UserError('x.nii: cut in half.')") == (2, "", "-c: x.nii: cut in half.\n")


def test_ctrl_c_is_one_message_and_exit_code_130():
    assert end_of("raise KeyboardInterrupt") == (130, "", "Interrupted.\n")


def test_unexpected_error_keeps_its_traceback():
    code, _, err = end_of("1 / 0")
    assert code == 1 and "Traceback" in err and "ZeroDivisionError" in err


def test_reader_that_leaves_early_is_no_error():
    code = "from guided_diffusion_core import command_line\ncommand_line.run_command(lambda: print('x\\n' * 10**6))"
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer.stdout.readline()
    writer.stdout.close()
    assert (writer.wait(), writer.stderr.read()) == (141, b"")
    writer.stderr.close()


def test_missing_framework_says_how_to_install_it(monkeypatch):
    missing = Backend("none", "no_such_framework", "no_such_framework", "no-such-framework", launcher="mpirun")
    monkeypatch.setitem(BACKENDS, "none", missing)
    with pytest.raises(UserError, match="no-such-framework is not installed.*pip install"):
        backend_module("none", "unet")


def test_missing_module_of_a_backend_is_not_a_missing_framework():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        backend_module("pytorch", "no_such_module")


def test_one_name_stands_for_one_backend(monkeypatch):
    monkeypatch.setattr("guided_diffusion_core.backends.BACKENDS", dict(BACKENDS))
    register(BACKENDS["jittor"])
    with pytest.raises(ValueError, match="another backend of the name jittor"):
        register(Backend("jittor", "other", "other", "other", launcher="mpirun"))


@pytest.mark.parametrize("installed", [["other"], ["other", "third"], []])
def test_a_missing_backend_names_those_that_are_installed(monkeypatch, installed):
    """Name the backends that can be used at once, and how to install the one that was asked for."""
    monkeypatch.setattr("guided_diffusion_core.backends.BACKENDS", {})
    for name in ("wanted", "other", "third"):
        framework = "json" if name in installed else f"no_such_framework_{name}"
        register(Backend(name, framework, framework, framework, launcher="torchrun"))
    with pytest.raises(UserError) as error:
        backend_module("wanted", "unet")
    advice = str(error.value).partition("is not installed in ")[2]
    assert advice.endswith("pip install .[wanted]")
    assert ("Give --backend other" in advice) == ("other" in installed)
    assert ("or --backend third, which is installed" in advice) == ("third" in installed)
    assert advice_to_use("wanted").startswith("install the backend wanted. Run")
    if installed:
        assert advice_to_use("other") == "use --backend other."


@pytest.mark.parametrize(
    "name", ["a\x1b[2Jb", "a\rb", "a\nb", "a\u202eb", "a\x9b31mb", "a\udcffb", "a\x07b", "a\u2028b"]
)
class TestControlCharacters:
    """A terminal would clear its screen, turn text around or ring; all of them are shown as escapes."""

    def test_in_an_error(self, name):
        shown = name.encode("unicode_escape").decode()
        error = found_expected(name, "x", join_names([name]), "y")
        assert str(error) == f"{shown}: found x; expected {shown}. y"
        assert error.parts == (shown, "x", shown, "y")
        # messages of several lines are allowed
        printed = name if name == "a\nb" else shown
        assert end_of(f"raise UserError({name!r})") == (2, "", f"-c: {printed}\n")

    def test_in_the_output(self, name):
        printed = name if name == "a\nb" else name.encode("unicode_escape").decode()
        assert end_of(f"print({name!r})", as_bytes=True) == (0, f"{printed}\n".encode(), b"")

    @pytest.mark.parametrize("writer", ["print({}, file=sys.stderr)", "tqdm.write({}, file=sys.stderr)"])
    def test_in_a_remark(self, name, writer):
        printed = name if name == "a\nb" else name.encode("unicode_escape").decode()
        body = f"import sys; from tqdm import tqdm; {writer.format(repr(name))}"
        assert end_of(body, as_bytes=True) == (0, b"", f"{printed}\n".encode())

    def test_in_a_flag(self, capsys, name):
        message = refused(capsys, f"--{name}")
        assert name.encode("unicode_escape").decode() in message and name not in message


def test_progress_bars_stay_as_they_are():
    """Two bars below each other: carriage returns, and the way up to the first one."""
    body = "from tqdm import tqdm; [None for _ in tqdm(range(2)) for _ in tqdm(range(2))]"
    code, _, errors = end_of(body, as_bytes=True)
    assert code == 0 and b"\r100%" in errors and b"\x1b[A" in errors and b"\\x" not in errors


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--data_dir", "FOLDER", "--out_dir", "LONG"],
        ["train", "--data_dir", "LONG", "--out_dir", "out"],
        ["sample", "--model_path", "LONG", "--data_dir", "FOLDER", "--out_dir", "out"],
        ["score", "--inp_pth", "FOLDER", "--data_dir", "LONG"],
        ["convert", "LONG", "out.pt"],
    ],
)
def test_a_path_too_long_for_the_file_system_is_one_message(argv, tmp_path):
    places = {"FOLDER": str(tmp_path), "LONG": str(tmp_path / ("n" * 300))}
    command = [sys.executable, "-m", "medsegdiff", *(places.get(word, word) for word in argv)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "n" * 300 in done.stderr
