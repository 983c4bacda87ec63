"""Animated WebP, which FFmpeg cannot read: read by Pillow, with the methods of `VideoFile`."""

import contextlib
import io
import itertools
from collections.abc import Iterator
from typing import Any

import PIL.Image

from tokvid.errors import UserError, reason
from tokvid.input_pipeline.clock import steady_times
from tokvid.input_pipeline.encoded import MAX_PIXELS, Encoded, name_of
from tokvid.input_pipeline.picture import on_white
from tokvid.input_pipeline.video_file import MAX_SECONDS, Damage, DamagedVideo, Look, Shown, Survey, damaged, survey

UNIT = 1e-3  # seconds to which durations are rounded
SHORTEST, USUAL = 10, 100  # milliseconds: frames up to SHORTEST are shown for USUAL, as in browsers


class WebP:
    """An open animation: complete frames on white, up to the first damage."""

    aspect = None

    def __init__(self, source: Encoded, fps: float | None = None):
        self.source, self.name, self.fps = source, name_of(source), fps
        self.tick = self.unit = UNIT
        self.epsilon = UNIT / 2
        try:
            self.image = PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=("WEBP",))
        except Exception as error:  # Pillow's readers raise nearly anything on damaged files
            raise UserError(
                f"cannot open {self.name} as a video ({reason(error)}): it is damaged or cut off; copy it again"
            ) from error
        width, height = self.image.size
        if width * height > MAX_PIXELS:
            self.image.close()
            raise UserError(f"{self.name} has {width}x{height} pixels, allowed are {MAX_PIXELS}; scale it down")

    def __enter__(self) -> "WebP":
        return self

    def __exit__(self, *_: object) -> None:
        self.image.close()

    def _frames(self) -> Iterator[tuple[float, Any]]:
        """The length in milliseconds of each frame, and the frame."""
        for number in range(getattr(self.image, "n_frames", 1)):
            self.image.seek(number)
            frame = on_white(self.image)
            length = float(self.image.info.get("duration") or 0)
            yield length if length > SHORTEST else USUAL, frame

    def from_start(self) -> Iterator[Shown]:
        """All frames, in order of time; UserError when there is none, Damage later."""
        times = None
        if self.fps is not None:
            times = steady_times(survey(WebP, self.source).starts, UNIT, self.fps)
        begin = 0.0
        frames = self._frames()
        for number in itertools.count():
            try:
                length, frame = next(frames, (0.0, None))
            except Exception as error:  # Pillow's readers raise nearly anything on damaged files
                if number == 0:
                    raise DamagedVideo(
                        f"{self.name} cannot be decoded from its start ({reason(error)}); copy it again or remove it"
                    ) from error
                raise Damage(begin, reason(error)) from error
            if frame is None:
                return
            if begin > MAX_SECONDS:
                raise Damage(begin, f"over {MAX_SECONDS:.0f} seconds")
            end = begin + length / 1000 if times is None or number + 1 >= len(times) else times[number + 1]
            yield Shown(begin, end, frame)
            begin = end

    def look(self, full: bool) -> Look:
        """The facts of a file that was just opened; all frames are decoded in any case."""
        frames = self.from_start()
        first = next(frames)
        starts, end, warnings = [0.0], first.end, []
        try:
            for shown in frames:
                starts.append(shown.begin)
                end = shown.end
        except Damage as damage:
            warnings = [f"damaged at {damage.time:.2f} s ({damage.reason}); only what is before can be used"]
        return Look(first.frame, starts, end, 0.0, warnings)

    def survey(self) -> Survey:
        """Reads all frames of a file that was just opened."""
        starts = [0.0]
        with contextlib.suppress(Damage):
            starts += [shown.end for shown in self.from_start()]
        return Survey(False, tuple(starts))

    def from_time(self, time: float) -> Iterator[Shown]:
        """All frames: each one is drawn on those before."""
        return self.from_start()

    def faults(self) -> list[str]:
        """None: every problem of an animation is Damage."""
        return []

    def damaged(self, damage: Damage) -> DamagedVideo:
        return damaged(self.name, damage)
