"""Counted operations of any network, as its family counts them.

An operation is a floating-point multiplication or addition of a convolution, a linear layer or a product of
matrices, as direct arithmetic does it. An implementation that does the same with fewer multiplications (Winograd's
algorithm) is given the operations of the direct one, so its share of a machine's limit can pass 1.
"""

from guided_diffusion_core.networks.registry import family_of


def evaluation_operations(settings, batch):
    """Return the operations of one evaluation on `batch` examples of the network of a `NetworkConfig`."""
    family = family_of(settings)
    return batch * family.operations(family.plan(settings))


def training_operations(settings, batch):
    """Return the operations of one training step: backwards, each product has two, for its input and its weights."""
    return 3 * evaluation_operations(settings, batch)
