"""The same perceptron in PyTorch."""

import torch
from torch import nn

from guided_diffusion_pt import runtime
from parity.protocol import Port


class Perceptron(nn.Module):
    def __init__(self, inner, width, outer):
        super().__init__()
        self.hidden = nn.Linear(inner, width)
        self.out = nn.Linear(width, outer)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x)))


class PerceptronPort(Port):
    """The port of the perceptron in PyTorch."""

    def __init__(self):
        super().__init__("pytorch")

    def build(self, case):
        return Perceptron(**case.settings)

    def load(self, model, arrays):
        runtime.load_state(model, arrays)

    def state(self, model):
        return runtime.state_arrays(model)

    def run(self, model, tensors, tape):
        return {"out": model(tensors["x"])}
