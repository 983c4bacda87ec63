"""Features of videos, for distances between sets. A distance is only comparable under the same features.

To add some: a function in FEATURES that returns a `Features`. Or, without a change here, name a Python file that
defines such a function, `features`, for example with a trained network. A .safetensors file is an I3D's.
"""

import dataclasses
import functools
import hashlib
import itertools
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from tokvid.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Features:
    """`extract` maps uint8 videos to float32 features; `mark` changes whenever the features do.

    `frechet` is what the Fréchet distance of these features is called; they need videos of `least_frames` frames.
    """

    name: str
    mark: str
    extract: Callable[[UInt8[np.ndarray, "b t h w 3"]], Float32[np.ndarray, "b d"]]
    frechet: str = "frechet"
    least_frames: int = 1

    def check(self, frames: int) -> None:
        """UserError for videos of too few frames."""
        if frames < self.least_frames:
            raise UserError(
                f"features {self.name} need videos of {self.least_frames} frames or more, got {frames}: use longer "
                "ones, or other --features"
            )


def _random_convolutions() -> Features:
    """A fixed random network over each frame and its change from the one before, averaged over space and time.

    Random features distinguish textures, edges and motion, not objects.
    """

    def extract(video_BTHWC: UInt8[np.ndarray, "b t h w 3"]) -> Float32[np.ndarray, "b d"]:
        return np.stack([_averages(video_THWC) for video_THWC in video_BTHWC])

    mark = hashlib.sha256(b"".join(kernel.tobytes() for kernel in _kernels())).hexdigest()[:12]
    return Features("random-convolutions", mark, extract)


def _averages(video_THWC: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, " d"]:
    x_THWC = video_THWC.astype(np.float32) / 127.5 - 1
    *_, deepest_THWC = _depths(np.concatenate([x_THWC, np.diff(x_THWC, axis=0, prepend=x_THWC[:1])], axis=-1))
    return deepest_THWC.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)


def perceptual_distance(a_THWC: UInt8[np.ndarray, "t h w 3"], b_THWC: UInt8[np.ndarray, "t h w 3"]) -> float:
    """LPIPS (Zhang et al. 2018) of two videos' frames, but with the random network of `random-convolutions`.

    The squared distance between features that are scaled to length 1 at each place, averaged over places and depths: 0
    for equal frames, about 1 for unrelated ones.
    """

    def depths(video_THWC: np.ndarray) -> Iterator[np.ndarray]:
        still_THWC = np.concatenate([video_THWC.astype(np.float32) / 127.5 - 1, np.zeros(video_THWC.shape)], axis=-1)
        for x_THWC in _depths(still_THWC.astype(np.float32)):
            yield x_THWC / np.sqrt(np.sum(np.square(x_THWC), axis=-1, keepdims=True) + 1e-10)

    apart = [np.mean(np.sum(np.square(a - b), axis=-1)) for a, b in zip(depths(a_THWC), depths(b_THWC), strict=True)]
    return float(np.mean(apart))


@functools.cache
def _kernels() -> list[np.ndarray]:
    """Those of the random network, (4, 4, channels in, out)."""
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(4, 4, a, b)) * np.sqrt(2 / (16 * a))).astype(np.float32)
        for a, b in itertools.pairwise((6, 32, 64, 64))
    ]


def _depths(x_THWC: Float[np.ndarray, "t h w 6"]) -> Iterator[np.ndarray]:
    """The random network's features at each depth, of frames and their change from the one before."""
    for kernel in _kernels():
        x_THWC = _halve(x_THWC, kernel)
        x_THWC = np.maximum(x_THWC, 0.2 * x_THWC)
        yield x_THWC


def _halve(
    x_THWC: Float[np.ndarray, "t h w c"], kernel_ijCD: Float[np.ndarray, "4 4 c d"]
) -> Float[np.ndarray, "t rows columns d"]:
    """A convolution of 4 x 4 pixels with stride 2, zeros beyond the edges: half of H and of W, D channels."""
    x_THWC = np.pad(x_THWC, ((0, 0), (1, 1 + x_THWC.shape[1] % 2), (1, 1 + x_THWC.shape[2] % 2), (0, 0)))
    windows_THWCij = sliding_window_view(x_THWC, (4, 4), axis=(1, 2))[:, ::2, ::2]
    return np.einsum("THWCij,ijCD->THWD", windows_THWCij, kernel_ijCD, optimize=True)


def _i3d(path: Path) -> Features:
    from tokvid.metrics.i3d import I3D, LEAST_FRAMES

    network = I3D(path)
    return Features("i3d", network.mark, network, "fvd", LEAST_FRAMES)


FEATURES: dict[str, Callable[[], Features]] = {"random-convolutions": _random_convolutions}


@functools.cache
def load_features(name: str) -> Features:
    """The features named in FEATURES, of an I3D's file, or defined by a Python file. UserError where there are none."""
    if name in FEATURES:
        return FEATURES[name]()
    path = Path(name)
    if path.suffix == ".safetensors":
        return _i3d(path)
    if path.suffix != ".py":
        raise UserError(did_you_mean(name, FEATURES, "features"))
    if not path.is_file():
        raise UserError(f"no features file {path}; name one that defines `features`, or use {', '.join(FEATURES)}")
    try:
        if (make := runpy.run_path(str(path)).get("features")) is None:
            raise UserError(f"{path} defines no `features`; define a function of no arguments that returns a Features")
        features = make()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's code can raise anything
        raise UserError(f"{path} fails with {type(error).__name__}: {error}") from error
    if not isinstance(features, Features):
        raise UserError(f"features() in {path} returns {type(features).__name__}; it should return a Features")
    return features
