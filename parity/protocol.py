"""What a network has to offer to be compared: a suite of cases, and one port per framework.

A *suite* is a module that imports no framework. It has

    CASES                    tuple of `Case`, in the order of the ladder
    weights(case)            name -> numpy array, the parameters and buffers that both ports load
    inputs(case)             name -> numpy array, what both ports are given
    open_port(backend)       the `Port` of the backend of that name; called in its own process

A backend other than those of this software is registered by the suite (`guided_diffusion_core.backends.register`).
`parity/medsegdiff.py` is the suite of this software, `parity/example/suite.py` a small one to start
from. Families beside `weights`, `forward` and `gradients` are the port's own (`Port.families`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

PRECISIONS = ("float64", "float32")


@dataclass(frozen=True)
class Case:
    """One comparison.

    name:       such as "forward/new"; the part before the slash is its family, what it runs.
    about:      one line for `python -m parity list`.
    settings:   whatever the suite's functions need, JSON values.
    precisions: those in which the candidate runs. float64 is the gate for small networks; the
                reference always runs in both.
    training:   the network's mode.
    """

    name: str
    about: str
    settings: dict = field(default_factory=dict)
    precisions: tuple = PRECISIONS
    training: bool = True

    @property
    def family(self):
        """What the case runs."""
        return self.name.partition("/")[0]


class Port(ABC):
    """One network in one framework. Only four methods are needed; the rest has defaults.

    families: name -> function(port, case, weights, inputs, recorder), what the suite runs beside
              the harness's own families.
    """

    families: dict = {}

    def __init__(self, backend):
        self.backend = backend

    @abstractmethod
    def build(self, case):
        """A network with any weights, in the precision that is set."""

    @abstractmethod
    def load(self, model, arrays):
        """Set every parameter and buffer from name -> numpy array; strict."""

    @abstractmethod
    def state(self, model):
        """name -> numpy array of every parameter and buffer, under the names that `load` takes."""

    @abstractmethod
    def run(self, model, tensors, tape):
        """One forward pass on the suite's inputs (name -> tensor): a dict name -> output tensor.

        tape: `NoiseTape` for whatever is random in it.
        """

    def name(self, module_name):
        """The name that both ports use for a module (or parameter) of this network."""
        return module_name

    def is_buffer(self, name):
        """Whether a name of `state` has no gradient."""
        return name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")

    def context(self, model):
        """What beside inputs and weights a forward pass now depends on, as a JSON value."""
        return None

    def restore(self, model, context):
        """Bring `context`'s value back before a layer is run alone."""
