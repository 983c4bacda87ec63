"""The best short clips of a long video: where something happens, in focus. `tokvid highlights`."""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from tokvid.errors import UserError
from tokvid.input_pipeline.clips import probe, stream_frames
from tokvid.io.files import check_folder, write_text
from tokvid.io.media import VideoWriter, contact_sheet
from tokvid.io.progress import counted
from tokvid.metrics.footage import change, cuts, look, motion, sharpness, velocity

FPS = 8.0  # frames a second that are looked at
AROUND = 0.5  # seconds before and after a moment whose motions are compared
OFTEN = 4  # frames, of which one is measured for sharpness
TURN, CUT, MOTION = 1.0, 1.0, 0.25  # what counts how much
LEAST, MOST = 0.25, 600.0  # seconds of a clip
MOST_CLIPS = 1000
SHEET, ROWS = "sheet.png", "highlights.jsonl"  # beside the clips
COLUMNS, THUMB = 8, 128  # of the contact sheet: frames of a clip, and about their height in pixels


@dataclasses.dataclass(frozen=True)
class Highlight:
    """A clip of a video, in seconds from its beginning, and what happens at `moment`.

    `turn` is by how much the motion changes there, in pictures a second; `motion` is in grey levels; sharpness is 0 to
    1. The score counts turns, cuts and motion, relative to the video's own, times the relative sharpness.
    """

    start: float
    seconds: float
    moment: float
    score: float
    turn: float
    motion: float
    sharpness: float
    cut: bool


def highlights(frames: Iterable[UInt8[np.ndarray, "h w 3"]], seconds: float, count: int) -> list[Highlight]:
    """The `count` best clips of a video, whose frames come at FPS, or fewer where it is too short; in order of time.

    Clips don't overlap, and have no cut but at their ends, where shots are long enough. UserError for a video
    that is shorter than a clip.
    """
    _check(seconds, count)
    change_T, motion_T, sharp_T, velocity_TC = _measured(frames)
    total = len(change_T) / FPS
    if total < seconds:
        raise UserError(f"the video has {total:.2f} s, fewer than a clip of {seconds:g} s; give fewer seconds")
    turn_T = _turns(velocity_TC * FPS)
    is_cut_T = np.zeros(len(change_T), bool)
    is_cut_T[cuts(change_T)] = True
    cut_N = np.flatnonzero(is_cut_T) / FPS
    score_T = TURN * _relative(turn_T) + CUT * is_cut_T + MOTION * _relative(motion_T)
    score_T *= np.minimum(1, sharp_T / max(1e-6, float(np.median(sharp_T))))
    chosen: list[Highlight] = []
    for index in np.argsort(-score_T, kind="stable").tolist():
        moment = index / FPS
        start = _within_a_shot(moment, seconds, cut_N)
        start = float(np.clip(start, 0, total - seconds))
        if any(abs(start - other.start) < seconds for other in chosen):
            continue
        score, turn, moves, sharp = (float(array_T[index]) for array_T in (score_T, turn_T, motion_T, sharp_T))
        chosen.append(Highlight(start, seconds, moment, score, turn, moves, sharp, bool(is_cut_T[index])))
        if len(chosen) == count:
            break
    return sorted(chosen, key=lambda highlight: highlight.start)


def _check(seconds: float, count: int) -> None:
    if not LEAST <= seconds <= MOST:
        raise UserError(f"seconds of a highlight should be {LEAST:g} to {MOST:g}, got {seconds:g}")
    if not 1 <= count <= MOST_CLIPS:
        raise UserError(f"count of highlights should be 1 to {MOST_CLIPS}, got {count}")


def _within_a_shot(moment: float, seconds: float, cut_N: Float[np.ndarray, " n"]) -> float:
    """The start of a clip with the moment in its middle, or nearer to an end that would be beyond a cut."""
    before_N, after_N = cut_N[cut_N <= moment], cut_N[cut_N > moment]
    start = min([moment - seconds / 2, *(after_N[:1] - seconds)])
    return float(max([start, *before_N[-1:]]))


