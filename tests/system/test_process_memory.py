"""Test the memory of a process."""

import subprocess
import sys

from guided_diffusion_core.system.process_memory import peak_memory_mib

PROGRAM = "from guided_diffusion_core.system.process_memory import peak_memory_mib; print(peak_memory_mib())"


def test_the_memory_of_the_starting_program_does_not_count():
    taken = bytearray(400 * 2**20)
    taken[:: 2**12] = b"x" * (len(taken) // 2**12)  # writes into each page
    assert peak_memory_mib() > 400
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert 5 < float(done.stdout) < 200
