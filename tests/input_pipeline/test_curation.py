"""Curation: planted faults are found, what is kept can be trained on, and it doesn't matter where the work is done."""

import functools
import json
import os
import signal
import time

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tokvid.errors import UserError
from tokvid.input_pipeline.clips import stream_frames
from tokvid.input_pipeline.curation import FIELDS, all_shots, fields_of, raw_videos, write_shots
from tokvid.input_pipeline.filters import filter_of
from tokvid.input_pipeline.folder import FolderSource
from tokvid.input_pipeline.workers import Beam, in_threads
from tokvid.input_pipeline.writing import Frames, write_records
from tokvid.io.media import write_video
from tokvid.metrics.overlay import text_share

SIZE = (96, 128)


def scene(seed, frames=12):
    """A texture in colours of its own that moves to the right: uint8 (T, 96, 128, 3)."""
    rng = np.random.default_rng(seed)
    coarse_HWC = rng.integers(30, 226, (4, 12, 3)).astype(np.uint8)
    wide_HWC = np.asarray(Image.fromarray(coarse_HWC).resize((320, 96), Image.Resampling.NEAREST))
    return np.stack([wide_HWC[:, 4 * index : 4 * index + SIZE[1]] for index in range(frames)])


def blurred(video_THWC):
    small = [Image.fromarray(image_HWC).resize((8, 6)).resize(SIZE[::-1]) for image_HWC in video_THWC]
    return np.stack([np.asarray(image) for image in small])


def boxed(video_THWC):
    video_THWC = video_THWC.copy()
    video_THWC[:, :12] = video_THWC[:, -12:] = 5
    return video_THWC


