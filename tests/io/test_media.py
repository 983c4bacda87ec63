"""Writing: what was written reads back, and nothing that was there is lost when writing fails."""

from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest

from tokvid.errors import UserError
from tokvid.input_pipeline.clips import probe, stream_frames
from tokvid.io.media import VideoWriter, contact_sheet, write_image, write_video
from tokvid.metrics.video import psnr


def moving(frames=12, height=48, width=64):
    """A smooth picture with a coloured square that moves."""
    y, x = np.mgrid[:height, :width]
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 0], video[..., 1], video[..., 2] = x * 3, y * 4, 90
    for t in range(frames):
        video[t, 10:26, 2 * t : 2 * t + 16] = (220, 40, 30)
    return video


@pytest.mark.parametrize("suffix,least", [(".mp4", 31), (".gif", 33)])
@pytest.mark.parametrize("fps", [8, 7.5, Fraction(30000, 1001), 0.5])
def test_what_is_written_reads_back(tmp_path, suffix, least, fps):
    path, video = tmp_path / f"v{suffix}", moving()
    write_video(path, video, fps)
    info = probe(path, full=True)
    assert (info.frames, info.height, info.width) == (12, 48, 64) and not info.warnings
    assert info.seconds == pytest.approx(12 / fps, abs=0.006)
    back = np.stack(list(stream_frames(path)))
    assert psnr(video, back) > least
    assert np.abs(video.mean((0, 1, 2)) - back.mean((0, 1, 2))).max() < 1.5  # colours, not just shapes
    assert list(tmp_path.iterdir()) == [path]


def test_odd_sizes_and_single_frames(tmp_path):
    video = moving(1, 33, 47)
    write_video(tmp_path / "v.mp4", video, 8)
    back = next(stream_frames(tmp_path / "v.mp4"))
    assert back.shape == (34, 48, 3) and psnr(video, back[None, :33, :47]) > 28
    write_video(tmp_path / "v.gif", iter(video), 8)
    assert next(stream_frames(tmp_path / "v.gif")).shape == (33, 47, 3)
    write_video(tmp_path / "tiny.mp4", video[:, :1, :1], 8)


def test_the_file_says_what_its_colours_mean(tmp_path):
    write_video(tmp_path / "v.mp4", moving(), 8)
    with av.open(tmp_path / "v.mp4") as file:
        context = file.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace, context.color_range) == (
            "h264",
            "yuv420p",
            1,
            1,
        )


def test_an_encoder_has_one_thread(tmp_path):
    """With more, the same frames become other bytes in one of a few thousand files."""
    with VideoWriter(tmp_path / "a.mp4", 8) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8))
        assert writer._stream.codec_context.thread_count == 1


def test_a_gif_stores_what_stands_still_once(tmp_path):
    """Noise of a level, as decoders leave it, is no change; what moves is, at every frame."""
    video, rng = moving(24, 96, 96), np.random.default_rng(0)
    noisy = (video + rng.integers(-1, 2, video.shape)).clip(0, 255).astype(np.uint8)
    for name, each, most in (("clean.gif", video, 0.5), ("noisy.gif", noisy, 0.8)):
        write_video(tmp_path / name, each, 8)
        alone = 0
        for image in each:
            write_video(tmp_path / "one.gif", [image], 8)
            alone += (tmp_path / "one.gif").stat().st_size
        assert (tmp_path / name).stat().st_size < most * alone
        back = np.stack(list(stream_frames(tmp_path / name)))
        assert (
            back.shape == video.shape
            and min(psnr(*pair) for pair in zip(each[:, None], back[:, None], strict=True)) > 33
        )


def test_a_frame_that_hardly_changes_is_still_a_frame(tmp_path):
    fade = np.broadcast_to(np.arange(17, dtype=np.uint8)[:, None, None, None], (17, 32, 32, 3))
    write_video(tmp_path / "v.gif", fade, 8)
    info = probe(tmp_path / "v.gif", full=True)
    assert info.frames == 17 and info.fps == pytest.approx(8, abs=0.1)
    shown = [int(frame[0, 0, 0]) for frame in stream_frames(tmp_path / "v.gif")]
    assert np.abs(np.array(shown) - np.arange(17)).max() <= 6 and shown == sorted(shown)


def test_frames_of_many_colours_keep_their_own(tmp_path):
    """Each has a hue that no other has, in more shades than their share of a common palette."""
    shades = np.linspace(0, 255, 64 * 64).reshape(64, 64, 1)
    hues = np.random.default_rng(1).random((60, 1, 1, 3))
    video = (shades * hues).astype(np.uint8)
    write_video(tmp_path / "v.gif", video, 8)
    back = np.stack(list(stream_frames(tmp_path / "v.gif")))
    assert min(psnr(*pair) for pair in zip(video[:, None], back[:, None], strict=True)) > 40


