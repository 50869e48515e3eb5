"""Count the operations of one evaluation of MedSegDiff's network, from its plan.

A convolution of k x k costs 2 k^2 C_in C_out floating-point operations per output pixel. Norms, activations and
resizing are left out (below 1%).
"""

from guided_diffusion_core.networks.medsegdiff.plan import AttentionPlan, ConvPlan, DownsamplePlan, ResBlockPlan


def evaluation_operations(plan):
    """Return the operations of one evaluation of the network of a `UNetPlan` on one example."""
    size = plan.image_size
    total = 0
    for block in plan.input_blocks:
        operations, size = _block(block, size, plan)
        total += operations
    operations, size = _block(plan.middle_block, size, plan)
    total += operations
    for block in plan.output_blocks:
        operations, size = _block(block, size, plan)
        total += operations
    total += _conv(size, plan.model_channels, plan.out_channels)
    total += 2 * (plan.model_channels + plan.time_embed_dim) * plan.time_embed_dim
    return total + _highway(plan.highway, plan.image_size)


def _conv(size, channels, out_channels, kernel=3):
    return 2 * kernel**2 * channels * out_channels * size**2


def _block(layers, size, plan):
    """Return (operations, side of the output) of a block whose input has a side of `size` pixels."""
    total = 0
    for layer in layers:
        if isinstance(layer, ConvPlan):
            total += _conv(size, layer.channels, layer.out_channels)
        elif isinstance(layer, ResBlockPlan):
            if layer.up:
                size = 2 * size
            elif layer.down:
                size = size // 2
            total += _res_block(layer, size, plan)
        elif isinstance(layer, AttentionPlan):
            # queries, keys, values and output: 4 convolutions of 1x1; scores and weighted sums: 2 matrix products
            positions = size**2
            total += _conv(size, layer.channels, 4 * layer.channels, 1) + 4 * layer.channels * positions**2
        else:
            size = size // 2 if isinstance(layer, DownsamplePlan) else size * 2
            total += _conv(size, layer.channels, layer.channels)
    return total, size


def _res_block(layer, size, plan):
    width = layer.out_channels
    embedding = 2 * plan.time_embed_dim * width * (2 if plan.use_scale_shift_norm else 1)
    skip = _conv(size, layer.channels, width, 1) if layer.channels != width else 0
    return _conv(size, layer.channels, width) + _conv(size, width, width) + embedding + skip


def _highway(highway, image_size):
    total = 0
    for stage, convolutions in enumerate(highway.context):
        total += sum(_conv(image_size >> stage, *channels) for channels in convolutions)
    for stage, convolutions in enumerate(highway.localization):
        side = image_size >> (highway.poolings - 1 - stage)
        total += sum(_conv(side, *channels) for channels in convolutions)
    for join in highway.joins:
        total += _conv(join.size, join.channels, join.out_channels, 1) + _conv(join.size, join.out_channels, 1, 1)
    if highway.embed:
        total += _conv(image_size >> highway.poolings, *highway.embed, 1)
    return total + _conv(image_size, highway.localization[-1][-1][-1], 1, 1)
