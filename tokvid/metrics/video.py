"""Metrics of two videos (PSNR, SSIM), of two sets of features (Fréchet and kernel distance), and of visible seams.

NumPy only. PSNR and SSIM agree with scikit-image, see tests/metrics/test_video.py.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float64, Num, UInt8

from tokvid.metrics.ssim import RADIUS, ssim_map


def _data_range(
    a_THWC: Num[np.ndarray, "t h w c"], b_THWC: Num[np.ndarray, "t h w c"], data_range: float | None
) -> float:
    """The data range of two videos; ValueError if they cannot be compared."""
    if a_THWC.shape != b_THWC.shape or a_THWC.ndim != 4:
        raise ValueError(f"need two videos of one shape (T, H, W, C), got {a_THWC.shape} and {b_THWC.shape}")
    if data_range is None:
        if a_THWC.dtype != np.uint8 or b_THWC.dtype != np.uint8:
            raise ValueError(f"data_range is needed for {a_THWC.dtype} and {b_THWC.dtype} ([-1, 1]: 2; [0, 1]: 1)")
        return 255.0
    return float(data_range)


def _decibels(mse_T: Float64[np.ndarray, " t"], data_range: float) -> Float64[np.ndarray, " t"]:
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / mse_T)


def _squared_error(a_HWC: Num[np.ndarray, "h w c"], b_HWC: Num[np.ndarray, "h w c"]) -> float:
    return float(np.mean((a_HWC.astype(np.float64) - b_HWC.astype(np.float64)) ** 2))


def psnr(
    a_THWC: Num[np.ndarray, "t h w c"], b_THWC: Num[np.ndarray, "t h w c"], data_range: float | None = None
) -> float:
    """PSNR of a whole clip in dB, from the squared error over all frames (not the mean of the frames' PSNRs)."""
    data_range = _data_range(a_THWC, b_THWC, data_range)
    errors_T = np.array([_squared_error(a, b) for a, b in zip(a_THWC, b_THWC, strict=True)])
    return float(_decibels(errors_T.mean(keepdims=True), data_range)[0])


def ssim_per_frame(
    a_THWC: Num[np.ndarray, "t h w c"], b_THWC: Num[np.ndarray, "t h w c"], data_range: float | None = None
) -> Float64[np.ndarray, " t"]:
    """Structural similarity of each frame, mean over channels; 1 where frames are equal.

    Wang et al. 2004 with their Gaussian window and population covariances, over the pixels whose window is
    inside the frame: scikit-image's `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`.
    ValueError when shapes differ or a side is below 11 pixels.
    """
    data_range = _data_range(a_THWC, b_THWC, data_range)
    if min(a_THWC.shape[1:3]) < 2 * RADIUS + 1:
        raise ValueError(f"SSIM needs frames of at least 11x11 pixels, got {a_THWC.shape[1]}x{a_THWC.shape[2]}")
    frames = zip(a_THWC, b_THWC, strict=True)
    return np.array([np.mean(ssim_map(a.astype(np.float64), b.astype(np.float64), data_range)) for a, b in frames])


def ssim(
    a_THWC: Num[np.ndarray, "t h w c"], b_THWC: Num[np.ndarray, "t h w c"], data_range: float | None = None
) -> float:
    """The mean of `ssim_per_frame`."""
    return float(ssim_per_frame(a_THWC, b_THWC, data_range).mean())


def temporal_error(a_THWC: UInt8[np.ndarray, "t h w c"], b_THWC: UInt8[np.ndarray, "t h w c"]) -> float:
    """Mean absolute difference between two uint8 videos' changes from frame to frame, in grey levels; 0 for images."""
    _data_range(a_THWC, b_THWC, None)
    if len(a_THWC) == 1:
        return 0.0
    return float(np.abs(np.diff(a_THWC.astype(np.float32), axis=0) - np.diff(b_THWC.astype(np.float32), axis=0)).mean())


# Of a video (the second) compared with the real one: reported by `tokvid evaluate reconstruction`, at most 100.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "psnr": psnr,
    "ssim": ssim,
    "temporal_error": temporal_error,
}


