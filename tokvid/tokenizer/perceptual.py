"""The perceptual distance: between an image network's features of two frames (Zhang et al. 2018, LPIPS).

No network is shipped; the user names a .safetensors file with a VGG's convolutions under torchvision's names,
`features.N.weight` (out, in, 3, 3) and `features.N.bias`. The numbers N show where it pools.
"""

from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jaxtyping import Array, Float

from tokvid.errors import UserError
from tokvid.tokenizer.quantizers import Buffer

# ImageNet's, with which torchvision's networks are trained.
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


class Perceptual(nnx.Module):
    """VGG's features before each pooling and at the end, scaled to length 1 at each place. Never trained."""

    def __init__(self, path: str):
        """UserError for a file that is missing, damaged, or no VGG."""
        tensors, numbers = _read(Path(path))
        self.kernels = nnx.List(
            Buffer(jnp.asarray(tensors[f"features.{n}.weight"].transpose(2, 3, 1, 0), jnp.float32)) for n in numbers
        )
        self.biases = nnx.List(Buffer(jnp.asarray(tensors[f"features.{n}.bias"], jnp.float32)) for n in numbers)
        # Layers are numbered: the next convolution comes two after one (behind a ReLU), or three (behind a pooling,
        # too).
        self.pooled = (*(after - before == 3 for before, after in pairwise(numbers)), True)

    def __call__(
        self, rebuilt_BTHWC: Float[Array, "b t h w 3"], truth_BTHWC: Float[Array, "b t h w 3"]
    ) -> Float[Array, ""]:
        """The squared distance between the features of two videos in [-1, 1], averaged over depths and places."""
        x = jnp.stack([rebuilt_BTHWC, truth_BTHWC]).reshape(-1, *rebuilt_BTHWC.shape[2:])
        x = ((x + 1) / 2 - MEAN) / DEVIATION
        distances = []
        for kernel, bias, pooled in zip(self.kernels, self.biases, self.pooled, strict=True):
            if not min(x.shape[1:3]):
                break  # frames too small for the deeper layers
            x = jax.lax.conv_general_dilated(x, kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + bias[...])
            if pooled:
                rebuilt, truth = jnp.split(x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-10), 2)
                distances.append(jnp.mean(jnp.sum(jnp.square(rebuilt - truth), axis=-1)))
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jnp.mean(jnp.stack(distances))


def _read(path: Path) -> tuple[dict[str, np.ndarray], list[int]]:
    """The file's tensors, and the numbers of its convolutions in order."""
    if not path.is_file():
        raise UserError(
            f"no file {path} for the perceptual loss; name a VGG's .safetensors file, or set its weight to 0"
        )
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is no .safetensors file ({error}); the perceptual loss needs one") from error
    kernels = {name: tensor for name, tensor in tensors.items() if name.startswith("features.") and tensor.ndim == 4}
    numbers = sorted(int(name.split(".")[1]) for name in kernels)
    expected: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for number in numbers:
        channels = len(kernels[f"features.{number}.weight"])
        expected |= {f"features.{number}.weight": (channels, inputs, 3, 3), f"features.{number}.bias": (channels,)}
        inputs = channels
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("features.")}
    if shapes != expected or not numbers or {b - a for a, b in pairwise(numbers)} - {2, 3}:
        raise UserError(
            f"{path} holds no VGG as torchvision names it: features.N.weight (out, in, 3, 3) and features.N.bias, N "
            "two or three further on each time, without batch norm"
        )
    return tensors, numbers
