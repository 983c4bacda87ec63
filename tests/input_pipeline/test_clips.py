"""Reading videos: the right frame at the right time, and broken or hostile files that say what is wrong."""

import gc
import io
import json
import logging
import os
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from tokvid.errors import UserError
from tokvid.input_pipeline import clips, picture, video_file
from tokvid.input_pipeline.clips import probe, read_clip, read_image, stream_frames
from tokvid.input_pipeline.folder import FolderSource
from tokvid.types import Caption

BITS = 10


def numbered(number: int, height: int = 32, width: int = 80) -> np.ndarray:
    """A frame that shows `number` as a row of black and white bars."""
    bars = [255 * (number >> bit & 1) for bit in range(BITS)]
    return np.broadcast_to(np.repeat(bars, width // BITS)[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(image_HWC: np.ndarray) -> int:
    bars = image_HWC.reshape(image_HWC.shape[0], BITS, -1).mean((0, 2)) > 127
    return sum(1 << bit for bit in range(BITS) if bars[bit])


def encode(
    path: Path | io.BytesIO, ticks: list[int], *, codec="libx264", options=None, base=1000, container=None
) -> None:
    """A video whose i-th frame shows i from ticks[i] / base seconds on."""
    options = {"g": "12", "crf": "10"} if options is None else options
    with av.open(path, "w", format=container, options={}) as file:
        stream = file.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 80, 32, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, base)
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, base)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def irregular(frames: int, seed: int = 0) -> list[int]:
    """Time stamps in ms, 5 to 120 ms apart."""
    steps = np.random.default_rng(seed).integers(5, 120, frames - 1)
    return [0, *np.cumsum(steps).tolist()]


def expected(ticks: list[int], start: float, fps: float, frames: int, rounding: float = 0.0) -> list[int]:
    """The last frame at or before each time; times and ticks are ms, `rounding` is the container's."""
    at = [(start + i / fps) * 1000 + rounding + 1e-6 for i in range(frames)]
    return [int(np.searchsorted(ticks, t, side="right")) - 1 for t in at]


def numbers(video_THWC) -> list[int]:
    return [number_of(image) for image in video_THWC]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_frames_are_taken_by_time_stamp(tmp_path, suffix):
    path, ticks = tmp_path / f"v.{suffix}", irregular(60)
    encode(path, ticks)
    info = probe(path)
    assert info.frames == 60 and (info.width, info.height) == (80, 32) and not info.warnings
    assert ticks[-1] / 1000 <= info.seconds <= ticks[-1] / 1000 + 0.13
    for start, fps, frames in [
        (0.0, 8, 11),
        (0.0, 30, 60),
        (0.4567, 7.3, 12),
        (1.9, 3, 4),
        (ticks[-1] / 1000, 5, 1),
    ]:
        clip = read_clip(path, start=start, fps=fps, frames=frames, size=(32, 80))
        assert numbers(clip) == expected(ticks, start, fps, frames, 0.5 if suffix == "mkv" else 0.0)


def test_time_starts_at_the_first_frame(tmp_path):
    ticks = irregular(40)
    encode(tmp_path / "late.ts", [90 * (t + 7000) for t in ticks], base=90_000)
    clip = read_clip(tmp_path / "late.ts", start=0.3, fps=6, frames=8, size=(32, 80))
    assert numbers(clip) == expected(ticks, 0.3, 6, 8)


@pytest.mark.parametrize("suffix,codec", [("mp4", "libx264"), ("mkv", "libx264"), ("ts", "libx264"), ("avi", "mpeg4")])
def test_seeking_equals_reading_from_the_start(tmp_path, suffix, codec):
    path = tmp_path / f"v.{suffix}"
    encode(path, list(range(200)), base=30, codec=codec, options={"g": "12", "crf": "10", "b": "2000000"})
    every = list(stream_frames(path))
    assert numbers(every) == list(range(200))
    for number in [0, 11, 12, 13, 45, 95, 96, 97, 150, 199]:
        clip = read_clip(path, start=number / 30, fps=30, frames=1, size=(32, 80))
        np.testing.assert_array_equal(clip[0], every[number])


