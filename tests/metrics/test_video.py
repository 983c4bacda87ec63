"""Metrics against scikit-image's numbers and against cases whose answer is known."""

import json

import numpy as np
import pytest

from tokvid.metrics.video import detail, frechet_distance, kernel_distance, psnr, seam_ratio, ssim, ssim_per_frame


def pair(shape=(3, 24, 30, 3)):
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, shape, dtype=np.uint8)
    return a, (a * 0.7 + rng.integers(0, 70, shape)).astype(np.uint8)


def test_agree_with_the_stored_reference(dev_data):
    frames = np.load(dev_data / "reference" / "psnr_ssim_frames.npz")
    values = json.loads((dev_data / "reference" / "psnr_ssim_expected.json").read_text())["values"]
    for name, expected in values.items():
        base, other = frames["base"], frames[name]
        each = [psnr(*frames) for frames in zip(base[:, None], other[:, None], strict=True)]
        np.testing.assert_allclose(each, expected["psnr_per_frame"], atol=1e-6)
        assert psnr(base, other) == pytest.approx(expected["psnr_global_mse"], abs=1e-6)
        np.testing.assert_allclose(ssim_per_frame(base, other), expected["ssim_per_frame"], atol=1e-6)


def test_ssim_is_scikit_images():
    skimage = pytest.importorskip("skimage.metrics")
    a, b = pair()
    floats = a / 127.5 - 1, b / 127.5 - 1
    for x, y, data_range in [(a, b, 255), (*floats, 2.0)]:
        expected = [
            skimage.structural_similarity(
                p,
                q,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=data_range,
                channel_axis=-1,
            )
            for p, q in zip(x, y, strict=True)
        ]
        np.testing.assert_allclose(ssim_per_frame(x, y, data_range), expected, atol=1e-9)


def test_equal_videos_and_wrong_shapes(unchecked_types):
    a, b = pair()
    assert psnr(a, a) == np.inf and ssim(a, a) == pytest.approx(1.0)
    assert psnr(a, b) == psnr(b, a) < 30
    with pytest.raises(ValueError, match=r"\(3, 24, 30, 3\) and \(2, 24, 30, 3\)"):
        psnr(a, b[:2])
    with pytest.raises(ValueError, match="data_range"):
        psnr(a / 255, b / 255)
    with pytest.raises(ValueError, match="11x11"):
        ssim(a[:, :8], b[:, :8])


def test_frechet_distance(dev_data):
    features = np.load(dev_data / "reference" / "frechet_fixture.npz")
    assert frechet_distance(features["a"], features["b"]) == pytest.approx(3.115202481857739, rel=1e-9)
    assert frechet_distance(features["a"], features["a"]) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(50, 4))
    assert frechet_distance(a, a + np.array([3.0, 0, 4, 0])) == pytest.approx(25.0)
    scaled = 2 * a
    mean = a.mean(0)
    expected = mean @ mean + np.trace(np.cov(a, rowvar=False))  # (2 - 1)^2 of both
    assert frechet_distance(a, scaled) == pytest.approx(expected)
    few = rng.normal(size=(3, 40))  # covariances of rank 2
    assert 0 <= frechet_distance(few, few[::-1]) < 1e-6
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(a[:1], a)


def test_kernel_distance_is_unbiased():
    """By hand: of 0 and 1, the kernel is 1 between two of one set, and 1, 1, 1 and 8 across the sets."""
    few = np.array([[0.0], [1.0]])
    assert kernel_distance(few, few) == pytest.approx(1 + 1 - 2 * 11 / 4)


def test_detail_is_what_is_fast_in_any_direction():
    """Stripes of a pixel count in full, of two pixels not at all."""
    stripes = np.broadcast_to(np.tile(np.array([0, 90], np.uint8), 16)[:, None], (1, 16, 32, 3))
    for video, wanted in ((stripes, 45**2), (stripes.swapaxes(1, 2), 45**2), (stripes.repeat(2, axis=2), 0)):
        assert detail(video) == pytest.approx(wanted, abs=1e-6)


def test_seam_ratio():
    video = np.zeros((8, 4, 4, 3), np.uint8)
    video[:] = np.arange(0, 80, 10, dtype=np.uint8)[:, None, None, None]
    assert seam_ratio(video, [4]) == pytest.approx(1.0)
    video[4:] += 50
    assert seam_ratio(video, [4]) == pytest.approx(6.0)
    assert seam_ratio(video, [2]) == pytest.approx(10 / (110 / 6))
    with pytest.raises(ValueError, match="from 1 to 7"):
        seam_ratio(video, [0])
    with pytest.raises(ValueError):
        seam_ratio(video, [])
