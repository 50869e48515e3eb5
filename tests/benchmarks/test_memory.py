"""The counted memory of a training step, against what PyTorch keeps by another count."""

import pytest
from support.backends import BACKENDS

if "pytorch" not in BACKENDS:
    pytest.skip("counts by PyTorch", allow_module_level=True)

from benchmarks import memory
from benchmarks.cases import Case, network
from guided_diffusion_core.networks.registry import kept_numbers, state_shapes
from guided_diffusion_core.networks.state import is_buffer


def count(batch, *column):
    return memory.kept_bytes(Case("training", "new", 64, batch, 32), *column)


def test_examples_add_up_and_settings_that_save_memory_save_it():
    parameters, one = count(1)
    shapes = state_shapes(network(Case("training", "new", 64, 1, 32)))
    names = [name for name in shapes if not is_buffer(name)]
    numbers = 0
    for name in names:
        size = 1
        for length in shapes[name]:
            size *= length
        numbers += size
    assert parameters == 4 * numbers
    kept = [count(batch)[1] for batch in (2, 3)]
    assert kept[1] - kept[0] == pytest.approx(kept[0] - one, rel=1e-3)
    # the estimate from the plan, which is right within a half
    assert kept[0] - one == pytest.approx(4 * kept_numbers(network(Case("training", "new", 64, 1, 32))), rel=0.5)
    assert count(1, "no", True)[1] < 0.5 * one
    in_16_bits = count(2, "bf16")[1] - count(1, "bf16")[1]
    assert in_16_bits < kept[0] - one


def test_the_table_has_a_row_for_each_network():
    lines = memory.table([32], [64]).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| 32 | 64 | 0.")
    assert len({line.count("|") for line in lines}) == 1
