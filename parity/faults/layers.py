"""Faults in layers and in the network around them."""

from unittest import mock

import numpy as np

from guided_diffusion_core.backends import BACKENDS
from parity.faults.planting import (
    assign,
    changed_forward,
    changed_model,
    changed_result,
    changed_weights,
    concatenated,
    constant,
    fault,
    library,
    replaced,
)


@fault("group norm with eps 1e-6 instead of 1e-5", "input_blocks.1.0.in_layers.0")
def group_norm_eps(port):
    return changed_model(port, lambda modules: setattr(modules["input_blocks.1.0.in_layers.0"], "eps", 1e-6))


@fault("group norm over 16 groups instead of 32", "out.0")
def group_norm_groups(port):
    return changed_model(port, lambda modules: setattr(modules["out.0"], "num_groups", 16))


@fault("GELU instead of SiLU", "middle_block.0.in_layers.1")
def silu_to_gelu(port):
    def gelu(module, forward, x):
        return x * (x * 1.702).sigmoid()

    return changed_forward(port, "middle_block.0.in_layers.1", gelu)


@fault("ReLU instead of SiLU", "out.1")
def silu_to_relu(port):
    _, functional = library(port)
    return changed_forward(port, "out.1", lambda module, forward, x: functional.relu(x))


@fault("leaky ReLU with slope 0.2 instead of 0.01", "hwm.conv_blocks_context.0.blocks.0.lrelu")
def leaky_slope(port):
    _, functional = library(port)
    return changed_forward(
        port, "hwm.conv_blocks_context.0.blocks.0.lrelu", lambda module, forward, x: functional.leaky_relu(x, 0.2)
    )


@fault("mean instead of maximum in a pooling", "hwm.td.0")
def mean_pooling(port):
    return changed_forward(port, "hwm.td.0", lambda module, forward, x: port.nn.AvgPool2d()(x))


@fault("a linear layer's weight loaded transposed", "weight time_embed.2.weight")
def transposed_weight(port):
    return changed_weights(port, lambda arrays: {**arrays, "time_embed.2.weight": arrays["time_embed.2.weight"].T})


@fault("two convolutions' weights swapped", "weight middle_block.0.in_layers.2.weight")
def swapped_weights(port):
    one = "middle_block.0.in_layers.2.weight"
    other = "middle_block.0.out_layers.3.weight"
    return changed_weights(port, lambda arrays: {**arrays, one: arrays[other], other: arrays[one]})


@fault("attention scaled by 1 / channels instead of its root", "input_blocks.3.1.attention")
def attention_scale(port):
    return replaced(
        port.module("unet"),
        "scaled_attention",
        lambda original, q, k, v: original(q * port.runtime.scalar(q.shape[1] ** -0.5), k, v),
    )


@fault("softmax over the queries instead of the keys", "input_blocks.3.1.attention")
def softmax_axis(port):
    return replaced(port.module("unet"), "softmax", lambda original, x: original(x.permute(0, 2, 1)).permute(0, 2, 1))


@fault("skip and features joined in the wrong order", "network")
def swapped_skip(port):
    return concatenated(port, lambda tensors: tensors[::-1])


@fault("skips left out", "network")
def dropped_skip(port):
    return concatenated(port, lambda tensors: [tensors[0], tensors[1] * port.runtime.scalar(0.0)])


@fault("time embedding of the next time step", "network")
def time_step_off_by_one(port):
    return replaced(port.module("unet"), "timestep_embedding", lambda original, t, dim: original(t + 1, dim))