def titled(video_THWC):
    frames = []
    for image_HWC in video_THWC:
        image = Image.fromarray(image_HWC)
        for line in range(4):
            place, text, font = (2, 10 + 18 * line), "Subscribe for more videos", ImageFont.load_default(12)
            ImageDraw.Draw(image).text(place, text, font=font, fill="white", stroke_width=1, stroke_fill="black")
        frames.append(np.asarray(image))
    return np.stack(frames)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Raw videos, and what should be found in them: the faults of each shot, by file and first frame."""
    folder = tmp_path_factory.mktemp("raw")
    videos = {
        "cut.mp4": [(scene(1), ()), (scene(2), ()), (np.zeros_like(scene(0)), ("black",))],
        "more/b.mp4": [(scene(3), ()), (np.repeat(scene(4)[:1], 12, axis=0), ("still",))],
        "blur.mp4": [(blurred(scene(5)), ("blurred",)), (titled(scene(6)), ("over_texted",))],
        "copy.mp4": [(boxed(scene(7)), ("letterboxed",)), (scene(3), ())],
        "whole.mp4": [(scene(8), ())],
    }
    (folder / "more").mkdir()
    truth = {}
    for name, shots in videos.items():
        write_video(folder / name, np.concatenate([video for video, _ in shots]), 12)
        truth |= {(name, 12 * index): faults for index, (_, faults) in enumerate(shots)}
    truth["more/b.mp4", 0] = ("duplicate",)  # of that in copy.mp4, which comes first
    lines = [{"file": "cut.mp4", "caption": "two scenes"}, {"file": "whole.mp4", "caption": "a whole scene"}]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "c.mp4").write_bytes(b"?")
    return folder, truth


@pytest.fixture(scope="module")
def shots(raw):
    return all_shots(raw[0])


@pytest.fixture(scope="module")
def row(shots):
    """The fields of a shot without a fault."""
    return fields_of(next(shot for shot in shots if shot.file == "cut.mp4"))


def test_planted_faults_are_found(raw, shots):
    assert {(shot.file, shot.first): shot.faults for shot in shots} == raw[1]
    copy = next(shot for shot in shots if shot.duplicate_of)
    assert copy.duplicate_of == "copy.mp4.000012.mp4" and copy.name == "more/b.mp4.000000.mp4"
    first = next(shot for shot in shots if shot.file == "cut.mp4")
    assert (first.fps, first.seconds, first.height, first.width) == (12, 1, *SIZE) and 1.5 < first.motion < 255
    captions = {shot.file: (shot.caption, shot.words, shot.same_caption) for shot in shots}
    assert captions["cut.mp4"] == ("two scenes", 2, 3) and captions["whole.mp4"] == ("a whole scene", 3, 1)


def test_what_is_kept_can_be_trained_on(raw, shots, tmp_path):
    kept = [shot for shot in shots if not shot.faults]
    write_shots(raw[0], tmp_path / "out", shots, kept)
    names = {"cut.mp4.000000.mp4", "cut.mp4.000012.mp4", "copy.mp4.000012.mp4", "whole.mp4"}
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {*names, "captions.jsonl", "shots.jsonl"}
    assert (tmp_path / "out" / "whole.mp4").read_bytes() == (raw[0] / "whole.mp4").read_bytes()
    second = np.stack(list(stream_frames(tmp_path / "out" / "cut.mp4.000012.mp4")))
    before = np.stack(list(stream_frames(raw[0] / "cut.mp4")))[12:24]
    assert second.shape == before.shape and np.abs(second.astype(int) - before).mean() < 4
    rows = [json.loads(line) for line in (tmp_path / "out" / "shots.jsonl").read_text().splitlines()]
    assert len(rows) == len(shots) and {row["clip"] for row in rows if not row["faults"]} == names
    source = FolderSource(tmp_path / "out")
    assert {item.key for item in source} == names
    assert [item.captions[0].text for item in source] == ["", "two scenes", "two scenes", "a whole scene"]
    with pytest.raises(UserError, match="within"):
        write_shots(raw[0], raw[0] / "out", shots, kept)
    with pytest.raises(UserError, match="holds no curated clips"):
        write_shots(raw[0], tmp_path, shots, kept)


@pytest.mark.parametrize(
    "name, line, said",
    [
        ("notes.txt", "mine", r"holds notes\.txt, too; move that"),
        ("sub/mine.mp4", "", r"holds sub/mine\.mp4, too"),
        ("captions.jsonl", '{"file": "whole.mp4", "caption": "by hand"}', r"its captions\.jsonl was changed"),
        ("captions.jsonl", '{"file": ["whole.mp4"]}', r"its captions\.jsonl was changed"),
        ("shots.jsonl", "[1]", r"cannot read .*shots\.jsonl"),
        (".DS_Store", "", ""),
    ],
)
def test_what_was_added_to_curated_clips_is_not_replaced(raw, shots, tmp_path, name, line, said):
    write_shots(raw[0], tmp_path / "out", shots, [shot for shot in shots if shot.file == "whole.mp4"])
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    with open(tmp_path / "out" / name, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again = functools.partial(write_shots, raw[0], tmp_path / "out", shots, [])
    if not said:
        return again()
    with pytest.raises(UserError, match=said):
        again()
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_captions_that_were_all_deleted_are_not_written_again(raw, shots, tmp_path):
    kept = [shot for shot in shots if shot.file == "whole.mp4"]
    write_shots(raw[0], tmp_path / "out", shots, kept)
    (tmp_path / "out" / "captions.jsonl").write_text("")
    with pytest.raises(UserError, match=r"its captions\.jsonl was changed"):
        write_shots(raw[0], tmp_path / "out", shots, kept)


def test_removed_clips_are_no_changed_captions(raw, shots, tmp_path):
    kept = [shot for shot in shots if not shot.faults]
    write_shots(raw[0], tmp_path / "out", shots, kept)
    (tmp_path / "out" / kept[0].name).unlink()
    write_shots(raw[0], tmp_path / "out", shots, kept)
    assert (tmp_path / "out" / kept[0].name).is_file()


def test_linked_folders_are_told(raw, tmp_path, caplog):
    (tmp_path / "a.mp4").write_bytes((raw[0] / "whole.mp4").read_bytes())
    (tmp_path / "more").symlink_to(raw[0])
    assert raw_videos(tmp_path) == ["a.mp4"]
    assert "links to folders are not followed, 1 are left out" in caplog.text


def test_the_copy_with_a_caption_is_kept(raw, tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes((raw[0] / "whole.mp4").read_bytes())
    (tmp_path / "captions.jsonl").write_text('{"file": "b.mp4", "caption": "a whole scene"}\n')
    found = {shot.file: shot.duplicate_of for shot in all_shots(tmp_path)}
    assert found == {"a.mp4": "b.mp4", "b.mp4": "", "c.mp4": "b.mp4"}


def test_shots_of_one_scene_that_move_otherwise_are_no_copies(tmp_path):
    """Bright bands go up and down before the same background: on average they look alike."""
    background = np.full((24, *SIZE, 3), 100, np.uint8)
    for name, rows in (("a.mp4", range(0, 96, 4)), ("b.mp4", range(92, -1, -4))):
        video_THWC = background.copy()
        for image_HWC, row in zip(video_THWC, rows, strict=True):
            image_HWC[row : row + 4] = 112
        write_video(tmp_path / name, video_THWC, 12)
    assert [shot.duplicate_of for shot in all_shots(tmp_path)] == ["", ""]


def test_a_title_that_goes_is_no_fault(tmp_path):
    video_THWC = scene(6, frames=24)
    stays_THWC = np.concatenate([titled(video_THWC)[:, :40], video_THWC[:, 40:]], axis=1)
    write_video(tmp_path / "a.mp4", np.concatenate([stays_THWC[:8], video_THWC[8:]]), 12)
    write_video(tmp_path / "b.mp4", stays_THWC, 12)
    goes, stays = all_shots(tmp_path)
    assert goes.text == 0 and stays.text > 0.1


def test_of_a_damaged_file_the_good_part_is_kept(tmp_path):
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "a.mp4", scene(5, frames=48), 12)
    with av.open(tmp_path / "raw" / "a.mp4") as file:
        packets = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    data = bytearray((tmp_path / "raw" / "a.mp4").read_bytes())
    position, size = packets[32]
    data[position : position + size] = bytes(size)
    (tmp_path / "raw" / "a.mp4").write_bytes(data)
    (shot,) = shots = all_shots(tmp_path / "raw")
    assert 24 <= shot.frames <= 40 and shot.name == "a.mp4.000000.mp4"
    write_shots(tmp_path / "raw", tmp_path / "out", shots, shots)
    good = np.stack(list(stream_frames(tmp_path / "out" / shot.name)))
    before = np.stack(list(stream_frames(tmp_path / "raw" / "a.mp4", fps=12)))
    assert good.shape == before.shape and np.abs(good.astype(int) - before).mean() < 4


def test_too_many_unreadable_videos(raw, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "b.mp4").write_bytes((raw[0] / "whole.mp4").read_bytes())
    with pytest.raises(UserError, match="cannot be used, at most 10%"):
        all_shots(tmp_path)
    assert len(all_shots(tmp_path, max_unreadable=0.5)) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no videos"):
        all_shots(tmp_path / "empty")


@pytest.mark.parametrize(
    "expression, kept",
    [
        ("faults == 0", True),
        ("motion > 2 and not blurred", True),
        ("blurred or still", False),
        ("1 < seconds + 1 <= 2", True),
        ("'scene' in caption and clip != 'x'", True),
        ("height * width / 2 - 1 < -5", False),
        ("black", False),
    ],
)
def test_filters(row, expression, kept):
    assert filter_of(expression, FIELDS)(row) is kept


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "motoin > 2",
        "motion >",
        "__import__('os')",
        "motion.real",
        "[1][0]",
        "9 ** 9 ** 9",
        "lambda: 1",
        "motion if 1 else 2",
        "caption * 999999999",
        "caption < 1",
        "motion / 0",
        "(" * 500 + "1" + ")" * 500,
        "-" * 1999 + "1",
        "1 + " * 999,
        "\0",
        f"{'x'!r}j",
    ],
)
def test_what_is_no_filter(row, expression):
    with pytest.raises(UserError):
        filter_of(expression, FIELDS)(row)


def test_stripes_are_no_text():
    stripes_HWC = np.repeat((np.arange(128) // 3 % 2 * 200)[None, :, None], 96, axis=0).repeat(3, axis=2)
    stripes_HWC[:, 60:] = 0  # as the back of a chair
    assert text_share(stripes_HWC.astype(np.uint8)) == 0
    assert text_share(titled(scene(1))[0]) > 0.3 and text_share(scene(1)[0]) == 0
    assert text_share(np.zeros((8, 8, 3), np.uint8)) == 0


def test_writing_in_a_part_of_a_picture_was_there_before():
    """As on a sign or a shirt: what is laid over spans half of the width."""
    parts = [titled(scene(1))[0], *[scene(1)[0]] * 4]
    assert text_share(parts[0]) > 0.3 and text_share(np.concatenate(parts, axis=1)) == 0


def test_threads_keep_the_order_and_end_with_an_error():
    assert list(in_threads(lambda item: item * 2, range(100))) == list(range(0, 200, 2))
    begun = []

    def fails(item):
        begun.append(item)
        raise KeyError(item)

    with pytest.raises(KeyError, match="0"):
        list(in_threads(fails, range(1000)))
    assert len(begun) < 500


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_beam_gives_the_same(raw, shots, tmp_path, workers):
    pytest.importorskip("apache_beam")
    options = () if workers == 1 else _processes(workers)
    beam = Beam("direct", options, tmp_path)
    assert all_shots(raw[0], mapped=beam) == shots
    kept = [shot for shot in shots if not shot.faults]
    for name, mapped in (("here", in_threads), ("beam", beam)):
        write_shots(raw[0], tmp_path / name, shots, kept, mapped)
        source = FolderSource(tmp_path / name, mapped=mapped)
        write_records(
            tmp_path / f"{name}_records", source, Frames((32, 32), 8), {"made_for": "this test"}, mapped=mapped
        )
    for kind in ("", "_records"):
        here, there = tmp_path / f"here{kind}", tmp_path / f"beam{kind}"
        files = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(there) for path in there.rglob("*") if path.is_file()) and files
        for file in files:
            assert (here / file).read_bytes() == (there / file).read_bytes(), file
    assert not list(tmp_path.glob(".beam*"))


@pytest.mark.slow
def test_beam_refuses(raw, tmp_path):
    pytest.importorskip("apache_beam")
    with pytest.raises(UserError, match="cannot set up the Beam runner NoRunner"):
        Beam("NoRunner", (), tmp_path)
    with pytest.raises(UserError, match="the Beam pipeline failed"):
        list(Beam("direct", (), tmp_path)(_raises, [1, 2]))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_worker_leaves_nothing_and_another_run_is_whole(tmp_path):
    pytest.importorskip("apache_beam")
    (tmp_path / "beam").mkdir()
    beam = Beam("direct", _processes(2), tmp_path / "beam")
    items = [(index, tmp_path / "killed") for index in range(60)]
    with pytest.raises(UserError, match=r"the Beam pipeline failed.*nothing was written"):
        list(beam(_dies_once, items))
    assert (tmp_path / "killed").exists() and not list((tmp_path / "beam").iterdir())
    assert list(beam(_dies_once, items)) == [2 * index for index in range(60)]


def _processes(workers):
    return (f"direct_num_workers={workers}", "direct_running_mode=multi_processing")


def _dies_once(item):
    index, mark = item
    time.sleep(0.05)  # the other worker is in the middle of its own
    if index == 30 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * index


def _raises(item):
    raise RuntimeError(f"no {item}")
