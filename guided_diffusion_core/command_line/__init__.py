"""Build and run command lines: flags from the configuration, the original's flags, exit codes."""

from guided_diffusion_core.command_line.commands import Command, add_commands
from guided_diffusion_core.command_line.original_flags import ORIGINAL_FLAGS, OriginalFlag
from guided_diffusion_core.command_line.parser import (
    CommandParser,
    add_device,
    add_networks,
    add_run_flags,
    add_settings,
    boolean,
    chosen_preset,
    configuration_text,
    given_settings,
    whole_number,
)
from guided_diffusion_core.command_line.run import run_command, run_program, run_single

__all__ = [
    "ORIGINAL_FLAGS",
    "Command",
    "CommandParser",
    "OriginalFlag",
    "add_commands",
    "add_device",
    "add_run_flags",
    "add_networks",
    "add_settings",
    "boolean",
    "chosen_preset",
    "configuration_text",
    "given_settings",
    "run_command",
    "run_program",
    "run_single",
    "whole_number",
]
