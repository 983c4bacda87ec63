"""Raw videos become a dataset: cut into shots, each scored, its faults named; the good ones are written.

Every score is a function of one file's frames, so files may be shared out among machines. Copies are found at the end.
"""

import collections
import dataclasses
import functools
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from tokvid.errors import UserError, reason
from tokvid.input_pipeline.captions import NAMES, read_captions
from tokvid.input_pipeline.clips import probe, stream_frames
from tokvid.input_pipeline.folder import VIDEOS, linked_folders, videos_below
from tokvid.input_pipeline.source import Unreadable
from tokvid.input_pipeline.workers import Map, in_threads
from tokvid.io.files import atomic, check_replaced, refuse_others
from tokvid.io.media import VideoWriter
from tokvid.io.progress import progress
from tokvid.metrics.footage import (
    Brightest,
    Look,
    bars,
    brightest,
    change,
    colourfulness,
    cuts,
    is_black,
    look,
    luma,
    motion,
    sharpness,
)
from tokvid.metrics.overlay import text_share

log = logging.getLogger(__name__)

SHORTEST = 0.5  # seconds of a shot; also the time between frames that are looked at closely
BETWEEN = 0.25  # seconds between frames that motion is measured between
PHASES = 8  # frames of a shot, evenly spaced, that tell copies
SAME = 3.0  # grey levels by which those of two copies differ, at most,
SAME_MOTION = 0.3  # and this share of how they change
FAINTEST = 0.5  # grey levels, below which changes say nothing


@dataclasses.dataclass(frozen=True)
class Shot:
    """A shot of a video: where it is, its scores, and its faults, keys of FAULTS or DUPLICATE.

    `motion` and `brightness` are in grey levels, `sharpness` is 0 to 1, `colour` 0 to about 100 (see
    `metrics.footage`); `text` and `bars` are the shares of the frame that they cover throughout. Of its caption: the
    number of words, and of all shots' captions that are the same.
    """

    file: str
    first: int  # its first frame
    frames: int
    fps: float
    seconds: float
    height: int
    width: int
    motion: float
    sharpness: float
    brightness: float
    colour: float
    text: float
    bars: float
    caption: str
    words: int
    same_caption: int = 1
    duplicate_of: str = ""
    faults: tuple[str, ...] = ()
    black: bool = False
    whole: bool = False  # it is all of its file

    @property
    def name(self) -> str:
        """The file that it is written to."""
        return self.file if self.whole else f"{self.file}.{self.first:06d}.mp4"

    @property
    def row(self) -> dict[str, Any]:
        """Its line in shots.jsonl."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("black", "whole")}
        return {"clip": self.name, **values, "faults": list(self.faults)}


# Faults that the scores of a shot show.
FAULTS: dict[str, Callable[[Shot], bool]] = {
    "black": lambda shot: shot.black,
    "still": lambda shot: not shot.black and shot.motion < 1.5,
    "blurred": lambda shot: not shot.black and shot.sharpness < 0.45,
    "letterboxed": lambda shot: not shot.black and shot.bars >= 0.06,
    "over_texted": lambda shot: shot.text >= 0.1,
}
DUPLICATE = "duplicate"
# What a filter may ask about: the fields of a row, and each fault, as True or False.
FIELDS = ("clip", *(f.name for f in dataclasses.fields(Shot) if f.name not in ("black", "whole")), *FAULTS, DUPLICATE)


class Scored(NamedTuple):
    """A shot, and PHASES of its frames as block means, rounded."""

    shot: Shot
    phases_THW: UInt8[np.ndarray, "p h w"]


def fields_of(shot: Shot) -> dict[str, Any]:
    """The values of FIELDS; `faults` is their number."""
    return {**shot.row, **{name: name in shot.faults for name in (*FAULTS, DUPLICATE)}, "faults": len(shot.faults)}


def raw_videos(folder: Path) -> list[str]:
    """The videos below a folder, as seen from it, in order; hidden ones don't count. UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give one with videos")
    if links := linked_folders(folder):
        log.warning("%s: links to folders are not followed, %d are left out, such as %s", folder, len(links), links[0])
    if not (names := videos_below(folder)):
        raise UserError(f"{folder} holds no videos; their names should end in {', '.join(VIDEOS)}")
    return names


