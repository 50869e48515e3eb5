"""Start `python -m benchmarks`, which `program.py` describes."""

from guided_diffusion_core.system.quick_exit import leaving_at_once

if __name__ == "__main__":
    with leaving_at_once():
        # imported here, where Ctrl-C leaves no traceback
        from benchmarks.program import main

        main()
