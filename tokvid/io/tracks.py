"""Further tracks of a written .mp4: subtitles and sound."""

import contextlib
import fractions
import heapq
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from jaxtyping import Float32

from tokvid.errors import UserError, reason
from tokvid.io.files import atomic

MILLISECONDS = fractions.Fraction(1, 1000)
LONGEST_CUE = 1000  # characters
SAMPLES_PER_SECOND = 48000
SOUNDS = "wav, mp3, m4a, flac, ogg, or a video with sound"
# FFmpeg's names of what a file of sound may be: no lists of other files, no network.
OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "wav,w64,aiff,mp3,aac,flac,ogg,mov,mp4,matroska,webm",
    "err_detect": "explode",  # damage is an error, not a crack
}
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
    """Adds a track of subtitles to an .mp4, whose other tracks are copied as they are. UserError where it can't be."""
    with _rewritten(path, "subtitles") as (source, target, copies):
        track = target.add_stream("mov_text")
        track.time_base = MILLISECONDS
        track.codec_context.subtitle_header = STYLE

        def packets() -> Iterator[Any]:
            for cue in cues:
                sample: Any = av.Packet(_mov_text(cue.text))
                sample.stream, sample.time_base = track, MILLISECONDS
                sample.pts = sample.dts = round(1000 * cue.begin)
                sample.duration = round(1000 * cue.end) - sample.pts
                yield sample

        _mux(target, _copied(source, copies), packets())


def add_audio(path: Path, audio: Path) -> None:
    """Adds the sound of a file to an .mp4, cut off or repeated to the length of its pictures.

    The other tracks are copied as they are. UserError where it can't be: the .mp4 stays as it was.
    """
    with _rewritten(path, "sound") as (source, target, copies):
        pictures = source.streams.video[0]
        track = target.add_stream("aac", rate=SAMPLES_PER_SECOND, layout="stereo")
        count = round(pictures.duration * pictures.time_base * SAMPLES_PER_SECOND)

        def packets() -> Iterator[Any]:
            done = 0
            for samples_CT in _samples(audio, count):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples_CT), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = SAMPLES_PER_SECOND, done
                frame.time_base = fractions.Fraction(1, SAMPLES_PER_SECOND)
                done += samples_CT.shape[1]
                yield from track.encode(frame)
            yield from track.encode(None)

        _mux(target, _copied(source, copies), packets())


def check_audio(path: Path) -> None:
    """UserError for a file whose sound cannot be read from its beginning; to be called before the work."""
    next(_samples(path, 1))


def _samples(path: Path, count: int) -> Iterator[Float32[np.ndarray, "2 t"]]:
    """`count` samples of a file's sound, left and right, some at a time; from its beginning again where it ends."""
    if not path.is_file():
        raise UserError(f"{path} is {'not a file' if path.exists() else 'not there'}; give one with sound ({SOUNDS})")
    while count > 0:
        before = count
        try:
            with av.open(str(path.absolute()), options=OPTIONS, metadata_errors="replace") as container:
                if not container.streams.audio:
                    raise UserError(f"{path} has no sound; give a file that has ({SOUNDS})")
                resampler = av.AudioResampler("fltp", "stereo", SAMPLES_PER_SECOND)
                for frame in itertools.chain(container.decode(audio=0), [None]):
                    for part in resampler.resample(frame):
                        samples_CT = part.to_ndarray()[:, :count]
                        count -= samples_CT.shape[1]
                        yield samples_CT
                        if not count:
                            return
        except UserError:
            raise
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UserError(
                f"cannot read the sound of {path} ({reason(error)}); give a whole file of another kind ({SOUNDS})"
            ) from error
        if count == before:
            raise UserError(f"the sound of {path} is empty; give another file")


@contextlib.contextmanager
def _rewritten(path: Path, what: str) -> Iterator[tuple[Any, Any, dict[int, Any]]]:
    """The .mp4 at `path`, one that will replace it, and the tracks of the latter for each of the former's."""
    with atomic(path) as temporary, contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(av.open(str(path.absolute())))
            target = stack.enter_context(av.open(str(temporary.absolute()), "w", options={"movflags": "+faststart"}))
            copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
            yield source, target, copies
        except av.FFmpegError as error:
            raise UserError(f"cannot add {what} to {path}: {reason(error)}") from error


def _copied(source: Any, copies: dict[int, Any]) -> Iterator[Any]:
    """The packets of a file, for the copies of their tracks."""
    for packet in source.demux():
        if packet.dts is not None:
            packet.stream = copies[packet.stream.index]
            yield packet


def _mux(target: Any, *tracks: Iterator[Any]) -> None:
    """Writes packets in the order of their times, as players read them."""
    for packet in heapq.merge(*tracks, key=lambda packet: packet.dts * packet.time_base):
        target.mux(packet)


def _mov_text(text: str) -> bytes:
    """A sample of 3GPP timed text: its length, and the text."""
    data = " ".join(text[:LONGEST_CUE].split()).encode()
    return len(data).to_bytes(2, "big") + data
