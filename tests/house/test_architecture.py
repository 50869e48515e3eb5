"""docs/architecture.md states who may import whom; the sources do exactly that, and no import points upward.

Two tables of the page are the rule: that of the packages, and that of the core's folders from the bottom to the top.
"""

import ast
import re

import pytest
from support.backends import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
CORE = "guided_diffusion_core"
FRAMEWORKS = ("torch", "jittor")
ALIASES = {"jittor_utils": "jittor"}
# The example's networks import their framework: the parity suite loads each in its backend's own process.
IN_A_BACKENDS_PROCESS = ("parity/example/pytorch_unet.py", "parity/example/jittor_unet.py")
# The files of a network's one source for all backends: `from .. import nn` means the nn of the backend that imports it,
# and other files of the network are imported relatively, so that they get the same one.
SHARED_SOURCE = re.compile(rf"({CORE}|tests/support)/networks/\w+/\w+\.py")


def table(title):
    """The rows of the table below a heading: name -> names that it may import, in the page's order."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL).group(1)
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip().strip("`/"): set(re.findall(r"`(\w+)`", row[-1])) for row in rows}


PACKAGES = table("Packages")
FOLDERS = table("Folders of the core")


def imported_modules(path):
    """Dotted names of everything that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert SHARED_SOURCE.fullmatch(str(path.relative_to(ROOT))), f"{path}: relative import"
            assert "from .. import nn\n" in path.read_text(), f"{path}: relative import without nn"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def found_packages(package):
    """Packages of this project and frameworks that a package imports, without itself."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        if str(path.relative_to(ROOT)) not in IN_A_BACKENDS_PROCESS:
            found |= {name.partition(".")[0] for name in imported_modules(path)}
    found = {ALIASES.get(name, name) for name in found}
    return (found & {*PACKAGES, *FRAMEWORKS}) - {package}


def found_folders(folder):
    """Folders and modules of the core that one of them imports, without itself."""
    top = ROOT / CORE / folder
    paths = top.rglob("*.py") if top.is_dir() else [top.with_suffix(".py")]
    names = [name.split(".") for path in paths for name in imported_modules(path)]
    return {parts[1] for parts in names if parts[0] == CORE and len(parts) > 1 and parts[1] in FOLDERS} - {folder}


def test_the_page_lists_every_package_and_every_folder_of_the_core():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"scripts", "tests"}
    assert PACKAGES.keys() == packages
    inside = [path for path in (ROOT / CORE).iterdir() if path.is_dir() or path.suffix == ".py"]
    assert FOLDERS.keys() == {path.stem for path in inside} - {"__init__", "__pycache__"}


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "tests"])
def test_a_package_imports_what_the_page_says(package):
    assert found_packages(package) == PACKAGES[package], "docs/architecture.md, Packages: change the code or the table"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_the_core_imports_what_the_page_says(folder):
    assert found_folders(folder) == FOLDERS[folder], (
        "docs/architecture.md, Folders of the core: change the code or the table"
    )


@pytest.mark.parametrize("rows", [PACKAGES, FOLDERS], ids=["packages", "folders of the core"])
def test_no_import_points_upward(rows):
    """Each row imports rows above it in the table, which are below it in the house: so there are no circles."""
    known = set(FRAMEWORKS)
    for name, imports in rows.items():
        assert imports <= known, f"{name} imports {imports - known}, which stand higher"
        known.add(name)


def test_jittor_is_imported_in_one_place():
    """It reads its settings when it is imported, after `runtime.start` has made them: every other module takes `jt`
    from `runtime`."""
    importing = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if {"jittor", "jittor_utils"} & {name.partition(".")[0] for name in imported_modules(path)}
    }
    assert importing == {"guided_diffusion_jt/kernels/loading.py"}


def module_graph():
    """Module -> modules of this project that it imports, inside functions too."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    graph = {}
    for module, path in modules.items():
        # an imported name is a module, or stands in one
        targets = {name if name in modules else name.rpartition(".")[0] for name in imported_modules(path)}
        graph[module] = (targets & modules.keys()) - {module}
    return graph


def test_no_circle_of_modules():
    graph = module_graph()
    while graph:
        free = {module for module, imports in graph.items() if not imports & graph.keys()}
        assert free, f"these modules import each other: {sorted(graph)}"
        graph = {module: imports for module, imports in graph.items() if module not in free}


def test_the_tables_are_read():
    assert FOLDERS["errors"] == set() and "errors" in FOLDERS["system"]
    assert PACKAGES[CORE] == set() and PACKAGES["guided_diffusion_pt"] == {CORE, "torch"}
