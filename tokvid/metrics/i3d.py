"""I3D (Carreira and Zisserman 2017), whose features make a Fréchet distance the FVD (Unterthiner et al. 2018).

No network is shipped; the user names a .safetensors file with the weights that were trained on Kinetics-400, under the
names of their PyTorch conversion, `Mixed_3b.b1a.conv3d.weight` and so on. scripts/i3d.py makes such a file.
"""

import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, Float, Float32, UInt8

from tokvid.errors import UserError

LEAST_FRAMES = 9  # so that two are left after halving three times: the last pooling averages pairs
SIZE = 224  # pixels
EPSILON = 1e-3  # of the batch norms

# The output channels of the six convolutions of each Inception module.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_POOLED = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}  # before these: window, stride

Layer = tuple[jax.Array, jax.Array]  # kernel (T, H, W, in, out) and bias, the batch norm included


def layer_shapes() -> dict[str, tuple[int, ...]]:
    """The shape (out, in, T, H, W) of the kernel of each convolution, by its name."""
    shapes: dict[str, tuple[int, ...]] = {
        "Conv3d_1a_7x7": (64, 3, 7, 7, 7),
        "Conv3d_2b_1x1": (64, 64, 1, 1, 1),
        "Conv3d_2c_3x3": (192, 64, 3, 3, 3),
    }
    channels = 192
    for name, (b0, b1a, b1b, b2a, b2b, b3b) in _MIXED.items():
        for branch, out in (("b0", b0), ("b1a", b1a), ("b2a", b2a), ("b3b", b3b)):
            shapes[f"{name}.{branch}"] = (out, channels, 1, 1, 1)
        shapes |= {f"{name}.b1b": (b1b, b1a, 3, 3, 3), f"{name}.b2b": (b2b, b2a, 3, 3, 3)}
        channels = b0 + b1b + b2b + b3b
    return shapes | {"logits": (400, channels, 1, 1, 1)}


class I3D:
    """The network from a file; `mark` is a hash of its weights."""

    def __init__(self, path: Path):
        """UserError for a file that is missing, damaged, or no I3D."""
        tensors = _read(path)
        self._layers = {name: _folded(tensors, name) for name in layer_shapes()}
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].tobytes())
        self.mark = digest.hexdigest()[:12]

    def __call__(self, video_BTHWC: UInt8[np.ndarray, "b t h w 3"]) -> Float32[np.ndarray, "b 400"]:
        """The logits of videos of at least LEAST_FRAMES frames of any size, averaged over time: the features of FVD."""
        logits = [_logits(self._layers, jnp.asarray(video_THWC)) for video_THWC in video_BTHWC]
        return np.stack([np.asarray(each) for each in logits])


def _read(path: Path) -> dict[str, np.ndarray]:
    """The file's tensors in float32: those of the batch norms and kernels, and nothing else."""
    if not path.is_file():
        raise UserError(f"no features file {path}; name the .safetensors file of an I3D: see docs/extending.md")
    try:
        found = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no readable .safetensors file: {error}") from error
    tensors: dict[str, np.ndarray] = {}
    for name, shape in layer_shapes().items():
        wanted = {f"{name}.conv3d.weight": shape}
        if name == "logits":
            wanted["logits.conv3d.bias"] = shape[:1]
        else:
            found.setdefault(f"{name}.bn.weight", np.ones(shape[0], np.float32))  # the original has no scale
            wanted |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
        for tensor, expected in wanted.items():
            if tensor not in found or found[tensor].shape != expected:
                got = f"has shape {found[tensor].shape}" if tensor in found else "is missing"
                raise UserError(f"{path} is no I3D of Kinetics-400: {tensor} {got}, it should have shape {expected}")
            tensors[tensor] = np.ascontiguousarray(found[tensor], np.float32)
            if not np.isfinite(tensors[tensor]).all():
                raise UserError(f"{path} is damaged: {tensor} has numbers that aren't finite")
    return tensors


def _folded(tensors: dict[str, np.ndarray], name: str) -> Layer:
    kernel = tensors[f"{name}.conv3d.weight"].transpose(2, 3, 4, 1, 0)
    if name == "logits":
        return jnp.asarray(kernel), jnp.asarray(tensors["logits.conv3d.bias"])
    scale, shift, mean, variance = (
        tensors[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(variance + np.float32(EPSILON))
    return jnp.asarray(kernel * scale), jnp.asarray(shift - mean * scale)


@jax.jit
def _logits(layers: dict[str, Layer], video_THWC: UInt8[Array, "t h w 3"]) -> Float[Array, "400"]:
    x = _scaled(video_THWC.astype(jnp.float32) / 127.5 - 1)[None]
    x = jax.nn.relu(_convolved(x, layers["Conv3d_1a_7x7"], stride=2))
    x = _pooled(x, (1, 3, 3), (1, 2, 2))
    for name in ("Conv3d_2b_1x1", "Conv3d_2c_3x3"):
        x = jax.nn.relu(_convolved(x, layers[name]))
    x = _pooled(x, (1, 3, 3), (1, 2, 2))
    for name in _MIXED:
        if name in _POOLED:
            x = _pooled(x, *_POOLED[name])
        x = _mixed(x, {branch: layers[f"{name}.{branch}"] for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")})
    # The last frames are 7x7, so each pair of them has one mean.
    means_TC = x[0].mean(axis=(1, 2))
    pairs_TC = (means_TC[1:] + means_TC[:-1]) / 2
    kernel, bias = layers["logits"]
    return (pairs_TC @ kernel[0, 0, 0] + bias).mean(axis=0)


def _mixed(x: jax.Array, branches: dict[str, Layer]) -> jax.Array:
    """An Inception module: four branches side by side."""
    ran = {name: functools.partial(_convolved, layer=layer) for name, layer in branches.items()}
    outputs = [
        ran["b0"](x),
        ran["b1b"](jax.nn.relu(ran["b1a"](x))),
        ran["b2b"](jax.nn.relu(ran["b2a"](x))),
        ran["b3b"](_pooled(x, (3, 3, 3), (1, 1, 1))),
    ]
    return jax.nn.relu(jnp.concatenate(outputs, axis=-1))


def _convolved(x: jax.Array, layer: Layer, stride: int = 1) -> jax.Array:
    kernel, bias = layer
    names = ("NTHWC", "THWIO", "NTHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 3, "SAME", dimension_numbers=names) + bias


def _pooled(x: jax.Array, window: tuple[int, ...], stride: tuple[int, ...]) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), "SAME")


def _scaled(video_THWC: Float[Array, "t h w 3"]) -> Float[Array, "t rows columns 3"]:
    """Bilinearly to SIZE x SIZE pixels, as TensorFlow's resize_bilinear, with which FVD was defined: corners coincide
    at the upper left only.
    """
    for axis in (1, 2):
        count = video_THWC.shape[axis]
        place = jnp.arange(SIZE) * (count / SIZE)
        before = jnp.floor(place).astype(jnp.int32)
        share = jnp.expand_dims(place - before, [i for i in range(4) if i != axis])
        low, high = (jnp.take(video_THWC, index, axis=axis) for index in (before, jnp.minimum(before + 1, count - 1)))
        video_THWC = low + (high - low) * share
    return video_THWC
