"""Videos from prompts: demo, story, generate, extend."""

import json
import re
import signal
import wave
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from tokvid.api.world import load
from tokvid.input_pipeline.clips import probe
from tokvid.io.media import write_video
from tokvid.io.worlds import WORLDS
from tokvid.sampling import film

STORY = "segments:\n  - {prompt: a red circle, seconds: 1.3}\n  - {prompt: 一个圆, seconds: 0.8}\n"


def test_demo(tokvid, tiny_weights, tmp_path, monkeypatch):
    (tmp_path / "shipped" / "demo").mkdir(parents=True)
    (tmp_path / "shipped" / "demo" / "story.yaml").write_text(STORY)
    monkeypatch.setitem(WORLDS, "shapes", tmp_path / "shipped")
    code, out, _ = tokvid("demo", "--weights", tiny_weights)
    assert code == 0 and out.startswith("2.1 s of video from 2 prompts in ")
    names = ["report.json", "sheet.png", "story.gif", "story.mp4"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == names
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert 0 < report["seconds_to_load"] <= report["seconds_to_first_frame"]
    assert report["frames"] == 17 and [s["prompt"] for s in report["segments"]] == ["a red circle", "一个圆"]
    assert all("read_from_the_pixels" in segment for segment in report["segments"])
    monkeypatch.setitem(WORLDS, "robots", tmp_path / "shipped")
    assert tokvid("demo", "--world", "robots", "--weights", tiny_weights)[0] == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["segments"] == [{"prompt": "a red circle", "seconds": 1.3}, {"prompt": "一个圆", "seconds": 0.8}]


def test_a_story_from_a_file(tokvid, tiny_weights, tmp_path):
    (tmp_path / "story.yaml").write_text(STORY)
    code, out, err = tokvid("story", "story.yaml", "--weights", tiny_weights, "--sheet", "s.png")
    said = "story.mp4: 2.1 s, 2 prompts\ns.png: a contact sheet of it\n"
    assert (code, out) == (0, said) and "tokvid:" not in err
    info = probe(tmp_path / "story.mp4")
    assert (info.frames, info.fps, info.width) == (17, 8.0, 256)
    assert PIL.Image.open(tmp_path / "s.png").text["captions"] == "a red circle\n一个圆"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.png", "story.mp4", "story.yaml"]


def test_a_rate_far_from_those_of_the_weights_is_told_once(tokvid, tiny_weights):
    def said(fps):
        words = ("story", "--prompt", "up", "--prompt", "down", "--seconds", 0.2, "--fps", fps, "--guidance", 1)
        return tokvid(*words, "--weights", tiny_weights)[2]

    assert "at 8" not in said(8) and "at 16" not in said(16)
    assert said(50).count("warning: these weights were trained at 4, 8 frames per second; at 50, motion is a g") == 1


def test_a_story_from_prompts_and_a_picture(tokvid, tiny_weights, movie, tmp_path):
    prompts = ("--prompt", "up", "--prompt", "down", "--seconds", 0.9, "--fps", 10)
    arguments = ("--weights", tiny_weights, "--image", "in.png", "--scale", 2, "--seed", 3, "--guidance", 1)
    code, out, _ = tokvid("story", *prompts, *arguments, "--out", "new/a.mp4")
    assert (code, out) == (0, "new/a.mp4: 1.8 s, 2 prompts\n")
    info = probe(tmp_path / "new" / "a.mp4")
    assert (info.frames, info.fps, info.width) == (18, 10.0, 32)


def test_a_clip_and_going_on_from_a_video(tokvid, tiny_weights, movie, tmp_path):
    code, out, _ = tokvid("generate", "--prompt", "up", "--seconds", 1, "--weights", tiny_weights)
    assert (code, out) == (0, "clip.mp4: 8 frames at 8 fps\n") and probe(tmp_path / "clip.mp4").frames == 8
    arguments = ("--prompt", "", "--seconds", 1.1, "--weights", tiny_weights, "--video", "in.mp4", "--out", "on.mp4")
    code, out, _ = tokvid("generate", *arguments)
    # One second at 8 fps: 8 frames, of which the last 7 fill latent frames.
    assert (code, out) == (0, "on.mp4: 8 frames of in.mp4, then 9 new ones at 8 fps\n")
    assert probe(tmp_path / "on.mp4").frames == 17
    write_video(tmp_path / "one.mp4", np.zeros((1, 40, 60, 3), np.uint8), 8)
    code, out, _ = tokvid("extend", "one.mp4", "--seconds", 1, "--weights", tiny_weights, "--out", "on.mp4")
    assert (code, out) == (0, "on.mp4: 1 frame of one.mp4, then 8 new ones at 8 fps\n")
    assert probe(tmp_path / "on.mp4").frames == 9


@pytest.mark.parametrize(
    "prompt", ["", " \t\n", "🦊" * 50, "word " * 200_000, "圆" * 100_000, "\x00\x1b[31m"], ids=lambda p: repr(p)[:12]
)
def test_any_prompt_makes_a_video(tokvid, tiny_weights, tmp_path, prompt):
    words = ("--prompt", prompt, "--seconds", 0.2, "--sheet", "s.png", "--weights", tiny_weights)
    code, _, err = tokvid("generate", *words)
    assert code == 0 and len(err) < 400
    assert err.count("tokvid: warning: of a text of ") == err.count("text_length is 32 tokens") == (len(prompt) > 30)
    assert probe(tmp_path / "clip.mp4").frames == 2 and (tmp_path / "s.png").is_file()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)])
