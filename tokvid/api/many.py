"""Many clips at once, in a folder whose index lists them; what is there isn't made again."""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import re
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tokvid.api.stories import Settings, make_story
from tokvid.api.video import Video
from tokvid.distributed import check_same, first, together
from tokvid.errors import UserError
from tokvid.input_pipeline.captions import is_blank
from tokvid.io.files import check_folder, once_each, read_limited, write_text
from tokvid.io.progress import progress
from tokvid.io.settings import from_dict
from tokvid.io.urls import local
from tokvid.sampling.film import scale_for
from tokvid.sampling.many import batches_of, tell_many
from tokvid.sampling.models import Models
from tokvid.sampling.story import NEXT_SEED, Segment, Story

INDEX = "index.jsonl"
OWN = ("seed", "guidance", "last_guidance", "negative")  # what a segment may have instead of its story's
LARGEST_FILE = 1 << 26  # bytes of a file of prompts
LONGEST_NAME = 40  # letters of a prompt in a file's name

Prompts = str | os.PathLike[str] | Sequence[str | Segment | Mapping[str, Any]]


def clips_of(prompts: Prompts, count: int, seconds: float, settings: Settings) -> list[Story]:
    """`count` stories of each prompt, which differ by their seeds; these don't depend on the other prompts."""
    if count < 1:
        raise UserError(f"count should be 1 or more, got {count}")
    if isinstance(prompts, str | os.PathLike):
        prompts = read_prompts(local(os.fspath(prompts)), seconds)
    seen: collections.Counter[Story] = collections.Counter()
    clips = []
    for prompt in prompts:
        story = make_story([Segment(prompt, seconds) if isinstance(prompt, str) else prompt], seconds, settings)
        (segment,) = story.segments
        # A story's own, so that clips are equal if they are told alike.
        own: dict[str, Any] = {name: value for name in OWN if (value := getattr(segment, name)) is not None}
        story = dataclasses.replace(story, segments=(Segment(segment.prompt, segment.seconds),), **own)
        seed = story.seed
        for number in range(seen[story], seen[story] + count):
            clips.append(dataclasses.replace(story, seed=(seed + NEXT_SEED * number) % 2**32))
        seen[story] += count
    if not clips:
        raise UserError("there are no prompts; give one or more")
    return clips


def read_prompts(path: Path, seconds: float) -> list[Segment]:
    """The prompts of a file: one a line, or, in a .jsonl file, {"prompt": "…", "seed": 7, "seconds": 2, …} a line.

    `seconds` is the length of those without their own. UserError, with the line, for what cannot be used.
    """
    data = read_limited(path, "prompts", LARGEST_FILE)
    if not data.strip():
        raise UserError(f"prompts {path} has none; write a prompt on each line")
    read, segments = _from_json if path.suffix.lower() == ".jsonl" else _from_text, []
    for number, line in enumerate(data.rstrip().split(b"\n"), 1):
        try:
            segment = read(line.decode("utf-8-sig"), seconds)
            if is_blank(segment.prompt):
                raise UserError("the prompt is empty; write one, or remove the line")
        except UnicodeDecodeError as error:
            raise UserError(f"prompts {path}, line {number}: not UTF-8 text ({error.reason})") from error
        except UserError as error:
            raise UserError(f"prompts {path}, line {number}: {error}") from error
        segments.append(segment)
    return segments


def _from_text(line: str, seconds: float) -> Segment:
    return Segment(line.strip(), seconds)


def _from_json(line: str, seconds: float) -> Segment:
    try:
        value = json.loads(line, object_pairs_hook=once_each) if line.strip() else {"prompt": ""}
    except (ValueError, RecursionError) as error:
        raise UserError(f'not valid JSON ({error}); write {{"prompt": "…"}}') from error
    return from_dict(Segment, {"seconds": seconds, **value} if isinstance(value, dict) else value, "prompt")


