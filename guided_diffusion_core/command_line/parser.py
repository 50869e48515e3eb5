"""The command lines: flags from the configuration's fields.

A command fills its parser with `add_run_flags`, adds flags of its own, and resolves its
configuration from `given_settings`: only what stands on the command line overrides a preset or a
checkpoint. Imports no framework, so that `--help` is quick and needs none.
"""

import argparse
import dataclasses
import difflib
import itertools
import json
import math
import re
import sys

from guided_diffusion_core import config
from guided_diffusion_core.backends import BACKENDS
from guided_diffusion_core.command_line.original_flags import (
    ORIGINAL_FLAGS,
    SAMPLER_FLAGS,
    RefuseOriginal,
    translated_sampler,
)
from guided_diffusion_core.networks import registry

_METAVARS = {bool: "True|False", int: "INT", float: "NUMBER", str: "TEXT"}


def boolean(text):
    """The value of a flag such as `--learn_sigma True`; yes/no, t/f, y/n and 1/0 too, in any case."""
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


whole_number = _number(int, "a whole number")

_CONVERTERS = {
    bool: boolean,
    int: whole_number,
    float: _number(float, "a number"),
    str: str,
}


class CommandParser(argparse.ArgumentParser):
    """argparse that suggests the nearest flag or command for an unknown one, and never abbreviates.

    A wrong command line ends the process with one or two lines on stderr and exit code 2.
    fill: function of this parser that adds its flags when it is first used; None if the caller adds them.
    commands: names of its commands (`commands.add_commands`); empty for a parser of flags.
    """

    def __init__(self, description=None, *, fill=None, **keywords):
        super().__init__(description=description, allow_abbrev=False, **keywords)
        self._fill = fill
        self.commands = ()

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        if self._fill:
            fill = self._fill
            self._fill = None
            fill(self)
        if self.commands:
            # the command's own parser judges what follows its name
            flags = list(itertools.takewhile(lambda token: token.startswith("-"), args))
            self._check_flags(flags)
            self._check_command(args[len(flags) :])
        else:
            self._check_flags(args)
        return super().parse_known_args(args, namespace)

    def _check_flags(self, args):
        known = self._option_string_actions
        for token in args:
            flag = token.split("=", 1)[0]
            if re.match(r"--?[A-Za-z]", flag) and flag not in known:
                self.error(f"unknown flag {flag}{_suggestion('--' + flag.lstrip('-'), known)}")

    def _check_command(self, args):
        if args and args[0] not in self.commands:
            self.error(f"unknown command {args[0]}{_suggestion(args[0], self.commands)}")

    def error(self, message):
        every = "commands" if self.commands else "flags"
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help lists all {every}.\n")


def _suggestion(word, known):
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def add_run_flags(parser, *sections):
    """Add a flag for every setting of the sections, and the flags that training and sampling share.

    sections: names of `config.SECTIONS`, in the order in which the help shows them. Returns the parser.
    """
    parser.add_argument(
        "--backend", choices=tuple(BACKENDS), default="pytorch", help="framework that computes (default: pytorch)"
    )
    parser.add_argument(
        "--preset",
        choices=tuple(config.PRESETS),
        default=argparse.SUPPRESS,
        help=f"named set of values, which other flags override (default: {config.Config.preset}). "
        + ". ".join(f"{preset}: {note}" for preset, note in config.PRESET_NOTES.items()),
    )
    parser.add_argument(
        "--seed",
        type=whole_number,
        default=argparse.SUPPRESS,
        metavar="INT",
        help=f"seed of every random number (default: {config.Config.seed})",
    )
    parser.add_argument(
        "--dry_run",
        nargs="?",
        const=True,
        default=False,
        type=boolean,
        metavar="True|False",
        help="print the resolved configuration and stop (default: False)",
    )
    for section in sections:
        cls = config.SECTIONS[section]
        group = parser.add_argument_group(section, cls.__doc__.replace("%", "%%"))
        for field in dataclasses.fields(cls):
            _add_setting(group, field)
        if section == "sampling":
            for name, text in SAMPLER_FLAGS.items():
                group.add_argument(
                    f"--{name}", type=boolean, default=argparse.SUPPRESS, metavar=_METAVARS[bool], help=text
                )
        if section == "model":
            add_networks(parser)
    for name, flag in ORIGINAL_FLAGS.items():
        parser.add_argument(
            f"--{name}",
            type=_CONVERTERS[type(flag.default)],
            action=RefuseOriginal,
            flag=flag,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
    return parser


def add_settings(parser, section, *names):
    """Add the flags of some fields of a configuration section (its dataclass) to a parser."""
    for field in dataclasses.fields(section):
        if field.name in names:
            _add_setting(parser, field)


def _help_text(field):
    """Return the help text of a configuration field, with the names of the data layouts filled in."""
    text = field.metadata["help"]
    if "{layouts}" not in text:
        return text
    # only here: the layouts import the readers of all file formats
    from guided_diffusion_core.data.layouts import help_text

    return text.replace("{layouts}", help_text())


def add_networks(parser):
    """Add `--network`, and a group with the own flags of each family of networks that has some."""
    found = registry.families()
    parser.add_argument(
        "--network",
        choices=tuple(found),
        default=argparse.SUPPRESS,
        help="family of the network (default: MedSegDiff in the version of --version)",
    )
    for family in found.values():
        own = {flag: name for flag, name in family.flags().items() if flag != name}
        group = parser.add_argument_group(family.name, family.settings.__doc__.replace("%", "%%")) if own else None
        for field in dataclasses.fields(family.settings):
            for flag in [flag for flag, name in own.items() if name == field.name]:
                _add_setting(group, field, flag)


def _add_setting(group, field, flag=None):
    """Add the flag of one configuration field; it is in the namespace only where it was given."""
    flag = flag or field.name
    values = {"default": field.default if field.default != "" else "empty"}
    values |= {preset: given[flag] for preset, given in config.PRESETS.items() if flag in given}
    defaults = "; ".join(f"{name}: {value}" for name, value in values.items())
    choices = field.metadata["choices"]
    kind = type(field.default)
    group.add_argument(
        f"--{flag}",
        type=_CONVERTERS[kind],
        default=argparse.SUPPRESS,
        choices=choices,
        metavar=None if choices else _METAVARS[kind],
        help=f"{_help_text(field)} ({defaults})".replace("%", "%%"),
    )


def given_settings(args):
    """Name -> value of the settings that stand on the command line: those of `config.SECTIONS` and of the families
    of networks that the parser has, "network" and "seed". The original's flags for the sampler are translated.

    args: the namespace of a parser filled by `add_run_flags`; what else it holds is left out.
    Raises `UserError` for two flags that name different samplers.
    """
    names = {*config.all_setting_names(), "seed"}
    given = translated_sampler(vars(args))
    return {name: value for name, value in given.items() if name in names}


def chosen_preset(args):
    """The preset on the command line, or None; what it has to say for itself goes to stderr."""
    preset = getattr(args, "preset", None)
    if preset in config.PRESET_NOTES:
        print(f"--preset {preset}: {config.PRESET_NOTES[preset]}", file=sys.stderr)
    return preset


def configuration_text(resolved, **rest):
    """The resolved configuration as indented JSON, after the `rest` (JSON values, such as paths)."""
    return json.dumps({**rest, **resolved.to_dict()}, indent=2)
