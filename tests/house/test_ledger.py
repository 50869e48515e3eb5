"""The ledger of differences names tests that exist."""

import ast
import dataclasses

import pytest
from support.backends import ROOT

from parity.ledger import UPSTREAM_DIFFERENCES


def defined_tests(path):
    """Names of the tests of a file as pytest writes them: "test_x", or "TestY::test_x" in a class."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        methods = node.body if isinstance(node, ast.ClassDef) else []
        names |= {f"{node.name}::{method.name}" for method in methods if isinstance(method, ast.FunctionDef)}
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
    return names


@pytest.mark.parametrize("row", UPSTREAM_DIFFERENCES, ids=lambda row: row.where)
def test_row_names_an_existing_test_and_is_complete(row):
    assert all(dataclasses.astuple(row)), "an empty field"
    path, name = row.test.split("::", 1)
    assert (ROOT / path).is_file()
    assert name.rsplit("::")[-1].startswith("test_") and name in defined_tests(ROOT / path)


def test_each_place_of_the_original_is_listed_once():
    places = [row.where for row in UPSTREAM_DIFFERENCES]
    assert places and len(places) == len(set(places))
