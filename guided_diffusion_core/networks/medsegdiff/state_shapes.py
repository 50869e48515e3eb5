"""List the names and shapes of the network's state dict, from its plan.

They are exactly those of the original, so that its checkpoints load strictly. The original calls the batch norms of
the highway network `instnorm`.
"""

from guided_diffusion_core.networks.medsegdiff.plan import AttentionPlan, ConvPlan, DownsamplePlan, ResBlockPlan

BOTTLENECK_EMBED = "hwm.bottleneck_embed"  # version `1`; the original draws this layer again in every call


def state_shapes(plan):
    """Return an ordered dict name -> shape of every parameter and buffer of a `UNetPlan`."""
    shapes = {}
    width = plan.model_channels
    embed = plan.time_embed_dim
    _add(shapes, "time_embed.0", (embed, width))
    _add(shapes, "time_embed.2", (embed, embed))
    for index, block in enumerate(plan.input_blocks):
        _add_block(shapes, f"input_blocks.{index}", block, plan)
    _add_block(shapes, "middle_block", plan.middle_block, plan)
    for index, block in enumerate(plan.output_blocks):
        _add_block(shapes, f"output_blocks.{index}", block, plan)
    _add_norm(shapes, "out.0", width)
    _add(shapes, "out.2", (plan.out_channels, width, 3, 3))
    _add_highway(shapes, plan.highway)
    return shapes


def _add(shapes, name, weight):
    """Add a convolution or linear layer, with its bias."""
    shapes[f"{name}.weight"] = weight
    shapes[f"{name}.bias"] = weight[:1]


def _add_norm(shapes, name, channels):
    shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)


def _add_block(shapes, name, block, plan):
    for index, layer in enumerate(block):
        _add_layer(shapes, f"{name}.{index}", layer, plan)


def _add_layer(shapes, name, layer, plan):
    if isinstance(layer, ConvPlan):
        _add(shapes, name, (layer.out_channels, layer.channels, 3, 3))
    elif isinstance(layer, ResBlockPlan):
        _add_res_block(shapes, name, layer, plan)
    elif isinstance(layer, AttentionPlan):
        _add_norm(shapes, f"{name}.norm", layer.channels)
        _add(shapes, f"{name}.qkv", (3 * layer.channels, layer.channels, 1))
        _add(shapes, f"{name}.proj_out", (layer.channels, layer.channels, 1))
    else:
        conv = "op" if isinstance(layer, DownsamplePlan) else "conv"
        _add(shapes, f"{name}.{conv}", (layer.channels, layer.channels, 3, 3))


def _add_res_block(shapes, name, layer, plan):
    width = layer.out_channels
    _add_norm(shapes, f"{name}.in_layers.0", layer.channels)
    _add(shapes, f"{name}.in_layers.2", (width, layer.channels, 3, 3))
    _add(shapes, f"{name}.emb_layers.1", ((2 if plan.use_scale_shift_norm else 1) * width, plan.time_embed_dim))
    _add_norm(shapes, f"{name}.out_layers.0", width)
    _add(shapes, f"{name}.out_layers.3", (width, width, 3, 3))
    if layer.channels != width:
        _add(shapes, f"{name}.skip_connection", (width, layer.channels, 1, 1))


def _add_highway(shapes, highway):
    for stage, convolutions in enumerate(highway.localization):
        for half, channels in enumerate(convolutions):
            _add_conv_norm(shapes, f"hwm.conv_blocks_localization.{stage}.{half}.blocks.0", channels)
    for stage, convolutions in enumerate(highway.context[:-1]):
        for index, channels in enumerate(convolutions):
            _add_conv_norm(shapes, f"hwm.conv_blocks_context.{stage}.blocks.{index}", channels)
    bottleneck = len(highway.context) - 1
    for half, channels in enumerate(highway.context[-1]):
        _add_conv_norm(shapes, f"hwm.conv_blocks_context.{bottleneck}.{half}.blocks.0", channels)
    _add_joins(shapes, highway.joins)
    shapes["hwm.seg_outputs.0.weight"] = (highway.mask_channels, highway.localization[-1][-1][-1], 1, 1)
    if highway.embed:
        inputs, outputs = highway.embed
        _add(shapes, BOTTLENECK_EMBED, (outputs, inputs, 1, 1))


def _add_joins(shapes, joins):
    for index, join in enumerate(joins):
        _add(shapes, f"hwm.conv_trans_blocks_a.{index}", (join.out_channels, join.channels, 1, 1))
    for index, join in enumerate(joins):
        _add(shapes, f"hwm.conv_trans_blocks_b.{index}", (1, join.out_channels, 1, 1))
    for index, join in enumerate(joins):
        shapes[f"hwm.ffparser.{index}.complex_weight"] = (join.out_channels, join.size, join.size // 2 + 1, 2)


def _add_conv_norm(shapes, name, channels):
    inputs, outputs = channels
    _add(shapes, f"{name}.conv", (outputs, inputs, 3, 3))
    _add_norm(shapes, f"{name}.instnorm", outputs)
    shapes[f"{name}.instnorm.running_mean"] = shapes[f"{name}.instnorm.running_var"] = (outputs,)
    shapes[f"{name}.instnorm.num_batches_tracked"] = ()