def cut_out(path: Path, folder: Path, seconds: float, count: int) -> list[dict[str, Any]]:
    """Writes the highlights of a video file to a folder: 01.mp4, …, a contact sheet.png, and highlights.jsonl.

    They come when all are complete, in the place of earlier ones. Clips have the video's rate and size, and no sound.
    Returns the rows of highlights.jsonl. UserError as by `highlights`, and for a video that cannot be read.
    """
    _check(seconds, count)
    check_folder(folder)
    info = probe(path)
    replaced = [*(_name(number) for number in range(count)), *_earlier(folder), SHEET, ROWS]
    if any((folder / name).exists() and path.samefile(folder / name) for name in replaced):
        raise UserError(f"the highlights would replace {path} itself; choose another folder than {folder}")
    if folders := [folder / name for name in replaced if (folder / name).is_dir()]:
        raise UserError(f"cannot write {folders[0]}: it is a folder; move it, or choose another place than {folder}")
    if seconds * info.rate < 1:
        raise UserError(
            f"highlights of {seconds:g} s hold no frame of {path}, at {info.rate:g} a second; choose longer ones"
        )
    seen = counted(stream_frames(path, fps=FPS), "highlights", round(info.seconds * FPS), "frames")
    chosen = highlights(seen, seconds, count)
    rate, names = info.rate, [_name(number) for number in range(len(chosen))]
    lines = [{"file": name, **dataclasses.asdict(clip)} for name, clip in zip(names, chosen, strict=True)]
    with _renamed_together(folder, [*names, SHEET, ROWS]) as hidden:
        captions = [
            f"{name}: {clip.start:.1f} s, score {clip.score:.2f}{', begins at a cut' * clip.cut}"
            for name, clip in zip(names, chosen, strict=True)
        ]
        rows = _written(path, [hidden / name for name in names], chosen, rate)
        contact_sheet(hidden / SHEET, rows, captions=captions, columns=COLUMNS)
        write_text(hidden / ROWS, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def _written(path: Path, outs: list[Path], clips: list[Highlight], rate: float) -> list[np.ndarray]:
    """Writes clips, in order of time, and returns some small frames of each."""
    numbered, rows = enumerate(stream_frames(path, fps=rate)), []
    for out, clip in zip(outs, clips, strict=True):
        first, shown = round(clip.start * rate), []
        end = max(first + 1, round((clip.start + clip.seconds) * rate))  # before the next one's first
        often = max(1, (end - first) // COLUMNS)
        with VideoWriter(out, rate) as writer:
            for index, image_HWC in numbered:
                if index >= first:
                    writer.write(image_HWC)
                    if (index - first) % often == 0:
                        shown.append(image_HWC[:: max(1, len(image_HWC) // THUMB), :: max(1, len(image_HWC) // THUMB)])
                if index + 1 >= end:
                    break
        rows.append(np.stack(shown))
    return rows


@contextlib.contextmanager
def _renamed_together(folder: Path, names: list[str]) -> Iterator[Path]:
    """A hidden folder, whose files come into `folder` when all are complete, in the place of earlier highlights."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as hidden:
        yield Path(hidden)
        for name in _earlier(folder):
            (folder / name).unlink(missing_ok=True)
        for name in names:
            os.replace(Path(hidden) / name, folder / name)


def _earlier(folder: Path) -> list[str]:
    """The clips of earlier highlights in a folder, by their list there."""
    try:
        rows = [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]
        named = {str(row["file"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [name for number in range(MOST_CLIPS) if (name := _name(number)) in named]


def _name(number: int) -> str:
    return f"{number + 1:02d}.mp4"


def _measured(frames: Iterable[UInt8[np.ndarray, "h w 3"]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each frame: the change and the motion from the one before, the sharpness, and the velocity (T, 2)."""
    changes, motions, sharp, velocities = [], [], [0.0], []
    before = None
    for index, image_HWC in enumerate(frames):
        now = look(image_HWC)
        before = before or now
        sharp.append(sharpness(image_HWC) if index % OFTEN == 0 else sharp[-1])
        changes.append(change(before, now))
        motions.append(motion(before, now))
        velocities.append(velocity(before, now))
        before = now
    return np.array(changes), np.array(motions), np.array(sharp[1:]), np.array(velocities).reshape(-1, 2)


def _turns(velocity_TC: Float[np.ndarray, "t 2"]) -> Float[np.ndarray, " t"]:
    """By how much the motion after each frame differs from that before it: medians, which a single frame can't move."""
    near = max(1, round(AROUND * FPS))
    turns = []
    for index in range(len(velocity_TC)):
        # The velocity of a frame is that on the way to it.
        before_C = np.median(velocity_TC[max(0, index + 1 - near) : index + 1], axis=0)
        after_TC = velocity_TC[index + 1 : index + 1 + near]
        turns.append(float(np.hypot(*(np.median(after_TC, axis=0) - before_C))) if len(after_TC) else 0.0)
    return np.array(turns)


def _relative(value_T: Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    """Relative to the highest twentieth, at most 1."""
    return np.minimum(1, value_T / max(1e-6, float(np.quantile(value_T, 0.95))))
