"""Many clips at once: the same clips as one by one, in a folder that a later job completes."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import tokvid
from tokvid.api.many import _Index, _mark, clips_of, first_words, read_prompts
from tokvid.cli.main import main
from tokvid.errors import UserError
from tokvid.input_pipeline.captions import read_captions
from tokvid.io import progress
from tokvid.sampling import many
from tokvid.sampling.film import scale_for
from tokvid.sampling.story import Segment, Story

LINES = '{"prompt": "up"}\n{"prompt": "一个圆", "seed": 4, "seconds": 0.5, "guidance": 2}\n{"prompt": "up"}\n'


@pytest.fixture(scope="module")
def world(tiny_weights):
    return tokvid.load(tiny_weights, quiet=True)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_clip_has_a_seed_of_its_own(tmp_path):
    """Which doesn't change with the number or the order of the prompts."""
    (tmp_path / "p.jsonl").write_text(LINES, encoding="utf-8")
    clips = clips_of(tmp_path / "p.jsonl", 2, 3.0, {"seed": 1, "fps": 4})
    up = [Story((Segment("up", 3.0),), fps=4.0, seed=1 + 7919 * number) for number in range(4)]
    circle = [Story((Segment("一个圆", 0.5),), fps=4.0, seed=4 + 7919 * number, guidance=2.0) for number in range(2)]
    assert clips == [*up[:2], *circle, *up[2:]]
    (tmp_path / "p.txt").write_bytes("\ufeffup\r\n  一个圆 \r\n\n".encode())
    assert read_prompts(tmp_path / "p.txt", 2.0) == [Segment("up", 2.0), Segment("一个圆", 2.0)]


def test_clips_that_are_told_alike_are_alike():
    """However a prompt spells out what its story has."""
    clips = clips_of(["up", {"prompt": "up", "guidance": 3.0, "negative": ""}, {"prompt": "up", "seed": 0}], 1, 1.0, {})
    assert [clip.seed for clip in clips] == [0, 7919, 2 * 7919] and len({clip.segments for clip in clips}) == 1


