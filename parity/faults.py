"""Faults to plant in one backend at run time, with which `mutate` tests the harness itself.

A fault is a function(port) that returns a context manager; while it is open, what the worker builds
and runs has the fault. No source file is touched. All are written against what both backends share,
so that either can be the port. `CONTROLS` are harmless changes, on which no alarm may be raised.
"""
import contextlib
from dataclasses import dataclass
from unittest import mock

import numpy as np

from guided_diffusion_core import sampling
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.schedule import ModelVarType
from parity.capture import FORWARD


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    plant: function(port) -> context manager. about: what a porter did wrong.
    site:  where the harness has to find it: a module, or an entry (`RUNG SITE`) or a problem, in which
           * and ? stand for anything.
    """

    name: str
    about: str
    site: str
    plant: object


FAULTS, CONTROLS = [], []


def fault(about, site):
    """Register a function(port) -> context manager under its own name."""
    return lambda plant: FAULTS.append(Fault(plant.__name__.replace("_", "-"), about, site, plant)) or plant


def control(about):
    """Register a harmless change."""
    return lambda plant: CONTROLS.append(Fault(plant.__name__.replace("_", "-"), about, "", plant)) or plant


def planted(name, port):
    """The context in which the fault or control of that name holds."""
    return next(fault for fault in FAULTS + CONTROLS if fault.name == name).plant(port)


# What the faults are made of.

def changed_model(port, change):
    """Apply change(modules by name) to every network that the port builds."""
    build = port.build

    def built(case):
        model = build(case)
        change(dict(model.named_modules()))
        return model
    return mock.patch.object(port, "build", built)


def changed_forward(port, name, change):
    """Replace the forward pass of one module, in networks that have it, by change(module, forward, *args)."""
    def replace(modules):
        if name not in modules:
            return
        module = modules[name]
        forward = getattr(module, FORWARD[port.backend])
        module.__dict__[FORWARD[port.backend]] = lambda *args: change(module, forward, *args)
    return changed_model(port, replace)


def changed_result(port, name, change):
    """Pass what one module returns through a function."""
    return changed_forward(port, name, lambda module, forward, *args: change(forward(*args)))


def changed_weights(port, change):
    """Pass the weights that the port loads through change(dict)."""
    load = port.load
    return mock.patch.object(port, "load", lambda model, arrays: load(model, change(dict(arrays))))


def assign(port, tensor, array):
    """Set a tensor's values in place, outside of any gradient."""
    new = port.runtime.to_tensor(array, dtype=str(array.dtype))
    if port.backend == "jittor":
        tensor.update(new)
    else:
        tensor.data.copy_(new)


def constant(port, array):
    """An array as a tensor of the run's precision."""
    return port.runtime.to_tensor(array, dtype=port.runtime.precision())


def library(port):
    """The framework's own namespace, and its functions on layers."""
    network = port.module("unet")
    return network.jt if port.backend == "jittor" else network.th, (
        network.nn if port.backend == "jittor" else network.nn.functional)


def concatenated(port, change):
    """Let the network join skips by change(two tensors) instead of as they are."""
    framework, _ = library(port)
    join = "concat" if port.backend == "jittor" else "cat"
    original = getattr(framework, join)

    class Changed:
        def __getattr__(self, name):
            return getattr(framework, name)
    setattr(Changed, join, staticmethod(
        lambda tensors, dim: original(change(tensors) if len(tensors) == 2 else tensors, dim=dim)))
    return mock.patch.object(port.module("unet"), "jt" if port.backend == "jittor" else "th", Changed())


def changed_adamw(port, change):
    """Replace AdamW's step by change(optimizer, step, gradients, lr)."""
    adamw = port.module("optim").AdamW
    step = adamw.step
    return mock.patch.object(adamw, "step", lambda self, gradients, lr: change(self, step, gradients, lr))


def overwritten_update(port, rule, decay):
    """AdamW whose moments are right and whose parameters follow rule(m, v, n) instead.

    rule:  function of both moments and the number of the step: the step in units of the rate.
    decay: decoupled weight decay.
    """
    runtime, counts = port.runtime, {}

    def change(optimizer, step, gradients, lr):
        before = [runtime.to_numpy(param) for param in optimizer.params]
        step(optimizer, gradients, lr)
        counts[id(optimizer)] = n = counts.get(id(optimizer), 0) + 1
        for param, old, m, v in zip(optimizer.params, before, *optimizer.moments()):
            move = rule(runtime.to_numpy(m), runtime.to_numpy(v), n)
            assign(port, param, (old * (1 - lr * decay) - lr * move).astype(old.dtype))
        runtime.synchronize()
    return changed_adamw(port, change)


WEIGHT_DECAY = 0.05  # of the cases


# Layers.

