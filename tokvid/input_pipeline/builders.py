"""TensorFlow Datasets builders of three datasets; they write array_record files and need no TensorFlow.

    MovingShapes(videos=1000, held_out=100, data_dir="data/tfds").download_and_prepare()
    tfds.data_source("moving_shapes", split="train", data_dir="data/tfds")

Or train from it with `DataConfig(source="tfds", path="data/tfds")`. An example has `key`, `captions` (`start`
and `text` of each), `seconds`, and either `video`, the bytes of a file, or `frames`, a uint8 tensor (T, H, W,
C), and `fps`. (`tfds.features.Video` would need TensorFlow and ffmpeg.)
"""

import abc
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline import mnist
from tokvid.input_pipeline.source import Source, part_of
from tokvid.input_pipeline.stored import Kind, StoredVideo, from_values, stored
from tokvid.io.files import read_json
from tokvid.io.urls import local
from tokvid.shapes.drawing import ShapesDataset
from tokvid.types import VideoSource

try:
    import tensorflow_datasets as tfds
except ImportError as missing:
    raise UserError(
        "builders need TensorFlow Datasets, which isn't installed; do: pip install 'tokvid[tfds]'"
    ) from missing

if TYPE_CHECKING:
    from tokvid.input_pipeline.picture import Fit

FEATURES = "tensorflow_datasets.core.features."  # the module of all classes that a prepared dataset may name


class _VideoBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The common base: `settings` decide the data, `source` opens a split, `kind` is the kind of record stored."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # tfds looks for checksums beside it, by importlib_resources, which it doesn't require
    kind: Kind = "frames"
    size: tuple[int, int] = (mnist.SIZE, mnist.SIZE)
    channels = 3
    fps = 8.0
    splits: tuple[str, ...] = ("train", "held_out")

    def __init__(self, settings: dict[str, Any], **options: Any):
        self.settings = json.loads(json.dumps(settings))
        super().__init__(**({"file_format": "array_record"} | options))
        prepared = dict(self.info.metadata or {})  # our own settings, where nothing is prepared yet
        if prepared != self.settings:
            raise UserError(
                f"{self.data_path} was prepared with {prepared}, not {self.settings}; "
                "use the same settings (builder_kwargs) or another data_dir"
            )

    @abc.abstractmethod
    def source(self, split: str) -> VideoSource:
        """The videos of a split."""

    def _info(self) -> Any:
        features = {
            "key": tfds.features.Text(),
            "seconds": tfds.features.Scalar(np.float64),
            "captions": tfds.features.Sequence(
                {"start": tfds.features.Scalar(np.float64), "text": tfds.features.Text()}
            ),
        }
        if self.kind == "video":
            features |= {"video": tfds.features.Tensor(shape=(), dtype=np.object_)}
        else:
            shape = (None, *self.size, self.channels)
            features |= {
                "frames": tfds.features.Tensor(shape=shape, dtype=np.uint8),
                "fps": tfds.features.Scalar(np.float64),
            }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(self.settings),
        )

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        source = self.source(split)
        for i in range(len(source)):
            yield f"{i:09d}", self.example(stored(source[i], fps=self.fps, size=self.size))

    def example(self, video: StoredVideo) -> dict[str, Any]:
        """A stored video as an example of the features above."""
        captions = [dataclasses.asdict(caption) for caption in video.captions]
        example: dict[str, Any] = {"key": video.key, "seconds": float(video.seconds), "captions": captions}
        if video.frames is None:
            return example | {"video": video.video}
        return example | {"frames": video.frames[..., : self.channels], "fps": video.fps}


class MovingShapes(_VideoBuilder):
    """Moving Shapes: a coloured shape that moves, with a caption for each motion; whole compositions are held out."""

    def __init__(
        self,
        *,
        videos: int = 10_000,
        held_out: int = 1_000,
        seed: int = 0,
        size: tuple[int, int] = (64, 64),
        fps: float = 8.0,
        **options: Any,
    ):
        self.videos, self.held_out, self.seed, self.size, self.fps = videos, held_out, seed, size, fps
        super().__init__({"videos": videos, "held_out": held_out, "seed": seed, "size": size, "fps": fps}, **options)

    def source(self, split: str) -> VideoSource:
        held_out = split == "held_out"
        return ShapesDataset(self.held_out if held_out else self.videos, self.seed, held_out=held_out)


class CaptionedMovingMnist(_VideoBuilder):
    """Captioned Moving MNIST: a digit that moves along an axis, the other axis held out; digits from your own file."""

    channels = 1

    def __init__(self, *, digits: str | Path = "", seed: int = 0, **options: Any):
        self.digits, self.seed, self.fps = digits, seed, mnist.FPS
        super().__init__({"seed": seed}, **options)

    def source(self, split: str) -> VideoSource:
        return mnist.MovingMnist(self.digits, "train" if split == "train" else "test", self.seed)