def all_shots(folder: Path, max_unreadable: float = 0.1, mapped: Map = in_threads) -> list[Shot]:
    """The shots of all videos below a folder, in order. UserError where too many videos cannot be read."""
    files = raw_videos(folder)
    captions = {}
    if any((folder / name).is_file() for name in NAMES):
        captions = {line.file: line.caption for line in read_captions(folder)}
    unreadable = Unreadable(max_unreadable, len(files), folder, advice="mend or remove them, or raise --max-unreadable")
    scored: list[Scored] = []
    with progress("curate", len(files), "videos") as advance:
        for shots in mapped(functools.partial(shots_of, folder), [(file, captions.get(file, "")) for file in files]):
            if isinstance(shots, UserError):
                unreadable.add(shots)
                log.warning("skipped: %s", shots)
            else:
                unreadable.good()
                scored += shots
            advance()
    return _compared(scored)


def shots_of(folder: Path, captioned: tuple[str, str]) -> list[Scored] | UserError:
    """The shots of one video, a file and its caption, or why it cannot be read."""
    file, caption = captioned
    try:
        video = _Measured(folder / file)
    except UserError as error:
        return error
    edges = [0, *cuts(np.array(video.changes)), len(video.changes)]
    spans = [(first, end) for first, end in itertools.pairwise(edges) if end - first >= video.closely]
    about = {"file": file, "caption": caption, "words": len(caption.split())}
    about["whole"] = not video.damaged and spans == [(0, len(video.changes))]
    return [video.shot(first, end, about) for first, end in spans]