def test_a_still_in_a_gif_may_last_longer_than_a_frame_can(tmp_path):
    video = moving(2)[:, :32, :32]
    write_video(tmp_path / "v.gif", [*video[:1].repeat(140, 0), video[1]], 0.1)
    assert probe(tmp_path / "v.gif").seconds == pytest.approx(1410)
    shown = list(stream_frames(tmp_path / "v.gif", fps=0.01))
    assert len(shown) == 15 and all((frame == shown[0]).all() for frame in shown[:14])
    last = list(stream_frames(tmp_path / "v.gif"))[-1]
    assert psnr(video[1:], last[None]) > 33
    write_video(tmp_path / "slow.gif", video, 100 / 65535)
    assert probe(tmp_path / "slow.gif").seconds == pytest.approx(1310, abs=1)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_failure_leaves_what_was_there(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError, match="stop"), VideoWriter(path, 8) as writer:
        writer.write(moving()[0])
        raise RuntimeError("stop")
    with pytest.raises(UserError, match="no frames"), VideoWriter(path, 8):
        pass
    with pytest.raises(ValueError, match="frame 1 is"), VideoWriter(path, 8) as writer:
        writer.write(moving()[0])
        writer.write(moving()[0][:20])
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"older")
    with pytest.raises(UserError, match="No space left"), VideoWriter(path, 8) as writer:
        writer.write(moving()[0])
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    cases = [("v.avi", 8, ".mp4 or .gif"), ("v", 8, ".mp4 or .gif"), ("v.mp4", 0, "fps"), ("v.gif", 60, "50")]
    cases += [("v.gif", 0.0015, r"allowed for \.gif are 0\.00153 to 50"), ("v.mp4", 0.0009, r"are 0\.000999 to 1000")]
    cases += [
        ("v.mp4", float("nan"), "fps"),
        ("folder.mp4", 8, "is a folder"),
        ("file/v.mp4", 8, "cannot write"),
    ]
    for name, fps, said in cases:
        with pytest.raises(UserError, match=said) as error:
            write_video(tmp_path / name, moving(), fps)
        assert "\n" not in str(error.value)
    assert (tmp_path / "folder.mp4").is_dir()
    with pytest.raises(UserError, match="cannot write"):
        write_video("/proc/nowhere/v.mp4", moving(), 8)
    with pytest.raises(UserError, match=r"\.png"):
        write_image(tmp_path / "a.tiff", moving()[0])
    with pytest.raises(ValueError, match="uint8"):
        write_image(tmp_path / "a.png", moving()[0].astype(float))


def test_images(tmp_path):
    write_image(tmp_path / "a.png", moving()[0])
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / "a.png")), moving()[0])
    write_image(tmp_path / "a.jpg", moving()[0])
    assert psnr(moving()[:1], np.asarray(PIL.Image.open(tmp_path / "a.jpg"))[None]) > 35


def test_contact_sheet(tmp_path):
    rows = [moving(5), moving(20, 16, 16), moving(1, 300, 200)]
    captions = ["a red square moves right " * 20, "红色方块 😀 é", ""]
    contact_sheet(tmp_path / "sheet.png", rows, captions=captions, columns=4)
    with PIL.Image.open(tmp_path / "sheet.png") as image:
        assert image.text["captions"].splitlines()[1] == captions[1]  # kept, whatever a font can show
        sheet = np.asarray(image)
    large = moving(5)[0].repeat(2, 0).repeat(2, 1)  # 64 wide: enlarged to 128, pixels stay whole
    found = [y for y in range(sheet.shape[0] - 96) if (sheet[y : y + 96, 4 : 4 + 128] == large).all()]
    assert len(found) == 1 and found[0] > 20  # below its caption
    assert (sheet[4:18, 4:300] < 100).any()  # there is one
    contact_sheet(tmp_path / "plain.png", rows)
    with pytest.raises(UserError, match="no videos"):
        contact_sheet(tmp_path / "none.png", [])
    with pytest.raises(UserError, match=r"\.png"):
        contact_sheet(tmp_path / "sheet.gif", rows)


def test_a_sheet_shows_the_first_and_the_last_frame(tmp_path):
    levels = np.linspace(0, 250, 20).astype(np.uint8)
    contact_sheet(tmp_path / "a.png", [np.broadcast_to(levels[:, None, None, None], (20, 128, 128, 3))], columns=3)
    sheet = np.asarray(PIL.Image.open(tmp_path / "a.png"))
    assert sheet[60, 60 : 3 * 132 : 132, 0].tolist() == [0, 131, 250]


def test_a_caption_has_two_lines_at_most(tmp_path):
    """Of a longer one, its beginning is seen."""
    sheets = []
    for number, end in enumerate(("a", "b")):
        contact_sheet(tmp_path / f"{number}.png", [moving(1)], captions=[30 * "one " + 30 * end])
        sheets.append(np.asarray(PIL.Image.open(tmp_path / f"{number}.png")))
    np.testing.assert_array_equal(*sheets)


def test_the_same_frames_make_the_same_file(tmp_path):
    """Also where other work has left its traces in the encoder's memory, and at a size that it has to pad."""
    rng = np.random.default_rng(0)
    video_THWC = rng.integers(256, size=(9, 17, 25, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)[:, :260, :390]
    files = set()
    for _ in range(12):
        rng.random((int(rng.integers(1, 400)), 1000))
        write_video(tmp_path / "a.mp4", video_THWC, 8)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1
