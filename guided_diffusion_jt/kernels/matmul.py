"""Products of matrices of a batch: numpy's, because Jittor has no fast one on a CPU, or generic ones
(`runtime.is_generic`)."""

from guided_diffusion_jt import runtime
from guided_diffusion_jt.runtime import jt, nn


def _product(a, b, transpose_a=False, transpose_b=False):
    """Multiply matrices of a batch.

    a, b:                     (B, n, k) and (B, k, m), or their transposes.
    transpose_a, transpose_b: the factor is given transposed.
    Returns (B, n, m).
    """
    if runtime.is_generic():
        left = a.transpose(0, 2, 1) if transpose_a else a
        right = b.transpose(0, 2, 1) if transpose_b else b
        return nn.matmul(left, right)

    def forward(np, data):
        left, right = data["inputs"]
        left = left.swapaxes(1, 2) if transpose_a else left
        right = right.swapaxes(1, 2) if transpose_b else right
        np.matmul(left, right, out=data["outputs"][0])

    rows = a.shape[2] if transpose_a else a.shape[1]
    columns = b.shape[1] if transpose_b else b.shape[2]
    return jt.numpy_code((a.shape[0], rows, columns), a.dtype, [a, b], forward)


class _BatchedMatmul(jt.Function):
    """A product whose gradients are products too: Jittor's own gradient is 40 times slower on a CPU."""

    def execute(self, a, b):
        self.factors = a, b
        return _product(a, b)

    def grad(self, grad):
        a, b = self.factors
        # d(a b) = da b + a db: the gradients are grad b^T and a^T grad.
        return _product(grad, b, transpose_b=True), _product(a, grad, transpose_a=True)


def batched(a, b):
    """Multiply matrices of a batch: (B, n, k) times (B, k, m) is (B, n, m)."""
    return _BatchedMatmul.apply(a, b)
