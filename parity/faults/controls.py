"""Harmless changes, which must raise no alarm."""

import numpy as np

from parity.faults.planting import changed_forward, changed_result, control


@control("an activation moved by one eps")
def last_bit_noise(port):
    eps = np.finfo(np.float32).eps, np.finfo(np.float64).eps
    return changed_result(
        port,
        "input_blocks.0.0",
        lambda x: x * port.runtime.scalar(1 + float(eps[port.runtime.precision() == "float64"])),
    )


@control("a linear layer's sum in another order")
def reordered_sum(port):
    def halves(module, forward, x):
        half = x.shape[1] // 2
        parts = [
            x[:, part].matmul(module.weight[:, part].permute(1, 0)) for part in (slice(half, None), slice(0, half))
        ]
        return parts[0] + parts[1] + module.bias

    return changed_forward(port, "time_embed.2", halves)


@control("a layer computed twice, the second result taken")
def computed_twice(port):
    def twice(module, forward, *args):
        forward(*args)
        return forward(*args)

    return changed_forward(port, "out.2", twice)
