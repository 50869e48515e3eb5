"""The ledger of differences names tests that exist."""
import ast
import dataclasses

import pytest
from conftest import ROOT

from parity.ledger import UPSTREAM_DIFFERENCES


def defined_tests(path):
    """Names of the test functions at the top level of a file."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", UPSTREAM_DIFFERENCES, ids=lambda row: row.where)
def test_row_names_an_existing_test_and_is_complete(row):
    assert all(dataclasses.astuple(row)), "an empty field"
    path, name = row.test.split("::")
    assert (ROOT / path).is_file()
    assert name.startswith("test_") and name in defined_tests(ROOT / path)


def test_each_place_of_the_original_is_listed_once():
    places = [row.where for row in UPSTREAM_DIFFERENCES]
    assert places and len(places) == len(set(places))
