"""Faults in the training loop, the optimizer and the moving averages."""

import contextlib
from unittest import mock

import numpy as np

from parity.faults.planting import WEIGHT_DECAY, changed_adamw, constant, fault, library, overwritten_update, replaced


@fault("gradients of the step before not cleared", "gradient time_embed.0.weight, step 1")
def missing_zero_grad(port):
    left = {}

    def accumulating(original, self, batch, *rest):
        values, gradients = original(self, batch, *rest)
        before = left.get(id(self))
        gradients = gradients if before is None else [a + b for a, b in zip(gradients, before)]
        left[id(self)] = gradients
        return values, gradients

    return replaced(port.module("train_util").TrainLoop, "forward_backward", accumulating)


@fault("only the first microbatch trained", "noise tape: *")
def dropped_microbatch(port):
    return replaced(
        port.module("train_util").TrainLoop,
        "forward_backward",
        lambda original, self, batch, *rest: original(self, batch[: self.microbatch], *rest),
    )


@fault("examples of a batch in reverse order", "input batch, step 0")
def batch_order(port):
    framework, _ = library(port)

    def reverse(tensor):
        return framework.concat([tensor[k : k + 1] for k in reversed(range(tensor.shape[0]))], dim=0)

    def reversing(original, *args, **keywords):
        for batch, cond in original(*args, **keywords):
            yield reverse(batch), reverse(cond)

    return replaced(port.module("train_util"), "make_loader", reversing)


@fault("no augmentation", "noise tape: *")
def augmentation_left_out(port):
    return mock.patch.object(port.module("train_util"), "create_augmentation", lambda *given: None)


@fault("augmentation of the images without their masks", "input batch, step 0")
def augmented_image_alone(port):
    def of_images(original, *given):
        augment = original(*given)
        return augment and (lambda image, mask, place: (augment(image, mask, place)[0], mask))

    return replaced(port.module("train_util"), "create_augmentation", of_images)


@fault("gradients clipped to norm 1", "gradient time_embed.0.weight, step 0")
def clipped_gradient(port):
    def clipped(original, loss, params):
        found = original(loss, params)
        norm = np.sqrt(sum(np.sum(np.float64(port.runtime.to_numpy(value)) ** 2) for value in found))
        return [value * port.runtime.scalar(float(min(1.0, 1.0 / norm))) for value in found]

    return replaced(port.module("train_util"), "gradients", clipped)


@fault("learning rate of the step before", "learning rate step 1")
def late_learning_rate(port):
    return replaced(
        port.module("train_util"),
        "learning_rate",
        lambda original, lr, steps, step, *rest: original(lr, steps, max(step - 1, 0), *rest),
    )


@fault("Adam without bias correction", "update time_embed.0.weight, step 0")
def adam_bias_correction(port):
    return overwritten_update(port, lambda m, v, n: m / (np.sqrt(v) + 1e-8), WEIGHT_DECAY)


@fault("Adam's eps under the root", "update *")
def adam_eps_under_root(port):
    return overwritten_update(
        port, lambda m, v, n: (m / (1 - 0.9**n)) / np.sqrt(v / (1 - 0.999**n) + 1e-8), WEIGHT_DECAY
    )


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
    training = port.module("train_util")
    before = {}

    def remember(optimizer, step, gradients, lr):
        before["params"] = [constant(port, port.runtime.to_numpy(param)) for param in optimizer.params]
        step(optimizer, gradients, lr)

    @contextlib.contextmanager
    def both():
        with (
            changed_adamw(port, remember),
            replaced(
                training,
                "update_ema",
                lambda original, targets, sources, rate: original(targets, before.get("params", sources), rate),
            ),
        ):
            yield

    return both()
