"""The command lines: flags from the configuration's fields, errors, and the way to a backend.

A command builds its parser with `build_parser`, adds flags of its own, and resolves its
configuration from `given_settings`: only what stands on the command line overrides a preset or a
checkpoint. Imports no framework, so that `--help` is quick and needs none.
"""
import argparse
import dataclasses
import difflib
import importlib
import json
import math
import os
import re
import sys

from guided_diffusion_core import config
from guided_diffusion_core.errors import UserError

# Name -> package of the implementation, top-level module of the framework, its distribution.
BACKENDS = {
    "pytorch": ("guided_diffusion_pt", "torch", "torch"),
    "jittor": ("guided_diffusion_jt", "jittor", "jittor"),
}

_METAVARS = {bool: "True|False", int: "INT", float: "NUMBER", str: "TEXT"}


def boolean(text):
    """The value of a flag such as `--use_ddim True`; yes/no, t/f, y/n and 1/0 too, in any case."""
    if text.lower() in ("true", "yes", "t", "y", "1"):
        return True
    if text.lower() in ("false", "no", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def _number(kind, name):
    """A converter for argparse whose error names what was expected."""
    def convert(text):
        try:
            value = kind(text)
            if not math.isfinite(value):
                raise ValueError(value)
            return value
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from error
    return convert


_CONVERTERS = {
    bool: boolean,
    int: _number(int, "a whole number"),
    float: _number(float, "a number"),
    str: str,
}


@dataclasses.dataclass(frozen=True)
class OriginalFlag:
    """A flag of the original without a function here.

    Its default value is accepted without a word, so that old command lines run; any other is
    refused with `instead`, which says what to do.
    """

    default: object
    instead: str


# `parity/ledger.py` gives the reasons.
ORIGINAL_FLAGS = {
    "use_fp16": OriginalFlag(False, "use --mixed_precision fp16, or bf16, which needs no scaled loss."),
    "fp16_scale_growth": OriginalFlag(
        1e-3, "the loss scale of --mixed_precision fp16 doubles after 2000 steps without overflow; "
              "leave the flag out."),
    "gpu_dev": OriginalFlag("0", "the device cannot be chosen here; leave the flag out."),
    "multi_gpu": OriginalFlag(
        "", "start the command with torchrun, or mpirun for --backend jittor; leave the flag out."),
    "resume_checkpoint": OriginalFlag("", "use --resume last, or --resume with the folder of a checkpoint or a run."),
    "debug": OriginalFlag(False, "probability and uncertainty are always written; leave the flag out."),
    "num_samples": OriginalFlag(1, "every case is sampled; use --num_ensemble for the samples per case."),
}


class CommandParser(argparse.ArgumentParser):
    """argparse that suggests the nearest flag for an unknown one, and never abbreviates.

    A wrong command line ends the process with one or two lines on stderr and exit code 2.
    """

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False)

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        known = self._option_string_actions
        for token in args:
            flag = token.split("=", 1)[0]
            if re.match(r"--?[A-Za-z]", flag) and flag not in known:
                self.error(f"unknown flag {flag}{_suggestion(flag, known)}")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help lists all flags.\n")


