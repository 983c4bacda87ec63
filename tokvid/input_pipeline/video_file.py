"""One video or image file, opened safely: packets, frames up to the first damage, frames fitted to a size.

Files are strangers' property. So containers and codecs are allow-listed, size is capped before anything is
decoded, a header's counts are never believed, and decoding stops at the first damage: the frames before it
are good, what comes after is refused by name instead of being shown grey, black or frozen. (A decoder can't
tell all damage: a flipped bit may decode to another picture. Of 160 mutated H.264 files 5 passed unnoticed.)
`clips.py` is the room's door.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
from av.video.reformatter import Interpolation, VideoReformatter

from tokvid.errors import UserError, did_you_mean

Source = str | Path | bytes
Fit = Literal["crop", "letterbox"]

MAX_BYTES = 64 * 2**30  # of a file
MAX_PIXELS = 8192 * 4320  # of a frame: 8K
MAX_PACKETS = 20_000_000  # of a file: 90 hours at 60 frames a second
MAX_SECONDS = 24 * 3600.0
MAX_CLIP_BYTES = 8 * 2**30  # of what `read_clip` returns

# FFmpeg's names of what may be opened. Sound is never decoded, but looked at to tell the streams apart.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,flv,gif"
CODECS = "h264,hevc,libdav1d,av1,vp8,vp9,mpeg4,mpeg2video,mpeg1video,mjpeg,gif,prores,ffv1"
SOUND = "aac,mp3float,mp3,opus,vorbis,flac,ac3,eac3,pcm_s16le"
ONE_TO_ONE = ("h264", "hevc", "libdav1d", "av1", "gif")  # every packet is one frame that is shown
IMAGES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}  # first bytes: Pillow's name
KINDS = "mp4, mov, mkv, webm, avi, ts, flv, gif, png, jpg, bmp"

OPTIONS = {
    "protocol_whitelist": "file",  # no network, and no `concat` of other files
    "format_whitelist": CONTAINERS,
    "codec_whitelist": f"{CODECS},{SOUND}",
    "max_pixels": str(MAX_PIXELS),
    "err_detect": "explode",  # a damaged frame is an error, not a guess
}

# FFmpeg's fast paths are 1.4 grey levels too dark on real clips; this agrees with exact averaging to 0.3.
ACCURATE = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


class DamagedVideo(UserError):
    """The file is damaged where it was read; other parts of it may be fine."""


class Damage(Exception):
    """From `time` (seconds) on nothing can be trusted."""

    def __init__(self, time: float, reason: str):
        super().__init__(reason)
        self.time, self.reason = time, reason


def reason(error: Exception) -> str:
    """What an exception says, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


def _ticks(of: Any) -> int | None:
    """When a packet or frame is shown, or decoded if the container knows no more."""
    return of.pts if of.pts is not None else of.dts


def name_of(source: Source) -> str:
    """What to call it in messages."""
    return f"the video of {len(source)} bytes" if isinstance(source, bytes) else " ".join(str(source).split("\n"))


def _head(source: Source) -> bytes:
    """The first bytes of a regular file that isn't too large; UserError otherwise. (A pipe would block.)"""
    name = name_of(source)
    if isinstance(source, bytes):
        size, head = len(source), source[:16]
    else:
        path = Path(source)
        try:
            known, regular = path.exists(), path.is_file()
            size = path.stat().st_size if regular else 0
            head = b""
            if regular:
                with path.open("rb") as file:
                    head = file.read(16)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {name}: {reason(error)}; check the path and its permissions") from error
        if not regular:
            raise UserError(f"{name} is {'not a file' if known else 'not there'}; give a video file ({KINDS})")
    if not head:
        raise UserError(f"{name} is empty (0 bytes); copy it again or remove it")
    if size > MAX_BYTES:
        raise UserError(f"{name} has {size} bytes, allowed are {MAX_BYTES}; cut it into parts")
    return head


