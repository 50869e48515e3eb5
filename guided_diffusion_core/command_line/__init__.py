"""What all commands share: flags from the configuration, the original's flags, exit codes."""

from guided_diffusion_core.command_line.original_flags import ORIGINAL_FLAGS, OriginalFlag
from guided_diffusion_core.command_line.parser import (
    CommandParser,
    add_settings,
    boolean,
    build_parser,
    chosen_preset,
    configuration_text,
    given_settings,
)
from guided_diffusion_core.command_line.run import run_command

__all__ = [
    "ORIGINAL_FLAGS",
    "CommandParser",
    "OriginalFlag",
    "add_settings",
    "boolean",
    "build_parser",
    "chosen_preset",
    "configuration_text",
    "given_settings",
    "run_command",
]