class ClipFolder(_VideoBuilder):
    """A folder of clips with captions.jsonl or captions.csv, as their own bytes; the last ones held out."""

    kind = "video"

    def __init__(
        self,
        *,
        folder: str | Path = "",
        held_out: int = 0,
        max_unreadable: float = 0.1,
        full: bool = False,
        **options: Any,
    ):
        """With `full`, every frame of every file is decoded as a check."""
        self.folder, self.held_out, self.max_unreadable, self.full = folder, held_out, max_unreadable, full
        self.splits = ("train", "held_out") if held_out else ("train",)
        super().__init__({"folder": Path(folder).name, "held_out": held_out}, **options)

    def source(self, split: str) -> VideoSource:
        from tokvid.config import DataConfig
        from tokvid.input_pipeline.folder import FolderSource

        config = DataConfig(source="folder", path=str(self.folder), held_out=self.held_out)
        source = FolderSource(local(self.folder), max_unreadable=self.max_unreadable, full=self.full)
        return part_of(source, config, "held_out" if split == "held_out" else "train")


class PreparedSource:
    """A split of a prepared dataset, with random access; a `VideoSource` of `StoredVideo`."""

    def __init__(self, examples: Any, kind: Kind, fit: "Fit", where: str):
        self.examples, self.kind, self.fit, self.where = examples, kind, fit, where

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> StoredVideo:
        """Example `index`. IndexError outside 0 to len - 1, UserError when it is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        where = f"example {index} of {self.where}"
        try:
            example = self.examples[index]
            captions = example["captions"]
            values = {
                "key": example["key"].decode(),
                "seconds": float(example["seconds"]),
                "captions": [[float(s), t.decode()] for s, t in zip(captions["start"], captions["text"], strict=True)],
            }
            if self.kind == "video":
                values["video"] = example["video"]
            else:
                frames_THWC = example["frames"]
                values |= {
                    "frames": frames_THWC.tobytes(),
                    "shape": frames_THWC.shape,
                    "dtype": str(frames_THWC.dtype),
                }
                values["fps"] = float(example["fps"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is damaged: {error}") from error
        return from_values(values, self.kind, self.fit, where)


def open_prepared(path: str | Path, split: str = "train", *, fit: "Fit" = "crop") -> PreparedSource:
    """A split of a prepared dataset; `path` is the folder with dataset_info.json, or its data_dir.

    UserError when there is none or more than one, it has no such split, or it isn't a dataset of captioned videos.
    """
    folder = _prepared_folder(Path(path))
    _refuse_foreign_names(folder)
    try:
        builder = tfds.builder_from_directory(folder)
        features = set(builder.info.features or ())
        splits = list(builder.info.splits)
    except Exception as error:  # tfds raises nearly anything on foreign files
        raise UserError(f"cannot open {folder} as a prepared dataset: {error}") from error
    kind = next((kind for kind in ("video", "frames") if kind in features), None)
    if kind is None or not {"key", "seconds", "captions"} <= features:
        raise UserError(f"{folder} has the features {sorted(features)}; prepare it with a builder of tokvid")
    if split not in splits:
        raise UserError(f"{folder}: {did_you_mean(split, splits, 'split')}")
    try:
        examples = builder.as_data_source(split)
    except Exception as error:
        raise UserError(f"cannot open the split {split} of {folder}: {error}; prepare it again") from error
    return PreparedSource(examples, "video" if kind == "video" else "frames", fit, f"{folder} ({split})")


def _prepared_folder(path: Path) -> Path:
    if (path / "dataset_info.json").is_file():
        return path
    folders = sorted(file.parent for file in path.glob("*/*/dataset_info.json")) or sorted(
        file.parent for file in path.glob("*/dataset_info.json")
    )
    if len(folders) != 1:
        problem = f"{len(folders)} prepared datasets, name one of them" if folders else "no dataset_info.json"
        raise UserError(f"{path} has {problem}; prepare one with a builder of tokvid.input_pipeline.builders")
    return folders[0]


def _refuse_foreign_names(folder: Path) -> None:
    """Allows expected names only: TFDS imports the classes and opens the files that the two descriptions name."""
    pending: list[Any] = [read_json(folder / "features.json", "the description of features")]
    pending.append(read_json(folder / "dataset_info.json", "the description of a dataset"))
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            for name, inner in value.items():
                foreign = (name == "pythonClassName" and not str(inner).startswith(FEATURES)) or (
                    name in ("filepathTemplate", "name") and ("/" in str(inner) or "\\" in str(inner))
                )
                if foreign:
                    raise UserError(f"{folder} names {name} {str(inner)!r:.80}, which no builder of tokvid writes")
                pending.append(inner)


def _has_held_out(path: str | Path) -> bool:
    info = read_json(_prepared_folder(local(path)) / "dataset_info.json", "the description of a dataset")
    splits = info["splits"] if isinstance(info.get("splits"), list) else []
    return any(isinstance(split, dict) and split.get("name") == "held_out" for split in splits)


SOURCE = Source(
    open=lambda config: open_prepared(config.path, "train", fit=config.fit),
    held_out=lambda config: open_prepared(config.path, "held_out", fit=config.fit),
    holds_out=lambda config: _has_held_out(config.path),
)
