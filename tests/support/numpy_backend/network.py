"""A perceptron of numpy arrays, with the few methods of a network that the parity suite calls."""

import numpy as np
from support.numpy_backend import runtime

from parity.protocol import Port


class Layer:
    """The base of both layers: the layers inside, the mode, and calls by `compute` (`Backend.forward`)."""

    def __call__(self, *given):
        return self.compute(*given)

    def named_modules(self):
        yield "", self
        yield from ((name, value) for name, value in vars(self).items() if isinstance(value, Layer))

    def state_dict(self):
        state = {}
        for prefix, layer in self.named_modules():
            arrays = {name: value for name, value in vars(layer).items() if isinstance(value, np.ndarray)}
            state |= {f"{prefix}.{name}" if prefix else name: value for name, value in arrays.items()}
        return state

    def train(self):
        """Do nothing: no layer depends on the mode."""

    eval = train


class Linear(Layer):
    """A linear layer: x (N, in) to x weight^T + bias (N, out)."""

    def __init__(self):
        self.weight = None
        self.bias = None

    def compute(self, x):
        return x @ self.weight.T + self.bias


class Perceptron(Layer):
    """Two linear layers with a tanh between them: (N, in) to (N, out)."""

    def __init__(self):
        self.hidden = Linear()
        self.out = Linear()

    def compute(self, x):
        return self.out(np.tanh(self.hidden(x)))


class PerceptronPort(Port):
    """The port of the perceptron in numpy."""

    def __init__(self):
        super().__init__("numpy")

    def build(self, case):
        return Perceptron()

    def load(self, model, arrays):
        for name, array in arrays.items():
            layer, _, parameter = name.partition(".")
            setattr(getattr(model, layer), parameter, array.astype(runtime.precision()))

    def state(self, model):
        return model.state_dict()

    def run(self, model, tensors, tape):
        return {"out": model(tensors["x"])}