def _tail(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source[-64:]
    with open(source, "rb") as file:
        file.seek(-min(64, os.path.getsize(source)), os.SEEK_END)
        return file.read()


class VideoFile:
    """An open video: packets, and frames up to the first damage. Times are seconds since the first frame."""

    def __init__(self, source: Source):
        self.name = name_of(source)
        # A GIF has neither an index nor lengths that would show that its end, and half of a frame, is
        # missing.
        self.cut = _head(source).startswith(b"GIF8") and b";" not in _tail(source).rstrip(b"\0")[-1:]
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else os.path.abspath(source)
        try:
            self.container = av.open(file, options=OPTIONS, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UserError(
                f"cannot open {self.name} as a video ({reason(error)}): it is damaged, cut off or of another "
                f"kind; allowed: {KINDS}; copy it again, or convert it: ffmpeg -i FILE -c:v libx264 out.mp4"
            ) from error
        try:
            self._choose_stream()
        except BaseException:
            self.close()
            raise

    def _choose_stream(self) -> None:
        # Cover pictures and alpha planes are video streams too; AVIF has a still beside its animation.
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
        context.thread_count = 1  # so that damage shows at its own packet; many files are read at once instead
        self.tick = float(self.stream.time_base or 0) or 1 / 90_000
        self.first: int | None = None  # time stamp of the first frame, in ticks
        # A time asked for may be rounded differently from how the container rounded (Matroska: milliseconds).
        self.epsilon = min(self.tick / 2 + 1e-6, 1e-3)
        self.count, self.shown, self.end = (
            0,
            0,
            0,
        )  # packets, those shown, and the tick when the last one ends
        self._packets = self._demux()

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

    def frame_ticks(self) -> float:
        """The usual distance of two frames in ticks, as the container says it."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return 1 / (float(rate) * self.tick) if rate else 0.0

    def _raw_packets(self) -> Iterator[Any]:
        """All that the container gives, less the last packet of a file that is cut off."""
        packets = self.container.demux(self.stream)
        if not self.cut:
            yield from packets
        last = None
        for packet in packets:
            if last is not None:
                if not packet.size:
                    raise Damage(self.time(_ticks(last) or 0), "the file is cut off")
                yield last
            last = packet

    def _demux(self) -> Iterator[Any]:
        """Packets that belong to frames, then an empty one that drains the decoder."""
        try:
            for packet in self._raw_packets():
                ticks = _ticks(packet)
                if packet.size and ticks is not None:
                    if packet.has_sidedata("encryption_info"):
                        raise UserError(f"{self.name} is encrypted; give a decrypted copy or remove it")
                    self.first = ticks if self.first is None else self.first
                    if packet.is_corrupt:
                        raise Damage(self.time(ticks), "a frame is cut off")
                    if self.count >= MAX_PACKETS or self.time(ticks) > MAX_SECONDS:
                        raise Damage(self.time(ticks), f"over {MAX_PACKETS} frames or {MAX_SECONDS:.0f} seconds")
                    self.count += 1
                    if not packet.is_discard:
                        self.shown += 1
                        self.end = max(self.end, ticks + int(packet.duration or self.frame_ticks()))
                if packet.size or ticks is None:
                    yield packet
        except (av.FFmpegError, OSError) as error:
            raise Damage(self.time(self.end), reason(error)) from error

    def packets(self) -> Iterator[Any]:
        """The packets not yet read, undecoded."""
        return self._packets

    def frames(self) -> Iterator[tuple[float, Any]]:
        """(seconds, frame) from here on, in order of time, until the end or Damage."""
        context = self.stream.codec_context
        waiting: set[int] = set()  # time stamps of packets that went in and didn't come out yet
        keyframe: int | None = None
        shown = False
        damage: Damage | None = None
        while damage is None:
            decoded: list[Any] = []
            leading = False
            try:
                packet = next(self._packets, None)
                if packet is None:
                    break
                ticks = _ticks(packet)
                if keyframe is None and packet.is_keyframe:
                    keyframe = ticks
                # After a seek, or where a recording was cut, some frames refer to before the first keyframe:
                # skipped.
                leading = packet.size > 0 and (keyframe is None or (ticks is not None and ticks < keyframe))
                known = context.name in ONE_TO_ONE and packet.size and packet.pts is not None
                if known and not (leading or packet.is_discard):
                    waiting.add(packet.pts)
                decoded = packet.decode()
            except Damage as found:
                damage = found
            except av.EOFError:
                break
            except av.FFmpegError as error:
                if leading:
                    continue
                damage = Damage(self.time(self.end if ticks is None else ticks), reason(error))
            if damage is not None:
                with contextlib.suppress(av.FFmpegError):
                    decoded = context.decode(None)  # what the decoder still holds from before the damage
            for frame in decoded:
                ticks = _ticks(frame)
                if ticks is None:
                    damage = damage or Damage(self.time(self.end), "a frame has no time stamp")
                    break
                lost = [t for t in waiting if t < ticks] if shown else []
                if lost or frame.is_corrupt:
                    loss = Damage(self.time(min([*lost, ticks])), "a frame cannot be decoded")
                    damage = loss if damage is None or loss.time < damage.time else damage
                if damage is not None and self.time(ticks) >= damage.time:
                    break
                waiting = {t for t in waiting if t > ticks}
                shown = True
                yield self.time(ticks), frame
        if damage is None and waiting and shown:
            damage = Damage(self.time(min(waiting)), "a frame cannot be decoded")
        if damage is not None:
            raise damage

    def from_start(self) -> Iterator[tuple[float, Any]]:
        """`frames` of the whole file, with the clock set to the first one; UserError when there is none."""
        frames = self.frames()
        try:
            first = next(frames, None)
        except Damage as damage:
            raise DamagedVideo(
                f"{self.name} cannot be decoded from its start ({damage.reason}); copy it again or remove it"
            ) from damage
        if first is None:
            raise UserError(
                f"{self.name} has no frames ({self.stream.frames} declared, {self.count} found); "
                "it may be only a header: copy it again or remove it"
            )
        self.first = _ticks(first[1])
        yield 0.0, first[1]
        yield from frames

    def from_time(self, time: float) -> Iterator[tuple[float, Any]]:
        """`frames` from the keyframe before `time` (or an earlier frame)."""
        frames = self.from_start()
        first = next(frames)
        # Most short clips have one keyframe: going on is faster than seeking back to it.
        entries = self.stream.index_entries
        near = len(entries) > 0 and entries.search_timestamp(self._at(time)) <= 0
        if near or time <= 1.0:
            yield first
            yield from frames
            return
        for back in (
            0.0,
            1.0,
            4.0,
            16.0,
            time,
        ):  # some containers land on a keyframe after the time asked for
            landed = None
            with contextlib.suppress(av.FFmpegError, Damage):
                self.container.seek(self._at(max(time - back, 0.0)), stream=self.stream)
                self._packets = self._demux()
                frames = self.frames()
                landed = next(frames, None)
            if landed is not None and landed[0] <= time + self.epsilon:
                yield landed
                yield from frames
                return
        raise Damage(time, "no frame can be decoded there")

    def _at(self, time: float) -> int:
        return (self.first or 0) + int(time / self.tick)

    def shortfall(self) -> str:
        """After all packets: how the file is shorter than its index or header says; empty if it isn't."""
        indexed = len(self.stream.index_entries)
        if self.count < indexed:
            return f"cut off: {indexed} frames in its index, {self.count} found"
        declared = (self.container.duration or 0) / av.time_base
        if self.time(self.end) < declared - max(1.0, 0.1 * declared):
            return f"cut off: {declared:.2f} s declared, {self.time(self.end):.2f} s found"
        return ""

    def damaged(self, damage: Damage) -> DamagedVideo:
        return DamagedVideo(
            f"{self.name} is damaged at {max(damage.time, 0):.2f} s ({damage.reason}); "
            "use what is before, copy it again or remove it"
        )


def _turn(frame: Any) -> tuple[bool, bool, bool]:
    """(swap rows and columns, then flip rows, then flip columns): how the display matrix wants a frame."""
    try:
        matrix = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32)[:9].reshape(3, 3)
    except (KeyError, ValueError):
        return False, False, False
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):  # other angles than quarter turns are shown as the nearest of these
        return False, d < 0, a < 0
    return True, b < 0, c < 0


