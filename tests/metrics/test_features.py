"""Distances between sets of videos, and what they look at."""

import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.metrics.features import FEATURES, load_features, perceptual_distance
from tokvid.metrics.video import detail, frechet_distance, kernel_distance, temporal_error


def videos(seed, count=12, frames=5):
    """Noise, smooth in space, that drifts."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 1, 4, 4, 3)).repeat(4, 2).repeat(4, 3)
    return np.concatenate([np.roll(coarse, i, axis=3) for i in range(frames)], axis=1).astype(np.uint8)


def test_the_features_are_the_same_every_time():
    first, again = load_features("random-convolutions"), load_features("random-convolutions")
    assert first.mark == again.mark == "3c4c9a3384ee"  # the figures of evaluations hang on it
    np.testing.assert_array_equal(first.extract(videos(0)), again.extract(videos(0)))
    assert first.extract(videos(0)[:, :1]).shape == (12, 64)  # images too


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_numbers_of_each_video_alone(name):
    """Of clips of any length and size, images too."""
    features, clips = load_features(name), videos(0, 3)
    values_BD = features.extract(clips)
    assert features.name == name and features.mark and values_BD.dtype == np.float32 and np.isfinite(values_BD).all()
    assert len(np.unique(values_BD, axis=0)) == 3
    for other in (clips[1:2], clips[:, :1], np.pad(clips, ((0, 0), (0, 0), (0, 9), (0, 3), (0, 0)))):
        assert features.extract(other).shape == (len(other), values_BD.shape[1])
    np.testing.assert_allclose(features.extract(clips[1:2])[0], values_BD[1], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def worse():
    """Features of a set of videos, and of others by how they differ: extracted once, which takes seconds for each."""
    real, rng = videos(0, 300), np.random.default_rng(1)
    sets = {
        "real": real,
        "others": videos(5, 300),
        "blurred": sum(np.roll(real.astype(np.float32), i, 2) for i in range(4)) / 4,
        "noisy": np.clip(real + rng.normal(0, 60, real.shape), 0, 255),
        "shuffled": real[:, [2, 0, 4, 1, 3]],
    }
    extract = load_features("random-convolutions").extract
    return {name: extract(each.astype(np.uint8)) for name, each in sets.items()}


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_what_is_worse_is_further_away(distance, worse):
    far = {name: distance(worse["real"], features_ND) for name, features_ND in worse.items()}
    assert far["others"] < far["blurred"] < far["noisy"]
    assert far["shuffled"] > far["others"]


def test_the_perceptual_distance_of_frames():
    """None between equal ones, least for a little noise, symmetric; of frames alone, whatever their order."""
    real, other = videos(0, 2)
    noisy = np.clip(real + np.random.default_rng(1).normal(0, 20, real.shape), 0, 255).astype(np.uint8)
    assert perceptual_distance(real, real) == 0
    assert 0 < perceptual_distance(real, noisy) < perceptual_distance(real, np.roll(real, 3, axis=2))
    assert perceptual_distance(real, np.roll(real, 3, axis=2)) < perceptual_distance(real, other)
    assert perceptual_distance(real, other) == pytest.approx(perceptual_distance(other, real))
    assert perceptual_distance(real[::-1], noisy[::-1]) == pytest.approx(perceptual_distance(real, noisy), rel=1e-5)


def test_the_kernel_distance_is_the_unbiased_one():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3))

    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / 3 + 1) ** 3

    within = [np.mean([kernel(x, y) for x in z for y in z if x is not y]) for z in (list(a), list(b))]
    wanted = sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(wanted)
    many = np.random.default_rng(1).normal(size=(2, 2000, 3))
    assert abs(kernel_distance(*many)) < 0.05
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(a[:1], b)


def test_detail_and_temporal_error():
    flat, checks = np.full((2, 8, 8, 3), 9, np.uint8), np.zeros((2, 8, 8, 3), np.uint8)
    checks[:, ::2, 1::2] = checks[:, 1::2, ::2] = 200
    assert detail(flat) == 0 and detail(checks) == pytest.approx(100**2)  # all but the mean
    still, blinking = checks.copy(), checks.copy()
    blinking[1] = 0
    assert temporal_error(still, checks) == 0 and temporal_error(still, blinking) == 100


def test_features_from_a_file(tmp_path):
    path = tmp_path / "mine.py"
    with pytest.raises(UserError, match=r"no features file"):
        load_features(str(path))
    path.write_text(
        "from tokvid.metrics.features import Features\n"
        "def features():\n    return Features('brightness', '1', lambda video: video.mean((1, 2, 3)))\n"
    )
    found = load_features(str(path))
    assert found.name == "brightness" and found.extract(videos(0)).shape == (12, 3)


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1", "defines no `features`"),
        ("def features(): 1 / 0", "ZeroDivisionError"),
        ("def features(): return {}['weights']", "fails with KeyError: 'weights'"),
        ("def features(): return 3", "returns int"),
    ],
)
def test_files_without_features_are_refused(tmp_path, text, said):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_features(str(path))


def test_unknown_features_are_refused():
    with pytest.raises(UserError, match=r"random-convolution.*random-convolutions"):
        load_features("random-convolution")
