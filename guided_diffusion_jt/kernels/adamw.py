"""AdamW's step on all parameters: one operator for each, where Jittor's own chain of operators costs memory and time
on a CPU, or generic operators (`runtime.is_generic`)."""

from guided_diffusion_jt import runtime
from guided_diffusion_jt.kernels import source
from guided_diffusion_jt.runtime import jt

_HEADER = source("adamw.h")
# 1 - beta is taken in float64, before it is rounded to the type of the parameter.
_STEP = """
    adamw<in0_type>(in0_p, in0->num, data["beta1"], data["beta2"], 1 - data["beta1"], 1 - data["beta2"], data["decay"],
                    data["rate"], data["correction"], data["eps"], out0_p, out1_p, out2_p);
"""


def adamw(params, first, second, gradients, numbers):
    """Take a step of `optim.AdamW` on parameters and their moments, in place.

    params, first, second: the parameters, and the moving averages of each gradient and of its square; lists.
    gradients:             their gradients, a list.
    numbers:               beta1, beta2, eps; decay, the factor of the parameters; rate and correction of the step.
    """
    # Pending operators may still have to read the old values: they run before the update in place.
    jt.sync_all()
    step = _generic_step if runtime.is_generic() else _step
    jt.sync(step(params, first, second, gradients, numbers))


def _step(params, first, second, gradients, numbers):
    """Return tensors that share the memory of the given ones. The update is done when they are synced."""
    updated = []
    for gradient, *tensors in zip(gradients, params, first, second):
        updated += jt.code([gradient], tensors, cpu_header=_HEADER, cpu_src=_STEP, data=numbers)
    return updated


def _generic_step(params, first, second, gradients, numbers):
    """Return the updated tensors, which hold their new values when they are synced."""
    new = {"new1": 1 - numbers["beta1"], "new2": 1 - numbers["beta2"]}
    number = {name: runtime.scalar(value) for name, value in {**numbers, **new}.items()}
    updated = []
    for param, mean, square, gradient in zip(params, first, second, gradients):
        next_mean = number["beta1"] * mean + number["new1"] * gradient
        next_square = number["beta2"] * square + number["new2"] * gradient * gradient
        deviation = jt.sqrt(next_square) / number["correction"] + number["eps"]
        next_param = param * number["decay"] - number["rate"] * next_mean / deviation
        for tensor, value in ((param, next_param), (mean, next_mean), (square, next_square)):
            tensor.update(value)
            updated.append(tensor)
    return updated
