"""Tests which containers, codecs and rates are read correctly: every frame once, in order. Prints a Markdown table.

python scripts/containers.py                # all rates; a few minutes
python scripts/containers.py --rates 8 30

Each file is written by PyAV or Pillow and shows its frames' numbers. It is read natively, at its own rate, at half and
at twice that rate, and in the middle, where a seek must give the same frames as reading from the start. `ok` means all
of these. Files that can't be written here are left out; refused files are listed with the reason. Exits with 1 if any
file is read wrongly.
"""

import argparse
import fractions
import functools
import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image

from tokvid.errors import UserError
from tokvid.input_pipeline.clips import read_clip, stream_frames

RATES = (8, 12, 15, 16, 24, 25, 30, 50, 60)
FRAMES, HEIGHT, WIDTH, BITS = 64, 32, 96, 6
CONTAINERS = ("avi", "mp4", "mov", "mkv", "webm", "ts", "flv")

# name: (encoder, options)
CODECS = {
    "H.264": ("libx264", {"bf": "0", "g": "12", "crf": "12"}),
    "H.264, B-frames": ("libx264", {"bf": "3", "g": "12", "crf": "12", "x264-params": "b-adapt=0"}),
    "H.264, open groups": (
        "libx264",
        {"crf": "12", "x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0"},
    ),
    "HEVC": ("libx265", {"x265-params": "log-level=none:bframes=0:keyint=12"}),
    "HEVC, B-frames": ("libx265", {"x265-params": "log-level=none:bframes=3:b-adapt=0:keyint=12"}),
    "MPEG-4": ("mpeg4", {"bf": "0", "g": "12", "qmin": "2", "qmax": "4"}),
    "MPEG-4, B-frames": ("mpeg4", {"bf": "2", "g": "12", "qmin": "2", "qmax": "4"}),
    "MPEG-4, packed B-frames": ("mpeg4", {"bf": "1", "g": "12", "qmin": "2", "qmax": "4"}),
    "VP9": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime", "crf": "12", "g": "12"}),
    "AV1": ("libsvtav1", {"preset": "12", "crf": "20", "g": "12", "svtav1-params": "lookahead=0"}),
}
PACKED = "MPEG-4, packed B-frames"
NOT_BY_FFMPEG = {"HEVC": b"HEVC", "HEVC, B-frames": b"HEVC"}  # what it doesn't write to AVI, and the code to put there


