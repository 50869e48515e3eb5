"""Describe the commands of a program, such as `medsegdiff`, `python -m parity` or `python -m benchmarks`."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command of a program.

    name:      the word that calls it.
    help:      one line for the list of commands.
    add_flags: function of a parser that adds the command's flags and sets its description.
    run:       function of the parsed arguments that returns an exit code; None means 0.
    """

    name: str
    help: str
    add_flags: Callable
    run: Callable

    @classmethod
    def in_module(cls, name, help, module):
        """Return the command of a module with `add_flags` and `run`, which is imported when it is called."""

        def load():
            return importlib.import_module(module)

        return cls(name, help, lambda parser: load().add_flags(parser), lambda args: load().run(args))


def add_commands(parser, commands):
    """Add commands to a `CommandParser`. Each command gets its own parser, which `add_flags` fills on first use.

    The namespace that the parser returns holds the chosen command's `run` as `run_command`, and the name
    by which the command was called as `prog`.
    """
    parser.commands = tuple(command.name for command in commands)
    group = parser.add_subparsers(required=True, title="commands", metavar="COMMAND", dest="command")
    for command in commands:
        command_parser = group.add_parser(command.name, help=command.help, fill=command.add_flags)
        command_parser.set_defaults(run_command=command.run, prog=command_parser.prog)
