"""Captioned Moving MNIST: one handwritten digit that moves up and down or left and right, 20 frames of 64×64.

As in Sync-DRAW (Mittal et al. 2017, arXiv:1611.10314) and the text-to-video papers that use it (GODIVA, NÜWA): digits
of 28×28 start anywhere, move along one axis by a fifth of the free way a frame, and turn at the border. Each digit
moves along one axis in training and along the other in the test split. Captions state the first direction, as in the
later papers. Two differences from the published files are deliberate: each digit's axis is fixed below instead of drawn
in every run, and the motion never turns before its first direction was visible.
"""

import dataclasses
import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Literal

import numpy as np

from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline.source import Source
from tokvid.input_pipeline.stored import show
from tokvid.types import Caption

FRAMES, FPS, SIZE, DIGIT = 20, 8.0, 64, 28  # the published set has no rate; at 8 a video takes 2.5 seconds
STEP = 0.2  # of the free way, a frame
VIDEOS = {"train": 10_000, "test": 2_000}
# The other axis is held out.
TRAINED_AXIS = {digit: "vertical" if digit % 2 else "horizontal" for digit in range(10)}
WORDS = {"vertical": ("up", "down"), "horizontal": ("left", "right")}
MOST_BYTES = 1 << 30  # of a digits file, unpacked
WHAT = "give an .npz file with images and labels, or MNIST's idx files (train-images-idx3-ubyte[.gz], …)"


@dataclasses.dataclass(frozen=True)
class MnistItem:
    """One video of a digit: a `tokvid.types.VideoItem`."""

    key: str
    image: np.ndarray  # uint8 (28, 28)
    label: int
    axis: Literal["vertical", "horizontal"]
    towards_end: bool  # down or right at first, else up or left
    begin: float  # on the axis, as a share of the free way
    across: float  # on the other axis

    seconds = FRAMES / FPS

    @property
    def caption(self) -> str:
        """For example "the digit 3 is moving up then down ."."""
        first, then = self.directions
        return f"the digit {self.label} is moving {first} then {then} ."

    @property
    def still_caption(self) -> str:
        """What a frame shows: "the digit 3 ."."""
        return f"the digit {self.label} ."

    @property
    def directions(self) -> tuple[str, str]:
        """Where the digit moves at first, and after it has turned."""
        before, after = WORDS[self.axis]
        return (after, before) if self.towards_end else (before, after)

    @property
    def captions(self) -> tuple[Caption, ...]:
        return (Caption(0.0, self.caption),)

    def corners(self) -> np.ndarray:
        """The digit's upper left corner in each frame, (row, column): int64 (20, 2)."""
        place, step = self.begin, STEP if self.towards_end else -STEP
        places = []
        for _ in range(FRAMES):
            places.append(place)
            place += step
            if not 0 < place < 1:
                place, step = min(max(place, 0.0), 1.0), -step
        along_T, across_T = np.array(places), np.full(FRAMES, self.across)
        order = (along_T, across_T) if self.axis == "vertical" else (across_T, along_T)
        return np.floor(np.stack(order, axis=1) * (SIZE - DIGIT)).astype(np.int64)

    def frames(self) -> np.ndarray:
        """All frames: uint8 (20, 64, 64, 1), white on black."""
        frames_THWC = np.zeros((FRAMES, SIZE, SIZE, 1), np.uint8)
        for frame_HWC, (row, column) in zip(frames_THWC, self.corners(), strict=True):
            frame_HWC[row : row + DIGIT, column : column + DIGIT, 0] = self.image
        return frames_THWC

    def read(self, start: float, fps: float, frames: int, size: tuple[int, int]) -> np.ndarray:
        """The frames at start + i/fps (seconds): uint8 (T, H, W, 3)."""
        return show(self.frames(), FPS, start=start, fps=fps, frames=frames, size=size, fit="crop")


