"""Test the command `medsegdiff`: its list of commands, help, wrong names, and the scripts that call it."""

import subprocess
import sys

import pytest
from support.backends import ROOT
from support.commands import assert_refused

import medsegdiff
from guided_diffusion_core.command_line import Command, run_program
from guided_diffusion_core.errors import UserError
from medsegdiff.commands import COMMANDS
from parity.program import COMMANDS as PARITY

DOORS = {
    "segmentation_train": "train",
    "segmentation_sample": "sample",
    "segmentation_env": "score",
    "check_data": "check-data",
    "compare_runs": "compare",
    "convert_checkpoint": "convert",
}


def run(*argv, cwd=ROOT):
    done = subprocess.run([sys.executable, *map(str, argv)], cwd=cwd, text=True, capture_output=True)
    return done.returncode, done.stdout, done.stderr


def flags_of(text):
    return {word.strip("[],") for word in text.split() if word.startswith(("--", "[--"))}


def test_without_arguments_it_prints_every_command():
    code, printed, _ = run("-m", "medsegdiff")
    assert code == 0
    for command in COMMANDS:
        assert f"\n    {command.name}" in printed and command.help.split()[0] in printed


def test_version_is_stated_once():
    assert run("-m", "medsegdiff", "--version")[1] == f"medsegdiff {medsegdiff.__version__}\n"


@pytest.mark.parametrize(
    "argv, text",
    [
        (["trian"], "medsegdiff: unknown command trian; did you mean train?"),
        (["train", "--image_sise", "64"], "medsegdiff train: unknown flag --image_sise; did you mean --image_size?"),
        (["parity", "lost"], "medsegdiff parity: unknown command lost; did you mean list?"),
        (["parity", "run"], "medsegdiff parity run: the following arguments are required: CASE"),
        (["sample", "--model_path", "nowhere"], "medsegdiff sample: "),
        (["--vershion"], "unknown flag --vershion; did you mean --version?"),
    ],
)
def test_wrong_line_is_one_clear_error(argv, text):
    assert_refused(run("-m", "medsegdiff", *argv), text)


def test_parity_is_the_same_program_under_both_names():
    names = [command.name for command in PARITY]
    for argv, prog in (("-m", "parity"), "python -m parity"), (("-m", "medsegdiff", "parity"), "medsegdiff parity"):
        code, printed, _ = run(*argv, "--help")
        assert code == 0 and printed.startswith(f"usage: {prog} ")
        assert all(f"\n    {name} " in printed for name in names)
    assert run("-m", "medsegdiff", "parity", "list") == run("-m", "parity", "list")


@pytest.mark.parametrize("script", DOORS)
def test_doors_have_the_flags_of_their_commands_from_anywhere(script, tmp_path):
    code, door, _ = run(ROOT / "scripts" / f"{script}.py", "--help", cwd=tmp_path)
    assert code == 0 and door.startswith(f"usage: {script}.py ")
    assert flags_of(door) == flags_of(run("-m", "medsegdiff", DOORS[script], "--help")[1])


@pytest.mark.parametrize("found, code", [(None, 0), (0, 0), (1, 1), (UserError("lens: found dust"), 2)])
def test_exit_code_is_the_commands(capsys, found, code):
    def command(args):
        if isinstance(found, Exception):
            raise found
        assert args.flag == "x"
        return found

    commands = [Command("look", "look at it", lambda parser: parser.add_argument("--flag"), command)]
    try:
        run_program("program", "A program.", commands, ["look", "--flag", "x"])
        left = 0
    except SystemExit as end:
        left = end.code
    assert left == code
    assert capsys.readouterr().err == ("program look: lens: found dust\n" if code == 2 else "")


def test_only_the_chosen_command_is_imported():
    code = (
        "import sys\nfrom guided_diffusion_core.command_line import Command, run_program\n"
        "commands = [Command.in_module('a', 'a', 'no.such.module'), Command('b', 'b', lambda p: None, print)]\n"
        "run_program('program', '', commands, ['b'])"
    )
    assert run("-c", code)[0] == 0