def test_an_interrupted_story_says_how_to_go_on(tokvid, tiny_weights, tmp_path, monkeypatch, number, code):
    tell = film.tell

    def interrupted(*arguments):
        for index, frames in enumerate(tell(*arguments)):
            yield frames
            if index == 2:
                signal.raise_signal(number)

    words = ("story", "--prompt", "up", "--seconds", 2, "--weights", tiny_weights)
    monkeypatch.setattr(film, "tell", interrupted)
    found, out, err = tokvid(*words)
    assert (found, out) == (code, "") and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    said = r"after 1\.\d of 2\.0 s; run the same command again to resume \(the .* kept in \.story\.mp4\.tokens\)"
    assert re.fullmatch(rf"tokvid: interrupted {said}\n", err)
    assert [path.name for path in tmp_path.iterdir()] == [".story.mp4.tokens"]
    kept = (tmp_path / ".story.mp4.tokens").read_bytes()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    err = tokvid(*words, "--seed", 1)[2]  # another video
    assert "story.mp4: begins anew, because what was kept of it is of other settings" in err and "resumed" not in err
    (tmp_path / "story.mp4").unlink()
    (tmp_path / ".story.mp4.tokens").write_bytes(kept)
    assert "story.mp4: resumed, from .story.mp4.tokens\n" in tokvid(*words)[2]
    assert [path.name for path in tmp_path.iterdir()] == ["story.mp4"]
    assert not {"resumed", "anew"} & set(tokvid(*words)[2].split())


def test_an_interrupted_continuation_resumes_behind_its_opening(tokvid, tiny_weights, movie, monkeypatch):
    """The opening's frames come before any window is asked for, so they say nothing of what was kept."""
    tell = film.tell

    def interrupted(*arguments):
        for frames in tell(*arguments):
            yield frames
            if Path(".extended.mp4.tokens").exists():
                raise KeyboardInterrupt

    words = ("extend", "in.mp4", "--seconds", 4, "--fps", 4, "--guidance", 1, "--weights", tiny_weights)
    with monkeypatch.context() as patch:
        patch.setattr(film, "tell", interrupted)
        assert "run the same command again to resume" in tokvid(*words)[2]
    code, _, err = tokvid(*words)
    assert code == 0 and "extended.mp4: resumed, from" in err and "anew" not in err


def test_many_clips_that_are_interrupted_say_how_to_go_on(tokvid, tiny_weights, monkeypatch):
    def fill(*arguments, **settings):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("tokvid.api.world.World.fill", fill)
    code, out, err = tokvid("generate", "--prompt", "up", "--count", 2, "--folder", "many", "--weights", tiny_weights)
    said = "tokvid: interrupted; run the same command again for what is missing in many\n"
    assert (code, out, err) == (130, "", said)


