"""The spectral filter of the FF-Parser: Fourier transforms and their gradients by scipy, or as products of matrices
(`runtime.is_generic`)."""

import os

import numpy as np
import scipy.fft

from guided_diffusion_core.networks.fourier import column_transform, multiplicity, row_inverse, row_transform
from guided_diffusion_jt import runtime
from guided_diffusion_jt.runtime import jt


def _complex(array):
    """View pairs of numbers (..., 2) as complex numbers (...) in the same memory."""
    return array.view(np.result_type(array.dtype, np.complex64))[..., 0]


def _fourier(transform, array, **keywords):
    """Apply a transform of `scipy.fft` over the last two axes, orthonormal, with the threads of the process."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    return transform(array, norm="ortho", workers=threads, **keywords)


def _forward(x, weight, matrices):
    """Return the filtered x (N, C, H, W) and its spectrum (N, C, H, W // 2 + 1, 2).

    matrices: a `_Matrices` for generic operators, otherwise None.
    """
    if matrices:
        spectrum = _transformed(x, matrices)
        return _inverse(_multiplied(spectrum, weight), matrices), spectrum

    def forward(_, data):
        x, weight = data["inputs"]
        filtered, spectrum = data["outputs"]
        _complex(spectrum)[...] = _fourier(scipy.fft.rfft2, x)
        filtered[...] = _fourier(scipy.fft.irfft2, _complex(spectrum) * _complex(weight), s=x.shape[2:])

    return jt.numpy_code([x.shape, [x.shape[0], *weight.shape]], [x.dtype, x.dtype], [x, weight], forward)


# The two transforms are each other's transpose, except for the half of the spectrum that is left out: a frequency
# counts twice unless it is its own conjugate.
def _backward(grad, spectrum, weight, matrices):
    """Return the gradients of x and weight.

    grad: (N, C, H, W). spectrum: that of x. weight: (C, H, W // 2 + 1, 2). matrices: as in `_forward`.
    """
    if matrices:
        transformed = _transformed(grad, matrices)
        to_weight = _multiplied(transformed, _conjugate(spectrum)).sum(0) * matrices.count
        return _inverse(_multiplied(transformed, _conjugate(weight)), matrices), to_weight

    def backward(_, data):
        grad, spectrum, weight = data["inputs"]
        to_x, to_weight = data["outputs"]
        transformed = _fourier(scipy.fft.rfft2, grad)  # (N, C, H, W // 2 + 1), complex
        count = multiplicity(grad.shape[3])
        _complex(to_weight)[...] = (_complex(spectrum).conj() * transformed).sum(0) * count
        transformed *= _complex(weight).conj()
        to_x[...] = _fourier(scipy.fft.irfft2, transformed, s=grad.shape[2:])

    inputs = [grad, spectrum, weight]
    return tuple(jt.numpy_code([grad.shape, weight.shape], [grad.dtype, grad.dtype], inputs, backward))


class _Matrices:
    """The matrices of the transforms of an image and of their gradients, made at once.

    Made in the backward pass, they would be waited for there, and pending gradients would be computed one by one.

    like: (N, C, H, W), whose size and type they have.
    """

    def __init__(self, like):
        height, width = like.shape[2:]
        arrays = (
            row_transform(width),
            row_inverse(width),
            column_transform(height),
            column_transform(height).T,
            multiplicity(width)[:, None],  # (W // 2 + 1, 1)
        )
        tensors = [runtime.to_tensor(array, dtype=str(like.dtype)) for array in arrays]
        self.rows, self.row_inverse, self.columns, self.column_inverse, self.count = tensors


def _transformed(x, matrices):
    """Return the spectrum (N, C, H, K, 2) of x (N, C, H, W), by generic operators."""
    n, channels, height, width = x.shape
    half = jt.matmul(x.reshape(-1, width), matrices.rows).reshape(n, channels, height, 2, -1)  # (N, C, H, 2, K)
    columns = half.permute(0, 1, 4, 3, 2).reshape(-1, 2 * height)  # (N C K, 2 H)
    columns = jt.matmul(columns, matrices.columns)
    return columns.reshape(n, channels, -1, 2, height).permute(0, 1, 4, 2, 3)  # (N, C, K, 2, H) to (N, C, H, K, 2)


def _inverse(spectrum, matrices):
    """Return the real image (N, C, H, W) of a half spectrum (N, C, H, K, 2), by generic operators."""
    n, channels, height, count, _ = spectrum.shape
    columns = spectrum.permute(0, 1, 3, 4, 2).reshape(-1, 2 * height)  # (N C K, 2 H)
    columns = jt.matmul(columns, matrices.column_inverse)
    half = columns.reshape(n, channels, count, 2, height).permute(0, 1, 4, 3, 2)  # (N, C, H, 2, K)
    image = jt.matmul(half.reshape(-1, 2 * count), matrices.row_inverse)
    return image.reshape(n, channels, height, -1)


def _multiplied(a, b):
    """Return the products of complex numbers (..., 2)."""
    real = a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
    imaginary = a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]
    return jt.stack([real, imaginary], dim=-1)


def _conjugate(a):
    return jt.stack([a[..., 0], -a[..., 1]], dim=-1)


class _SpectralFilter(jt.Function):
    """Transform, product and inverse as one operator, because Jittor has no transform on a CPU.

    Milliseconds at (1, 128, 128, 128), forward | forward and backward, on two cores with other work:

        scipy's transforms in this operator            37 |  70
        transform and inverse as two operators         37 |  92
        transform as matrix products, 1x1 convolutions 77 | 181
        transform as matrix products, 2-D products     85 | 187
        PyTorch                                        18 |  62

    All results are within 6e-7 of that in float64, scipy's within 3e-7.
    """

    def execute(self, x, weight):
        matrices = _Matrices(x) if runtime.is_generic() else None
        filtered, spectrum = _forward(x, weight, matrices)
        self.saved = spectrum, weight, matrices
        return filtered

    def grad(self, grad):
        return _backward(grad, *self.saved)


def spectral_filter(x, weight):
    """Multiply the two-dimensional spectrum of each channel by a complex weight.

    x:      (N, C, H, W).
    weight: (C, H, W // 2 + 1, 2), real and imaginary parts for the half spectrum of a real signal.
    Returns (N, C, H, W). Frequencies that are their own conjugates keep only the real part of the product.
    """
    return _SpectralFilter.apply(x, weight)