class MovingMnist:
    """The `split` "train" (10,000 videos) or "test" (2,000, each digit along its held-out axis).

    `path` holds the digits for both splits, as in the published set: an .npz file with `images` uint8 (N, 28, 28) and
    `labels` (N,), a folder with MNIST's two idx files, or the idx file of the images (raw or .gz). Item i depends on
    `seed`, split and i alone. UserError for a file that is missing, damaged or of another kind.
    """

    def __init__(self, path: str | Path, split: str = "train", seed: int = 0):
        if split not in VIDEOS:
            raise UserError(did_you_mean(split, VIDEOS, "split of Moving MNIST"))
        if seed < 0:
            raise UserError(f"seed {seed} is negative; use 0 or more")
        self.split, self.seed = split, seed
        self.images_NHW, self.labels_N = read_digits(path)

    def __len__(self) -> int:
        return VIDEOS[self.split]

    def __getitem__(self, index: int) -> MnistItem:
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        rng = np.random.default_rng([self.seed, list(VIDEOS).index(self.split), index])
        chosen = int(rng.integers(len(self.images_NHW)))
        label = int(self.labels_N[chosen])
        vertical = (TRAINED_AXIS[label] == "vertical") == (self.split == "train")
        towards_end = bool(rng.integers(2))
        begin = rng.uniform(0, 1 - STEP) if towards_end else rng.uniform(STEP, 1)
        return MnistItem(
            key=f"mnist-{self.split}-{self.seed}-{index}",
            image=self.images_NHW[chosen],
            label=label,
            axis="vertical" if vertical else "horizontal",
            towards_end=towards_end,
            begin=float(begin),
            across=float(rng.uniform(0, 1)),
        )


def read_digits(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 28, 28) and labels uint8 (N,), 0 to 9, of files as in `MovingMnist`."""
    path, *others = digit_files(path)
    try:
        images, labels = (_read_idx(path, 3), _read_idx(others[0], 1)) if others else _read_npz(path)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zlib.error,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as error:
        raise UserError(f"cannot read digits from {path}: {error}; {WHAT}") from error
    sound = images.dtype == np.uint8 and images.shape[1:] == (DIGIT, DIGIT) and labels.shape == images.shape[:1]
    if not (sound and len(images) and labels.dtype.kind in "iu" and 0 <= labels.min() <= labels.max() <= 9):
        raise UserError(
            f"{path} has images {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}; "
            f"they should be images uint8 (N, {DIGIT}, {DIGIT}) and labels 0 to 9 (N,)"
        )
    return images, labels.astype(np.uint8)


def digit_files(path: str | Path) -> list[Path]:
    """The .npz file, or the idx files of images and labels, that `read_digits` reads; UserError where there is none."""
    path = Path(path)
    if not path.exists() or not str(path).strip() or path == Path():
        raise UserError(f"no digits at {str(path)!r}; {WHAT}")
    try:
        if path.is_dir():
            path = _only([file for file in sorted(path.glob("*images*idx3*")) if file.is_file()], path)
        return [path] if zipfile.is_zipfile(path) else [path, _labels_beside(path)]
    except OSError as error:
        raise UserError(f"cannot read digits from {path}: {error}; {WHAT}") from error


def _only(files: list[Path], folder: Path) -> Path:
    training = [file for file in files if "train" in file.name] or files
    if not training:
        raise UserError(f"no digits in {folder}; {WHAT}")
    return training[0]


def _labels_beside(images: Path) -> Path:
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    options = [
        images.with_name(name),
        images.with_name(name + ".gz"),
        images.with_name(name.removesuffix(".gz")),
    ]
    for path in options:
        if path != images and path.is_file():
            return path
    raise UserError(f"{images} has no labels beside it; put {options[0].name} there")


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MOST_BYTES:
        raise UserError(f"{path} unpacks to {size} bytes, more than the {MOST_BYTES} that digits may take")
    with np.load(path, allow_pickle=False) as file:
        return file["images"], file["labels"]


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """MNIST's own format: two zero bytes, type (8: uint8), dimensions; each length as big-endian int32."""
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
        head = file.read(4 + 4 * dimensions)
        if head[:4] != bytes([0, 0, 8, dimensions]) or len(head) != 4 + 4 * dimensions:
            raise UserError(f"{path} is no idx file of uint8 in {dimensions} dimensions; give MNIST's own file")
        shape = [int(length) for length in np.frombuffer(head[4:], ">i4")]
        if min(shape) < 1 or math.prod(shape) > MOST_BYTES:
            raise UserError(f"{path} declares the shape {shape}, digits may take 1 to {MOST_BYTES} bytes")
        content = file.read(math.prod(shape) + 1)
    if len(content) != math.prod(shape):
        raise UserError(f"{path} should hold {math.prod(shape)} bytes of digits, found {len(content)}; copy it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


SOURCE = Source(
    open=lambda config: MovingMnist(config.path, "train", config.seed),
    held_out=lambda config: MovingMnist(config.path, "test", config.seed),
    files=digit_files,
)
