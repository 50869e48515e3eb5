"""Build the parsers of the command lines: one flag for each field of the configuration.

A command fills its parser with `add_run_flags`, adds further flags, and resolves its
configuration from `given_settings`: only flags on the command line override a preset or a
checkpoint. The module imports no framework, so that `--help` is quick and needs none.
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
    GPU_FLAG,
    GPU_HELP,
    ORIGINAL_FLAGS,
    SAMPLER_FLAGS,
    RefuseOriginal,
    translated_device,
    translated_sampler,
)
from guided_diffusion_core.errors import printable
from guided_diffusion_core.networks import registry

_METAVARS = {bool: "True|False", int: "INT", float: "NUMBER", str: "TEXT"}


def boolean(text):
    """Return the value of a flag such as `--learn_sigma True`; yes/no, t/f, y/n and 1/0 in any case mean the same."""
    if text.lower() in ("true", "yes", "t", "y", "1"):
        return True
    if text.lower() in ("false", "no", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def _number(kind, name):
    """Return a converter for argparse whose error message says what was expected, such as "a whole number"."""

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
    """An argparse parser that suggests the nearest flag or command for an unknown one and accepts no abbreviation.

    A wrong command line ends the process with one or two lines on stderr and exit code 2.
    fill: function of this parser that adds its flags when it is first used; None if the caller adds them.
    commands: names of its commands (`commands.add_commands`); empty for a parser of flags.
    """

    def __init__(self, description=None, *, fill=None, **keywords):
        super().__init__(description=description, allow_abbrev=False, **keywords)
        self._fill = fill
        self.commands = ()

    def parse_known_args(self, args=None, namespace=None):
        """Parse the arguments; an unknown flag or command ends the process."""
        args = sys.argv[1:] if args is None else list(args)
        if self._fill:
            # Filling twice would add each flag twice; `fill` may parse, so it is forgotten first.
            fill = self._fill
            self._fill = None
            fill(self)
        if self.commands:
            # The command's parser checks the arguments after its name.
            flags = list(itertools.takewhile(lambda token: token.startswith("-"), args))
            self._check_flags(flags)
            self._check_command(args[len(flags) :])
        else:
            self._check_flags(args)
        return super().parse_known_args(args, namespace)

    def _check_flags(self, args):
        """End the process with a suggestion if a flag is unknown; `-1.5` is a number and no flag."""
        known = self._option_string_actions
        for token in args:
            flag = token.split("=", 1)[0]
            if re.match(r"--?[A-Za-z]", flag) and flag not in known:
                self.error(f"unknown flag {flag}{_suggestion('--' + flag.lstrip('-'), known)}")

    def _check_command(self, args):
        """End the process with a suggestion if the command is unknown."""
        if args and args[0] not in self.commands:
            self.error(f"unknown command {args[0]}{_suggestion(args[0], self.commands)}")

    def error(self, message):
        """End the process with exit code 2 and a message of two lines."""
        every = "commands" if self.commands else "flags"
        self.exit(2, f"{self.prog}: {printable(message)}\n{self.prog} --help lists all {every}.\n")


def _suggestion(word, known):
    """Return "; did you mean X?" for the known word nearest to a wrong one, "" if none is near."""
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
        if section == "compute":
            group.add_argument(f"--{GPU_FLAG}", default=argparse.SUPPRESS, metavar="N", help=GPU_HELP)
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


def add_device(parser, default):
    """Add `--device` to a command without the configuration of a run. default: the value of the command."""
    [field] = [field for field in dataclasses.fields(config.ComputeConfig) if field.name == "device"]
    parser.add_argument(
        "--device", default=default, metavar=_METAVARS[str], help=f"{_help_text(field)} (default: {default})"
    )


def _help_text(field):
    """Return the help text of a configuration field, with the names of the data layouts filled in."""
    text = field.metadata["help"]
    if "{layouts}" not in text:
        return text
    # imported here, since the layouts import the readers of all file formats
    from guided_diffusion_core.data.layouts import help_text

    return text.replace("{layouts}", help_text())


def add_networks(parser):
    """Add `--network`, and a group of flags for each family of networks with settings that only it has."""
    found = registry.families()
    parser.add_argument(
        "--network",
        choices=tuple(found),
        default=argparse.SUPPRESS,
        help="family of the network (default: MedSegDiff in the version of --version)",
    )
    for family in found.values():
        # The flags with a prefix, such as "unet.width"; MedSegDiff's have none and are in the group "model".
        prefixed = {name: flag for flag, name in family.flags().items() if flag != name}
        if not prefixed:
            continue
        group = parser.add_argument_group(family.name, family.settings.__doc__.replace("%", "%%"))
        for field in dataclasses.fields(family.settings):
            if field.name in prefixed:
                _add_setting(group, field, prefixed[field.name])


def _add_setting(group, field, flag=None):
    """Add the flag of one configuration field. The namespace has it only if it is on the command line."""
    flag = flag or field.name
    notes = [str(field.metadata["range"])] if str(field.metadata["range"]) else []
    usual = field.metadata["usual"] or (field.default if field.default != "" else "empty")
    notes.append(f"default: {usual}")
    notes += [f"{preset}: {given[flag]}" for preset, given in config.PRESETS.items() if flag in given]
    text = f"{_help_text(field)} ({'; '.join(notes)})"
    choices = field.metadata["choices"]
    kind = type(field.default)
    group.add_argument(
        f"--{flag}",
        type=_CONVERTERS[kind],
        default=argparse.SUPPRESS,
        choices=choices,
        metavar=None if choices else _METAVARS[kind],
        help=text.replace("%", "%%"),  # argparse fills in %(...)s
    )


def given_settings(args):
    """Return a dict: name -> value of the settings on the command line, "network" and "seed" included.

    The original's flags for the sampler and the device are translated (`original_flags.py`).

    args: the namespace of a parser filled by `add_run_flags`; its entries that are no settings are left out.
    Raises `UserError` for two flags that name different samplers or devices.
    """
    names = {*config.all_setting_names(), "seed"}
    given = translated_device(translated_sampler(vars(args)))
    return {name: value for name, value in given.items() if name in names}


def chosen_preset(args):
    """Return the preset on the command line, or None. The preset's note, if it has one, goes to stderr."""
    preset = getattr(args, "preset", None)
    if preset in config.PRESET_NOTES:
        print(f"--preset {preset}: {config.PRESET_NOTES[preset]}", file=sys.stderr)
    return preset


def configuration_text(resolved, **rest):
    """Return the resolved configuration as indented JSON, after the entries `rest` (JSON values, such as paths)."""
    return json.dumps({**rest, **resolved.to_dict()}, indent=2)