def test_open_groups_can_be_sought(tmp_path):
    encode(
        tmp_path / "open.mp4",
        [3000 * i for i in range(120)],
        base=90_000,
        options={"crf": "10", "x264-params": "open-gop=1:keyint=24:min-keyint=24:bframes=3"},
    )
    for number in [60, 71, 72, 73, 100]:
        assert numbers(read_clip(tmp_path / "open.mp4", start=number / 30, fps=30, frames=3, size=(32, 80))) == [
            number,
            number + 1,
            number + 2,
        ]
    assert not probe(tmp_path / "open.mp4", full=True).warnings


def test_stream_repeats_and_skips_by_time(tmp_path):
    ticks = irregular(50, seed=3)
    encode(tmp_path / "v.mp4", ticks)
    assert numbers(stream_frames(tmp_path / "v.mp4")) == list(range(50))
    info = probe(tmp_path / "v.mp4")
    shown = numbers(stream_frames(tmp_path / "v.mp4", fps=25))
    assert len(shown) == int(np.ceil(info.seconds * 25 - 1e-6))
    assert shown == expected(ticks, 0, 25, len(shown))
    assert not any(
        np.shares_memory(a, b)
        for a, b in zip(*[iter(list(stream_frames(tmp_path / "v.mp4", fps=100)))] * 2, strict=False)
    )


def test_the_last_frame_stays_for_its_duration_and_no_longer(tmp_path):
    encode(tmp_path / "v.mp4", [3000 * i for i in range(30)], base=90_000)
    assert probe(tmp_path / "v.mp4").seconds == pytest.approx(1.0)
    assert numbers(read_clip(tmp_path / "v.mp4", start=0.5, fps=2, frames=2, size=(32, 80))) == [15, 29]
    with pytest.raises(UserError, match=r"has 1\.00 s, asked for 3 frames at 2 fps from 0\.50 s \(to 1\.50 s\)"):
        read_clip(tmp_path / "v.mp4", start=0.5, fps=2, frames=3, size=(32, 80))
    with pytest.raises(UserError, match=r"has 1\.00 s"):
        read_clip(tmp_path / "v.mp4", start=100.0, fps=2, frames=1, size=(32, 80))
    for wrong in [
        {"fps": 0.0},
        {"fps": float("nan")},
        {"frames": 0},
        {"start": -1.0},
        {"fit": "stretch"},
        {"size": (0, 8)},
    ]:
        arguments = {"start": 0.0, "fps": 2.0, "frames": 1, "size": (32, 80), **wrong}
        with pytest.raises(UserError):
            read_clip(tmp_path / "v.mp4", **arguments)


def test_bytes_read_like_files(tmp_path):
    encode(tmp_path / "v.mp4", irregular(30))
    arguments = {"start": 0.2, "fps": 5, "frames": 5, "size": (16, 40)}
    from_bytes = read_clip((tmp_path / "v.mp4").read_bytes(), **arguments)
    np.testing.assert_array_equal(from_bytes, read_clip(tmp_path / "v.mp4", **arguments))
    with pytest.raises(UserError, match="of 5 bytes"):
        read_clip(b"hello", **arguments)


def turned(path: Path, degrees: int) -> None:
    """The left third red, the rest blue; a display matrix that turns it."""
    image = np.zeros((48, 96, 3), np.uint8)
    image[:, :32, 0], image[:, 32:, 2] = 255, 255
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        stream.set_display_rotation(degrees)
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode(None))


