"""The pages that people read: links lead somewhere, commands can be typed, flags exist, the README stays short."""

import argparse
import ast
import re
import runpy
import shlex
import sys

import pytest
from support.backends import ROOT

from guided_diffusion_core import command_line
from guided_diffusion_core.command_line.original_flags import GPU_FLAG, ORIGINAL_FLAGS, SAMPLER_FLAGS
from guided_diffusion_core.config import SamplingConfig, resolve, setting_names
from guided_diffusion_core.networks.registry import families
from medsegdiff import __version__

GUIDES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "parity" / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "tests" / "README.md",
]
PAGES = [*GUIDES, *(ROOT / "logs").rglob("*.md"), *(ROOT / "parity").glob("*.md"), *(ROOT / "tests").rglob("*.md")]
LINK = re.compile(r"\]\(([^()\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w.-]*")
# Flags of other programs that the pages name: torchrun, mpirun, pip, git.
FOREIGN_FLAGS = {"--nproc_per_node", "--bind-to", "--NAME.FIELD"}
PROGRAMS = ("medsegdiff", "python", "torchrun", "mpirun", "make")
README_WORDS = 900
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}


class Parsed(BaseException):
    """The end of a command whose line was parsed: nothing runs. The argument is the namespace."""


def name_of(path):
    return str(path.relative_to(ROOT))


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text))


def anchors(text):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(text):
    """The commands in the code blocks of a page, each a list of words, without comments and prompts."""
    for language, block in BLOCK.findall(text):
        if language not in ("", "sh", "bash"):
            continue
        for line in block.splitlines():
            line = line.removeprefix("$ ")
            if line.split(" ", 1)[0] in PROGRAMS:
                yield shlex.split(line, comments=True)


LINES = [
    pytest.param(words, id=f"{name_of(page)}: {' '.join(words)[:60]}")
    for page in GUIDES
    for words in command_lines(page.read_text())
]


def start(words):
    """Start a Python command in this process, as the shell would; returns when it ends."""
    if "medsegdiff" in words:  # also behind a launcher
        words = ["python", "-m", *words[words.index("medsegdiff") :]]
    if words[1] == "-m":
        sys.argv = ["-m", *words[3:]]
        sys.modules.pop(f"{words[2]}.__main__", None)  # from an earlier command in this process
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        path = str(ROOT / words[1])
        sys.argv = [path, *words[2:]]
        sys.path.insert(0, str((ROOT / words[1]).parent))
        runpy.run_path(path, run_name="__main__")


@pytest.mark.parametrize("words", LINES)
def test_command_can_be_typed(words, monkeypatch, capsys):
    """The real parser takes the line, and its settings make a configuration. Nothing is computed."""
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        raise Parsed(parse(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", sys.path[:])
    try:
        start(words)
    except Parsed as parsed:
        namespace = parsed.args[0]
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    else:
        assert words[1:3] == ["-m", "guided_diffusion_core.system.processes"], "a command without flags"
        return
    if hasattr(namespace, "backend") and hasattr(namespace, "dry_run"):
        resolve(command_line.given_settings(namespace), preset=getattr(namespace, "preset", None))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings(page):
    text = page.read_text()
    for target in LINK.findall(without_code(text)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{name_of(page)}: {target}"


def named_paths(text):
    """Paths of this repository in the inline code of a page; `core/` is short for `guided_diffusion_core/`."""
    for code in re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)):
        path = re.sub(r"^core/", "guided_diffusion_core/", code)
        if (
            path.split("/")[0] in FOLDERS
            and re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", path)
            and not re.search("NAME|DATE", path)
        ):
            yield path


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_paths_in_the_text_exist(page):
    assert not [path for path in named_paths(page.read_text()) if not (ROOT / path).exists()]


def known_flags():
    """Every flag that some program of this project has, by its literal in the sources."""
    flags = {f"--{name}" for name in (*setting_names(), *ORIGINAL_FLAGS, *SAMPLER_FLAGS, GPU_FLAG, "help")}
    flags |= {f"--{name}" for family in families().values() for name in family.flags()}
    for folder in ("guided_diffusion_core", "medsegdiff", "scripts", "studies", "parity", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            flags |= set(re.findall(r"\"(--[a-z][\w-]*)\"", path.read_text()))
    return flags


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_flags_in_the_text_exist(page):
    unknown = set(FLAG.findall(page.read_text())) - known_flags() - FOREIGN_FLAGS
    assert not unknown


def texts_of_the_sources():
    """All strings in the code of the software, joined: those of an f-string without its values."""
    trees = [
        ast.parse(path.read_text())
        for folder in ("guided_diffusion_core", "guided_diffusion_pt", "guided_diffusion_jt", "medsegdiff")
        for path in (ROOT / folder).rglob("*.py")
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def quoted_messages(text):
    """Parts of messages, of three words and more, in the first cells of a page's tables."""
    for cell in re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE):
        for code in re.findall(r"`([^`]+)`", cell):
            parts = re.split(r"…|: |; |found |expected |--\w+ \w+", code)
            yield from (part.strip() for part in parts if len(part.split()) > 2)


def test_troubleshooting_quotes_messages_that_exist():
    messages = list(quoted_messages((ROOT / "docs" / "troubleshooting.md").read_text()))
    texts = texts_of_the_sources()
    assert len(messages) > 8
    assert not [message for message in messages if message not in texts]


def test_every_guide_is_reached_from_the_readme():
    linked = set(LINK.findall((ROOT / "README.md").read_text()))
    assert {name_of(page) for page in (ROOT / "docs").glob("*.md")} <= linked


def test_readme_is_short_and_names_the_version():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= README_WORDS
    assert f"Version {__version__}" in text


def test_sampling_page_names_the_default_sampler():
    default = SamplingConfig()
    text = (ROOT / "docs" / "sampling.md").read_text()
    assert f"`{default.sampler}`, the default with {default.sample_steps} steps and `--eta {default.eta:g}`" in text


def test_checks_see_what_they_should():
    assert anchors("# A b: c_d (e)\n```\n# no\n```\n") == {"a-b-c_d-e"}
    assert list(command_lines("```\n$ medsegdiff train --seed 1  # why\nls\n```\n")) == [
        ["medsegdiff", "train", "--seed", "1"]
    ]
    assert LINK.findall(without_code("[a](b.md) `[c](d.md)` ![e](f.png)")) == ["b.md", "f.png"]
    assert list(named_paths("`docs/a.md` `core/x.py` `docs/NAME.md` `masks/a.png` `docs`")) == [
        "docs/a.md",
        "guided_diffusion_core/x.py",
    ]
    assert FLAG.findall("`--val_dir VAL` ---- `--bind-to`") == ["--val_dir", "--bind-to"]


def outline(text):
    """Return the parts that the two languages of a page share: levels of headings, code, links and rows of tables."""
    blocks = BLOCK.findall(text)
    prose = without_code(text)
    return {
        "headings": re.findall(r"^(#+) ", prose, re.MULTILINE),
        "code": [[line.split("  #")[0].rstrip() for line in block.splitlines()] for _, block in blocks],
        "links": [link for link in LINK.findall(prose) if link not in ("README.md", "README.zh.md")],
        "rows": len(re.findall(r"^\|", text, re.MULTILINE)),
        "inline code": sorted(re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))),
    }


def test_the_chinese_readme_is_a_twin():
    english = (ROOT / "README.md").read_text()
    chinese = (ROOT / "README.zh.md").read_text()
    assert outline(chinese) == outline(english)