def test_a_clip_begins_with_a_picture_that_may_be_chosen(tokvid, refused, tiny_weights, tmp_path):
    via = ("generate", "--prompt", "up", "--via-image", "--weights", tiny_weights, "--seconds", 0.6, "--guidance", 1)
    assert "needs --sheet" in refused(*via, "--choose", 2)
    for words in (("--image-seed", 2), ("--image-prompt", "b"), ("--choose", 2)):
        assert f"{words[0]} is for --via-image" in refused("generate", "--prompt", "a", *words)
    code, out, err = tokvid(*via, "--choose", 2, "--image-seed", 7, "--sheet", "s.png")
    said = "s.png: 2 pictures; go on with one of the seeds in it, without --choose\n"
    assert (code, out) == (0, said) and [path.name for path in tmp_path.iterdir()] == ["s.png"], err
    code, out, err = tokvid(*via, "--image-seed", 8)
    assert (code, out) == (0, "clip.mp4: 5 frames at 8 fps\n"), err
    world = load(tiny_weights, quiet=True)
    clip = world.via_image("up", image_seed=8, seconds=0.6, guidance=1)
    clip.save(tmp_path / "python.mp4")
    assert (tmp_path / "python.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()
    assert (clip.frames != world.via_image("up", seconds=0.6, guidance=1).frames).any()
    code, out, err = tokvid(*via, "--image-seed", 8, "--image-prompt", "a red circle", "--out", "own.mp4")
    own = world.via_image("up", image_prompt="a red circle", image_seed=8, seconds=0.6, guidance=1)
    own.save(tmp_path / "python.mp4")
    assert (tmp_path / "python.mp4").read_bytes() == (tmp_path / "own.mp4").read_bytes()
    picture = world.generate("a red circle", seed=8, seconds=1 / 8, guidance=1)
    assert (own.frames[0] == picture.frames[0]).all() and (own.frames[0] != clip.frames[0]).any()
    assert tokvid(*via, "--choose", 2, "--image-seed", 7, "--image-prompt", "a red circle", "--sheet", "r.png")[0] == 0
    assert (tmp_path / "r.png").read_bytes() != (tmp_path / "s.png").read_bytes()


def test_a_script(tokvid, refused, tiny_weights, tmp_path):
    (tmp_path / "script.txt").write_text("# One\n[1.3 s] a red circle\n\n一个圆\n")
    words = ("story", "script.txt", "--weights", tiny_weights, "--seconds", 0.8, "--seed", 3)
    refused(*words, "--scale", 65)
    refused(*words, "--out", "a.gif", "--captions")
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2000))
    assert "a .gif has no sound" in refused(*words, "--out", "a.gif", "--audio", "tone.wav")
    assert "cannot read the sound of script.txt" in refused(*words, "--audio", "script.txt")
    code, out, _ = tokvid(*words, "--captions", "--audio", "tone.wav")
    assert (code, out) == (0, "story.mp4: 2.1 s, 2 prompts\nstory.yaml: the script as a story file\n")
    with av.open(str(tmp_path / "story.mp4")) as video:
        (sound,) = video.streams.audio
        assert float(sound.duration * sound.time_base) == pytest.approx(17 / 8, abs=0.05)
        texts = [(packet.pts, bytes(packet)[2:].decode()) for packet in video.demux(video.streams.subtitles[0])]
    assert [text for text in texts if text[1]] == [(0, "a red circle"), (1300, "一个圆")]
    assert probe(tmp_path / "story.mp4").frames == 17
    made = load(tiny_weights, quiet=True).story(tmp_path / "script.txt", seconds=0.8, seed=3)
    made.save(tmp_path / "python.mp4", captions=True, audio=tmp_path / "tone.wav")
    assert (tmp_path / "python.mp4").read_bytes() == (tmp_path / "story.mp4").read_bytes()
    lines = (tmp_path / "story.yaml").read_text().splitlines()
    assert lines[0].startswith("# From script.txt, ")
    assert lines[1:6] == ["fps: 8.0", "seed: 3", "segments:", "  # One", "  - prompt: a red circle"]
    (tmp_path / "script.txt").write_text("a blue star\n")
    code, _, err = tokvid(*words)  # the changed script takes the place of what nobody edited
    written = (tmp_path / "story.yaml").read_text()
    assert code == 0 and "prompt: a blue star" in written, err
    refused(*words, "--seed", 4, "--audio", "script.txt")
    assert (tmp_path / "story.yaml").read_text() == written
    (tmp_path / "story.yaml").write_text(written.replace("blue", "red"))  # edited: it isn't lost
    assert "story.yaml was edited, or isn't a script's, so it is kept" in refused(*words)