def shown_size(frame: Any, aspect: Any) -> tuple[int, int]:
    """Height and width of a frame in square pixels, after rotation."""
    ratio = float(aspect) if aspect and 1 / 4 <= aspect <= 4 else 1.0
    height, width = frame.height, max(1, round(frame.width * ratio))
    return (width, height) if _turn(frame)[0] else (height, width)


class Fitter:
    """Turns decoded frames into uint8 (H, W, 3) of one size; keeps FFmpeg's scaler between frames."""

    def __init__(self, size: tuple[int, int] | None, fit: Fit, aspect: Any = None):
        if fit not in ("crop", "letterbox"):
            raise UserError(did_you_mean(fit, ("crop", "letterbox"), "fit"))
        if size is not None and not (min(size) >= 1 and size[0] * size[1] <= MAX_PIXELS):
            raise UserError(f"size {size[0]}x{size[1]} should be at least 1x1 and at most {MAX_PIXELS} pixels")
        self.size, self.fit, self.aspect = size, fit, aspect
        self.scaler = VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        """Turned upright, averaged by area when scaled down, bilinear when up; centre crop or black bars."""
        swap, flip_rows, flip_columns = _turn(frame)
        shown_h, shown_w = shown_size(frame, self.aspect)
        if self.size is None:
            self.size = (shown_h, shown_w)  # the first frame's, should a stream change its size
        h, w = self.size
        scale = (max if self.fit == "crop" else min)(h / shown_h, w / shown_w)
        new_h, new_w = max(1, round(shown_h * scale)), max(1, round(shown_w * scale))
        if new_h * new_w > MAX_PIXELS:
            raise UserError(f"a frame of {shown_w}x{shown_h} pixels cannot be cropped to {w}x{h}; use fit letterbox")
        filter_ = Interpolation.AREA if scale < 1 else Interpolation.BILINEAR
        to_w, to_h = (new_h, new_w) if swap else (new_w, new_h)
        image_HWC = self.scaler.reformat(
            frame, width=to_w, height=to_h, format="rgb24", interpolation=filter_ | ACCURATE, threads=1
        ).to_ndarray()
        if swap:
            image_HWC = image_HWC.swapaxes(0, 1)
        image_HWC = image_HWC[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        if self.fit == "crop":
            top, left = (new_h - h) // 2, (new_w - w) // 2
            return np.ascontiguousarray(image_HWC[top : top + h, left : left + w])
        out_HWC = np.zeros((h, w, 3), np.uint8)
        top, left = (h - new_h) // 2, (w - new_w) // 2
        out_HWC[top : top + new_h, left : left + new_w] = image_HWC
        return out_HWC


def is_image(source: Source) -> bool:
    """Whether it begins as a still image does; UserError when it can't be read."""
    return _head(source).startswith(tuple(IMAGES))


# Pillow tells the transparent grey or colour of a PNG in the file's own numbers; in the 8 bits that it makes of these,
# it is so many times as much.
TRANSPARENT = {"1": 255, "L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}


def _eight_bits(image: PIL.Image.Image, raw: str) -> PIL.Image.Image:
    """A picture in 8 bits a channel, of which Pillow makes all but 16-bit grey, which it would clip to 255."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        grey_HW = np.asarray(image).astype(np.uint32)
        opaque_HW = 255 * (grey_HW != key).astype(np.uint8)
        grey_HW = ((255 * grey_HW + 32767) // 65535).astype(np.uint8)
        return PIL.Image.merge("LA", [PIL.Image.fromarray(grey_HW), PIL.Image.fromarray(opaque_HW)])
    if key is not None and (scale := TRANSPARENT.get(raw)):
        key = tuple(int(value * scale) for value in key) if isinstance(key, tuple) else int(key * scale)
        image.info["transparency"] = key
    return image


def open_image(source: Source) -> Any:
    """A still image, upright and without transparency (on white), as a frame for Fitter."""
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with PIL.Image.open(file, formats=tuple(IMAGES.values())) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{name_of(source)} has {image.width}x{image.height} pixels, allowed are {MAX_PIXELS}; "
                    "scale it down"
                )
            raw = str(image.tile[0][3]) if image.tile else ""  # how the file has its pixels
            upright = _eight_bits(PIL.ImageOps.exif_transpose(image), raw)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", upright.size, "white"), upright)
            return av.VideoFrame.from_ndarray(np.asarray(upright.convert("RGB")), format="rgb24")
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise UserError(
            f"{name_of(source)} is not a readable image ({reason(error)}); copy it again or remove it"
        ) from error
