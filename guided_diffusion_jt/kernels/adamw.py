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
    """One step of `optim.AdamW` on one parameter and its moments, in place once the results, three tensors that
    share their memory, are synced.

    numbers: beta1, beta2, eps; decay, what the parameter is multiplied by; rate and correction, of the step.
    """
    return jt.code([gradient], [param, first, second], cpu_header=_HEADER, cpu_src=_STEP, data=numbers)
