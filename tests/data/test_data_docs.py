"""Test that docs/data.md describes the layouts as the code has them: names, labels, codes, rules, commands."""

import argparse
import re
import shlex

import pytest
from support.backends import ROOT

from guided_diffusion_core import command_line
from guided_diffusion_core.config import DataConfig, setting_names
from guided_diffusion_core.data import LAYOUTS, folders, known_layout, pairs
from guided_diffusion_core.data.formats import dataset_json
from guided_diffusion_core.data.formats.transforms import CHANNEL_RULES, RGB_RULE, ZSCORE_ALL_RULE, ZSCORE_RULE
from guided_diffusion_core.data.layouts import brats, isic, nnunet, refuge2

PAGE = (ROOT / "docs" / "data.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
TABLE = dict(re.findall(r"^\| \[`(\w+)`\]\(#\w+\) \|(.*)$", PAGE, re.MULTILINE))


def words(text):
    return " ".join(text.split())


def test_every_layout_has_its_section_and_its_row():
    assert {name for name in SECTIONS if name.isupper()} == TABLE.keys() == LAYOUTS.keys()


def test_help_names_every_layout():
    parser = argparse.ArgumentParser()
    command_line.add_settings(parser, DataConfig, "data_name")
    help_text = words(parser.format_help())
    positions = [help_text.index(f"{name} ({layout.summary})") for name, layout in LAYOUTS.items()]
    assert positions == sorted(positions)


@pytest.mark.parametrize("name", LAYOUTS)
def test_summary_in_the_table(name):
    summary = TABLE[name].split("|")[0].replace("`", "")
    assert summary.strip() == LAYOUTS[name].summary


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.labels])
def test_labels_and_defaults_in_the_table(name):
    layout = LAYOUTS[name]
    if name == "BRATS_SLICES":
        assert layout.labels == LAYOUTS["BRATS"].labels and "as `BRATS`" in TABLE[name]
        return
    for label in layout.labels.names:
        bold = label in layout.default_labels
        assert f"`{label}`" in TABLE[name] and (f"**`{label}`**" in TABLE[name]) == bold
        assert f"`{label}`" in SECTIONS[name]


def test_codes():
    for label, values in zip(refuge2.LABELS.names, refuge2.LABELS.values):
        assert f"| `{label}` | {' and '.join(map(str, sorted(values)))}" in SECTIONS["REFUGE2"]
    for label, values in zip(brats.REGIONS.names, brats.REGIONS.values):
        old, new = ({1, 2, 4}, {1, 2, 3}) if values is None else (values - {3}, values - {4})
        row = " | ".join(", ".join(map(str, sorted(codes))) for codes in (old, new))
        assert f"| `{label}` | {row} |" in SECTIONS["BRATS"]


def test_rules():
    for name in ("ISIC", "REFUGE2", "DDTI", "IMAGES"):
        assert RGB_RULE in SECTIONS[name]
    volume, over = ZSCORE_RULE.split(": (v - mean) / standard deviation, both ")
    assert f"{volume} {over}" in words(SECTIONS["BRATS"])
    assert ZSCORE_ALL_RULE in words(SECTIONS["VOLUMES"])
    for name, (rule, _) in CHANNEL_RULES.items():
        assert re.search(rf"^\| `{name}` \| {re.escape(rule)}", SECTIONS["NNUNET"], re.MULTILINE | re.IGNORECASE)


def test_names_of_folders_and_files():
    for word in (*folders.IMAGE_FOLDERS, *folders.MASK_FOLDERS, folders.LABELS_FILE, folders.BACKGROUND):
        assert re.search(rf"\b{word}\b", SECTIONS["IMAGES"])
    for ending in ("_mask", "_segmentation", "_seg", "_label", "_gt"):
        assert pairs.MASK_ENDING.search(ending) and f"NAME{ending}" in SECTIONS["IMAGES"]
    for part in brats.PART_NAMES:
        assert re.search(rf"\b{part}\b", SECTIONS["BRATS"])
    for word in (nnunet.DESCRIPTION, *sum(nnunet.FOLDERS.values(), ()), *dataset_json.PICTURES, ".nii.gz"):
        assert word in SECTIONS["NNUNET"]
    for column in isic.CSV_COLUMNS:
        assert f"`{column}`" in SECTIONS["ISIC"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_command(name):
    """Check that the example works as it is written: its flags exist, and it names the layout of its section."""
    [line] = re.findall(r"^medsegdiff train (.*)$", SECTIONS[name], re.MULTILINE)
    flags = shlex.split(line)
    given = dict(zip(flags[::2], flags[1::2]))
    assert known_layout(given["--data_name"]) == name == given["--data_name"]
    parser = command_line.add_run_flags(command_line.CommandParser(), *("data", "model", "diffusion", "training"))
    parser.add_argument("--out_dir")
    found = command_line.given_settings(parser.parse_args(flags))
    assert found["data_dir"] == "DIR" and found.keys() <= setting_names().keys()
    if "labels" in found:
        labels = brats.REGIONS if name == "BRATS" else refuge2.LABELS
        assert set(found["labels"].split(",")) <= set(labels.names)
