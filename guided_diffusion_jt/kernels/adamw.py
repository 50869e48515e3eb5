"""AdamW's step on one parameter as one operator, where Jittor's own chain of operators costs memory and time."""

from guided_diffusion_jt.runtime import jt

# in0: gradient. out0 to out2: parameter and the moving averages of its gradient and of its square, in place.
_ADAMW = r"""
    using T = in0_type;
    const T keep1 = data["beta1"], new1 = 1 - data["beta1"], keep2 = data["beta2"], new2 = 1 - data["beta2"];
    const T decay = data["decay"], rate = data["rate"], correction = data["correction"], eps = data["eps"];
    #pragma omp parallel for
    for (int64_t i = 0; i < in0->num; i++) {
        const T gradient = in0_p[i];
        out1_p[i] = keep1 * out1_p[i] + new1 * gradient;
        out2_p[i] = keep2 * out2_p[i] + new2 * gradient * gradient;
        out0_p[i] = out0_p[i] * decay - rate * out1_p[i] / (std::sqrt(out2_p[i]) / correction + eps);
    }
"""


def adamw(param, first, second, gradient, numbers):
    """One step of `optim.AdamW` on one parameter and its moments, in place once the results, three tensors that
    share their memory, are synced.

    numbers: beta1, beta2, eps; decay, what the parameter is multiplied by; rate and correction, of the step.
    """
    return jt.code([gradient], [param, first, second], cpu_header="#include <cmath>", cpu_src=_ADAMW, data=numbers)