def fill(models: Models, folder: Path, clips: Sequence[Story], batch: int, scale: int = 0) -> list[dict[str, Any]]:
    """Writes these clips to a folder, each as an .mp4, but for those that it has; returns the rows of its index.

    Several processes of one job share the clips. After an interruption, the same call makes what is missing: of a batch
    that was being made, all.
    """
    batches_of(models, clips, batch)  # refuses what cannot be made, before anything is written
    check_folder(folder)
    index = _Index(folder)
    marks = {_mark(models, scale, story): story for story in clips}
    check_same([*marks])
    mine = list(marks.items())[jax.process_index() :: jax.process_count()]
    missing = [(mark, story) for mark, story in mine if mark not in index.rows]
    if not missing and first():
        print(f"{folder}: nothing is missing", file=sys.stderr)
    began = time.monotonic()
    frames = sum(story.frames for _, story in missing)
    with progress(f"{len(missing)} clips", frames, "frames", quiet=not first()) as advance:
        for numbers, videos in tell_many(models, [story for _, story in missing], batch, advance):
            seconds = (time.monotonic() - began) / len(numbers)
            for number, video_THWC in zip(numbers, videos, strict=True):
                mark, story = missing[number]
                video = Video(video_THWC, story.fps, story=story)
                name = f"{first_words(story.segments[0].prompt)}-{mark[:12]}.mp4"
                index.add({"file": name, **_figures(video), "seconds_to_make": round(seconds, 3), "mark": mark})
                video.save(folder / name, scale=scale)
            began = time.monotonic()
    rows = index.merged()
    return [rows[mark] for mark in marks if mark in rows]


def _mark(models: Models, scale: int, story: Story) -> str:
    """32 hex digits of all that decides a clip."""
    scale = 0 if scale == scale_for(models.size) else scale
    return hashlib.sha256(f"{models.mark} {scale} {story}".encode()).hexdigest()[:32]


def first_words(prompt: str) -> str:
    """The first words of a prompt, as part of a file's name: a name has at most 255 bytes, and a letter up to four."""
    letters = re.sub("[\ufe00-\ufe0f]", "", unicodedata.normalize("NFC", prompt))  # how a picture is shown
    kept = (each.isalnum() or unicodedata.category(each) in ("Mn", "Mc") for each in letters)
    words = "".join(each if keep else " " for each, keep in zip(letters, kept, strict=True)).split()
    lengths = itertools.accumulate(len(word) + 1 for word in words)
    whole = [word for word, length in zip(words, lengths, strict=True) if length <= LONGEST_NAME + 1]
    return "-".join(whole or words)[:LONGEST_NAME] or "clip"


def _figures(video: Video) -> dict[str, Any]:
    """What the index says of a clip; motion is the mean change from frame to frame, in grey levels."""
    story = video.story
    assert story is not None
    (segment,) = story.segments
    changes = np.abs(np.diff(video.frames.astype(np.float32), axis=0))
    return {
        "prompt": segment.prompt,
        "seed": story.seed,
        "seconds": segment.seconds,
        "fps": story.fps,
        "frames": len(video),
        "motion": round(float(changes.mean()), 3) if changes.size else 0.0,
    }


class _Index:
    """The rows of a folder's clips by their marks, kept in INDEX, to which process 0 adds rows as clips are made.

    The other processes add to files of their own, which process 0 takes in at the end, or at the beginning of the next
    job. A row is written before its file, so that no file is without one; a row without its file doesn't count. Another
    job in the folder may write the index anew in between, so rows that this one added are there again at the end.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / (INDEX if first() else f".{INDEX}.{jax.process_index()}")
        self._added: dict[str, dict[str, Any]] = {}
        self.rows = self.merged()

    def merged(self) -> dict[str, dict[str, Any]]:
        """All rows of all processes, when they are done."""
        together("clips are written")
        if first():
            parts = sorted(self._folder.glob(f".{INDEX}.*[0-9]"))
            rows = self._read(self._folder / INDEX)
            for part in parts:
                rows |= self._read(part)
            rows |= {mark: row for mark, row in self._added.items() if self._has(row["file"])}
            write_text(self._folder / INDEX, "".join(_line(row) for row in rows.values()))
            for part in parts:
                part.unlink()
        together("their index is whole")
        return self._read(self._folder / INDEX)

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        """The rows whose files are there; a last line without its end was being written when a job was killed."""
        rows = {}
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return {}
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                file, mark = str(row["file"]), str(row["mark"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number} is no row of tokvid's index of clips; remove it, or name another folder"
                ) from error
            if self._has(file):
                rows[mark] = row
        return rows

    def _has(self, file: str) -> bool:
        return (self._folder / Path(file).name).is_file()

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row at the end, at once."""
        try:
            with open(self._path, "ab") as file:
                file.write(_line(row).encode())
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}; free some space, then run again") from error
        self._added[row["mark"]] = row


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
