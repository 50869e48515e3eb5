"""Estimate the numbers that a training step of MedSegDiff keeps for its backward pass, from the network's plan.

A layer keeps the inputs of its operations. Frameworks keep some of them twice, compute some again, and leave gaps in
their memory, so that a step takes up to half more or a third less (`tests/training/test_needs.py`).
"""

from guided_diffusion_core.networks.medsegdiff.plan import AttentionPlan, ConvPlan, DownsamplePlan, ResBlockPlan


def kept_numbers(plan):
    """Return the numbers that a step keeps of one example, for the network of a `UNetPlan`."""
    whole = 0  # of all blocks
    largest = 0  # of the largest block
    outputs = 0  # between the blocks
    size = plan.image_size
    for block in (*plan.input_blocks, plan.middle_block, *plan.output_blocks):
        kept, width, size = _block(block, size)
        whole += kept
        largest = max(largest, kept)
        outputs += width * size**2
    highway = _highway(plan.highway, plan.image_size)
    if plan.use_checkpoint:
        # Only what is between the blocks is kept. Each block, and the highway, is computed again in the backward pass,
        # and has its gradients next to it.
        return outputs + 2 * (largest + highway)
    return whole + highway


def _block(layers, size):
    """Return (numbers kept, channels of the output, side of the output) of a block of a side of `size` pixels."""
    kept = 0
    for layer in layers:
        if isinstance(layer, ConvPlan):
            kept += layer.channels * size**2
            width = layer.out_channels
        elif isinstance(layer, ResBlockPlan):
            if layer.up:
                size = 2 * size
            elif layer.down:
                size = size // 2
            # of each half: the input of norm, activation and convolution; between and behind them dropout and output
            kept += (3 * layer.channels + 5 * layer.out_channels) * size**2
            width = layer.out_channels
        elif isinstance(layer, AttentionPlan):
            # norm, queries, keys, values, result; weights between all pairs of positions, before and after softmax
            kept += 6 * layer.channels * size**2 + 2 * layer.num_heads * size**4
            width = layer.channels
        else:
            kept += layer.channels * size**2
            size = size // 2 if isinstance(layer, DownsamplePlan) else size * 2
            width = layer.channels
    return kept, width, size


def _highway(highway, size):
    """Return the numbers kept by the highway: of each convolution its input, its output and the norm of it."""
    kept = 0
    for stage, convolutions in enumerate(highway.context):
        kept += sum(inputs + 3 * outputs for inputs, outputs in convolutions) * (size >> stage) ** 2
    for stage, convolutions in enumerate(highway.localization):
        side = size >> (highway.poolings - 1 - stage)
        kept += sum(inputs + 3 * outputs for inputs, outputs in convolutions) * side**2
    return kept