def detail(video_THWC: Num[np.ndarray, "t h w c"]) -> float:
    """Energy of a video's high spatial frequencies (above half of the highest), per pixel, in grey levels squared."""
    grey_THW = video_THWC.astype(np.float64).mean(axis=-1)
    height, width = grey_THW.shape[1:]
    fast_HW = np.maximum(np.abs(np.fft.fftfreq(height))[:, None], np.abs(np.fft.fftfreq(width))[None]) > 0.25
    energy_THW = np.abs(np.fft.fft2(grey_THW)) ** 2 / (height * width) ** 2
    return float(energy_THW[:, fast_HW].sum(axis=-1).mean())


def kernel_distance(a_ND: Float[np.ndarray, "n d"], b_ND: Float[np.ndarray, "m d"]) -> float:
    """Squared maximum mean discrepancy, kernel (x·y/D + 1)^3, unbiased (Bińkowski et al. 2018): may be below 0."""
    if a_ND.ndim != 2 or b_ND.ndim != 2 or a_ND.shape[1] != b_ND.shape[1]:
        raise ValueError(f"need features (videos, D) of one D, got {a_ND.shape} and {b_ND.shape}")
    if min(len(a_ND), len(b_ND)) < 2:
        raise ValueError(f"need at least 2 videos on each side, got {len(a_ND)} and {len(b_ND)}")
    a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)

    def kernel(x_ND, y_ND):
        return (x_ND @ y_ND.T / x_ND.shape[1] + 1) ** 3

    def within(x_ND):
        values_NN, n = kernel(x_ND, x_ND), len(x_ND)
        return (values_NN.sum() - np.trace(values_NN)) / (n * (n - 1))

    return float(within(a_ND) + within(b_ND) - 2 * kernel(a_ND, b_ND).mean())


def frechet_distance(a_ND: Float[np.ndarray, "n d"], b_ND: Float[np.ndarray, "m d"]) -> float:
    """Squared Fréchet distance of two Gaussians fitted to features, one row a video (Dowson and Landau 1982).

    |mean difference|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), unbiased covariances. The product's symmetric
    form has real roots, unlike scipy's `sqrtm` of A B when covariances are singular. The distance is an FVD
    only with the features of the published I3D network.
    """
    if a_ND.ndim != 2 or b_ND.ndim != 2 or a_ND.shape[1] != b_ND.shape[1]:
        raise ValueError(f"need features (videos, D) of one D, got {a_ND.shape} and {b_ND.shape}")
    if min(len(a_ND), len(b_ND)) < 2:
        raise ValueError(f"need at least 2 videos on each side, got {len(a_ND)} and {len(b_ND)}")
    a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
    a_DD, b_DD = np.atleast_2d(np.cov(a_ND, rowvar=False)), np.atleast_2d(np.cov(b_ND, rowvar=False))
    values_D, vectors_DD = np.linalg.eigh(a_DD)
    root_DD = (vectors_DD * np.sqrt(values_D.clip(0))) @ vectors_DD.T
    product_D = np.linalg.eigvalsh(root_DD @ b_DD @ root_DD).clip(0)
    difference_D = a_ND.mean(0) - b_ND.mean(0)
    distance = difference_D @ difference_D + np.trace(a_DD) + np.trace(b_DD) - 2 * np.sqrt(product_D).sum()
    return float(max(distance, 0.0))


def seam_ratio(video_THWC: Num[np.ndarray, "t h w c"], joins: Sequence[int]) -> float:
    """The mean |frame difference| at joins over the mean elsewhere; 1 is seamless.

    `joins` are the indices of frames that begin a new segment; the difference is to the frame before. NaN if no frame
    changes, inf if frames change at joins only. ValueError without a join or without a step elsewhere.
    """
    steps = len(video_THWC) - 1
    if not joins or not all(1 <= join <= steps for join in joins):
        raise ValueError(f"joins should be frame indices from 1 to {steps}, at least one, got {list(joins)}")
    change_T = np.array(
        [
            np.abs(after.astype(np.float64) - before.astype(np.float64)).mean()
            for before, after in itertools.pairwise(video_THWC)
        ]
    )
    at_join_T = np.zeros(steps, bool)
    at_join_T[np.asarray(joins) - 1] = True
    if at_join_T.all():
        raise ValueError(f"every one of the {steps} steps is a join; give a video with frames between joins")
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(change_T[at_join_T].mean() / change_T[~at_join_T].mean())