def test_the_default_scale_by_its_number_is_the_default(tiny_models):
    story = Story((Segment("up"),))
    marks = [_mark(tiny_models, scale, story) for scale in (0, scale_for(tiny_models.size), 1)]
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("a red circle", "a-red-circle"),
        ("a small yellow star moves left, slowly; then up", "a-small-yellow-star-moves-left-slowly"),
        (f"{'up ' * 13}u", "up-" * 13 + "u"),  # 40 letters
        ("x" * 300, "x" * 40),
        ("../?", "clip"),
        ("", "clip"),
        ("一个圆", "一个圆"),
        ("नमस्ते दुनिया", "नमस्ते-दुनिया"),
        ("Cafe\u0301 noir", "Café-noir"),
        ("a ❤️ heart, 1️⃣ one", "a-heart-1-one"),
    ],
)
def test_a_clip_is_named_by_whole_words(prompt, words):
    assert first_words(prompt) == words


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("p.txt", "", "p.txt has none; write a prompt on each line"),
        ("p.txt", "up\n\ndown\n", "p.txt, line 2: the prompt is empty"),
        ("p.txt", "up\na\udcff", "p.txt, line 2: not UTF-8 text"),
        ("p.jsonl", '{"prompt": "up"}\n{"prompt": up}\n', "p.jsonl, line 2: not valid JSON"),
        ("p.jsonl", '{"prompt": "up"}\n\n{"prompt": "up"}', "p.jsonl, line 2: the prompt is empty"),
        ("p.jsonl", '"up"', "p.jsonl, line 1: prompt should be an object"),
        ("p.jsonl", "[" * 99999, "p.jsonl, line 1: not valid JSON"),
        ("p.jsonl", '{"promt": "up"}', "line 1: prompt: unknown field 'promt' (did you mean 'prompt'?)"),
        ("p.jsonl", '{"prompt": "up", "seed": -1}', "line 1: prompt: seed should be 0 to"),
        ("p.jsonl", '{"prompt": 5}', "line 1: prompt.prompt should be text, got 5"),
        ("p.jsonl", '{"prompt": " "}', "line 1: the prompt is empty"),
        ("nothing.txt", None, "cannot read prompts nothing.txt: No such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, monkeypatch, name, text, said):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as raised:
        clips_of(name, 1, 2.0, {})
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_side_by_side_as_one_by_one(world, monkeypatch):
    """With prompts, seeds, guidance and lengths of their own, in two threads of two clips."""
    monkeypatch.setattr(many, "_at_once", lambda: 2)
    prompts = ["up", {"prompt": "down", "seed": 4, "guidance": 2}, {"prompt": "left", "seconds": 0.5}]
    clips = list(world.many(prompts, count=2, seconds=0.9, batch=4))
    assert [(clip.story.segments[0].prompt, len(clip)) for clip in clips] == [
        ("up", 7), ("up", 7), ("down", 7), ("down", 7), ("left", 4), ("left", 4)
    ]  # fmt: skip
    for clip in clips:
        np.testing.assert_array_equal(clip.frames, world.story(clip.story).frames)
    assert len({clip.frames.tobytes() for clip in clips}) == 6


def test_if_one_share_of_a_batch_fails_the_others_end(monkeypatch):
    ended = []

    def told(models, stories, wanted, advance):
        if stories == ["wrong"]:
            raise UserError("wrong")
        try:
            while True:
                advance(wanted)
                time.sleep(0.001)
        finally:
            ended.append(stories)

    monkeypatch.setattr(many, "_told", told)
    with pytest.raises(UserError, match="wrong"):
        many._by_shares(None, [["good"], ["wrong"]], 2, lambda frames: None)
    assert ended == [["good"]]


def test_settings_of_jax_hold_in_every_share(monkeypatch):
    """Also where they hold for a `with` statement, that is for a thread."""
    seen = []
    monkeypatch.setattr(many, "_told", lambda *_: seen.append(jax.config.jax_default_matmul_precision) or [])
    with jax.default_matmul_precision("highest"):
        many._by_shares(None, [["one"], ["other"]], 2, lambda frames: None)
    assert seen == ["highest"] * 2


def test_batches_are_of_one_size():
    assert list(many._parts(list(range(10)), 8)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert list(many._parts(list(range(9)), 4)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert list(many._parts(list(range(7)), 4)) == [[0, 1, 2, 3], [4, 5, 6, 6]]


@pytest.mark.parametrize(
    "how, said",
    [
        ({"prompts": []}, "there are no prompts"),
        ({"count": 0}, "count should be 1 or more, got 0"),
        ({"batch": 0}, "batch should be 1 or more, got 0"),
        ({"seconds": 80000.0, "count": 8}, "8 videos of 640000 frames are too many at once"),
        ({"sampling": {"rows": 1}}, "these weights draw token by token (rows 0), got rows 1"),
        ({"scheme": "hierarchical"}, "not trained to interpolate"),
    ],
    ids=str,
)
def test_what_cannot_be_made(world, how, said):
    with pytest.raises(UserError) as raised:
        world.many(**{"prompts": ["up"], **how})
    assert said in str(raised.value)


def test_a_folder_is_completed(tiny_weights, tmp_path, monkeypatch, capsys):
    """By the command line, which makes only what is missing, and the same bytes as one clip at a time."""
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("up\n")
    command = ["generate", "--prompts", "p.txt", "--folder", "c", "--seconds", "0.5", "--guidance", "1"]
    command += ["--weights", str(tiny_weights), "--batch", "2"]
    main([*command, "--count", "2"])
    assert capsys.readouterr().out == "c: 2 clips of these settings, listed in index.jsonl\n"
    first = rows_of(tmp_path / "c")
    assert [(row["prompt"], row["seed"], row["frames"]) for row in first] == [("up", 0, 4), ("up", 7919, 4)]
    assert all(row["motion"] > 0 and (tmp_path / "c" / row["file"]).is_file() for row in first)
    main(["generate", "--prompt", "up", "--seed", "7919", *command[5:-2], "--out", "one.mp4"])
    assert Path("one.mp4").read_bytes() == Path("c", first[1]["file"]).read_bytes()
    Path("p.txt").write_text("up\ndown\n")
    Path("c", first[0]["file"]).unlink()
    with open("c/index.jsonl", "a") as file:
        file.write('{"file": "torn')  # as if it had been killed while writing
    Path("c/.index.jsonl.1").write_text("")  # of another process of that job
    untouched = Path("c", first[1]["file"]).stat().st_mtime_ns
    assert "nothing is missing" not in capsys.readouterr().err
    main([*command, "--count", "2"])
    assert capsys.readouterr().out == "c: 4 clips of these settings, listed in index.jsonl\n"
    main([*command, "--count", "2"])
    assert capsys.readouterr() == ("c: 4 clips of these settings, listed in index.jsonl\n", "c: nothing is missing\n")
    rows = rows_of(tmp_path / "c")
    assert {row["mark"] for row in first} < {row["mark"] for row in rows} and len(rows) == 4
    assert Path("c", first[1]["file"]).stat().st_mtime_ns == untouched
    assert [line.caption for line in read_captions(Path("c"))] == [row["prompt"] for row in rows]  # it is a dataset
    assert {path.name for path in Path("c").iterdir()} == {"index.jsonl", *(row["file"] for row in rows)}
    Path("c/index.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(SystemExit):
        main(command)
    assert "c/index.jsonl, line 1 is no row of tokvid's index of clips" in capsys.readouterr().err


def test_all_processes_must_be_asked_for_the_same_clips(world, tmp_path, monkeypatch):
    """Of other seeds, say, each would make its share, and half of the clips would be missing."""

    def differ(marks):
        assert len(marks) == 6 and len(set(marks)) == 6
        raise UserError("process 1 was started with other settings")

    monkeypatch.setattr("tokvid.api.many.check_same", differ)
    with pytest.raises(UserError, match="process 1 was started with other settings"):
        world.fill(tmp_path / "clips", ["up", "down"], count=3, seconds=0.5)
    assert not list((tmp_path / "clips").glob("*.mp4"))


def test_another_job_in_the_folder_loses_no_clips(tmp_path):
    """It begins between a clip's row in the index and its file."""
    one = _Index(tmp_path)
    one.add({"file": "up.mp4", "mark": "up"})
    other = _Index(tmp_path)
    assert not other.rows
    for name in ("up.mp4", "down.mp4"):
        (tmp_path / name).touch()
    other.add({"file": "down.mp4", "mark": "down"})
    other.add({"file": "never.mp4", "mark": "never"})  # it was killed
    assert other.merged().keys() == {"down"}
    assert one.merged().keys() == {"up", "down"} == {row["mark"] for row in rows_of(tmp_path)}


def test_progress_counts_frames_of_all_clips(tiny_weights, tmp_path, monkeypatch, capsys):
    """While a batch is made, not only after it; a clip that fills up the last batch doesn't count."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    Path("p.txt").write_text("up\ndown\nleft\n")
    main(["generate", "--prompts", "p.txt", "--seconds", "2", "--batch", "2", "--weights", str(tiny_weights)])
    lines = [line.split(" · ")[0] for line in capsys.readouterr().err.splitlines()]
    counts = [int(line.removeprefix("3 clips: ").removesuffix("/48")) for line in lines]
    assert counts == sorted(counts) and len(counts) > 4 and counts[-1] == 48


def start(folder, weights, *more):
    command = [sys.executable, "-m", "tokvid", "generate", "--prompts", folder / "p.txt", "--folder", folder / "c"]
    command += ["--seconds", "0.5", "--guidance", "1", "--weights", weights, *more]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_job_goes_on_behind_the_last_whole_video(tiny_weights, tmp_path):
    """With two processes, where one had begun."""
    (tmp_path / "p.txt").write_text("".join(f"up {number}\n" for number in range(8)))
    with start(tmp_path, tiny_weights, "--batch", "1") as job:
        while not (whole := list(tmp_path.glob("c/up*.mp4"))):
            assert job.poll() is None, job.communicate()
            time.sleep(0.01)
        job.kill()
    times = {path: path.stat().st_mtime_ns for path in whole}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    several = ("--batch", "2", "--coordinator", address, "--processes", "2", "--process")
    jobs = [start(tmp_path, tiny_weights, *several, number) for number in (0, 1)]
    said = [job.communicate(timeout=240) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert said[0][0].endswith("c: 8 clips of these settings, listed in index.jsonl\n") and "clips" not in said[1][0]
    rows = rows_of(tmp_path / "c")
    assert {row["prompt"] for row in rows} == {f"up {number}" for number in range(8)} and len(rows) == 8
    assert {path.name for path in tmp_path.glob("c/*")} == {"index.jsonl", *(row["file"] for row in rows)}
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