@fault("group norm with eps 1e-6 instead of 1e-5", "input_blocks.1.0.in_layers.0")
def group_norm_eps(port):
    return changed_model(port, lambda modules: setattr(modules["input_blocks.1.0.in_layers.0"], "eps", 1e-6))


@fault("group norm over 16 groups instead of 32", "out.0")
def group_norm_groups(port):
    return changed_model(port, lambda modules: setattr(modules["out.0"], "num_groups", 16))


@fault("GELU instead of SiLU", "middle_block.0.in_layers.1")
def silu_to_gelu(port):
    def gelu(module, forward, x):
        return x * (1.702 * x).sigmoid() if port.backend == "pytorch" else x * (x * 1.702).sigmoid()
    return changed_forward(port, "middle_block.0.in_layers.1", gelu)


@fault("ReLU instead of SiLU", "out.1")
def silu_to_relu(port):
    _, functional = library(port)
    return changed_forward(port, "out.1", lambda module, forward, x: functional.relu(x))


@fault("leaky ReLU with slope 0.2 instead of 0.01", "hwm.conv_blocks_context.0.blocks.0.lrelu")
def leaky_slope(port):
    _, functional = library(port)
    return changed_forward(port, "hwm.conv_blocks_context.0.blocks.0.lrelu",
                           lambda module, forward, x: functional.leaky_relu(x, 0.2))


@fault("mean instead of maximum in a pooling", "hwm.td.0")
def mean_pooling(port):
    return changed_forward(port, "hwm.td.0", lambda module, forward, x: port.nn.AvgPool2d()(x))


@fault("a linear layer's weight loaded transposed", "weight time_embed.2.weight")
def transposed_weight(port):
    return changed_weights(port, lambda arrays: {**arrays, "time_embed.2.weight": arrays["time_embed.2.weight"].T})


@fault("two convolutions' weights swapped", "weight middle_block.0.in_layers.2.weight")
def swapped_weights(port):
    one, other = "middle_block.0.in_layers.2.weight", "middle_block.0.out_layers.3.weight"
    return changed_weights(port, lambda arrays: {**arrays, one: arrays[other], other: arrays[one]})


@fault("attention scaled by 1 / channels instead of its root", "input_blocks.3.1.attention")
def attention_scale(port):
    network = port.module("unet")
    original = network.scaled_attention
    return mock.patch.object(network, "scaled_attention", lambda q, k, v: original(
        q * port.runtime.scalar(q.shape[1] ** -0.5), k, v))


@fault("softmax over the queries instead of the keys", "input_blocks.3.1.attention")
def softmax_axis(port):
    network = port.module("unet")
    original = network.softmax
    return mock.patch.object(network, "softmax", lambda x: original(x.permute(0, 2, 1)).permute(0, 2, 1))


@fault("skip and features joined in the wrong order", "network")
def swapped_skip(port):
    return concatenated(port, lambda tensors: tensors[::-1])


@fault("skips left out", "network")
def dropped_skip(port):
    return concatenated(port, lambda tensors: [tensors[0], tensors[1] * port.runtime.scalar(0.0)])


@fault("time embedding of the next time step", "network")
def time_step_off_by_one(port):
    network = port.module("unet")
    original = network.timestep_embedding
    return mock.patch.object(network, "timestep_embedding", lambda t, dim: original(t + 1, dim))