class _Measured:
    """All that is kept of a video's frames: about 300 bytes of each."""

    def __init__(self, path: Path):
        info = probe(path)
        self.fps = info.rate or 1.0
        self.closely, self.between = max(1, round(self.fps * SHORTEST)), max(1, round(self.fps * BETWEEN))
        self.size = (0, 0)
        self.changes: list[float] = []
        self.thumbs: list[np.ndarray] = []
        self.motions: dict[int, float] = {}  # from `between` frames before
        self.details: dict[int, dict[str, float]] = {}
        self.lit: dict[int, Brightest] = {}
        before: Look | None = None
        earlier: Look | None = None
        for index, image_HWC in enumerate(stream_frames(path, fps=self.fps)):
            now = look(image_HWC)
            self.changes.append(change(before or now, now))
            blocks_HW = now.blocks_HW.reshape(len(now.blocks_HW) // 2, 2, -1, 2).mean((1, 3))
            self.thumbs.append(blocks_HW.round().astype(np.uint8))
            if index % self.between == 0:
                if earlier is not None:
                    self.motions[index] = motion(earlier, now)
                earlier = now
            if index % self.closely == 0:
                self.size = image_HWC.shape[:2]
                self.lit[index], self.details[index] = brightest(image_HWC), _detail(image_HWC)
            before = now
        # Damage ends the frames early, or is told.
        early = len(self.changes) + 1 < info.seconds * self.fps
        self.damaged = early or any(warning.startswith("damaged") for warning in info.warnings)

    def shot(self, first: int, end: int, about: Mapping[str, Any]) -> Scored:
        """The scores of the frames from `first` to before `end`."""
        details = [detail for index, detail in self.details.items() if first <= index < end]
        moved = [amount for index, amount in self.motions.items() if first <= index - self.between and index < end]
        lit = [frame for index, frame in self.lit.items() if first <= index < end]
        scores: dict[str, Any] = {
            # Titles stay, other textures come and go as things move.
            name: round(float((min if name == "text" else np.mean)([detail[name] for detail in details])), 4)
            for name in details[0]
        }
        shot = Shot(
            first=first,
            frames=end - first,
            fps=self.fps,
            seconds=round((end - first) / self.fps, 3),
            height=self.size[0],
            width=self.size[1],
            motion=round(float(np.mean(moved)), 4) if moved else 0.0,
            bars=round(bars(lit), 4),
            black=is_black(lit),
            **scores,
            **about,
        )
        shot = dataclasses.replace(shot, faults=tuple(name for name, has in FAULTS.items() if has(shot)))
        phases = np.linspace(first, end - 1, PHASES).round().astype(int)
        return Scored(shot, np.stack([self.thumbs[index] for index in phases]))


def _detail(image_HWC: UInt8[np.ndarray, "h w 3"]) -> dict[str, float]:
    return {
        "sharpness": sharpness(image_HWC),
        "brightness": float(luma(image_HWC).mean()),
        "colour": colourfulness(image_HWC),
        "text": text_share(image_HWC),
    }


def _compared(scored: Sequence[Scored]) -> list[Shot]:
    """All shots, each copy of another one named, and captions counted. A black shot is no copy.

    Of copies, the first that has a caption is the original, or just the first where none has. Copies look alike and
    change alike: two shots of one scene have only the former in common.
    """
    if not scored:
        return []
    captions = collections.Counter(shot.caption for shot, _ in scored)
    phases_NTP = np.stack([phases_THW.reshape(PHASES, -1) for _, phases_THW in scored]).astype(np.float32)
    changes_NTP = phases_NTP - phases_NTP.mean(axis=1, keepdims=True)
    size = phases_NTP[0].size
    flat_ND = phases_NTP.reshape(len(scored), size)
    square_N = np.sum(flat_ND**2, axis=1)
    result = [shot for shot, _ in scored]
    originals: list[int] = []
    for index in sorted(range(len(scored)), key=lambda index: not scored[index].shot.caption):
        shot = dataclasses.replace(result[index], same_caption=captions[result[index].caption])
        of = np.array(originals, int)
        near = of[square_N[of] + square_N[index] - 2 * flat_ND[of] @ flat_ND[index] < SAME**2 * size]
        apart = np.sqrt(np.mean((changes_NTP[near] - changes_NTP[index]) ** 2, axis=(1, 2)))
        same = near[apart <= max(FAINTEST, SAME_MOTION * np.sqrt(np.mean(changes_NTP[index] ** 2)))]
        if len(same) and not shot.black:
            shot = dataclasses.replace(shot, faults=(*shot.faults, DUPLICATE), duplicate_of=result[int(same[0])].name)
        else:
            originals.append(index)
        result[index] = shot
    return result


def check_curated(folder: Path, out: Path) -> None:
    """UserError where `out` is or lies in the folder of raw videos, or holds anything but curated clips as they were
    written."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out} is within {folder}, whose videos it would join; choose another --out")
    if out.exists() and not (out.is_dir() and ((out / "shots.jsonl").is_file() or not any(out.iterdir()))):
        raise UserError(f"{out} is there already and holds no curated clips; choose another --out")
    if (out / "shots.jsonl").is_file():
        lines = [_line(str(row.get("clip", "")), row.get("caption", "")) for row in _rows(out / "shots.jsonl")]
        refuse_others(out, ["captions.jsonl", "shots.jsonl", *(line["file"] for line in lines)])
        told = _rows(out / "captions.jsonl") if (out / "captions.jsonl").is_file() else None
        named = {str(row.get("file")) for row in told or ()}  # a clip may have been removed, with its line or without
        written = [line for line in lines if line["file"] in named or (out / line["file"]).is_file()]
        if told not in (None, written):
            raise UserError(f"{out} is to be replaced, but its captions.jsonl was changed; choose another --out")
    check_replaced(out)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a caption may hold other ends of lines
        return [dict(json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path} ({reason(error)}); move its folder, or choose another --out") from error


def _line(file: str, caption: str) -> dict[str, str]:
    """A clip's line in captions.jsonl."""
    return {"file": file, "caption": caption}


def write_shots(folder: Path, out: Path, shots: Sequence[Shot], kept: Sequence[Shot], mapped: Map = map) -> None:
    """Writes the `kept` shots and their captions.jsonl to `out`, and shots.jsonl, with the scores of all `shots`.

    A shot that is a whole file is copied, others are encoded again, without sound. One video after another by default:
    threads that an interruption leaves behind would go on writing. UserError where `out` cannot be written, or a file
    can no longer be read.
    """
    of_file: dict[str, list[Shot]] = {}
    for shot in kept:
        of_file.setdefault(shot.file, []).append(shot)
    check_curated(folder, out)
    if repeated := [name for name, count in collections.Counter(shot.name for shot in kept).items() if count > 1]:
        raise UserError(f"two clips would be called {repeated[0]}; rename the file of this name in {folder}")
    with atomic(out) as temporary, progress("write", len(of_file), "videos") as advance:
        temporary.mkdir()
        for failure in mapped(functools.partial(_write, folder, temporary), list(of_file.values())):
            if failure is not None:
                raise failure
            advance()
        captions = (_line(shot.name, shot.caption) for shot in kept)
        for name, rows in (("captions.jsonl", captions), ("shots.jsonl", (shot.row for shot in shots))):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (temporary / name).write_text("".join(lines), encoding="utf-8")


def _write(folder: Path, out: Path, shots: Sequence[Shot]) -> UserError | None:
    """Writes the shots of one video, in order; returns what went wrong."""
    source = folder / shots[0].file
    try:
        (out / shots[0].file).parent.mkdir(parents=True, exist_ok=True)
        if shots[0].whole:
            with atomic(out / shots[0].file) as temporary:
                shutil.copyfile(source, temporary)
            return None
        frames: Iterator[tuple[int, np.ndarray]] = enumerate(stream_frames(source, fps=shots[0].fps))
        for shot in shots:
            with VideoWriter(out / shot.name, shot.fps) as writer:
                for index, image_HWC in frames:
                    if index >= shot.first:
                        writer.write(image_HWC)
                    if index == shot.first + shot.frames - 1:
                        break
    except UserError as error:
        return error
    return None
