"""What a distance between sets of videos looks at. A number means something only beside the features it was made with.

To add some: a function in FEATURES that gives a `Features`. From outside, a Python file that defines `features`, such a
function of no arguments, is named instead: with a trained network's features the distance is that network's.
"""

import dataclasses
import functools
import hashlib
import itertools
import runpy
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tokvid.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Features:
    """`extract`: uint8 videos (B, T, H, W, 3) → float32 (B, D). `mark` changes whenever the numbers would."""

    name: str
    mark: str
    extract: Callable[[np.ndarray], np.ndarray]


def _random_convolutions() -> Features:
    """A fixed random network over each frame and its change from the one before, averaged over space and time.

    Random features tell textures, edges and motion apart; what things are they don't know.
    """
    rng = np.random.default_rng(0)
    widths = (6, 32, 64, 64)
    kernels = [
        (rng.normal(size=(4, 4, a, b)) * np.sqrt(2 / (16 * a))).astype(np.float32)
        for a, b in itertools.pairwise(widths)
    ]

    @jax.jit
    def extract(video_BTHWC: jax.Array) -> jax.Array:
        x = jnp.asarray(video_BTHWC, jnp.float32) / 127.5 - 1
        change = jnp.diff(x, axis=1, prepend=x[:, :1])
        x = jnp.concatenate([x, change], axis=-1)
        B, T, *picture = x.shape
        x = x.reshape(B * T, *picture)
        for kernel in kernels:
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.leaky_relu(x, 0.2)
        return jnp.mean(x.reshape(B, -1, widths[-1]), axis=1)

    mark = hashlib.sha256(b"".join(kernel.tobytes() for kernel in kernels)).hexdigest()[:12]
    return Features("random-convolutions", mark, lambda video_BTHWC: np.asarray(extract(video_BTHWC)))


FEATURES: dict[str, Callable[[], Features]] = {"random-convolutions": _random_convolutions}


@functools.cache
def load_features(name: str) -> Features:
    """Those of that name in FEATURES, or of a Python file. UserError where there is neither."""
    if name in FEATURES:
        return FEATURES[name]()
    path = Path(name)
    if path.suffix != ".py":
        raise UserError(did_you_mean(name, FEATURES, "features"))
    if not path.is_file():
        raise UserError(f"no features file {path}; name one that defines `features`, or use {', '.join(FEATURES)}")
    try:
        found = runpy.run_path(str(path))["features"]()
    except KeyError as error:
        raise UserError(f"{path} defines no `features`, a function of no arguments that gives a Features") from error
    except Exception as error:  # whatever the user's own code does wrong
        raise UserError(f"{path} fails with {type(error).__name__}: {error}") from error
    if not isinstance(found, Features):
        raise UserError(f"features() in {path} gives {type(found).__name__}; it should give a Features")
    return found