@fault("sines before cosines in the time embedding", "network")
def sine_and_cosine_swapped(port):
    framework, _ = library(port)

    def swapped(original, t, dim):
        embedding = original(t, dim)
        return framework.concat([embedding[:, dim // 2 :], embedding[:, : dim // 2]], dim=1)

    return replaced(port.module("unet"), "timestep_embedding", swapped)


@fault("upsampling with aligned corners", "hwm.tu.1")  # tu.0 enlarges a single pixel
def align_corners(port):
    _, functional = library(port)
    return mock.patch.object(
        port.nn.BilinearUpsample,
        BACKENDS[port.backend].forward,
        lambda self, x: functional.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=True),
    )


@fault("nearest instead of bilinear upsampling", "hwm.tu.3")
def nearest_upsampling(port):
    return changed_forward(port, "hwm.tu.3", lambda module, forward, x: port.nn.nearest_upsample(x))


@fault("batch norm with momentum 0.01 instead of 0.1", "hwm.conv_blocks_context.2.blocks.0.instnorm")
def batch_norm_momentum(port):
    return changed_model(
        port, lambda modules: setattr(modules["hwm.conv_blocks_context.2.blocks.0.instnorm"], "momentum", 0.01)
    )


@fault("biased running variance in a batch norm", "hwm.conv_blocks_context.3.blocks.1.instnorm")
def batch_norm_biased_variance(port):
    def biased(module, forward, x):
        old = port.runtime.to_numpy(module.running_var)
        result = forward(x)
        count = x.shape[0] * x.shape[2] * x.shape[3]
        kept = (1 - module.momentum) * old
        new = port.runtime.to_numpy(module.running_var)
        added = new - kept
        if not np.array_equal(new, old):  # in training
            assign(port, module.running_var, (kept + added * (count - 1) / count).astype(old.dtype))
        return result

    return changed_forward(port, "hwm.conv_blocks_context.3.blocks.1.instnorm", biased)


@fault("one running mean that is never updated", "hwm.conv_blocks_localization.2.0.blocks.0.instnorm")
def stale_buffer(port):
    def stale(module, forward, x):
        old = port.runtime.to_numpy(module.running_mean)
        result = forward(x)
        assign(port, module.running_mean, old)
        return result

    return changed_forward(port, "hwm.conv_blocks_localization.2.0.blocks.0.instnorm", stale)


@fault("a batch norm in sampling mode during training", "hwm.conv_blocks_context.1.blocks.0.instnorm")
def evaluating_in_training(port):
    def frozen(module, forward, x):
        shape = (1, -1, 1, 1)
        mean, variance = (
            constant(port, port.runtime.to_numpy(values)).reshape(shape)
            for values in (module.running_mean, module.running_var)
        )
        normal = (x - mean) / (variance + port.runtime.scalar(module.eps)) ** 0.5
        return normal * module.weight.reshape(shape) + module.bias.reshape(shape)

    return changed_forward(port, "hwm.conv_blocks_context.1.blocks.0.instnorm", frozen)


@fault("dropout without the factor 1 / (1 - p)", "middle_block.0.out_layers.2")
def dropout_scale(port):
    return changed_result(port, "middle_block.0.out_layers.2", lambda x: x * port.runtime.scalar(0.9))


@fault("NaN in one element", "input_blocks.2.0")
def nan_element(port):
    def poisoned(x):
        array = np.zeros(tuple(x.shape))
        array.flat[17] = np.nan
        return x + constant(port, array)

    return changed_result(port, "input_blocks.2.0", poisoned)


@fault("a layer's result rounded to half precision", "output_blocks.2.0.out_layers.3")
def half_precision_layer(port):
    def rounded(x):
        return constant(port, port.runtime.to_numpy(x).astype(np.float16))

    return changed_result(port, "output_blocks.2.0.out_layers.3", rounded)


@fault("a branch without gradient", "hwm.td.2")
def detached_branch(port):
    return changed_result(port, "hwm.td.2", lambda x: x.detach())


@fault("a Fourier transform without gradient", "hwm.ffparser.0")
def detached_fourier_transform(port):
    return changed_forward(port, "hwm.ffparser.0", lambda module, forward, x: forward(x.detach()))


@fault("half the gradient through one activation", "middle_block.2.out_layers.1")
def wrong_backward(port):
    half = port.runtime.scalar
    return changed_result(port, "middle_block.2.out_layers.1", lambda x: x * half(0.5) + (x * half(0.5)).detach())
