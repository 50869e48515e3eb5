"""The spectral filter of the FF-Parser."""

import torch as th

from guided_diffusion_pt import runtime


def spectral_filter(x, weight):
    """Multiply the two-dimensional spectrum of each channel by a complex weight.

    x:      (N, C, H, W).
    weight: (C, H, W // 2 + 1, 2), real and imaginary parts for the half spectrum of a real signal.
    Returns (N, C, H, W). Frequencies that are their own conjugates keep only the real part of the product.
    """
    spectrum = th.fft.rfft2(runtime.widened(x), norm="ortho")  # (N, C, H, W // 2 + 1), complex
    spectrum = spectrum * th.view_as_complex(weight)
    return th.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho").to(x.dtype)
