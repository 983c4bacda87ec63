"""TFDS builders: prepared without TensorFlow, read back as the same videos."""

import json
import sys

import numpy as np
import pytest

from tokvid.config import DataConfig
from tokvid.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

from tokvid.input_pipeline import mnist  # noqa: E402
from tokvid.input_pipeline.builders import CaptionedMovingMnist, ClipFolder, MovingShapes, open_prepared  # noqa: E402
from tokvid.input_pipeline.loader import clip_batches  # noqa: E402
from tokvid.input_pipeline.sources import open_source  # noqa: E402
from tokvid.shapes.drawing import ShapesDataset  # noqa: E402

tfds.disable_progress_bar()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    MovingShapes(videos=5, held_out=2, size=(32, 32), fps=4.0, data_dir=data_dir).download_and_prepare()
    return data_dir


def test_moving_shapes(prepared):
    source = open_prepared(prepared)
    assert len(source) == 5 and len(open_prepared(prepared, "held_out")) == 2
    expected = {item.key: item for item in (ShapesDataset(5, 0)[i] for i in range(5))}
    for i in range(5):
        video = source[i]
        item = expected.pop(video.key)
        assert video.captions == item.captions and video.seconds == item.seconds
        np.testing.assert_array_equal(video.read(0.5, 2.0, 3, (32, 32)), item.read(0.5, 2.0, 3, (32, 32)))
    with pytest.raises(IndexError):
        source[5]
    assert "tensorflow" not in sys.modules


def test_by_tfds_own_door(prepared):
    settings = {"videos": 5, "held_out": 2, "size": (32, 32), "fps": 4.0}
    examples = tfds.data_source("moving_shapes", split="train", data_dir=prepared, builder_kwargs=settings)
    assert len(examples) == 5 and examples[0]["frames"].shape[1:] == (32, 32, 3)


def test_as_a_data_source(prepared):
    config = DataConfig(source="tfds", path=str(prepared), size=(32, 32), fps=(2.0, 4.0), frames=5)
    assert len(open_source(config, "held_out")) == 2
    assert next(clip_batches(config, 4, 0)).video.shape == (4, 5, 32, 32, 3)


def test_other_settings_are_not_taken_for_the_same(prepared):
    with pytest.raises(UserError, match="another data_dir"):
        MovingShapes(videos=6, held_out=2, size=(32, 32), fps=4.0, data_dir=prepared)
    with pytest.raises(UserError, match="another data_dir"):
        tfds.data_source("moving_shapes", split="train", data_dir=prepared)
    MovingShapes(videos=5, held_out=2, size=(32, 32), fps=4.0, data_dir=prepared).download_and_prepare()


def test_captioned_moving_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "VIDEOS", {"train": 6, "test": 3})
    digits = tmp_path / "digits.npz"
    np.savez(digits, images=np.full((10, 28, 28), 200, np.uint8), labels=np.arange(10))
    CaptionedMovingMnist(digits=digits, data_dir=tmp_path / "tfds").download_and_prepare()
    source = open_prepared(tmp_path / "tfds")
    expected = {item.key: item for item in (mnist.MovingMnist(digits)[i] for i in range(6))}
    assert len(source) == 6 and len(open_prepared(tmp_path / "tfds", "held_out")) == 3
    for i in range(6):
        item = expected.pop(source[i].key)
        assert source[i].captions == item.captions and source[i].frames.shape == (20, 64, 64, 1)
        np.testing.assert_array_equal(source[i].frames, item.frames())


def test_clip_folder(tmp_path, dev_data):
    folder = tmp_path / "clips"
    folder.mkdir()
    lines = (dev_data / "droid" / "captions.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    for row in map(json.loads, lines):
        (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / row["file"]).write_bytes((dev_data / "droid" / row["file"]).read_bytes())
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    ClipFolder(folder=folder, held_out=1, data_dir=tmp_path / "tfds").download_and_prepare()
    source = open_prepared(tmp_path / "tfds")
    assert len(source) == 3 and len(open_prepared(tmp_path / "tfds", "held_out")) == 1
    texts = {row["file"]: row["caption"] for row in map(json.loads, lines)}
    for i in range(3):
        assert source[i].captions[0].text == texts[source[i].key]
        assert source[i].read(0.0, 4.0, 3, (36, 64)).shape == (3, 36, 64, 3)


def test_what_is_no_prepared_set(tmp_path, prepared):
    with pytest.raises(UserError, match=r"no dataset_info\.json"):
        open_prepared(tmp_path)
    with pytest.raises(UserError, match="did you mean 'train'"):
        open_prepared(prepared, "trian")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("features.json", "tensorflow_datasets.core.features.text_feature.Text", "antigravity.Text"),
        ("dataset_info.json", "{DATASET}-{SPLIT}", "../../{DATASET}-{SPLIT}"),
    ],
)
def test_names_that_came_with_data_are_not_followed(tmp_path, file, old, new):
    MovingShapes(videos=1, held_out=1, size=(16, 16), data_dir=tmp_path).download_and_prepare()
    path = next(tmp_path.rglob(file))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match="no builder of tokvid writes"):
        open_prepared(tmp_path)
    assert "antigravity" not in sys.modules