@fault("sines before cosines in the time embedding", "network")
def sine_and_cosine_swapped(port):
    network, (framework, _) = port.module("unet"), library(port)
    original, join = network.timestep_embedding, framework.concat

    def swapped(t, dim):
        embedding = original(t, dim)
        return join([embedding[:, dim // 2:], embedding[:, :dim // 2]], dim=1)
    return mock.patch.object(network, "timestep_embedding", swapped)


@fault("upsampling with aligned corners", "hwm.tu.1")  # tu.0 enlarges a single pixel
def align_corners(port):
    _, functional = library(port)
    return mock.patch.object(port.nn.BilinearUpsample, FORWARD[port.backend], lambda self, x: functional.interpolate(
        x, scale_factor=self.scale, mode="bilinear", align_corners=True))


@fault("nearest instead of bilinear upsampling", "hwm.tu.3")
def nearest_upsampling(port):
    return changed_forward(port, "hwm.tu.3", lambda module, forward, x: port.nn.nearest_upsample(x))


@fault("batch norm with momentum 0.01 instead of 0.1", "hwm.conv_blocks_context.2.blocks.0.instnorm")
def batch_norm_momentum(port):
    return changed_model(port, lambda modules: setattr(
        modules["hwm.conv_blocks_context.2.blocks.0.instnorm"], "momentum", 0.01))


@fault("biased running variance in a batch norm", "hwm.conv_blocks_context.3.blocks.1.instnorm")
def batch_norm_biased_variance(port):
    def biased(module, forward, x):
        old = port.runtime.to_numpy(module.running_var)
        result = forward(x)
        count = x.shape[0] * x.shape[2] * x.shape[3]
        kept = (1 - module.momentum) * old
        added = port.runtime.to_numpy(module.running_var) - kept
        if module.training if port.backend == "pytorch" else module.is_training():
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
        mean, variance = (constant(port, port.runtime.to_numpy(values)).reshape(shape)
                          for values in (module.running_mean, module.running_var))
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
    return changed_result(port, "middle_block.2.out_layers.1",
                          lambda x: x * half(0.5) + (x * half(0.5)).detach())


# The process.

@fault("schedule computed in float32", "table diffusion.betas")
def schedule_in_float32(port):
    script = port.module("script_util")
    original = script.get_named_beta_schedule
    return mock.patch.object(script, "get_named_beta_schedule", lambda name, steps: original(
        name, steps).astype(np.float32).astype(np.float64))


@fault("time steps counted from one", "table diffusion.timestep_map")
def shifted_timestep_map(port):
    spaced = port.module("respace").SpacedDiffusion
    original = spaced.__init__

    def shifted(self, *args, **keywords):
        original(self, *args, **keywords)
        self.timestep_map = tuple(t + 1 for t in self.timestep_map)
    return mock.patch.object(spaced, "__init__", shifted)


@fault("fixed variance where it is learned", "state diffusion._variance#0.0")
def variance_branch(port):
    process = port.module("gaussian_diffusion").GaussianDiffusion
    original = process._variance

    def fixed(self, out, x_t, t):
        with mock.patch.object(self, "model_var_type", ModelVarType.FIXED_SMALL):
            return original(self, out, x_t, t)
    return mock.patch.object(process, "_variance", fixed)


@fault("coefficients of the posterior's mean swapped", "state diffusion.q_posterior_mean_variance#0.0")
def posterior_coefficients(port):
    process = port.module("gaussian_diffusion").GaussianDiffusion
    original = process.q_posterior_mean_variance
    return mock.patch.object(process, "q_posterior_mean_variance",
                             lambda self, x_start, x_t, t: original(self, x_t, x_start, t))


@fault("noise of the noised mask 0.1% too large", "state diffusion.q_sample#0")
def noising_scale(port):
    process = port.module("gaussian_diffusion").GaussianDiffusion
    original = process.q_sample
    return mock.patch.object(process, "q_sample", lambda self, x_start, t, noise: original(
        self, x_start, t, noise * port.runtime.scalar(1.001)))


@fault("weight 1 instead of 10 on the calibration mask", "loss total, step 0")
def calibration_weight(port):
    return mock.patch.object(port.module("gaussian_diffusion"), "CALIBRATION_WEIGHT", 1.0)


# Training.

@fault("gradients of the step before not cleared", "gradient time_embed.0.weight, step 1")
def missing_zero_grad(port):
    loop = port.module("train_util").TrainLoop
    original, left = loop.forward_backward, {}

    def accumulating(self, batch):
        values, gradients = original(self, batch)
        before = left.get(id(self))
        gradients = gradients if before is None else [a + b for a, b in zip(gradients, before)]
        left[id(self)] = gradients
        return values, gradients
    return mock.patch.object(loop, "forward_backward", accumulating)


@fault("only the first microbatch trained", "noise tape: *")
def dropped_microbatch(port):
    loop = port.module("train_util").TrainLoop
    original = loop.forward_backward
    return mock.patch.object(loop, "forward_backward",
                             lambda self, batch: original(self, batch[:self.microbatch]))


@fault("examples of a batch in reverse order", "input batch, step 0")
def batch_order(port):
    training, (framework, _) = port.module("train_util"), library(port)
    original = training.make_loader

    def reverse(tensor):
        return framework.concat([tensor[k:k + 1] for k in reversed(range(tensor.shape[0]))], dim=0)

    def reversing(*args, **keywords):
        for batch, cond in original(*args, **keywords):
            yield reverse(batch), reverse(cond)
    return mock.patch.object(training, "make_loader", reversing)


@fault("gradients clipped to norm 1", "gradient time_embed.0.weight, step 0")
def clipped_gradient(port):
    training = port.module("train_util")
    original = training.gradients

    def clipped(loss, params):
        found = original(loss, params)
        norm = np.sqrt(sum(np.sum(np.float64(port.runtime.to_numpy(value)) ** 2) for value in found))
        return [value * port.runtime.scalar(float(min(1.0, 1.0 / norm))) for value in found]
    return mock.patch.object(training, "gradients", clipped)


@fault("learning rate of the step before", "learning rate step 1")
def late_learning_rate(port):
    training = port.module("train_util")
    original = training.learning_rate
    return mock.patch.object(training, "learning_rate",
                             lambda lr, steps, step, *rest: original(lr, steps, max(step - 1, 0), *rest))


@fault("Adam without bias correction", "update time_embed.0.weight, step 0")
def adam_bias_correction(port):
    return overwritten_update(port, lambda m, v, n: m / (np.sqrt(v) + 1e-8), WEIGHT_DECAY)


@fault("Adam's eps under the root", "update *")
def adam_eps_under_root(port):
    return overwritten_update(port, lambda m, v, n: (m / (1 - 0.9 ** n)) / np.sqrt(v / (1 - 0.999 ** n) + 1e-8),
                              WEIGHT_DECAY)


@fault("weight decay added to the gradient too", "first moment time_embed.0.weight, step 0")
def coupled_weight_decay(port):
    def coupled(optimizer, step, gradients, lr):
        decay = port.runtime.scalar(WEIGHT_DECAY)
        values = [gradient + decay * param.detach() for gradient, param in zip(gradients, optimizer.params)]
        step(optimizer, values, lr)
    return changed_adamw(port, coupled)


@fault("moving averages that stand still", "average *")
def average_off(port):
    return mock.patch.object(port.module("train_util"), "update_ema", lambda targets, sources, rate: None)


@fault("moving averages updated before the step", "average *")
def average_before_step(port):
    training, before = port.module("train_util"), {}
    original = training.update_ema

    def remember(optimizer, step, gradients, lr):
        before["params"] = [constant(port, port.runtime.to_numpy(param)) for param in optimizer.params]
        step(optimizer, gradients, lr)

    @contextlib.contextmanager
    def both():
        with changed_adamw(port, remember), mock.patch.object(
                training, "update_ema", lambda targets, sources, rate: original(
                    targets, before.get("params", sources), rate)):
            yield
    return both()


# Sampling.

@fault("x_0 not clipped", "state diffusion.q_posterior_mean_variance#0 given 0")
def clip_left_out(port):
    process = port.module("gaussian_diffusion").GaussianDiffusion
    original = process._reverse_step
    return mock.patch.object(process, "_reverse_step",
                             lambda self, out, x_t, t, clip_denoised: original(self, out, x_t, t, False))


@fault("DDIM's coefficients of the next time step", "state diffusion.ddim_sample#?.sample")
def ddim_coefficients(port):
    process = port.module("gaussian_diffusion")
    original = process.ddim_coefficients
    return mock.patch.object(process, "ddim_coefficients", lambda tables, eta: tuple(
        np.roll(values, 1) for values in original(tables, eta)))


@fault("DPM-Solver's extrapolation twice as far", "state diffusion.dpm_solver_sample#1.sample")
def dpm_solver_extrapolation(port):
    solver = port.module("dpm_solver")
    original = solver.dpm_solver_coefficients

    def far(tables):
        xstart_coef, before_coef, x_t_coef = original(tables)
        return xstart_coef - before_coef, 2 * before_coef, x_t_coef
    return mock.patch.object(solver, "dpm_solver_coefficients", far)


@fault("noise added in the last step too", "state diffusion.p_sample#5.sample")
def noise_in_last_step(port):
    process = port.module("gaussian_diffusion").GaussianDiffusion
    original = process.p_sample

    def noisy(self, *args, **keywords):
        with mock.patch.object(self, "adds_noise", np.ones(self.num_timesteps)):
            return original(self, *args, **keywords)
    return mock.patch.object(process, "p_sample", noisy)


@fault("one noise for all members of an ensemble", "noise tape: *")
def members_share_noise(port):
    original = NoiseTape.normal_batch
    return mock.patch.object(NoiseTape, "normal_batch", lambda self, site, shape, *, step, cases, members=None:
                             original(self, site, shape, step=step, cases=cases))


@fault("minimum instead of mean of the ensemble", "probability *")
def minimum_fusion(port):
    original = sampling.fuse_mean
    return mock.patch.object(sampling, "fuse_mean", lambda members: (
        np.clip(members.min(axis=0), 0, 1), original(members)[1]))


# Harmless changes.

@control("an activation moved by one eps")
def last_bit_noise(port):
    eps = np.finfo(np.float32).eps, np.finfo(np.float64).eps
    return changed_result(port, "input_blocks.0.0", lambda x: x * port.runtime.scalar(
        1 + float(eps[port.runtime.precision() == "float64"])))


@control("a linear layer's sum in another order")
def reordered_sum(port):
    def halves(module, forward, x):
        half = x.shape[1] // 2
        parts = [x[:, part].matmul(module.weight[:, part].permute(1, 0))
                 for part in (slice(half, None), slice(0, half))]
        return parts[0] + parts[1] + module.bias
    return changed_forward(port, "time_embed.2", halves)


@control("a layer computed twice, the second result taken")
def computed_twice(port):
    def twice(module, forward, *args):
        forward(*args)
        return forward(*args)
    return changed_forward(port, "out.2", twice)
