"""A GPU that computes nothing, on a machine without one: torch's device "meta".

Its tensors have shapes and types, but no values. A `Watch` sees every operator. It refuses operators on two devices,
and notes whatever would wait for a GPU: a copy of its values to the CPU, a number read from them, and a copy to it
that is not asynchronous. An operator whose result's shape depends on values is refused.

Tensors on the CPU are real, so that the code around a network runs as it does with a GPU. What is read from the GPU
is zeros, and as a number 1.
"""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guided_diffusion_core.system.devices import Device
from guided_diffusion_pt import runtime

META = "meta"
aten = torch.ops.aten
# The shape of their results depends on values, which the CPU has to read before it can go on.
SHAPED_BY_VALUES = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_consecutive, aten.bincount}
# The functions that `torch.autocast` computes in 16 bits, as far as the networks call them.
IN_16_BITS = {
    *(torch.conv1d, torch.conv2d, torch.conv_transpose2d, torch.bmm, torch.matmul, torch.Tensor.matmul),
    *(torch.Tensor.__matmul__, torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention),
}


class TwoDevices(AssertionError):
    """An operator got tensors of two devices."""


class Watch(TorchDispatchMode):
    """Sees every operator while it is entered.

    reads:     how often each function waited for the GPU, by its name (`caller`).
    operators: how often each operator ran on the GPU, by its name.
    """

    def __init__(self):
        super().__init__()
        self.reads = Counter()
        self.operators = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        kinds = {tensor.device.type for tensor in tensors}
        copies = packet in (aten._to_copy, aten.copy_)
        if len(kinds) > 1 and not copies:
            raise TwoDevices(f"{func} in {caller()} on {[(str(t.device), tuple(t.shape)) for t in tensors]}")
        if META in kinds:
            self.operators[packet.__name__] += 1
            if packet in SHAPED_BY_VALUES or _selects_by_truth(packet, tensors):
                raise AssertionError(f"{func} in {caller()} waits for the values of {tensors}")
        if packet is aten._local_scalar_dense and META in kinds:
            self.reads[caller()] += 1
            return True if tensors[0].dtype == torch.bool else 1
        if copies:
            return self._copy(func, tensors, args, kwargs)
        return func(*args, **kwargs)

    def _copy(self, func, tensors, args, kwargs):
        """Copy as `func` does, and note a copy between two devices that waits."""
        if func.overloadpacket is aten.copy_:
            target, source = (tensor.device.type for tensor in tensors)
            asynchronous = len(args) > 2 and args[2]
        else:
            source = tensors[0].device.type
            target = torch.device(kwargs.get("device") or source).type
            asynchronous = kwargs.get("non_blocking")
        if (source, target) == (META, "cpu"):
            self.reads[caller()] += 1
            return torch.zeros(tensors[-1].shape, dtype=kwargs.get("dtype") or tensors[-1].dtype)
        if source != target and not asynchronous:
            self.reads[caller()] += 1
        return func(*args, **kwargs)


def _selects_by_truth(packet, tensors):
    """Return whether an operator selects values by a tensor of truth values."""
    return packet is aten.index and any(tensor.dtype == torch.bool for tensor in tensors[1:])


def caller():
    """Return the innermost running function of the PyTorch mirror outside `runtime`, such as "train_util._means"."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        name = frame.f_code.co_name
        if "guided_diffusion_pt" in path.parts and path.stem != "runtime" and not name.startswith("<"):
            return f"{path.stem}.{name}"
        frame = frame.f_back
    return "a test"


class Halving(TorchFunctionMode):
    """Computes `IN_16_BITS` as `torch.autocast` does, which does not know the device "meta"."""

    def __init__(self):
        super().__init__()
        self.dtype = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.dtype and func in IN_16_BITS:
            args = [self._halved(value) for value in args]
            kwargs = {name: self._halved(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _halved(self, value):
        is_wide = isinstance(value, torch.Tensor) and value.dtype == torch.float32
        return value.to(self.dtype) if is_wide else value

    @contextmanager
    def autocast(self, tensor, enabled=True):
        """Stand in for `runtime.autocast`."""
        before = self.dtype
        self.dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[runtime.mixed_precision()]
        self.dtype = self.dtype if enabled else None
        yield
        self.dtype = before


@contextmanager
def imitated_gpu():
    """Let the PyTorch mirror compute on the device "meta" within this context; yields the `Watch`."""
    optimizer = sys.modules[torch.optim.Optimizer.__module__]
    fused = optimizer._get_fused_kernels_supported_devices
    before = runtime.current.device
    halving = Halving()
    runtime.set_device(Device(META))
    try:
        with (
            mock.patch.object(optimizer, fused.__name__, lambda: [*fused(), META]),
            mock.patch.object(runtime, "autocast", halving.autocast),
            halving,
            Watch() as watch,
        ):
            yield watch
    finally:
        runtime.set_device(before)
