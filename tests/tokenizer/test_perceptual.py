"""The perceptual distance, with a small network of our own under torchvision's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tokvid.errors import UserError
from tokvid.tokenizer.perceptual import DEVIATION, MEAN, Perceptual


def network(path, numbers=(0, 2, 5), channels=(3, 4, 6, 8), **change):
    """Convolutions at these numbers; a gap of 3 is a pooling."""
    rng = np.random.default_rng(0)
    tensors = {"classifier.0.weight": np.zeros((2, 2), np.float32)}
    for n, i, o in zip(numbers, channels, channels[1:], strict=False):
        tensors[f"features.{n}.weight"] = rng.normal(size=(o, i, 3, 3)).astype(np.float32)
        tensors[f"features.{n}.bias"] = rng.normal(size=o).astype(np.float32)
    tensors |= change
    safetensors.numpy.save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return str(path)


def videos(seed, size=12):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (2, 3, size, size, 3)), jnp.float32)


def convolve(x_HWC, kernel_OIij, bias):
    padded = np.pad(x_HWC, ((1, 1), (1, 1), (0, 0)))
    H, W, _ = x_HWC.shape
    out = sum(padded[i : i + H, j : j + W] @ kernel_OIij[:, :, i, j].T for i in range(3) for j in range(3))
    return np.maximum(out + bias, 0)


def test_the_distance_is_that_of_the_features_before_each_pooling(tmp_path):
    path = network(tmp_path / "vgg.safetensors")
    tensors = safetensors.numpy.load_file(path)

    def features(frame_HWC):
        x = ((np.asarray(frame_HWC, np.float64) + 1) / 2 - MEAN) / DEVIATION
        x = convolve(x, tensors["features.0.weight"], tensors["features.0.bias"])
        first = convolve(x, tensors["features.2.weight"], tensors["features.2.bias"])
        pooled = first.reshape(6, 2, 6, 2, -1).max((1, 3))
        second = convolve(pooled, tensors["features.5.weight"], tensors["features.5.bias"])
        return [x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-10) for x in (first, second)]

    made, truth = videos(0), videos(1)
    pairs = zip(made.reshape(-1, 12, 12, 3), truth.reshape(-1, 12, 12, 3), strict=True)
    wanted = np.mean(
        [[((a - b) ** 2).sum(-1).mean() for a, b in zip(features(x), features(y), strict=True)] for x, y in pairs]
    )
    assert float(Perceptual(path)(made, truth)) == pytest.approx(wanted, rel=1e-4)


def test_it_is_zero_for_equals_and_pulls_the_rest_together(tmp_path):
    perceptual = Perceptual(network(tmp_path / "vgg.safetensors"))
    made, truth = videos(0), videos(1)
    assert float(perceptual(truth, truth)) == 0
    slope = jax.grad(perceptual)(made, truth)
    assert float(perceptual(made - 0.1 * slope / jnp.abs(slope).max(), truth)) < float(perceptual(made, truth))


def test_small_frames_use_the_layers_that_they_reach(tmp_path):
    perceptual = Perceptual(network(tmp_path / "vgg.safetensors", (0, 3, 6)))
    assert np.isfinite(float(perceptual(videos(0, 2), videos(1, 2))))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"features.2.bias": None}, "holds no VGG"),
        ({"features.2.weight": np.zeros((6, 5, 3, 3), np.float32)}, "holds no VGG"),
        ({"features.1.running_mean": np.zeros(4, np.float32)}, "without batch norm"),
        (
            {"features.9.weight": np.zeros((8, 8, 3, 3), np.float32), "features.9.bias": np.zeros(8, np.float32)},
            "three further",
        ),
    ],
)
def test_other_networks_are_refused(tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        Perceptual(network(tmp_path / "other.safetensors", **change))


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no file .*none\.safetensors for the perceptual loss"):
        Perceptual(str(tmp_path / "none.safetensors"))
    (tmp_path / "vgg.pth").write_bytes(b"\x80\x02pickle")
    with pytest.raises(UserError, match=r"vgg\.pth is no \.safetensors file"):
        Perceptual(str(tmp_path / "vgg.pth"))
