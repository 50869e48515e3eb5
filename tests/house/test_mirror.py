"""The two backends are twins: same modules, public names, parameters and defaults.

The exceptions are `parity.ledger.MIRROR_DIFFERENCES`, to the letter, and the name of a module's
forward pass: `forward` in PyTorch, `execute` in Jittor.
"""

import ast

from support.backends import ROOT

from parity.ledger import MIRROR_DIFFERENCES


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


def package_names(package):
    """Dotted name -> signature of every public definition of a package, modules included."""
    names = {}
    for path in sorted((ROOT / package).rglob("*.py")):
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


def test_backends_differ_exactly_where_the_ledger_says():
    pytorch, jittor = twins()
    found = {
        (name, pytorch.get(name), jittor.get(name))
        for name in pytorch.keys() | jittor.keys()
        if pytorch.get(name) != jittor.get(name)
    }
    accepted = {(row.name, row.pytorch, row.jittor) for row in MIRROR_DIFFERENCES}
    assert found - accepted == set(), "(name, PyTorch, Jittor) not in parity/ledger.py"
    assert accepted - found == set(), "stale rows of parity/ledger.py"


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