@pytest.mark.parametrize("degrees,red", [(0, "left"), (90, "bottom"), (180, "right"), (-90, "top")])
def test_rotation_is_applied(tmp_path, degrees, red):
    turned(tmp_path / "v.mp4", degrees)
    info = probe(tmp_path / "v.mp4")
    upright = degrees in (0, 180)
    assert (info.width, info.height) == ((96, 48) if upright else (48, 96))
    image = next(iter(stream_frames(tmp_path / "v.mp4")))
    assert image.shape == (info.height, info.width, 3)
    edges = {"left": image[:, 2], "right": image[:, -3], "top": image[2], "bottom": image[-3]}
    assert {name for name, edge in edges.items() if edge[..., 0].min() > 150} == {red}
    small = read_clip(tmp_path / "v.mp4", start=0, fps=1, frames=1, size=(info.height // 4, info.width // 4))[0]
    area = image.reshape(info.height // 4, 4, info.width // 4, 4, 3).mean((1, 3))
    assert np.abs(small - area).max() < 6


def test_scaling_averages_and_fits(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 120, 3), dtype=np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    half = read_image(tmp_path / "a.png", (20, 40))
    assert np.abs(half - image.reshape(20, 3, 40, 3, 3).mean((1, 3))).max() <= 1.5
    crop = read_image(tmp_path / "a.png", (60, 60))
    np.testing.assert_array_equal(crop, image[:, 30:90])
    boxed = read_image(tmp_path / "a.png", (120, 120), "letterbox")
    np.testing.assert_array_equal(boxed[30:90], image)
    assert not boxed[:30].any() and not boxed[90:].any()
    tall = read_image(tmp_path / "a.png", (240, 40))
    assert tall.shape == (240, 40, 3)


def coloured(path: Path, form: str, size: tuple[int, int], *, codec="ffv1", matrix=2, curve=2, rgba=(200, 60, 20, 255)):
    """A video of one colour in a pixel format: red, green and blue by the `matrix`, or by BT.709 where it is untold."""
    height, width = size
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, form
        stream.codec_context.colorspace, stream.codec_context.color_trc = matrix, curve
        image = np.broadcast_to(np.array(rgba, np.uint8), (height, width, 4)).copy()
        frame = av.VideoFrame.from_ndarray(image, format="rgba")
        frame = frame.reformat(format=form, dst_colorspace=1 if matrix == 2 else matrix, dst_color_range=1)
        frame.colorspace, frame.color_range, frame.pts = matrix, 1, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.mark.parametrize(
    "matrix, size", [(1, (32, 64)), (5, (32, 64)), (5, (600, 64)), (2, (600, 64)), (2, (32, 1280))]
)
def test_colours_are_those_of_the_matrix(tmp_path, matrix, size):
    """Where it is untold, players take large video's for BT.709."""
    coloured(tmp_path / "v.mkv", "yuv444p", size, matrix=matrix)
    assert np.abs(read_image(tmp_path / "v.mkv")[0, 0].astype(int) - [200, 60, 20]).max() <= 2


@pytest.mark.parametrize("suffix, codec, form", [("mkv", "ffv1", "yuva444p"), ("mov", "prores_ks", "yuva444p10le")])
@pytest.mark.parametrize("alpha, seen", [(255, [200, 60, 20]), (0, [255, 255, 255]), (128, [227, 157, 137])])
def test_transparent_video_is_on_white(tmp_path, suffix, codec, form, alpha, seen):
    coloured(tmp_path / f"v.{suffix}", form, (32, 64), codec=codec, matrix=1, rgba=(200, 60, 20, alpha))
    frames = list(stream_frames(tmp_path / f"v.{suffix}"))
    assert len(frames) == 1 and np.abs(frames[0][5, 5].astype(int) - seen).max() <= 3


@pytest.mark.parametrize("curve, said", [(1, ""), (16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_told(tmp_path, curve, said):
    coloured(tmp_path / "v.mkv", "yuv444p", (32, 64), matrix=1, curve=curve)
    warnings = probe(tmp_path / "v.mkv").warnings
    assert [said in warning and "tone mapping" in warning for warning in warnings] == [True] * bool(said)


def test_pixels_that_are_not_square(tmp_path):
    with av.open(tmp_path / "v.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((60, 80, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    info = probe(tmp_path / "v.mp4")
    assert (info.width, info.height) == (160, 60)
    assert next(stream_frames(tmp_path / "v.mp4")).shape == (60, 160, 3)


def test_images_and_gifs_are_videos(tmp_path):
    picture = PIL.Image.fromarray(numbered(5))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert (probe(tmp_path / "a.jpg").width, probe(tmp_path / "a.jpg").seconds) == (32, 0.0)
    assert read_clip(tmp_path / "a.jpg", start=0, fps=8, frames=1, size=(80, 32)).shape == (1, 80, 32, 3)
    with pytest.raises(UserError, match="still image"):
        read_clip(tmp_path / "a.jpg", start=0, fps=8, frames=2, size=(80, 32))
    clear = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()
    (tmp_path / "cut.png").write_bytes((tmp_path / "clear.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"cut\.png is not a readable image"):
        probe(tmp_path / "cut.png")
    frames = [PIL.Image.fromarray(numbered(i)) for i in range(6)]
    frames[0].save(
        tmp_path / "a.gif",
        save_all=True,
        append_images=frames[1:],
        duration=[100, 50, 200, 50, 100, 100],
        loop=0,
    )
    assert probe(tmp_path / "a.gif").seconds == pytest.approx(0.6)
    clip = read_clip(tmp_path / "a.gif", start=0, fps=20, frames=12, size=(32, 80))
    assert numbers(clip) == [0, 0, 1, 2, 2, 2, 2, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "gif"])
def test_a_file_cut_off_says_so(tmp_path, suffix, caplog):
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    if suffix == "gif":
        noise = np.random.default_rng(0).integers(0, 256, (40, 32, 80, 3), dtype=np.uint8)
        frames = [PIL.Image.fromarray(frame) for frame in noise]
        frames[0].save(whole, save_all=True, append_images=frames[1:], duration=100)
    else:
        with av.open(whole, "w", options={"movflags": "+faststart"} if suffix == "mp4" else {}) as file:
            stream = file.add_stream("libx264", rate=10, options={"crf": "10", "g": "12"})
            stream.width, stream.height, stream.pix_fmt = 80, 32, "yuv420p"
            for image in np.random.default_rng(0).integers(0, 256, (40, 32, 80, 3), dtype=np.uint8):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(stream.encode(None))
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    assert probe(whole).seconds == pytest.approx(4.0, abs=0.05) and not probe(whole).warnings
    info = probe(cut)
    assert 1.0 < info.seconds < 3.0
    if suffix != "ts":  # a transport stream has no header that could be missed
        assert len(info.warnings) == 1 and ("cut off" in info.warnings[0] or "damaged" in info.warnings[0])
    with caplog.at_level(logging.WARNING):
        good = list(stream_frames(cut))
    assert len(good) / 10 == pytest.approx(info.seconds, abs=0.31)
    assert suffix == "ts" or str(cut) in caplog.text
    whole_frames = list(stream_frames(whole))
    for ours, theirs in zip(good if suffix != "ts" else good[:-1], whole_frames, strict=False):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="cut"):
        read_clip(cut, start=3.0, fps=5, frames=2, size=(32, 80))


def test_damage_inside_is_found_and_what_is_before_is_good(tmp_path):
    encode(tmp_path / "v.mp4", [3000 * i for i in range(200)], base=90_000, options={"g": "20", "crf": "10"})
    good = list(stream_frames(tmp_path / "v.mp4"))
    with av.open(tmp_path / "v.mp4") as file:
        packet = [p for p in file.demux(video=0) if p.size][100]
        place, size = packet.pos, packet.size
    data = bytearray((tmp_path / "v.mp4").read_bytes())
    data[place + 5 : place + size] = os.urandom(size - 5)
    (tmp_path / "bad.mp4").write_bytes(data)
    info = probe(tmp_path / "bad.mp4", full=True)
    assert 2.5 < info.seconds < 3.4 and "damaged" in info.warnings[0]
    before = list(stream_frames(tmp_path / "bad.mp4"))
    assert len(before) == info.frames
    for ours, theirs in zip(before, good, strict=False):
        np.testing.assert_array_equal(ours, theirs)
    clip = read_clip(tmp_path / "bad.mp4", start=0, fps=10, frames=25, size=(32, 80))
    assert numbers(clip) == list(range(0, 75, 3))
    with pytest.raises(clips.DamagedVideo, match=r"bad\.mp4 is damaged at 3\.\d+ s"):
        read_clip(tmp_path / "bad.mp4", start=2.0, fps=10, frames=25, size=(32, 80))
    later = read_clip(tmp_path / "bad.mp4", start=5.0, fps=10, frames=10, size=(32, 80))  # another group of frames
    assert numbers(later) == list(range(150, 180, 3))


def usable(path: Path) -> list[str]:
    """What probe, read_clip and stream_frames say; each gives frames or one line."""
    said = []
    calls = [
        lambda: probe(path),
        lambda: probe(path, full=True),
        lambda: read_clip(path, start=0, fps=24, frames=1, size=(48, 48)),
        lambda: sum(image.shape == (48, 48, 3) for image in stream_frames(path, size=(48, 48), fit="letterbox")),
        lambda: sum(1 for _ in stream_frames(path, fps=5, size=(48, 48))),
    ]
    for call in calls:
        try:
            assert call() is not 0  # noqa: F632
            said.append("")
        except UserError as error:
            assert "\n" not in str(error) and path.name in str(error) and len(str(error)) < 600
            said.append(str(error))
    assert all(said) or not any(said), said
    return said


REFUSED = {
    "bipbop_480wp_1001kbps-cenc-video-key1-init.mp4": "no frames",
    "bipbop_cbcs_video_init.mp4": "no frames",
    "bitflips_in_mdat.mp4": "cannot be decoded",
    "capi_bipbop_cbcs_video_init.mp4": "no frames",
    "capi_chunk_out_of_range.mp4": "cannot open",
    "capi_opus_audioinit.mp4": "no video stream",
    "capi_short-cenc.mp4": "encrypted",
    "capi_zero_empty_stsc.mp4": "cannot be decoded",
    "empty.mp4": "empty",
    "garbage_prefix.mp4": "cannot open",
    "observed.jsonl": "it holds text",
    "sine-3s-xhe-aac-44khz-mono.mp4": "no video stream",
    "text_named.mp4": "it holds text",
    "trunc_32bytes.mp4": "cannot open",
    "trunc_90pct.mp4": "cannot open",
    "trunc_half.mp4": "cannot open",
}


def test_every_broken_file_reads_or_says_why(dev_data):
    files = sorted((dev_data / "malformed").iterdir())
    assert len(files) >= 37
    for path in files:
        began = time.monotonic()
        said = usable(path)
        assert time.monotonic() - began < 20, path
        assert REFUSED.get(path.name, "") in said[0] and bool(said[0]) == (path.name in REFUSED), (path, said)


def test_odd_but_good_files_read_right(dev_data):
    folder = dev_data / "malformed"
    observed = [json.loads(line) for line in (folder / "observed.jsonl").read_text().splitlines()]
    decoded = {row["file"]: row["decoded"] for row in observed if row.get("decoded")}
    for name in [
        "uhd_3840x2160_9frames.mp4",
        "h264_10bits.mp4",
        "h265_10bits.mp4",
        "av1_video.mkv",
        "video_90.mov",
    ]:
        frames = list(stream_frames(folder / name, size=(45, 80)))
        assert len(frames) == decoded[name] == probe(folder / name).frames
        assert np.std(frames[0]) > 10  # a picture, not one colour
    for name, size in {"video_90.mov": (320, 568), "capi_video_rotation_90.mp4": (60, 100)}.items():
        info = probe(folder / name)
        assert (info.width, info.height) == size
    with av.open(folder / "video_90.mov") as file:  # the matrix asks for a quarter turn clockwise
        stored = next(file.decode(video=0)).to_ndarray(format="rgb24")
    ours = next(stream_frames(folder / "video_90.mov")).astype(float)
    assert np.abs(ours - np.rot90(stored, -1)).mean() < 4
    # An animated AVIF is its animation, neither its still nor its alpha plane.
    assert probe(folder / "alpha_video_fixed.avif").frames == 48
    assert np.ptp(next(stream_frames(folder / "alpha_video_fixed.avif")).astype(int), axis=2).max() > 50
    assert probe(folder / "loop_forever.avif").frames == 2
    # Ten bits are the eight-bit picture: mean colour as the same file's luma.
    with av.open(folder / "h264_10bits.mp4") as file:
        luma = np.mean(next(file.decode(video=0)).reformat(format="gray").to_ndarray())
    rgb = next(stream_frames(folder / "h264_10bits.mp4")).mean((0, 1))
    assert abs(rgb @ [0.299, 0.587, 0.114] - luma) < 8


def test_real_clips(dev_data):
    rows = [json.loads(line) for line in (dev_data / "droid" / "captions.jsonl").read_text().splitlines()[:5]]
    for row in rows:
        info = probe(dev_data / "droid" / row["file"], full=True)
        assert (info.width, info.height, info.fps, info.frames) == (
            320,
            180,
            30.0,
            row["frames"],
        ) and not info.warnings
    path = dev_data / "droid" / rows[0]["file"]
    every = list(stream_frames(path, size=(64, 64)))
    np.testing.assert_array_equal(read_clip(path, start=1.5, fps=6, frames=8, size=(64, 64)), every[45:85:5])
    for gif in sorted((dev_data / "minigrid").glob("*.gif"))[:3]:
        info = probe(gif, full=True)
        assert info.frames > 5 and not info.warnings


def test_what_is_not_a_video_is_refused(tmp_path):
    video = tmp_path / "v.mp4"
    encode(video, irregular(5))
    (tmp_path / "a.txt").write_text("a text file\n" * 50)
    (tmp_path / "b.mp4").write_text(f"ffconcat version 1.0\nfile {video.name}\n")
    (tmp_path / "c.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{video.name}\n#EXT-X-ENDLIST\n")
    (tmp_path / "d.mp4").mkdir()
    os.mkfifo(tmp_path / "e.mp4")  # opening one would wait for ever
    for name in ["a.txt", "b.mp4", "c.m3u8", "d.mp4", "e.mp4", "missing.mp4", "n\0l.mp4"]:
        with pytest.raises(UserError) as error:
            probe(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    with av.open(tmp_path / "wmv.avi", "w") as file:  # a codec that isn't on the list
        stream = file.add_stream("wmv2", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 32, "yuv420p"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(1), format="rgb24")))
        file.mux(stream.encode(None))
    with pytest.raises(UserError, match="wmv2, allowed: h264"):
        probe(tmp_path / "wmv.avi")


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    encode(tmp_path / "v.mp4", irregular(5))
    PIL.Image.new("L", (90, 90)).save(tmp_path / "a.png")
    for module in (video_file, picture):
        monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    for name in ["v.mp4", "a.png"]:
        with pytest.raises(UserError, match="1000"):
            probe(tmp_path / name)
    with pytest.raises(UserError, match="is over"):
        read_clip(tmp_path / "v.mp4", start=0, fps=1, frames=10**6, size=(1000, 1000))
    monkeypatch.undo()
    monkeypatch.setattr(video_file, "MAX_PACKETS", 3)
    assert "over 3 frames" in probe(tmp_path / "v.mp4").warnings[0]


def folder_with(tmp_path: Path, videos: int) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(videos):
        encode(folder / f"{i}.mp4", irregular(10 + i))
    lines = [json.dumps({"file": f"{i}.mp4", "caption": f"caption {i} 视频", "more": [1]}) for i in range(videos)]
    (folder / "captions.jsonl").write_text("\ufeff" + "\r\n".join(lines) + "\n\n", encoding="utf-8")
    return folder


def test_a_folder_is_a_source(tmp_path):
    folder = folder_with(tmp_path, 3)
    source = FolderSource(folder, fit="letterbox")
    assert len(source) == 3 and not source.unreadable
    item = source[2]
    assert item.key == "2.mp4" and item.captions == (Caption(0.0, "caption 2 视频"),)
    assert item.seconds == probe(folder / "2.mp4").seconds
    clip = item.read(0.0, 5.0, 3, (32, 80))
    np.testing.assert_array_equal(clip, read_clip(folder / "2.mp4", start=0, fps=5, frames=3, size=(32, 80)))
    (folder / "captions.jsonl").unlink()
    (folder / "captions.csv").write_text('file,caption,x\n0.mp4,"a, b",1\n1.mp4,c,2\n')
    assert [item.captions[0].text for item in FolderSource(folder)] == ["a, b", "c"]


def test_unreadable_files_are_listed_and_limited(tmp_path, caplog):
    folder = folder_with(tmp_path, 4)
    (folder / "1.mp4").write_bytes(b"")
    source = FolderSource(folder, max_unreadable=0.25)
    assert [item.key for item in source] == ["0.mp4", "2.mp4", "3.mp4"]
    assert source.unreadable[0][0] == folder / "1.mp4" and "empty" in source.unreadable[0][1]
    assert "1.mp4 is empty" in caplog.text
    with pytest.raises(
        UserError, match=r"1 of the 4 videos .* at most 10% may \(max_unreadable\); the first: .*1\.mp4 is empty"
    ):
        FolderSource(folder)


def test_captions_that_are_wrong(tmp_path):
    folder = folder_with(tmp_path, 2)
    with pytest.raises(UserError, match="no folder"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no captions\.jsonl"):
        FolderSource(tmp_path)
    (tmp_path / "outside.mp4").write_bytes((folder / "0.mp4").read_bytes())
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    bad = [
        "../outside.mp4",
        str(tmp_path / "outside.mp4"),
        "link.mp4",
        "C:\\x.mp4",
        "a\0b",
        "x" * 5000,
        "",
    ]
    for name in bad:
        (folder / "captions.jsonl").write_text(
            '{"file": "0.mp4", "caption": ""}\n' + json.dumps({"file": name, "caption": "c"})
        )
        with pytest.raises(UserError, match="has 1 bad line: line 2: "):
            FolderSource(folder)
    lines = [
        '{"file": "0.mp4", "caption": "a"}',
        "not json",
        '{"file": "./0.mp4", "caption": "b"}',
        '{"file": 3}',
        "[" * 9999,
    ]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        FolderSource(folder)
    message = str(error.value)
    assert (
        "line 2: not JSON (" in message
        and "line 3: '0.mp4' again, first on line 1; " in message
        and "line 4: needs" in message
        and "line 5" in message
    )
    (folder / "captions.jsonl").write_text("\n")
    with pytest.raises(UserError, match="names no videos"):
        FolderSource(folder)
    (folder / "captions.jsonl").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="UTF-8"):
        FolderSource(folder)


def test_frames_do_not_wait_in_memory_for_pythons_collector(tmp_path):
    encode(tmp_path / "v.mp4", [40 * number for number in range(60)])
    gc.collect()
    gc.disable()
    try:
        for _ in stream_frames(tmp_path / "v.mp4"):
            pass
        assert sum(isinstance(each, av.VideoFrame) for each in gc.get_objects()) < 10
    finally:
        gc.enable()
