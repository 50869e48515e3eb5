"""The two backends are twins: same modules, public names, parameters and defaults.

The exceptions are `support.mirror_differences`, to the letter; the name of a module's forward pass:
`forward` in PyTorch, `execute` in Jittor; the folder `kernels/`, in which each backend has what it needs; and
`networks/nn.py`, which `tests/networks/test_nn.py` holds to the contract in the core.
"""

import ast

import pytest
from support.backends import ROOT
from support.mirror_differences import MIRROR_DIFFERENCES


def signature(function):
    """Parameters and defaults as Python writes them, without annotations."""
    arguments = function.args
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return f"({ast.unparse(arguments)})"


def is_public(name):
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def public_names(body, prefix):
    """Dotted name -> signature ("" for what is not a function) of the definitions in `body`."""
    names = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            names[prefix + node.name] = signature(node)
        elif isinstance(node, ast.ClassDef):
            names[prefix + node.name] = ""
            if is_public(node.name):
                names |= public_names(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {prefix + target.id: "" for target in targets if isinstance(target, ast.Name)}
    return {name: value for name, value in names.items() if is_public(name.rsplit(".")[-1])}


def sources(package):
    """The files of a backend that have a twin: all but its kernels and its layer contract."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [path.relative_to(ROOT / package) for path in paths]
    return [
        ROOT / package / name for name in names if "kernels" not in name.parts and name.parts != ("networks", "nn.py")
    ]


def package_names(package):
    """Dotted name -> signature of every public definition of a package, modules included."""
    names = {}
    for path in sources(package):
        module = ".".join(path.relative_to(ROOT / package).with_suffix("").parts)
        names |= {module: ""} | public_names(ast.parse(path.read_text()).body, f"{module}.")
    return names


def twins():
    """The public names of both backends, the forward pass under one name."""
    pytorch = package_names("guided_diffusion_pt")
    jittor = package_names("guided_diffusion_jt")
    assert not [name for name in pytorch if name.endswith(".execute")]
    assert not [name for name in jittor if name.endswith(".forward")]
    renamed = {
        f"{name.removesuffix('.execute')}.forward" if name.endswith(".execute") else name: value
        for name, value in jittor.items()
    }
    return pytorch, renamed


def test_backends_differ_exactly_where_the_list_says():
    pytorch, jittor = twins()
    found = {
        (name, pytorch.get(name), jittor.get(name))
        for name in pytorch.keys() | jittor.keys()
        if pytorch.get(name) != jittor.get(name)
    }
    accepted = {(row.name, row.pytorch, row.jittor) for row in MIRROR_DIFFERENCES}
    assert found - accepted == set(), "(name, PyTorch, Jittor) not in tests/support/mirror_differences.py"
    assert accepted - found == set(), "stale rows of tests/support/mirror_differences.py"


PACKAGES = ("guided_diffusion_pt", "guided_diffusion_jt")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_hides_behind_an_underscore(package):
    hidden = [path for path in (ROOT / package).rglob("*.py") if not is_public(path.stem)]
    assert not hidden, "what has no twin belongs to kernels/"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_private_name_leaves_its_module(package):
    crossing = []
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text())
        crossing += [f"{path}: {name}" for name in private_names_of_others(tree)]
    assert not crossing


def private_names_of_others(tree):
    """Private names that a module imports from a backend, or takes from a module of it that it has imported."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imports = [node for node in imports if node.module.startswith(PACKAGES)]
    names = {alias.name for node in imports for alias in node.names}
    yield from (name for name in names if not is_public(name))
    for node in ast.walk(tree):
        is_attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if is_attribute and node.value.id in names and not is_public(node.attr):
            yield f"{node.value.id}.{node.attr}"


def test_private_names_that_cross_modules_are_seen():
    source = "from guided_diffusion_pt.nn import _a, b\nfrom guided_diffusion_pt import nn\nnn._c()\nself._d"
    assert set(private_names_of_others(ast.parse(source))) == {"_a", "nn._c"}


def test_every_accepted_difference_has_a_reason():
    assert all(row.reason for row in MIRROR_DIFFERENCES)


def test_comparison_sees_parameters_defaults_and_methods():
    def names(source):
        return public_names(ast.parse(source).body, "m.")

    assert names("def f(x, *, y: int = 1): pass") == {"m.f": "(x, *, y=1)"}
    assert names("class C:\n  k = 1\n  def __init__(self, a=0): pass\n  def _g(self): pass") == {
        "m.C": "",
        "m.C.k": "",
        "m.C.__init__": "(self, a=0)",
    }
    assert names("_p = 1\nRATE: float = 2\nclass _D:\n  def h(self): pass") == {"m.RATE": ""}
