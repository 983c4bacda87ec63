"""One video as a record, a msgpack map: encoded bytes, raw frames, or tokens, checked when it is written and read."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgpack
import numpy as np

from tokvid.errors import UserError
from tokvid.io.files import read_limited
from tokvid.tasks.conditions import CONDITIONS
from tokvid.types import Caption, VideoItem

if TYPE_CHECKING:
    from tokvid.input_pipeline.picture import Fit

Kind = Literal["video", "frames", "tokens"]
KINDS: tuple[Kind, ...] = ("video", "frames", "tokens")
TOKEN_TYPES = ("uint16", "int32")
MOST_FRAMES, MOST_PIXELS_A_SIDE, MOST_SECONDS, MOST_FPS = 1_000_000, 8192, 1e6, 1000.0
MOST_CAPTIONS, MOST_CHARACTERS = 10_000, 100_000
MOST_SUBCODES = 4096  # of a token
MOST_BYTES = 1 << 30  # of one encoded video


@dataclasses.dataclass(frozen=True)
class StoredVideo:
    """One record, a `VideoItem`. Exactly one of `video`, `frames` and `tokens` is set; its name is the kind.

    `video` is an encoded file; `frames` uint8 (T, H, W, C) with C 1 or 3; `tokens` uint16 or int32 (T, H, W, Q)
    in latent frames. `fps` is the rate of the stored or tokenized frames. Tokens may come with those of `conditions` of
    the same video, by name, and with a T5's hidden states of each caption, float16 (L, E).
    """

    key: str
    seconds: float
    captions: tuple[Caption, ...]
    video: bytes | None = None
    frames: np.ndarray | None = None
    tokens: np.ndarray | None = None
    fps: float = 0.0
    conditions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    states: tuple[np.ndarray, ...] = ()
    fit: "Fit" = "crop"  # how `read` fits another aspect ratio; not stored

    @property
    def kind(self) -> Kind:
        """The kind of record: "video", "frames" or "tokens"."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    def read(self, start: float, fps: float, frames: int, size: tuple[int, int]) -> np.ndarray:
        """The frames shown at start + i/fps (seconds): uint8 (T, H, W, 3)."""
        if self.video is not None:
            from tokvid.input_pipeline.clips import read_clip  # tokens are read without PyAV

            return read_clip(self.video, start=start, fps=fps, frames=frames, size=size, fit=self.fit)
        if self.frames is None:
            raise UserError(f"{self.key} holds tokens, not frames; decode them with their tokenizer")
        return show(self.frames, self.fps, start=start, fps=fps, frames=frames, size=size, fit=self.fit)


def show(
    frames_THWC: np.ndarray,
    own_fps: float,
    *,
    start: float,
    fps: float,
    frames: int,
    size: tuple[int, int],
    fit: "Fit",
) -> np.ndarray:
    """The frames of a video of rate `own_fps` at start + i/fps, the last one held: uint8 (T, H, W, 3)."""
    seconds_T = start + np.arange(frames) / fps
    index_T = np.clip(np.floor(seconds_T * own_fps + 1e-6).astype(np.int64), 0, len(frames_THWC) - 1)
    shown_THWC = frames_THWC[index_T]
    shown_THWC = np.repeat(shown_THWC, 3, axis=3) if shown_THWC.shape[3] == 1 else shown_THWC
    return shown_THWC if shown_THWC.shape[1:3] == tuple(size) else _resized(shown_THWC, size, fit)


def _resized(video_THWC: np.ndarray, size: tuple[int, int], fit: "Fit") -> np.ndarray:
    import av

    from tokvid.input_pipeline.picture import Fitter

    fitter = Fitter(size, fit)
    return np.stack([fitter(av.VideoFrame.from_ndarray(image_HWC, format="rgb24")) for image_HWC in video_THWC])


def stored(item: VideoItem, *, fps: float, size: tuple[int, int], as_frames: bool = False) -> StoredVideo:
    """`item` as a record: its file's bytes, at most MOST_BYTES; without a file, or `as_frames`, its frames at `fps`.

    A record stays one; `as_frames`, it becomes one of frames of this size and rate.
    """
    if isinstance(item, StoredVideo) and not (as_frames and item.tokens is None):
        return item
    if not as_frames and (path := getattr(item, "path", None)) is not None:
        encoded = read_limited(path, "video", MOST_BYTES, "cut it into parts")
        return StoredVideo(item.key, item.seconds, item.captions, video=encoded)
    if not as_frames and (content := getattr(item, "content", None)) is not None:  # in an archive
        return StoredVideo(item.key, item.seconds, item.captions, video=bytes(content()))
    frames = max(1, math.floor(item.seconds * fps + 1e-6))
    return StoredVideo(item.key, item.seconds, item.captions, frames=item.read(0.0, fps, frames, size), fps=fps)


