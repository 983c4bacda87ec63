"""When frames are shown: every frame once and in order, whatever the time stamps of its container are worth."""

import io
import logging
import math
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from tokvid.errors import UserError
from tokvid.input_pipeline.clips import probe, read_clip, stream_frames
from tokvid.input_pipeline.clock import Clock, steady_rate, steady_times
from tokvid.io.media import write_video

ROOT = Path(__file__).parents[2]
BITS, FRAMES = 6, 48
B_FRAMES = {"bf": "3", "g": "12", "crf": "12", "x264-params": "b-adapt=0"}
OPEN = {"crf": "12", "x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0"}
EVERY = list(range(FRAMES))


def numbered(number: int, height: int = 32, width: int = 96) -> np.ndarray:
    """A frame that shows `number` as black and white bars."""
    bars = [235 * (number >> bit & 1) + 10 for bit in range(BITS)]
    return np.broadcast_to(np.repeat(bars, width // BITS)[None, :, None], (height, width, 3)).astype(np.uint8)


def numbers(images) -> list[int]:
    def number(image_HWC):
        bars = image_HWC.reshape(image_HWC.shape[0], BITS, -1).mean((0, 2)) > 127
        return sum(1 << bit for bit in range(BITS) if bars[bit])

    return [number(image_HWC) for image_HWC in images]


def mux(path: Path, stamps: list[int], codec="libx264", options=B_FRAMES, base=1000) -> None:
    """A file whose packets, as they are decoded, have these stamps (1/base seconds) and no others."""
    with av.open(str(path), "w", format="mpegts" if path.suffix == ".ts" else None) as file:
        stream = file.add_stream(codec, rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        packets = []
        for i in range(len(stamps)):
            packets += stream.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24"))
        for packet, stamp in zip(packets + stream.encode(None), stamps, strict=True):
            packet.pts = packet.dts = stamp
            packet.time_base, packet.duration, packet.stream = Fraction(1, base), 0, stream
            file.mux(packet)


def encode(path: Path, codec="libx264", options=B_FRAMES, rate=8, sound=0.0) -> Path:
    """A file of numbered frames; with so many seconds of silence, if any."""
    with av.open(str(path), "w", format="mpegts" if path.suffix == ".ts" else None) as file:
        stream = file.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        voice = file.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000) if sound else None
        for i in range(FRAMES):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24")))
        file.mux(stream.encode(None))
        for i in range(round(48000 * sound / 960)):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts, silence.time_base = 48000, 960 * i, Fraction(1, 48000)
            file.mux(voice.encode(silence))
        if voice is not None:
            file.mux(voice.encode(None))
    return path


def seeks_alike(path: Path, fps: float = 8) -> None:
    """A clip from anywhere is what reading from the start gives there."""
    shown = numbers(stream_frames(path, fps=fps))
    for i in [*range(1, len(shown), 7), 12, len(shown) - 1]:
        assert numbers(read_clip(path, start=i / fps, fps=fps, frames=1, size=(32, 96))) == [shown[i]], i


@pytest.mark.slow
def test_containers_and_codecs():
    """All of `scripts/containers.py`, at one rate here: what isn't read right is refused by name."""
    command = [sys.executable, str(ROOT / "scripts" / "containers.py"), "--rates", "24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = done.stdout.splitlines()[2:]
    assert sum("| avi" in line and line.endswith("| 24 | ok |") for line in lines) >= 7 and "packed" in done.stdout
    refused = [line for line in lines if not line.endswith("| ok |")]
    assert {line.split(" | ")[1] for line in refused} <= {"ts"}, refused  # it has no name for VP9 and AV1
    assert all("refused: has no video stream" in line for line in refused)


@pytest.mark.parametrize("suffix,options", [("mp4", B_FRAMES), ("mkv", B_FRAMES), ("mkv", OPEN)])
def test_stamps_in_the_order_of_decoding(tmp_path, suffix, options):
    mux(tmp_path / f"v.{suffix}", [125 * i for i in range(FRAMES)], options=options)
    assert numbers(stream_frames(tmp_path / f"v.{suffix}")) == EVERY
    assert numbers(stream_frames(tmp_path / f"v.{suffix}", fps=8)) == EVERY
    seeks_alike(tmp_path / f"v.{suffix}")
    assert probe(tmp_path / f"v.{suffix}", full=True).seconds == pytest.approx(6)


def test_stamps_that_are_repeated(tmp_path):
    mux(tmp_path / "v.mkv", [250 * (i // 2) for i in range(FRAMES)], options={"bf": "0", "g": "12"})
    assert numbers(stream_frames(tmp_path / "v.mkv")) == EVERY
    assert numbers(stream_frames(tmp_path / "v.mkv", fps=8)) == EVERY
    seeks_alike(tmp_path / "v.mkv")
    assert not probe(tmp_path / "v.mkv").warnings


@pytest.mark.parametrize("codec,options", [("mpeg4", {"bf": "0"}), ("mpeg4", {"bf": "2"}), ("libx264", B_FRAMES)])
def test_what_an_avi_leaves_out_takes_time(tmp_path, codec, options):
    """Between frames that are further apart than its rate, an AVI has empty chunks."""
    places = [*range(16), *range(16, 80, 2)]
    mux(tmp_path / "v.avi", places, codec, {"g": "12", **options}, base=8)
    assert numbers(stream_frames(tmp_path / "v.avi")) == EVERY
    shown = [int(np.searchsorted(places, i, side="right")) - 1 for i in range(79)]
    assert numbers(stream_frames(tmp_path / "v.avi", fps=8)) == shown
    seeks_alike(tmp_path / "v.avi")


@pytest.mark.parametrize(
    "suffix,codec,options",
    [("ts", "libx264", B_FRAMES), ("ts", "mpeg4", {"bf": "2", "g": "12"}), ("mkv", "libx264", B_FRAMES),
     ("webm", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"})],
)  # fmt: skip
def test_recordings_that_were_joined(tmp_path, suffix, codec, options):
    one = encode(tmp_path / f"one.{suffix}", codec, options).read_bytes()
    both = tmp_path / f"both.{suffix}"
    both.write_bytes(one + one)
    assert numbers(stream_frames(both)) == EVERY + EVERY
    assert numbers(stream_frames(both, fps=8)) == EVERY + EVERY
    seeks_alike(both)
    info = probe(both, full=True)
    assert info.frames == 2 * FRAMES and info.seconds == pytest.approx(12, abs=0.01) and not info.warnings


@pytest.mark.parametrize("suffix", ["mp4", "flv"])
def test_joined_files_that_cannot_be_read_are_told(tmp_path, suffix):
    one = encode(tmp_path / f"one.{suffix}").read_bytes()
    (tmp_path / f"both.{suffix}").write_bytes(one + one)
    info = probe(tmp_path / f"both.{suffix}")
    assert info.frames == FRAMES and not probe(tmp_path / f"one.{suffix}").warnings
    assert len(info.warnings) == 1 and "bytes cannot be read; if files were joined" in info.warnings[0]


def test_a_recording_that_begins_in_the_middle(tmp_path, caplog):
    whole = encode(tmp_path / "whole.ts").read_bytes()
    with av.open(tmp_path / "whole.ts") as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
    begin = next(i for i in range(14, FRAMES) if packets[i].is_keyframe)
    lost, rest = begin - 14, whole[packets[14].pos :]
    (tmp_path / "cut.ts").write_bytes(whole[: 2 * 188] + rest)
    with caplog.at_level(logging.WARNING):
        shown = numbers(stream_frames(tmp_path / "cut.ts"))
    assert lost and shown == EVERY[begin:]
    assert f"{lost} frames cannot be decoded: they refer to frames that were cut off" in caplog.text
    info = probe(tmp_path / "cut.ts")
    assert info.frames == FRAMES - begin and f"{lost} frames" in info.warnings[0]
    (tmp_path / "both.ts").write_bytes(whole + rest)
    assert numbers(stream_frames(tmp_path / "both.ts")) == EVERY + EVERY[begin:]
    assert f"{lost} frames" in probe(tmp_path / "both.ts").warnings[0]


class Packet:
    """What `Clock` looks at."""

    is_discard, duration = False, 0

    def __init__(self, pts, dts, is_keyframe=False):
        self.pts, self.dts, self.is_keyframe = pts, dts, is_keyframe


class Frame:
    def __init__(self, pts, kind="B"):
        self.pts, self.pict_type = pts, "?IPB".index(kind)


def test_stamps_that_are_missing():
    clock = Clock(0.1, 1, kind="mpegts", depth=1, whole=True)
    packets = [Packet(1, 0, True), Packet(4, 1), Packet(2, 2), Packet(None, 3), Packet(7, 4), Packet(5, 5)]
    for packet in packets:
        clock.enter(packet)
    left = [clock.leave(Frame(number)) for number in (0, 2, 3, 1, 5, 4)]
    assert left == [(stamp, None) for stamp in (1, 2, 3, 4, 5, 7)] and clock.missing() is None


@pytest.mark.parametrize(
    "stamps,outputs,lost",
    [
        ([0, 3, 1, 2], "0I 3B 1P", 1),  # number 2, by the stamps
        ([0, 1, 2, 3, 4, 5], "0I 1P 3P", 2),  # no frames were reordered: none are counted
        ([0, 1, 2, 3, 4, 5], "0I 2B 1P 5B 4P", 3),  # counted
        ([0, 1, 2, 3, 4, 5], "0I 2B 1P 4B 5B 3P", None),
        ([0, 1, 2, 3, 4, 5], "0I 4B 5B 3P", None),  # the first two were cut off from what they refer to
    ],
)
def test_a_frame_that_never_comes_is_noticed(stamps, outputs, lost):
    clock = Clock(0.1, 1, kind="mkv", depth=1, whole=True)
    for i, stamp in enumerate(stamps):
        clock.enter(Packet(stamp, i, i == 0))
    left = [clock.leave(Frame(int(output[0]), output[1])) for output in outputs.split()]
    assert next((loss for _, loss in left if loss is not None), None) == lost
    assert lost is not None or [stamp for stamp, _ in left] == stamps[: len(left)]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
@pytest.mark.parametrize("fps", [8, 12, 16, 24, 25, 30])
def test_what_is_written_is_read_frame_for_frame(tmp_path, suffix, fps):
    path = tmp_path / f"v{suffix}"
    write_video(path, map(numbered, EVERY), fps)
    assert numbers(stream_frames(path)) == EVERY == numbers(stream_frames(path, fps=fps))
    assert numbers(read_clip(path, start=5 / fps, fps=fps, frames=40, size=(32, 96))) == EVERY[5:45]
    assert probe(path).rate == pytest.approx(fps, rel=1e-6)


def gif(path: Path, delays: list[int], images=None) -> None:
    """A GIF with delays in hundredths of a second."""
    frames = [PIL.Image.fromarray(image) for image in images or map(numbered, range(len(delays)))]
    milliseconds = [10 * delay for delay in delays]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


@pytest.mark.parametrize(
    "delays,fps",
    [([12], 8), ([13], 8), ([12, 13], 8), ([13, 12], 8), ([8], 12), ([6], 16), ([4], 24), ([4], 25), ([3], 30),
     ([4, 4, 4, 4, 4, 5], 24)],
)  # fmt: skip
def test_gifs_of_others(tmp_path, delays, fps):
    gif(tmp_path / "v.gif", (delays * FRAMES)[:FRAMES])
    assert numbers(stream_frames(tmp_path / "v.gif", fps=fps)) == EVERY
    assert numbers(stream_frames(tmp_path / "v.gif", fps=2 * fps)) == sorted(EVERY + EVERY)
    seeks_alike(tmp_path / "v.gif", fps)


def test_a_gif_whose_delays_vary_keeps_its_times(tmp_path):
    delays = [10, 50, 20, 7, 33, 100, 12, 12]
    gif(tmp_path / "v.gif", delays)
    starts = np.cumsum([0, *delays[:-1]])
    at = np.arange(0, sum(delays), 5)
    shown = np.searchsorted(starts, at, side="right") - 1
    assert numbers(stream_frames(tmp_path / "v.gif", fps=20)) == shown.tolist()


def test_times_of_steady_rates():
    assert steady_times([0, 0.12, 0.24, 0.36, 0.48], 0.01, 8) == [0, 0.125, 0.25, 0.375, 0.5]
    assert steady_times([0, 0.12, 1.0, 1.12], 0.01, 8) == [0, 0.125, 1.0, 1.125]  # equal frames were joined
    assert steady_times([0, 0.12, 0.24, 0.36], 0.01, 4) == [0, 0.125, 0.25, 0.375]  # half of the rate
    assert steady_times([0, 0.11, 0.6, 0.8, 0.87], 0.01, 8) is None
    assert steady_times([0, 0.03, 0.06, 0.09], 0.01, 15) == [0, 1 / 30, 2 / 30, 3 / 30]
    assert steady_times([0.04 * n for n in range(30)], 0.01, 8) is None  # 25 frames a second aren't 24


@pytest.mark.parametrize(
    "delay, fps",
    [(2, 12), (2, 13), (2, 9), (2, 10), (3, 7), (3, 10), (3, 13), (4, 7), (5, 12), (5, 7), (6, 5), (2, 40)],
)
def test_a_gif_that_is_faster_than_a_multiple_of_the_rate_keeps_its_length(tmp_path, delay, fps):
    gif(tmp_path / "v.gif", [delay] * 60)
    count = math.ceil(round(0.6 * delay * fps, 6))
    shown = [(n * 100 / fps + rounding) / delay for n in range(count) for rounding in (-0.5, 0.5)]
    found = numbers(stream_frames(tmp_path / "v.gif", fps=fps))
    assert len(found) == count
    for number, early, late in zip(found, shown[::2], shown[1::2], strict=True):
        assert math.floor(early - 1e-6) <= number % 60 <= math.floor(late + 1e-6)
    assert steady_rate([0, 0.12, 1.0, 1.13], 0.01, 3.5) == 8
    assert steady_rate([i / 29.97 for i in range(8)], 0.001, 29.97) == 29.97
    assert steady_rate([0, 0.03, 0.07, 0.1, 0.13], 0.01, 30.3, rounded=True) == 30
    assert steady_rate([i / 24 for i in range(12)] + [0.5 + i / 4 for i in range(12)], 0.001, 6.86) == 24
    assert steady_rate([i * 1.001 / 30 for i in range(40)], 0.001, 30 / 1.001) == 30 / 1.001
    assert steady_rate([0, 0.0413, 0.1177, 0.1431, 0.2009], 0.001, 20) == pytest.approx(1 / 0.0254)


def varying(path: Path) -> list[float]:
    """24 frames a second for half a second, then four; light from 0.5 s on. When the frames start."""
    starts = [i / 24 for i in range(12)] + [0.5 + i / 4 for i in range(12)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=1000)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for start in starts:
            picture = np.full((32, 32, 3), 30 if start < 0.5 else 220, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(1000 * start), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return starts


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_rate_that_keeps_what_is_shown_when(tmp_path, suffix):
    varying(tmp_path / f"v.{suffix}")
    info = probe(tmp_path / f"v.{suffix}")
    assert info.frames == 24 and info.rate == 24 and info.fps < 8
    light = [image.mean() > 128 for image in stream_frames(tmp_path / f"v.{suffix}", fps=info.rate)]
    assert light.index(True) == 12 and len(light) == pytest.approx(24 * info.seconds, abs=1)
    write_video(
        tmp_path / "g.gif", [numbered(0)] * 8 + [numbered(i) for i in range(8)], 8
    )  # Pillow joins the first nine
    assert numbers(stream_frames(tmp_path / "g.gif", fps=probe(tmp_path / "g.gif").rate)) == [0] * 9 + list(range(1, 8))


@pytest.mark.parametrize(
    "suffix,codec", [("mp4", "libx264"), ("mkv", "libx264"), ("ts", "libx264"), ("webm", "libvpx-vp9")]
)
def test_sound_may_be_longer_than_the_picture(tmp_path, suffix, codec):
    options = B_FRAMES if codec == "libx264" else {"cpu-used": "8", "deadline": "realtime"}
    info = probe(encode(tmp_path / f"v.{suffix}", codec, options, sound=20))
    assert not info.warnings and info.frames == FRAMES and info.seconds == pytest.approx(6, abs=0.13)


def test_a_matroska_that_begins_late(tmp_path):
    with av.open(str(tmp_path / "late.mkv"), "w", options={"avoid_negative_ts": "disabled"}) as file:
        stream = file.add_stream("libx264", rate=8, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            frame.pts, frame.time_base = i + 800, Fraction(1, 8)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    info = probe(tmp_path / "late.mkv")
    assert not info.warnings and info.seconds == pytest.approx(6)


def parts(background: int) -> list[PIL.Image.Image]:
    """Eight pictures, of which each differs from the one before in a part only."""
    images = []
    for i in range(8):
        image = np.full((24, 40, 3), background, np.uint8)
        image[4:12, 4 * i : 4 * i + 8] = (200, 30 * i, 90)
        images.append(PIL.Image.fromarray(image))
    return images


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animated_images_are_videos(tmp_path, kind):
    images, delays = parts(255), [100, 50, 200, 50, 100, 100, 300, 100]
    path = tmp_path / f"a.{kind.lower()}"
    images[0].save(path, kind, save_all=True, append_images=images[1:], duration=delays, loop=0, lossless=True)
    back = list(stream_frames(path))
    for image, image_HWC in zip(images, back, strict=True):
        np.testing.assert_array_equal(image_HWC, np.asarray(image))
    info = probe(path)
    assert (info.frames, info.seconds, info.width, info.height) == (8, pytest.approx(1.0), 40, 24) and info.rate == 20
    shown = [i for i, delay in enumerate(delays) for _ in range(delay // 50)]
    for source in (path, path.read_bytes()):
        clip = read_clip(source, start=0.1, fps=20, frames=18, size=(24, 40))
        np.testing.assert_array_equal(clip, np.stack([np.asarray(images[i]) for i in shown[2:]]))
    with pytest.raises(UserError, match=r"has 1\.00 s"):
        read_clip(path, start=0.9, fps=20, frames=4, size=(24, 40))


def test_parts_of_an_animated_png_are_put_together(tmp_path):
    """By its specification: what becomes of a part when the next is drawn, and whether that is put in or laid over."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rng = np.random.default_rng(0)
    canvas, expected, number = np.zeros((16, 20, 4), np.uint8), [], 0
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 16, 8, 6, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">II", 12, 0))
    for i in range(12):
        keep, over = [0, 2, 1, 1, 0, 2, 2, 0, 1, 2, 0, 0][i], i % 2 and i > 0
        x, y, width, height = (0, 0, 20, 16) if i == 0 else (i, i // 2, 9, 8)
        part = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        part[..., 3] = rng.choice([0, 255], (height, width)) if i else 255
        rows = b"".join(b"\0" + row.tobytes() for row in part)
        data += chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, x, y, 1 + i % 3, 16, keep, bool(over)))
        order = b"" if i == 0 else struct.pack(">I", number + 1)
        data += chunk(b"fdAT" if i else b"IDAT", order + zlib.compress(rows))
        number += 2 if i else 1
        before, region = canvas.copy(), (slice(y, y + height), slice(x, x + width))
        canvas[region] = np.where(part[..., 3:] == 0, canvas[region], part) if over else part
        expected.append(np.where(canvas[..., 3:] == 0, 255, canvas[..., :3]))
        if keep == 1:
            canvas[region] = 0
        if keep == 2:
            canvas = before
    (tmp_path / "a.png").write_bytes(data + chunk(b"IEND", b""))
    np.testing.assert_array_equal(np.stack(list(stream_frames(tmp_path / "a.png"))), np.stack(expected))
    info = probe(tmp_path / "a.png", full=True)
    assert info.seconds == pytest.approx(24 / 16) and info.rate == 16 and not info.warnings
    shown = [i for i in range(12) for _ in range(1 + i % 3)]
    clip = read_clip(tmp_path / "a.png", start=0, fps=16, frames=24, size=(16, 20))
    np.testing.assert_array_equal(clip, np.stack([expected[i] for i in shown]))


def test_transparency_is_white_and_a_cover_is_no_frame(tmp_path):
    clear = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    blue = PIL.Image.new("RGBA", (8, 8), (0, 0, 255, 255))
    options = {"save_all": True, "append_images": [clear, blue], "duration": 125, "disposal": 1, "blend": 0}
    blue.save(tmp_path / "a.png", default_image=True, **options)
    frames = list(stream_frames(tmp_path / "a.png"))
    assert len(frames) == 2 == probe(tmp_path / "a.png").frames
    assert (frames[0] == 255).all() and (frames[1] == (0, 0, 255)).all()
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "still.webp", lossless=True)
    assert probe(tmp_path / "still.webp").fps == 0 and len(list(stream_frames(tmp_path / "still.webp", fps=8))) == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animated_images_that_are_cut_off(tmp_path, kind, caplog):
    images = [
        PIL.Image.fromarray(image) for image in np.random.default_rng(0).integers(0, 256, (8, 24, 40, 3), np.uint8)
    ]
    whole = io.BytesIO()
    images[0].save(whole, kind, save_all=True, append_images=images[1:], duration=100, lossless=True)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(whole.getvalue()[: whole.tell() // 2])
    try:
        info = probe(path)
    except UserError as error:  # WebP's reader wants all of it
        assert "cut.webp" in str(error) and kind == "WEBP" and "\n" not in str(error)
        return
    assert info.frames < 8 and "damaged" in info.warnings[0]
    with caplog.at_level(logging.WARNING):
        assert len(list(stream_frames(path))) == info.frames
    assert "damaged" in caplog.text
    with pytest.raises(UserError, match="damaged"):
        read_clip(path, start=0.7, fps=10, frames=1, size=(24, 40))