def numbered(number: int) -> np.ndarray:
    """A frame, uint8 (H, W, 3), that shows `number` as black and white bars."""
    bars = [235 * (number >> bit & 1) + 10 for bit in range(BITS)]
    return np.broadcast_to(np.repeat(bars, WIDTH // BITS)[None, :, None], (HEIGHT, WIDTH, 3)).astype(np.uint8)


def number_of(image_HWC: np.ndarray) -> int:
    """The number that a frame shows."""
    bars = image_HWC.reshape(image_HWC.shape[0], BITS, -1).mean((0, 2)) > 127
    return sum(1 << bit for bit in range(BITS) if bars[bit])


def encode(path: Path, codec: str, rate: int) -> None:
    """A file of FRAMES frames, by PyAV."""
    encoder, options = CODECS[codec]
    as_avi = path.suffix == ".avi" and codec in (PACKED, *NOT_BY_FFMPEG)
    with av.open(str(path), "w", format="mpegts" if path.suffix == ".ts" else None) as file:
        stream = file.add_stream("mpeg4" if as_avi else encoder, rate=rate, options={} if as_avi else options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        coder: Any = stream
        if as_avi:
            coder = av.CodecContext.create(encoder, "w")
            coder.width, coder.height, coder.pix_fmt, coder.options = WIDTH, HEIGHT, "yuv420p", options
            coder.time_base, coder.framerate = fractions.Fraction(1, rate), rate
        packets = []
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = number, fractions.Fraction(1, rate)
            packets += coder.encode(frame.reformat(format="yuv420p"))
        packets += coder.encode(None)
        for packet in _in_avi(packets, rate, codec == PACKED) if as_avi else packets:
            packet.stream = stream
            file.mux(packet)
    if codec in NOT_BY_FFMPEG and as_avi:
        path.write_bytes(path.read_bytes().replace(b"FMP4", NOT_BY_FFMPEG[codec]))


def _in_avi(packets: list[av.Packet], rate: int, packed: bool) -> Iterator[av.Packet]:
    """Packets counted as AVI does. MPEG-4 may be `packed` as DivX does it: a B-frame is appended to the frame after it,
    which is decoded before it, and an empty frame takes its place."""
    contents = [bytes(packet) for packet in packets]
    if packed:
        kinds = [content[content.index(b"\0\0\1\xb6") + 4] >> 6 for content in contents]  # 0 I, 1 P, 2 B
        contents[0] = b"\0\0\1\xb2DivX503b1393p" + contents[0]
        for i in range(1, len(packets)):
            if kinds[i] == 2:
                contents[i - 1], contents[i] = contents[i - 1] + contents[i], b"\0\0\1\xb6\x50\x00\x7f"
    for number, content in enumerate(contents):
        packet = av.Packet(content)
        packet.pts = packet.dts = number
        packet.time_base, packet.is_keyframe = fractions.Fraction(1, rate), packets[number].is_keyframe
        yield packet


def animate(path: Path, rate: int) -> None:
    """A GIF, an animated PNG or WebP by Pillow; a GIF with the delays that rounding the starts gives."""
    images = [PIL.Image.fromarray(numbered(number)) for number in range(FRAMES)]
    unit = 10 if path.suffix == ".gif" else 1
    starts = [unit * round(1000 / unit * i / rate) for i in range(FRAMES + 1)]
    delays = [end - start for start, end in itertools.pairwise(starts)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=delays, loop=0)


def animate_evenly(path: Path, rate: int) -> None:
    """The same with one delay for all, cut to what the file can say, as many programs write it."""
    images = [PIL.Image.fromarray(numbered(number)) for number in range(FRAMES)]
    delay = 1000 // rate // 10 * 10 if path.suffix == ".gif" else 1000 // rate
    images[0].save(path, save_all=True, append_images=images[1:], duration=delay, loop=0)


def animate_by_ffmpeg(path: Path, rate: int) -> None:
    """A GIF by FFmpeg's encoder."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("gif", rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb8"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24").reformat(format="rgb8")
            frame.pts, frame.time_base = number, fractions.Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def write_ours(path: Path, rate: int) -> None:
    """A video as this program writes it."""
    from tokvid.io.media import write_video

    write_video(path, map(numbered, range(FRAMES)), rate)


ANIMATIONS: dict[str, tuple[str, Callable[[Path, int], None], float]] = {  # name: (suffix, writer, highest rate)
    "GIF": ("gif", animate, 50),
    "GIF, one delay": ("gif", animate_evenly, 50),
    "GIF by FFmpeg": ("gif", animate_by_ffmpeg, 50),
    "GIF by tokvid": ("gif", write_ours, 50),
    "MP4 by tokvid": ("mp4", write_ours, 1000),
    "APNG": ("png", animate, 90),
    "APNG, one delay": ("png", animate_evenly, 90),
    "WebP": ("webp", animate, 90),
    "WebP, one delay": ("webp", animate_evenly, 90),
}


def check(path: Path, rate: int) -> str:
    """`ok`, or what is wrong."""
    every = list(range(FRAMES))
    try:
        wrong = [] if [number_of(image) for image in stream_frames(path)] == every else ["natively"]
        for name, fps, expected in (
            ("at its rate", rate, every),
            ("at half of it", rate / 2, every[::2]),
            ("at twice of it", rate * 2, [number for number in every for _ in range(2)]),
        ):
            if [number_of(image) for image in stream_frames(path, fps=fps)] != expected:
                wrong.append(name)
        for number in (1, 11, 12, 13, 30, 47, 48, 50, FRAMES - 1):
            clip = read_clip(path, start=number / rate, fps=rate, frames=1, size=(HEIGHT, WIDTH))
            if number_of(clip[0]) != number:
                wrong.append(f"from frame {number}")
                break
    except UserError as error:
        return f"refused: {str(error).split(path.name, 1)[-1].split(';')[0].strip()}"
    return "wrong " + ", ".join(wrong) if wrong else "ok"


def read_of(folder: Path, name: str, suffix: str, write: Callable[[Path, int], None], rates: list[int]) -> str | None:
    """The last cell of a line: how these files are read; None where they cannot be written here."""
    cells = []
    for rate in rates:
        path = folder / f"{re.sub('[^a-zA-Z0-9]+', '-', name)}-{rate}.{suffix}"
        try:
            write(path, rate)
        except (av.FFmpegError, ValueError, OSError, KeyError):
            return None
        cells.append(check(path, rate))
        path.unlink()
    alike = cells[0] if len(set(cells)) == 1 else None
    return alike or "; ".join(f"{rate} fps: {cell}" for rate, cell in zip(rates, cells, strict=True))


def lines_of(name: str, cells: dict[str, str | None], rates: list[int]) -> Iterator[str]:
    """The lines of a codec: containers that are read alike share one. `cells` is the last cell of each container."""
    for read in dict.fromkeys(cell for cell in cells.values() if cell):
        suffixes = ", ".join(suffix for suffix, cell in cells.items() if cell == read)
        yield f"| {name} | {suffixes} | {', '.join(map(str, rates))} | {read} |"


def rows(rates: list[int]) -> Iterator[str]:
    """The table's lines."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for codec in CODECS:
            suffixes = CONTAINERS if codec != PACKED else ("avi",)
            write = functools.partial(_encode_at, codec)
            yield from lines_of(codec, {it: read_of(folder, codec, it, write, rates) for it in suffixes}, rates)
        for name, (suffix, animate_at, highest) in ANIMATIONS.items():
            some = [rate for rate in rates if rate <= highest]
            yield from lines_of(name, {suffix: read_of(folder, name, suffix, animate_at, some)}, some)


def _encode_at(codec: str, path: Path, rate: int) -> None:
    encode(path, codec, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=RATES)
    options = parser.parse_args()
    av.logging.set_level(None)
    print("| codec | files | frames per second | read |\n|---|---|---|---|", flush=True)
    good = True
    for line in rows(list(options.rates)):
        print(line, flush=True)
        good = good and "wrong" not in line
    sys.exit(not good)


if __name__ == "__main__":
    main()
