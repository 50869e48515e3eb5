"""Run a command: its exit code, and one message instead of a traceback for a user's mistake."""

import os
import sys

from guided_diffusion_core.errors import UserError


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
