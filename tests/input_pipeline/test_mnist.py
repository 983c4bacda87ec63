"""Captioned Moving MNIST: motion, captions and held-out axes as published; digits' files read with care."""

import gzip
import re

import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.input_pipeline.mnist import FPS, FRAMES, STEP, TRAINED_AXIS, VIDEOS, MovingMnist, read_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Made-up digits: a frame of grey with the label as its brightness, so that corners and labels can be
    read back.
    """
    images = np.stack([np.full((28, 28), 100 + label, np.uint8) for label in range(10)])
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, images=images, labels=np.arange(10))
    return path


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def corners_seen(frames_THWC):
    return np.array([np.argwhere(frame_HWC[..., 0] > 0).min(axis=0) for frame_HWC in frames_THWC])


def test_splits(digits):
    assert {split: len(MovingMnist(digits, split)) for split in VIDEOS} == {"train": 10_000, "test": 2_000}
    item = MovingMnist(digits)[0]
    assert item.seconds == 2.5 and item.frames().shape == (20, 64, 64, 1)
    assert item.read(0.0, FPS, FRAMES, (64, 64)).shape == (20, 64, 64, 3)
    with pytest.raises(IndexError):
        MovingMnist(digits)[10_000]


def test_captions_say_what_is_seen(digits):
    seen = set()
    for split in VIDEOS:
        source = MovingMnist(digits, split)
        for i in range(300):
            item = source[i]
            label, first, then = re.fullmatch(
                r"the digit (\d) is moving (\w+) then (\w+) \.", item.captions[0].text
            ).groups()
            frames_THWC = item.frames()
            assert frames_THWC.max() == 100 + int(label)
            corners_TC = corners_seen(frames_THWC)
            steps_TC = np.diff(corners_TC, axis=0)
            axis = "vertical" if first in ("up", "down") else "horizontal"
            along_T = steps_TC[:, 0 if axis == "vertical" else 1]
            assert not steps_TC[:, 1 if axis == "vertical" else 0].any(), "it moves along one axis only"
            assert along_T[0] != 0 and ("up", "down", "left", "right").index(first) % 2 == (along_T[0] > 0)
            signs = np.sign(along_T[along_T != 0])
            assert (signs != signs[0]).any() and {first, then} in ({"up", "down"}, {"left", "right"})
            assert abs(along_T).max() <= np.ceil(STEP * 36) and corners_TC.min() >= 0 and corners_TC.max() <= 36
            seen.add((split, int(label), axis))
    for label in range(10):
        held_out = "horizontal" if TRAINED_AXIS[label] == "vertical" else "vertical"
        assert ("train", label, TRAINED_AXIS[label]) in seen and ("test", label, held_out) in seen
    assert len(seen) == 20, "no digit takes its held-out axis in training, nor the other in the test split"


def test_items_depend_on_seed_and_index(digits):
    one, same, other = MovingMnist(digits, seed=1), MovingMnist(digits, seed=1), MovingMnist(digits, seed=2)
    np.testing.assert_array_equal(one[7].frames(), same[7].frames())
    assert any((one[i].frames() != other[i].frames()).any() for i in range(3))


def test_reading_holds_frames(digits):
    item = MovingMnist(digits)[3]
    np.testing.assert_array_equal(item.read(0.5, 4.0, 3, (64, 64))[..., :1], item.frames()[[4, 6, 8]])
    assert item.read(0.0, 8.0, 2, (32, 32)).shape == (2, 32, 32, 3)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, packed):
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    labels = (np.arange(12) % 10).astype(np.uint8)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        path = tmp_path / (name + (".gz" if packed else ""))
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    for path in (tmp_path, next(tmp_path.glob("*images*"))):
        read_images, read_labels = read_digits(path)
        np.testing.assert_array_equal(read_images, images)
        np.testing.assert_array_equal(read_labels, labels)


def test_unusable_files(tmp_path):
    images = np.zeros((3, 28, 28), np.uint8)
    path = tmp_path / "digits.npz"
    for missing in ("", tmp_path / "none.npz", tmp_path):
        with pytest.raises(UserError, match="no digits"):
            read_digits(missing)
    for arrays in (
        {"images": images},
        {"images": images, "labels": np.arange(4)},
        {"images": images, "labels": np.array([1, 2, 11])},
        {"images": images[:0], "labels": np.arange(0)},
        {"images": images.astype(np.float32), "labels": np.arange(3)},
        {"images": images, "labels": np.array([{}, {}, {}], dtype=object)},
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match="images"):
            read_digits(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"digits\.npz"):
        read_digits(path)

    idx_path, labels_path = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    idx_path.write_bytes(idx(images))
    with pytest.raises(UserError, match="no labels beside it"):
        read_digits(idx_path)
    labels_path.write_bytes(idx(np.arange(3, dtype=np.uint8)))
    huge = bytes([0, 0, 8, 3]) + np.array([2**31 - 1] * 3, ">i4").tobytes()
    for damaged in (
        b"",
        b"text",
        idx(images)[:-1],
        idx(images) + b"x",
        huge,
        gzip.compress(idx(images))[:-20],
    ):
        idx_path.write_bytes(damaged)
        with pytest.raises(UserError):
            read_digits(idx_path)


def test_real_digits(dev_data):
    source = MovingMnist(dev_data / "mnist" / "mnist_train.npz")
    frames_THWC = source[0].frames()
    assert len(source.images_NHW) == 60_000 and frames_THWC.max() > 200
    labels = {source[i].label for i in range(100)}
    assert labels == set(range(10))
