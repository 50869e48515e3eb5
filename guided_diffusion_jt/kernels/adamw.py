"""AdamW's step on one parameter as one operator, where Jittor's own chain of operators costs memory and time."""

from guided_diffusion_jt.kernels import source
from guided_diffusion_jt.runtime import jt

_HEADER = source("adamw.h")
# 1 - beta is taken in float64, before it is rounded to the type of the parameter.
_STEP = """
    adamw<in0_type>(in0_p, in0->num, data["beta1"], data["beta2"], 1 - data["beta1"], 1 - data["beta2"], data["decay"],
                    data["rate"], data["correction"], data["eps"], out0_p, out1_p, out2_p);
"""


def adamw(param, first, second, gradient, numbers):
    """Take a step of `optim.AdamW` on one parameter and its moments, in place.

    param, first, second: the parameter and the moving averages of its gradient and of its square.
    gradient:             its gradient.
    numbers:              beta1, beta2, eps; decay, the factor of the parameter; rate and correction of the step.
    Returns three tensors that share the memory of param, first and second. The update is done when they are synced.
    """
    return jt.code([gradient], [param, first, second], cpu_header=_HEADER, cpu_src=_STEP, data=numbers)
