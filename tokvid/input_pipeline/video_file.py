"""One video file, opened safely: its packets, and its frames up to the first damage.

Files are untrusted. So containers and codecs are allow-listed, size is capped before anything is decoded, a header's
counts are never trusted, and decoding stops at the first damage: the frames before it are good, and the others are an
error instead of grey, black or frozen frames. (A decoder cannot detect all damage: a flipped bit may decode to another
picture. Of 160 mutated H.264 files, 5 passed unnoticed.) `clips.py` reads clips and streams from these.
"""

import contextlib
import dataclasses
import functools
import io
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import av

from tokvid.errors import UserError, reason
from tokvid.input_pipeline.clock import Clock, steady_times
from tokvid.input_pipeline.encoded import KINDS, MAX_PIXELS, Encoded, head_of, name_of

MAX_PACKETS = 20_000_000  # of a file: 90 hours at 60 frames a second
MAX_SECONDS = 24 * 3600.0

# FFmpeg's names of allowed formats. Sound is never decoded, only identified, to tell the streams apart.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,flv,gif,apng"
CODECS = "h264,hevc,libdav1d,av1,vp8,vp9,mpeg4,mpeg2video,mpeg1video,mjpeg,gif,apng,prores,ffv1"
SOUND = "aac,mp3float,mp3,opus,vorbis,flac,ac3,eac3,pcm_s16le"
ONE_TO_ONE = ("h264", "hevc", "libdav1d", "av1", "gif", "apng")  # every packet is one shown frame
ROUNDED = {"gif": 1e-2, "apng": 1e-3}  # seconds to which these round a frame's length
HDR = {16: "PQ", 18: "HLG"}  # FFmpeg's numbers of transfer curves
TONES = "convert it with ffmpeg -i IN -vf zscale=t=linear,tonemap=hable,zscale=t=bt709:m=bt709,format=yuv420p OUT"
PACKED = rb"DivX\d+(b|Build)\d+p"  # in the headers of MPEG-4 with two frames in a packet
NEAR_A_JOIN = 4  # packets: FFmpeg may mark one of the last before a join of recordings as damaged

OPTIONS = {
    "protocol_whitelist": "file",  # no network, and no `concat` of other files
    "format_whitelist": CONTAINERS,
    "codec_whitelist": f"{CODECS},{SOUND}",
    "max_pixels": str(MAX_PIXELS),
    "err_detect": "explode",  # a damaged frame is an error, not a guess
}


class DamagedVideo(UserError):
    """The file is damaged in the part that was read; other parts may be fine."""


class Damage(Exception):
    """Nothing can be trusted from `time` (seconds) on."""

    def __init__(self, time: float, reason: str):
        super().__init__(reason)
        self.time, self.reason = time, reason


def damaged(name: str, damage: Damage) -> DamagedVideo:
    """The error for a request of damaged frames."""
    return DamagedVideo(
        f"{name} is damaged at {max(damage.time, 0):.2f} s ({damage.reason}); "
        "use the part before, copy it again or remove it"
    )


def _tail(source: Encoded) -> bytes:
    if isinstance(source, bytes):
        return source[-64:]
    with open(source, "rb") as file:
        file.seek(-min(64, os.path.getsize(source)), os.SEEK_END)
        return file.read()


@dataclasses.dataclass(frozen=True)
class Shown:
    """A frame, for Fitter, and the seconds since the first frame at which it begins and ends."""

    begin: float
    end: float
    frame: Any


@dataclasses.dataclass(frozen=True)
class Look:
    """Facts of a video: first frame, starts of all frames, end of the last, declared rate, warnings."""

    frame: Any
    starts: list[float]
    end: float
    declared: float
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Survey:
    """Facts of a whole video: whether a seek finds the frame that reading from the start does; and, where times are
    coarsely rounded, the starts of its frames and the end of the last, in seconds."""

    seekable: bool
    starts: tuple[float, ...] = ()


