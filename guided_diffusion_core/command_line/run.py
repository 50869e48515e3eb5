"""Run a command: its exit code, and one message instead of a traceback for a user's mistake."""

import argparse
import errno
import os
import signal
import sys

from guided_diffusion_core.command_line.commands import add_commands
from guided_diffusion_core.command_line.output import printable_output
from guided_diffusion_core.command_line.parser import CommandParser
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.interrupts import noted
from guided_diffusion_core.system.quick_exit import INTERRUPTED
from guided_diffusion_core.system.room import is_full, lacks_memory, no_memory, no_room


def run_program(prog, description, commands, argv=None, version=None):
    """Run the command that the command line names and end the process with its exit code.

    prog:     how the program is called, for its help and its messages.
    commands: list of `Command`.
    argv:     the arguments; None takes those of the process.
    version:  what `--version` prints; None leaves the flag out.
    """
    parser = CommandParser(description, prog=prog, formatter_class=argparse.RawDescriptionHelpFormatter)
    if version:
        parser.add_argument("--version", action="version", version=f"{prog} {version}")
    add_commands(parser, commands)
    args = parser.parse_args(argv)
    run_command(lambda: args.run_command(args), args.prog)


def run_single(command, argv=None):
    """Run one command as a program of its own, called by the name of its script."""
    parser = CommandParser()
    command.add_flags(parser)
    args = parser.parse_args(argv)
    run_command(lambda: command.run(args), parser.prog)


def run_command(main, prog=None):
    """Run `main()` and end the process with the exit code that it returns; after None or 0 the caller goes on.

    Exit codes: 0 done, 1 a check failed, 2 a `UserError`, whose message is printed without a traceback, a full disk or
    memory, or a path that is too long, 130 Ctrl-C, 141 the reader of the output has gone. Any other error keeps its
    traceback.
    prog: the name at the start of messages; the script's by default.
    """
    prog = prog or os.path.basename(sys.argv[0])
    with printable_output(), noted() as pressed:
        try:
            code = main()
            sys.stdout.flush()
            if code:
                sys.exit(code)
        except UserError as error:
            sys.exit(_leave(f"{prog}: {error}", 2))
        except KeyboardInterrupt:
            sys.exit(_interrupted())
        except BrokenPipeError:
            _discard_output()
            sys.exit(141)
        except Exception as error:
            # A library that Ctrl-C stops, for example in its import, may raise an error of its own.
            if pressed():
                sys.exit(_interrupted())
            if lacks_memory(error):
                sys.exit(_leave(f"{prog}: {no_memory(error)}", 2))
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                sys.exit(_leave(f"{prog}: {_too_long(error)}", 2))
            if not isinstance(error, OSError) or not is_full(error):
                raise
            # a file that no function of ours writes, such as the one that the output goes to
            _discard_output()
            sys.exit(_leave(f"{prog}: {no_room(error.filename or 'output', error)}", 2))


def _too_long(error):
    """Return the `UserError` of a path that the system does not take because of its length."""
    fix = "Give a shorter path."
    return found_expected(error.filename or "a path", "a name too long for its file system", "a shorter one", fix)


def _discard_output():
    """Lead the standard output nowhere: the interpreter flushes it again at exit, which must not fail a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted():
    """Say that Ctrl-C has ended the command, and return its exit code."""
    # The processes that a library has forked end now. Jittor would take that for a lack of memory.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return _leave("Interrupted.", INTERRUPTED)


def _leave(message, code):
    """Print one message to stderr, below the progress bar if there is one; return the code."""
    print(f"\n{message}" if sys.stderr.isatty() else message, file=sys.stderr)
    return code
