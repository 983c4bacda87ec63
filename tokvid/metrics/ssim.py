"""The similarity map of Wang et al. 2004, for NumPy and JAX arrays: a metric, and a loss of the tokenizer."""

import math
from typing import Any

from jaxtyping import Float

# A Gaussian of sigma 1.5 cut at 3.5 sigma: Wang et al. 2004, "Image quality assessment", section III-B.
RADIUS = 5
_BELL = [math.exp(-0.5 * (i / 1.5) ** 2) for i in range(-RADIUS, RADIUS + 1)]
_WINDOW = [weight / sum(_BELL) for weight in _BELL]


def _blur(image_HWC: Float[Any, "h w c"]) -> Float[Any, "h-10 w-10 c"]:
    """The Gaussian mean around each pixel whose whole window is inside the image."""
    rows, columns = image_HWC.shape[0] - 2 * RADIUS, image_HWC.shape[1] - 2 * RADIUS
    down_HWC = sum(weight * image_HWC[i : i + rows] for i, weight in enumerate(_WINDOW))
    return sum(weight * down_HWC[:, i : i + columns] for i, weight in enumerate(_WINDOW))


def ssim_map(a_HWC: Float[Any, "h w c"], b_HWC: Float[Any, "h w c"], data_range: float) -> Float[Any, "h-10 w-10 c"]:
    """SSIM of two frames around each pixel whose window is inside them."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = _blur(a_HWC), _blur(b_HWC)
    variances = _blur(a_HWC**2 + b_HWC**2) - mean_a**2 - mean_b**2
    covariance = _blur(a_HWC * b_HWC) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return similarity / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
