"""The interface for networks to compare: a suite of cases, and one port per framework.

A *suite* is a module that imports no framework. It has

    CASES                    tuple of `Case`, in the order of the ladder
    weights(case)            name -> numpy array, the parameters and buffers that both ports load
    inputs(case)             name -> numpy array, the inputs of both ports
    open_port(backend)       the `Port` of the backend of that name; called in its own process

A backend other than those of this software is registered by the suite (`guided_diffusion_core.backends.register`).
`parity/medsegdiff.py` is the suite of this software; `parity/example/suite.py` is a small one to start
from. A port can add families to `weights`, `forward` and `gradients` (`Port.families`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

PRECISIONS = ("float64", "float32")


@dataclass(frozen=True)
class Case:
    """One comparison.

    name:       such as "forward/new"; the part before the slash is its family.
    about:      one line for `python -m parity list`.
    settings:   JSON values for the suite's functions.
    precisions: in which the candidate runs. float64 is the gate for small networks; the reference always
                runs in both.
    training:   True if the network is in training mode.
    """

    name: str
    about: str
    settings: dict = field(default_factory=dict)
    precisions: tuple = PRECISIONS
    training: bool = True

    @property
    def family(self):
        """The kind of run: a key of the families."""
        return self.name.partition("/")[0]


class Port(ABC):
    """One network in one framework. Four methods are abstract; the others have defaults.

    families: name -> function(port, case, weights, inputs, recorder): families that the suite adds to
              those of `parity/families.py`.
    """

    families: dict = {}

    def __init__(self, backend):
        self.backend = backend

    @abstractmethod
    def build(self, case):
        """Return a network with any weights, in the current precision."""

    @abstractmethod
    def load(self, model, arrays):
        """Set every parameter and buffer from name -> numpy array; the names have to match exactly."""

    @abstractmethod
    def state(self, model):
        """Return name -> numpy array of every parameter and buffer, under the names that `load` takes."""

    @abstractmethod
    def run(self, model, tensors, tape):
        """Run one forward pass on the suite's inputs (name -> tensor) and return name -> output tensor.

        tape: `NoiseTape` for all random numbers.
        """

    def name(self, module_name):
        """Return the name that both ports use for a module or parameter of this network."""
        return module_name

    def is_buffer(self, name):
        """Return True if a name of `state` has no gradient."""
        return name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")

    def context(self, model):
        """Return, as a JSON value, what a forward pass depends on other than inputs and weights."""
        return None

    def restore(self, model, context):
        """Restore a value of `context` before a layer is run by itself; by default there is nothing to restore."""
        return
