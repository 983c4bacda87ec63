"""Further tracks of a written .mp4: subtitles."""

import contextlib
import fractions
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av

from tokvid.errors import UserError
from tokvid.io.files import atomic

MILLISECONDS = fractions.Fraction(1, 1000)
LONGEST_CUE = 1000  # characters
# FFmpeg takes the look of subtitles from a header like this; the player's own is used.
STYLE = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, Bold, Italic, Underline, BorderStyle, Outline, Shadow, Alignment
Style: Default,Arial,16,&Hffffff,0,0,0,1,1,0,2

[Events]
Format: Layer, Start, End, Style, Text
"""


class Cue(NamedTuple):
    """A subtitle, shown from `begin` to `end`, in seconds."""

    begin: float
    end: float
    text: str


def add_subtitles(path: Path, cues: Sequence[Cue]) -> None:
    """Adds a track of subtitles to an .mp4, whose pictures are copied as they are. UserError where it can't be."""
    with atomic(path) as temporary, contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(av.open(str(path.absolute())))
            target = stack.enter_context(av.open(str(temporary.absolute()), "w", options={"movflags": "+faststart"}))
            video = target.add_stream_from_template(source.streams.video[0])
            track = target.add_stream("mov_text")
            track.time_base = MILLISECONDS
            track.codec_context.subtitle_header = STYLE
            for cue in cues:
                sample: Any = av.Packet(_mov_text(cue.text))
                sample.stream, sample.time_base = track, MILLISECONDS
                sample.pts = sample.dts = round(1000 * cue.begin)
                sample.duration = round(1000 * cue.end) - sample.pts
                target.mux(sample)
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = video
                    target.mux(packet)
        except av.FFmpegError as error:
            raise UserError(f"cannot add subtitles to {path}: {error.strerror or error}") from error


def _mov_text(text: str) -> bytes:
    """A sample of 3GPP timed text: its length, and the text."""
    data = " ".join(text[:LONGEST_CUE].split()).encode()
    return len(data).to_bytes(2, "big") + data