def survey(opener: Callable[[Encoded], Any], source: Encoded) -> Survey:
    """Reads all of a video that `opener` opens; cached for every file."""
    if isinstance(source, bytes):
        return _survey(opener, source)
    status = os.stat(source)
    return _survey_once(opener, str(source), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _survey_once(opener: Callable[[Encoded], Any], path: str, changed: int, size: int) -> Survey:
    return _survey(opener, path)


def _survey(opener: Callable[[Encoded], Any], source: Encoded) -> Survey:
    with opener(source) as video:
        return video.survey()


class VideoFile:
    """An open video: packets, and frames up to the first damage. Times are seconds since the first frame.

    With `fps`, times that the container rounded to hundredths are restored to that rate.
    """

    def __init__(self, source: Encoded, fps: float | None = None):
        self.source, self.name, self.fps = source, name_of(source), fps
        # A GIF has neither an index nor lengths, which would show that its end and half of a frame are missing.
        self.cut = head_of(source).startswith(b"GIF8") and b";" not in _tail(source).rstrip(b"\0")[-1:]
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else os.path.abspath(source)
        try:
            self.container = av.open(file, options=OPTIONS, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            what = f"cannot open {self.name} as a picture or video"
            if _is_text(head_of(source)):
                raise UserError(f"{what}: it holds text; allowed: {KINDS}") from error
            raise UserError(
                f"{what} ({reason(error)}): it is damaged, cut off or of another kind; allowed: {KINDS}; copy it "
                "again, or convert it: ffmpeg -i FILE -c:v libx264 out.mp4"
            ) from error
        try:
            self._choose_stream()
        except BaseException:
            self.close()
            raise

    def _choose_stream(self) -> None:
        # Cover images and alpha planes are video streams too; AVIF has a still image beside its animation.
        streams = [s for s in self.container.streams.video if s.codec_context is not None]
        streams = [s for s in streams if "attached_pic" not in str(s.disposition)] or streams
        if not streams:
            raise UserError(f"{self.name} has no video stream (sound only?); remove it or give a video ({KINDS})")
        self.stream = max(
            streams, key=lambda s: (not str(s.codec_context.pix_fmt).startswith("gray"), s.frames, -s.index)
        )
        context = self.stream.codec_context
        if context.name not in CODECS.split(","):
            raise UserError(
                f"{self.name} is coded as {context.name}, allowed: {CODECS}; "
                "convert it: ffmpeg -i FILE -c:v libx264 out.mp4"
            )
        if context.width * context.height > MAX_PIXELS:
            raise UserError(
                f"{self.name} has frames of {context.width}x{context.height} pixels, at most {MAX_PIXELS} "
                "are allowed; scale it down: ffmpeg -i FILE -vf scale=1920:-2 out.mp4"
            )
        context.thread_count = 1  # damage is then reported at its own packet; files are read in parallel instead
        self.tick = float(self.stream.time_base or 0) or 1 / 90_000
        self.first: int | None = None  # stamp of the first frame, in ticks
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.clock = Clock(
            self.tick,
            1 / (float(rate) * self.tick) if rate else 1,
            kind=self.container.format.name,
            depth=context.reorder_depth,
            whole=context.name in ONE_TO_ONE,
        )
        # A packet of two frames is followed by an empty one, which not all programs give a time of its own.
        self.clock.even = self.clock.avi and bool(re.search(PACKED, context.extradata or b""))
        self._packets = self._demux()
        self._number = 0  # of the last packet
        self.reach, self.read = 0.0, 0  # the end of all streams' packets, in seconds and in bytes
        # A requested time may be rounded differently than the container's (Matroska: milliseconds).
        self.unit = ROUNDED.get(self.container.format.name)
        self.epsilon = self.unit / 2 if self.unit else min(self.tick / 2 + 1e-6, 1e-3)
        self._steady: list[float] | None = None

    @property
    def aspect(self) -> Any:
        """A pixel's width over its height."""
        return self.stream.sample_aspect_ratio

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(av.FFmpegError):
            self.container.close()

    def time(self, ticks: int) -> float:
        """Seconds since the first frame."""
        return (ticks - (self.first or 0)) * self.tick

    def _of_all_streams(self) -> Iterator[Any]:
        """The packets of the video stream; the end of the others is recorded, because the sound may be longer."""
        for packet in self.container.demux(*self.container.streams):
            ticks = packet.pts if packet.pts is not None else packet.dts
            if packet.size and ticks is not None:
                start = (self.container.start_time or 0) / av.time_base
                end = float((ticks + (packet.duration or 0)) * packet.time_base) - start
                self.reach = max(self.reach, end)
            self.read = max(self.read, (packet.pos or 0) + packet.size)
            if packet.stream_index == self.stream.index:
                yield packet

    def _raw_packets(self) -> Iterator[Any]:
        """The container's packets, without the last one of a file that is cut off."""
        packets = self._of_all_streams()
        if not self.cut:
            yield from packets
        last = None
        for packet in packets:
            if last is not None:
                if not packet.size:
                    raise Damage(self.time(self.clock.stamp(last)), "the file is cut off")
                yield last
            last = packet

    def _sound_packets(self) -> Iterator[Any]:
        """Packets up to one that is marked as damaged, except shortly before a join of recordings."""
        held: list[Any] = []
        for packet in self._raw_packets():
            if packet.size and held and self.clock.joins_at(packet):
                yield from held
                held = []
            if held or packet.is_corrupt:
                held.append(packet)
                if len(held) > NEAR_A_JOIN or not packet.size:
                    break
            else:
                yield packet
        if held:
            raise Damage(self.time(self.clock.stamp(held[0])), "a frame is cut off")

    def _demux(self) -> Iterator[Any]:
        """Packets of frames, with their numbers in place of their stamps, then an empty one that drains the decoder."""
        clock, sought = self.clock, self.clock.sought
        try:
            for packet in self._sound_packets():
                if not packet.size:
                    clock.leading = False
                    yield packet
                    continue
                if packet.has_sidedata("encryption_info"):
                    raise UserError(f"{self.name} is encrypted; give a decrypted copy or remove it")
                self._number, ticks = clock.enter(packet)
                self.first = ticks if self.first is None else self.first
                if clock.entered > MAX_PACKETS or self.time(ticks) > MAX_SECONDS:
                    raise Damage(self.time(ticks), f"over {MAX_PACKETS} frames or {MAX_SECONDS:.0f} seconds")
                if clock.leading and (sought or clock.joins):
                    continue  # the decoder holds other frames than those that these refer to
                packet.pts = self._number
                yield packet
        except (av.FFmpegError, OSError) as error:
            raise Damage(self.time(clock.end), reason(error)) from error

    def survey(self) -> Survey:
        """Reads all packets of a file that was just opened."""
        with contextlib.suppress(Damage):
            for _ in self._packets:
                pass
        starts = [*sorted(self.clock.starts), self.clock.end] if self.unit else []
        return Survey(self.clock.seekable, tuple(self.time(start) for start in starts))

    def packets(self) -> Iterator[Any]:
        """The packets not yet read, undecoded."""
        return self._packets

    def frames(self) -> Iterator[Shown]:
        """The frames from here on, in order of time, until the end or Damage."""
        context, clock = self.stream.codec_context, self.clock
        damage: Damage | None = None
        shown: Shown | None = None
        while damage is None:
            decoded: list[Any] = []
            try:
                packet = next(self._packets, None)
                if packet is None:
                    break
                decoded = packet.decode()
            except Damage as here:
                damage = here
            except av.EOFError:
                break
            except av.FFmpegError as error:
                if clock.leading:
                    continue
                damage = Damage(self.time(clock.due(self._number)), reason(error))
            if damage is not None and not clock.counted:  # where frames are counted, a lost one shifts the others
                with contextlib.suppress(av.FFmpegError):
                    decoded = context.decode(None)  # frames before the damage, still in the decoder
            for frame in decoded:
                ticks, lost = clock.leave(frame)
                if lost is not None or frame.is_corrupt:
                    loss = Damage(self.time(min(ticks, ticks if lost is None else lost)), "a frame cannot be decoded")
                    damage = loss if damage is None or loss.time < damage.time else damage
                if damage is not None and self.time(ticks) >= damage.time:
                    break
                shown = self._shown(frame, ticks)
                yield shown
        lost = clock.missing() if shown is not None else None
        if lost is not None and (damage is None or self.time(lost) < damage.time):
            damage = Damage(self.time(lost), "a frame cannot be decoded")
        if damage is not None:
            raise damage

    def _shown(self, frame: Any, ticks: int) -> Shown:
        if self._steady is not None and frame.pts + 1 < len(self._steady):
            return Shown(self._steady[frame.pts], self._steady[frame.pts + 1], frame)
        return Shown(self.time(ticks), self.time(ticks + int(frame.duration or self.clock.usual)), frame)

    def from_start(self) -> Iterator[Shown]:
        """`frames` of the whole file, with the clock set to the first one; UserError when there is none."""
        if self.unit and self.fps is not None:
            self._steady = steady_times(survey(VideoFile, self.source).starts, self.unit, self.fps)
        frames = self.frames()
        try:
            first = next(frames, None)
        except Damage as damage:
            raise DamagedVideo(
                f"{self.name} cannot be decoded from its start ({damage.reason}); copy it again or remove it"
            ) from damage
        if first is None:
            raise UserError(
                f"{self.name} has no frames ({self.stream.frames} declared, {self.clock.entered} found); "
                "it may be only a header: copy it again or remove it"
            )
        begin = round(first.begin / self.tick) + (self.first or 0)
        self.first = begin
        yield Shown(0.0, first.end - first.begin, first.frame)
        yield from frames

    def from_time(self, time: float) -> Iterator[Shown]:
        """`frames` from the keyframe before `time` (or an earlier frame)."""
        frames = self.from_start()
        first = next(frames)
        # Most short clips have one keyframe: reading on is faster than seeking back to it.
        entries = self.stream.index_entries
        near = len(entries) > 0 and entries.search_timestamp(self._at(time)) <= 0
        if near or time <= 1.0 or self.unit or not survey(VideoFile, self.source).seekable:
            yield first
            yield from frames
            return
        for back in (
            0.0,
            1.0,
            4.0,
            16.0,
            time,
        ):  # some containers seek to a keyframe after the time
            landed = None
            with contextlib.suppress(av.FFmpegError, Damage):
                self.container.seek(self._at(max(time - back, 0.0)), stream=self.stream)
                self.clock.again()
                self._packets = self._demux()
                frames = self.frames()
                landed = next(frames, None)
            if landed is not None and landed.begin <= time + self.epsilon:
                yield landed
                yield from self._while_known(frames)
                return
        yield from self._anew()

    def _anew(self) -> Iterator[Shown]:
        with VideoFile(self.source) as whole:
            yield from whole.from_start()

    def _while_known(self, frames: Iterator[Shown]) -> Iterator[Shown]:
        """The frames after a seek; where they turn out to need counting, all frames from the start instead."""
        for shown in frames:
            if self.clock.counted:
                yield from self._anew()
                return
            yield shown

    def _at(self, time: float) -> int:
        return (self.first or 0) + int(time / self.tick)

    def look(self, full: bool) -> Look:
        """The facts of a file that was just opened: reads all packets; with `full`, decodes all frames."""
        frames = self.from_start()
        first, end, warnings, shown = next(frames), None, [], 1
        try:
            for _ in frames if full else self.packets():
                shown += 1
            warnings = self.faults()
        except Damage as damage:
            end = damage.time
            warnings = [f"damaged at {end:.2f} s ({damage.reason}); only what is before can be used"]
        starts = self.clock.line()
        if full:
            starts = starts[:shown]
        end = self.time(self.clock.end) if end is None else end
        if (curve := HDR.get(first.frame.color_trc)) is not None:
            warnings.append(
                f"has high dynamic range ({curve}), which is read without tone mapping: flat and grey; {TONES}"
            )
        rate = self.stream.average_rate or self.stream.guessed_rate
        return Look(first.frame, [self.time(start) for start in starts] or [0.0], end, float(rate or 0), warnings)

    def faults(self) -> list[str]:
        """After all packets: the problems of a file that could be read to its end."""
        problems = []
        if (skipped := self.clock.skipped) and not self.clock.sought:
            problems.append(f"{skipped} frames cannot be decoded: they refer to frames that were cut off before them")
        indexed = len(self.stream.index_entries)
        declared = (self.container.duration or 0) / av.time_base
        start = (self.container.start_time or 0) / av.time_base
        if self.container.format.name.startswith("matroska") and 0 < start < declared:
            declared -= start  # some programs write the end, others the length
        rest = self._unread()
        if self.clock.entered < indexed:
            problems.append(f"cut off: {indexed} frames in its index, {self.clock.entered} found")
        elif self.reach < declared - max(1.0, 0.1 * declared):
            problems.append(f"cut off: {declared:.2f} s declared, {self.reach:.2f} s found")
        elif rest > max(1024, 0.01 * self.read):
            problems.append(f"its last {rest} bytes cannot be read; if files were joined, give them one by one")
        return problems

    def _unread(self) -> int:
        """The bytes of a second file appended to this one, which the readers of some containers ignore."""
        size = len(self.source) if isinstance(self.source, bytes) else os.path.getsize(self.source)
        if self.container.format.name == "flv":
            return size - self.read
        if not self.container.format.name.startswith("mov"):
            return 0
        place = 0
        with io.BytesIO(self.source) if isinstance(self.source, bytes) else open(self.source, "rb") as file:
            while len(head := file.read(16)) == 16:  # boxes: their length, 4 letters, or 1 and a longer length
                if head[4:8] == b"ftyp" and place > 0:
                    return size - place
                length = int.from_bytes(head[:4])
                length = int.from_bytes(head[8:16]) if length == 1 else length
                if length < 8:
                    break
                place = file.seek(place + length)
        return 0

    def damaged(self, damage: Damage) -> DamagedVideo:
        return damaged(self.name, damage)


def _is_text(head: bytes) -> bool:
    """Whether a file that begins so is no picture or video of any kind."""
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) > len(head) - 4 and all(letter.isprintable() or letter.isspace() for letter in text)