def pack(video: StoredVideo, kind: Kind) -> bytes:
    """The bytes of a record. UserError when it is of another kind, or cannot be read back."""
    values: dict[str, Any] = {
        "key": video.key,
        "seconds": float(video.seconds),
        "captions": [[float(caption.start), caption.text] for caption in video.captions],
    }
    present = [name for name in KINDS if getattr(video, name) is not None]
    if present != [kind]:
        raise UserError(f"{video.key}: this record should be of kind {kind!r}, it holds {present}")
    content = getattr(video, kind)
    if kind == "video":
        values["video"] = bytes(content)
    else:
        # The stored type doesn't include the byte order, so it is always little-endian.
        array = np.ascontiguousarray(content)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        values |= {
            kind: array.tobytes(),
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "fps": float(video.fps),
        }
        for name, tokens in video.conditions.items():
            values.setdefault("conditions", {})[name] = {
                "tokens": np.ascontiguousarray(tokens).astype(array.dtype).tobytes(),
                "shape": list(tokens.shape),
            }
        for states_LE in video.states:
            content = np.ascontiguousarray(states_LE).astype("<f2").tobytes()
            values.setdefault("states", []).append({"content": content, "shape": list(states_LE.shape)})
    try:
        data = msgpack.packb(values)
    except (ValueError, OverflowError) as error:  # lone surrogates in a text, or too many bytes for a map
        raise UserError(f"{video.key!r:.200} cannot be written as a record: {error}") from error
    unpack(data, kind, "crop", video.key)  # never writes an unreadable record
    return data


def unpack(data: bytes, kind: Kind, fit: "Fit", where: str) -> StoredVideo:
    """The video of a record's bytes. UserError, with `where`, for damaged ones."""
    try:
        values = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise UserError(f"{where} is damaged: {error}") from error
    return from_values(values, kind, fit, where)


def from_values(values: dict[str, Any], kind: Kind, fit: "Fit", where: str) -> StoredVideo:
    """The video of a record's values. UserError, with `where`, for values that no writer writes."""
    try:
        return _checked(values, kind, fit)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{where} is damaged or not a record of kind {kind!r}: {error}") from error


def _checked(values: dict[str, Any], kind: str, fit: "Fit") -> StoredVideo:
    key, seconds, captions = values["key"], values["seconds"], values["captions"]
    _within("key", len(key.encode()), 0, MOST_CHARACTERS)
    _within("seconds", seconds, 0, MOST_SECONDS)
    _within("number of captions", len(captions), 0, MOST_CAPTIONS)
    for start, text in captions:
        _within("caption's start", start, 0, MOST_SECONDS)
        _within("caption's length", len(text.encode()), 0, MOST_CHARACTERS)
    starts = [start for start, _ in captions]
    if starts != sorted(starts):
        raise ValueError(f"captions start at {starts}, which is not in order")
    texts = tuple(Caption(float(start), text) for start, text in captions) or (Caption(0.0, ""),)
    if kind == "video":
        if not isinstance(values["video"], bytes):
            raise TypeError("video is not bytes")
        return StoredVideo(key, float(seconds), texts, video=values["video"], fit=fit)
    shape, dtype, fps = _shape(values["shape"], kind), values["dtype"], values["fps"]
    if dtype not in (("uint8",) if kind == "frames" else TOKEN_TYPES):
        raise ValueError(f"{kind} have type {dtype!r:.20}")
    _within("fps", fps, 1e-3, MOST_FPS)
    array = _array(values[kind], np.dtype(dtype), shape)
    if kind == "frames":
        return StoredVideo(key, float(seconds), texts, frames=array, fps=float(fps), fit=fit)
    conditions = {
        name: _array(each["tokens"], array.dtype, _shape(each["shape"], kind))
        for name, each in values.get("conditions", {}).items()
    }
    if values.get("coarse_factor") == CONDITIONS["coarse"].slower:  # of earlier versions
        conditions["coarse"] = np.frombuffer(values["coarse"], array.dtype).reshape(-1, *shape[1:])
    states = tuple(_array(each["content"], np.dtype("f2"), tuple(each["shape"])) for each in values.get("states", ()))
    if states and (len(states) != len(texts) or any(each.ndim != 2 for each in states)):
        raise ValueError(f"{len(states)} hidden states don't fit {len(texts)} captions")
    return StoredVideo(key, float(seconds), texts, tokens=array, fps=float(fps), conditions=conditions, states=states)


def _shape(dims: list[int], kind: str) -> tuple[int, ...]:
    """The checked shape of frames or tokens."""
    shape = tuple(dims)
    if kind == "tokens" and len(shape) == 3:  # earlier versions had no sub-codes
        shape = (*shape, 1)
    if len(shape) != 4:
        raise ValueError(f"shape {shape} has {len(shape)} dimensions")
    _within("number of frames", shape[0], 1, MOST_FRAMES)
    _within("height", shape[1], 1, MOST_PIXELS_A_SIDE)
    _within("width", shape[2], 1, MOST_PIXELS_A_SIDE)
    if kind == "frames" and shape[3] not in (1, 3):
        raise ValueError(f"frames have {shape[3]} channels, not 1 or 3")
    _within("number of sub-codes", shape[3], 1, MOST_SUBCODES)
    return shape


def _array(content: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    array = np.frombuffer(content, dtype.newbyteorder("<"))
    if array.size != math.prod(shape):
        raise ValueError(f"shape {shape} doesn't fit {array.size} values")
    return array.reshape(shape)


def _within(what: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{what} should be {least} to {most}, found {value!r:.40}")
