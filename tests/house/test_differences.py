"""The page of differences from the original is complete, and names tests that exist."""

import ast
import re

import pytest
from support.backends import ROOT

PAGE = (ROOT / "docs" / "differences.md").read_text()
COLUMNS = ["where in the original", "what it does", "what this software does", "why", "test"]


def table_rows(text):
    """The cells of every row of a page's tables, heads included."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines)
    return [row for row in rows if set(row) != {"---"}]


ROWS = [row for row in table_rows(PAGE) if row != COLUMNS]


def defined_tests(path):
    """Names of the tests of a file as pytest writes them: "test_x", or "TestY::test_x" in a class."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        methods = node.body if isinstance(node, ast.ClassDef) else []
        names |= {f"{node.name}::{method.name}" for method in methods if isinstance(method, ast.FunctionDef)}
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
    return names


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_row_names_an_existing_test_and_is_complete(row):
    assert len(row) == len(COLUMNS) and all(row), "an empty field"
    path, name = row[-1].strip("`").split("::", 1)
    assert (ROOT / path).is_file()
    assert name.rsplit("::")[-1].startswith("test_") and name in defined_tests(ROOT / path)


def test_each_place_of_the_original_is_listed_once():
    places = [row[0] for row in ROWS]
    assert places and len(places) == len(set(places))


def test_every_table_has_the_same_columns():
    heads = re.findall(r"^\|(.*)\|\n\|---", PAGE, re.MULTILINE)
    assert heads and all([cell.strip() for cell in head.split("|")] == COLUMNS for head in heads)


def test_rows_are_read_from_the_page():
    assert table_rows("| a | b \\| c |\n|---|---|\n| d | |\n") == [["a", "b \\| c"], ["d", ""]]