def _suggestion(flag, known):
    near = difflib.get_close_matches("--" + flag.lstrip("-"), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def build_parser(description, *sections):
    """A parser with a flag for every setting of the sections, and those that all commands share.

    sections: names of `config.SECTIONS`, in the order in which the help shows them.
    """
    parser = CommandParser(description)
    parser.add_argument("--backend", choices=tuple(BACKENDS), default="pytorch",
                        help="framework that computes (default: pytorch)")
    parser.add_argument("--preset", choices=tuple(config.PRESETS), default=argparse.SUPPRESS,
                        help=f"named set of values, which other flags override (default: {config.Config.preset}). "
                             + ". ".join(f"{preset}: {note}" for preset, note in config.PRESET_NOTES.items()))
    parser.add_argument("--seed", type=_CONVERTERS[int], default=argparse.SUPPRESS, metavar="INT",
                        help=f"seed of every random number (default: {config.Config.seed})")
    parser.add_argument("--dry_run", nargs="?", const=True, default=False, type=boolean, metavar="True|False",
                        help="print the resolved configuration and stop (default: False)")
    for section in sections:
        cls = config.SECTIONS[section]
        group = parser.add_argument_group(section, cls.__doc__.replace("%", "%%"))
        for field in dataclasses.fields(cls):
            _add_setting(group, field)
    for name, flag in ORIGINAL_FLAGS.items():
        parser.add_argument(f"--{name}", type=_CONVERTERS[type(flag.default)], action=_RefuseOriginal,
                            flag=flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def add_settings(parser, section, *names):
    """Add the flags of some fields of a configuration section (its dataclass) to a parser."""
    for field in dataclasses.fields(section):
        if field.name in names:
            _add_setting(parser, field)


def _add_setting(group, field):
    """Add the flag of one configuration field; it is in the namespace only where it was given."""
    values = {"default": field.default if field.default != "" else "empty"}
    values |= {preset: given[field.name] for preset, given in config.PRESETS.items() if field.name in given}
    defaults = "; ".join(f"{name}: {value}" for name, value in values.items())
    choices = field.metadata["choices"]
    kind = type(field.default)
    group.add_argument(
        f"--{field.name}", type=_CONVERTERS[kind], default=argparse.SUPPRESS,
        choices=choices, metavar=None if choices else _METAVARS[kind],
        help=f"{field.metadata['help']} ({defaults})".replace("%", "%%"))


class _RefuseOriginal(argparse.Action):
    """Accept an `OriginalFlag` at its default value alone."""

    def __init__(self, *args, flag, **kwargs):
        super().__init__(*args, **kwargs)
        self.flag = flag

    def __call__(self, parser, namespace, value, option_string=None):
        if value != self.flag.default:
            parser.error(f"{option_string} {value}: {self.flag.instead}")


def given_settings(args):
    """Name -> value of the settings that stand on the command line: those of `config.SECTIONS`
    that the parser has, and "seed".

    args: the namespace of a parser made by `build_parser`; what else it holds is left out.
    """
    names = {*config.setting_names(), "seed"}
    return {name: value for name, value in vars(args).items() if name in names}


def chosen_preset(args):
    """The preset on the command line, or None; what it has to say for itself goes to stderr."""
    preset = getattr(args, "preset", None)
    if preset in config.PRESET_NOTES:
        print(f"--preset {preset}: {config.PRESET_NOTES[preset]}", file=sys.stderr)
    return preset


def configuration_text(resolved, **rest):
    """The resolved configuration as indented JSON, after the `rest` (JSON values, such as paths)."""
    return json.dumps({**rest, **resolved.to_dict()}, indent=2)


def backend_module(backend, name):
    """The module `name` of a backend's package, such as backend_module("jittor", "unet").

    Raises `UserError` if the framework is not installed.
    """
    package, framework, distribution = BACKENDS[backend]
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name not in (framework, f"{framework}_utils"):
            raise
        raise UserError(f"--backend {backend}: {distribution} is not installed in {sys.prefix}. "
                        "Run: make venv, or: pip install -r requirements.txt") from error


def run_command(main):
    """Run a command's `main()` and end the process with the exit code that it returns, if it does.

    0: done (also for None). 2: a `UserError`, whose message is printed without a traceback. 130: Ctrl-C.
    141: the reader of the output has gone. Any other error keeps its traceback.
    """
    try:
        code = main()
        sys.stdout.flush()
        if code:
            sys.exit(code)
    except UserError as error:
        sys.exit(_leave(f"{_command_name()}: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_leave("Interrupted.", 130))
    except BrokenPipeError:
        # the interpreter flushes stdout once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _command_name():
    """How the command was called: its file, or "python -m PACKAGE"."""
    folder, name = os.path.split(sys.argv[0])
    return f"python -m {os.path.basename(folder)}" if name == "__main__.py" else name


def _leave(message, code):
    """Print one message to stderr, below whatever progress bar stands there; return the code."""
    print(f"\n{message}" if sys.stderr.isatty() else message, file=sys.stderr)
    return code
