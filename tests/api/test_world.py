"""The Python face: worlds by name, stories from what people have, the same videos as by the command line."""

import os
import subprocess
import sys
import threading
import typing
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

import tokvid as package
from tokvid.api.inputs import read_clip, read_picture
from tokvid.api.stories import Settings
from tokvid.api.video import Stream, Video
from tokvid.api.world import World
from tokvid.cli.main import main
from tokvid.config import GUIDANCE, Recipe, Sampling
from tokvid.errors import UserError
from tokvid.input_pipeline.clips import probe, stream_frames
from tokvid.sampling import edits
from tokvid.sampling.story import Segment, Story, load_story, story_text
from tokvid.tasks.tasks import TASKS

PROMPTS = ["a small red circle moves up", "一个圆"]
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(256, size=(20, 30, 3), dtype=np.uint8)
FRAMES = RNG.integers(256, size=(9, 20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def world(tiny_weights):
    return package.load(tiny_weights, quiet=True)


@pytest.fixture(scope="module")
def video(world):
    return world.story(PROMPTS, seconds=0.9, seed=5, guidance=1)


@pytest.fixture
def able(trained_for):
    """A world as if trained for all tasks."""
    return package.load(trained_for(TASKS), quiet=True)


WAYS: dict[str, Callable[[World, Path], object]] = {
    "generate": lambda world, _: world.generate.stream("a zebra"),
    "generate from a picture": lambda world, _: world.generate.stream("a zebra", image=PICTURE),
    "generate one after another": lambda world, _: [world.generate.stream("a zebra", seed=seed) for seed in (1, 2)],
    "negative": lambda world, _: world.generate.stream("a star", negative="a zebra"),
    "negative of a segment": lambda world, _: world.story.stream([{"prompt": "a star", "negative": "a zebra"}]),
    "story": lambda world, _: world.story.stream(["a zebra", "the zebra"]),
    "stream": lambda world, _: world.stream(["a zebra", "the zebra"]),
    "many": lambda world, _: world.many(["a zebra", "the zebra"]),
    "fill": lambda world, folder: world.fill(folder, ["a zebra"], count=2, seconds=0.2, guidance=1),
    "extend": lambda world, _: world.extend.stream(FRAMES, "a zebra"),
    "edit": lambda world, _: world.edit.stream(FRAMES, "inpaint", "a zebra", box=(0, 0, 9, 9)),
    "interpolate": lambda world, _: world.interpolate.stream(FRAMES, 2, "a zebra", fps=4),
    "animate": lambda world, _: world.animate.stream(PICTURE, "a zebra"),
    "animate like a clip": lambda world, _: world.animate.stream(PICTURE, "a zebra", like=FRAMES),
    "loop": lambda world, _: world.loop.stream(FRAMES, "a zebra", guidance=1),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_warns_once_of_unknown_words(able, caplog, monkeypatch, tmp_path, way):
    monkeypatch.setattr(type(able.models.text), "spelled", lambda self, text: ["zebra"] if "zebra" in text else [])
    WAYS[way](able, tmp_path)
    assert [record.getMessage().count("'zebra'") for record in caplog.records] == [1]


def test_known_words_are_not_warned_of(able, caplog):
    able.edit.stream(FRAMES, "inpaint", "a star", box=(0, 0, 9, 9))
    for box in ((1, 2, 3), "1 2 3 4", (0, 0, 9.5, 9), 4):
        with pytest.raises(UserError, match="a box is four whole numbers, left, top, width and height, got"):
            able.edit.stream(FRAMES, "inpaint", "a star", box=box)
    able.generate.stream("a star")
    assert not caplog.records


def test_the_package_imports_nothing_slow_and_finds_every_name():
    code = """
import sys, tokvid
assert not {"jax", "numpy", "yaml", "av"} & set(sys.modules), sorted(sys.modules)
assert set(tokvid.__all__) <= set(dir(tokvid)) and all(getattr(tokvid, name) for name in tokvid.__all__)
assert tokvid.load.__module__ == "tokvid.api.world"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        package.lode  # noqa: B018


def test_weights_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no weights folder robot \(did you mean 'robots'\?\); name one"):
        package.load("robot")
    (tmp_path / "robots").mkdir()
    with pytest.raises(UserError, match="no tokenizer weights in robots/tokenizer"):
        package.load("robots")


def test_settings_are_those_of_a_story():
    settings = typing.get_type_hints(Settings)
    hints = typing.get_type_hints(Story)
    assert settings.keys() == hints.keys() - {"segments"}
    assert all(settings[name] == hints[name] for name in settings if name != "sampling")


def test_a_story_is_made_shown_and_saved(video, tmp_path):
    assert video.frames.shape == (14, 16, 16, 3) and video.frames.dtype == np.uint8
    assert (video.fps, len(video), video.seconds, video.known) == (8.0, 14, 1.75, 0)
    assert repr(video) == "Video(14 frames of 16x16 at 8 fps, 1.75 s)"
    page = video._repr_html_()
    assert page.count('src="data:video/mp4;base64,') == 1 and "一个圆" in page
    for name, width in (("a.mp4", 256), ("a.gif", 48)):
        info = probe(video.save(tmp_path / name, scale=0 if width == 256 else 3))
        assert (info.frames, info.width) == (14, width)
    assert PIL.Image.open(video.save(tmp_path / "a.png")).text["captions"] == "\n".join(PROMPTS)
    assert load_story(video.save(tmp_path / "a.yaml")) == video.story


def test_a_sheet_alone_is_no_video(world, tmp_path):
    with pytest.raises(UserError, match=r"there is no file to write the video to; give its name, \.mp4 or \.gif"):
        world.stream([PROMPTS[0]]).save(sheet=tmp_path / "a.png")
    assert not [*tmp_path.iterdir()]


def test_the_command_line_makes_the_same_bytes(video, world, tiny_weights, tmp_path, monkeypatch):
    """Of the story file that the API writes; as does a stream to a file."""
    monkeypatch.chdir(tmp_path)
    video.save("a.yaml")
    main(["story", "a.yaml", "--weights", str(tiny_weights), "--out", "b.mp4"])
    made = video.save(tmp_path / "a.mp4").read_bytes()
    assert (tmp_path / "b.mp4").read_bytes() == made
    world.story.stream(tmp_path / "a.yaml").save(tmp_path / "c.mp4", tmp_path / "c.gif", sheet=tmp_path / "c.png")
    assert (tmp_path / "c.mp4").read_bytes() == made
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.mp4", "a.yaml", "b.mp4", "c.gif", "c.mp4", "c.png"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "story",
    [
        Story((Segment("up"),)),
        Story(
            (Segment("", 0.1), Segment("yes", 1e-5 + 1, 3, 0.0, 2.5, "null")), 23.976, 7, 1.0, None, "1", "one-level"
        ),
        Story((Segment("\x00 # {: 'a\n\t\"é🦊\u2028 \x85"),), keep=1, sampling=Sampling(temperature=0.0, rows=2)),
    ],
    ids=["defaults", "all", "odd"],
)
def test_a_story_file_is_the_story(story, tmp_path):
    (tmp_path / "story.yaml").write_text(story_text(story), encoding="utf-8")
    assert load_story(tmp_path / "story.yaml") == story
    assert package.make_story(story) == story


def test_a_story_may_be_given_in_many_ways(tmp_path):
    wanted = Story((Segment("up", 2.0), Segment("down", 3.0, seed=4)), fps=4.0, seed=1, sampling=Sampling(rows=1))
    settings = {"fps": 4, "seed": np.int64(1), "sampling": {"rows": 1}}
    segments = ["up", {"prompt": "down", "seconds": 3, "seed": 4}]
    assert package.make_story(segments, 2, settings) == wanted
    assert package.make_story((Segment("up", 2.0), Segment("down", 3.0, seed=4)), None, settings) == wanted
    assert package.make_story({"segments": [{"prompt": "up", "seconds": 2}, segments[1]]}, None, settings) == wanted
    (tmp_path / "s.yaml").write_text(story_text(wanted))
    for file in (tmp_path / "s.yaml", str(tmp_path / "s.yaml")):
        assert package.make_story(file, None, {"fps": 4}) == wanted
    changed = package.make_story(wanted, None, {"sampling": {"top_k": 5}})
    assert changed.sampling == Sampling(rows=1, top_k=5) and changed.segments == wanted.segments


@pytest.mark.parametrize(
    "story, seconds, settings, said",
    [
        ([], None, {}, "a story needs at least one segment"),
        (["up", " "], None, {}, "a prompt of the story is empty; write what its segment shows"),
        (
            "a red circle",
            None,
            {},
            "no story file (.yaml, .json) or script (.txt, .srt, .fountain); give one, or a list",
        ),
        ("none.yaml", None, {}, "cannot read story none.yaml"),
        (7, None, {}, "should be a list of prompts, a story or a story file, got int"),
        ([7], None, {}, "segments[0].prompt should be text, got 7"),
        (["up"], 0, {}, "seconds should be above 0"),
        (["up"], None, {"fsp": 8}, "unknown field 'fsp' (did you mean 'fps'?)"),
        (["up"], None, {"fps": 0}, "fps should be above 0"),
        (["up"], None, {"fps": "8"}, "fps should be a number, got '8'"),
        (["up"], None, {"seed": 1.5}, "seed should be a whole number, got 1.5"),
        (["up"], None, {"sampling": {"row": 1}}, "unknown field 'row' (did you mean 'rows'?)"),
        ([{"prompt": "up", "second": 1}], None, {}, "unknown field 'second' (did you mean 'seconds'?)"),
        ({"segments": [{"prompt": "up"}]}, 2, {}, "in a story each segment has its own seconds"),
        (["a\udcff"], None, {}, "not valid UTF-8"),
    ],
    ids=str,
)
def test_mistakes_in_a_story(story, seconds, settings, said):
    with pytest.raises(UserError) as raised:
        package.make_story(story, seconds, settings)
    message = str(raised.value)
    assert said in message and "\n" not in message and not message.startswith("story")


def test_what_a_mapping_says_is_named_as_in_its_file():
    with pytest.raises(UserError, match=r"^story: fps should be above 0"):
        package.make_story({"segments": [{"prompt": "up"}], "fps": 0})
    with pytest.raises(UserError, match=r"^story\.segments\[0\]\.prompt should be text"):
        package.make_story({"segments": [{"prompt": 1}]})


@pytest.mark.parametrize("verb", ["generate", "story", "loop"])
def test_an_unknown_argument_is_told_with_those_of_the_verb(world, verb):
    for way in (getattr(world, verb), getattr(world, verb).stream):
        with pytest.raises(
            UserError, match=r"unknown argument 'gidance' \(did you mean 'guidance'\?\); allowed: .*fps"
        ):
            way("up", gidance=2)
    with pytest.raises(UserError, match=r"unknown argument 'second' \(did you mean 'seconds'\?\)"):
        world.generate("up", second=1)
    with pytest.raises(UserError, match=r"temperature is one of the settings of sampling; write sampling={'temper"):
        world.generate("up", temperature=1)
    with pytest.raises(UserError, match=r"unknown argument 'time' \(did you mean 'times'\?\)"):
        world.edit(PICTURE[None], "upscale", time=2)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda world: world.generate("up", seconds="2"), "seconds should be a number, got '2'"),
        (lambda world: world.generate("up", seconds=None), "seconds should be a number, got None"),
        (lambda world: world.generate("up", guidance=True), "guidance should be a number, got True"),
        (lambda world: world.extend(FRAMES, larger="2"), "larger should be a whole number, got '2'"),
        (lambda world: world.interpolate(Video(FRAMES, 8), 2.5), "factor should be a whole number, got 2.5"),
        (lambda world: world.interpolate(Video(FRAMES, 8), draws="2"), "draws should be a whole number, got '2'"),
        (lambda world: world.edit(FRAMES, "upscale", times=[2]), r"times should be a whole number, got \[2\]"),
        (lambda world: world.edit(FRAMES, "variation", strength="a"), "strength should be a number, got 'a'"),
        (lambda world: world.animate(PICTURE, like=FRAMES, at_path="no"), "at_path should be true or false, got 'no'"),
        (lambda world: world.many(["up"], count=1.5), "count should be a whole number, got 1.5"),
        (lambda world: world.fill("clips", ["up"], batch="8"), "batch should be a whole number, got '8'"),
        (lambda world: world.reconstruct(FRAMES, fps="8"), "fps should be a number, got '8'"),
        (lambda world: world.reconstruct(FRAMES, fps=8, size=16), "size should be two whole numbers, height and width"),
        (lambda world: Video(FRAMES, "8"), "fps should be a number, got '8'"),
        (lambda world: Story((Segment("up"),), fps="8"), "fps should be above 0 and at most 240, got '8'"),
        (lambda world: Story(("up",)), "the segments of a Story should be Segments"),
        (lambda world: Video(FRAMES, 8).save("a.mp4", scale="2"), "scale should be a whole number, got '2'"),
        (
            lambda world: world.generate.stream("up").save("a.mp4", captions=1),
            "captions should be true or false, got 1",
        ),
        (
            lambda world: package.load(world.folder, loras="a.safetensors"),
            "loras should be a list of files, or of pairs",
        ),
        (lambda world: package.load(world.folder, loras=[("a",)]), "a file, or a pair of a file and a scale, got"),
        (lambda world: package.load(world.folder, loras=[("a", None)]), "a file, or a pair of a file and a scale, got"),
        (lambda world: package.highlights("a.mp4", "clips", seconds="4"), "seconds should be a number, got '4'"),
        *(
            (lambda world, fps=fps: world.reconstruct(FRAMES, fps=fps), "fps should be above 0 and at most 1000")
            for fps in (0, -1, float("nan"), float("inf"), 1e5)
        ),
        (lambda world: world.interpolate(Video(FRAMES, 8), scheme="one-level"), "scheme is for videos of prompts"),
        (lambda world: world.loop(FRAMES, scheme="hierarchical"), "scheme is for videos of prompts"),
        (lambda world: world.animate(PICTURE, like=FRAMES, seconds=5), "a video along a track is as long as that"),
        (lambda world: Video(FRAMES, 8).save("a.png", scale=2), "scale is for videos and single pictures"),
        (lambda world: Video(FRAMES[:4], 8, story=Story((Segment("up"),))), "the story has 32 frames, the video 4"),
        (lambda world: package.fit(Recipe(), "run", ["data.fps"]), "changes should be a mapping of fields and values"),
    ],
)
def test_an_argument_of_another_type_is_told_in_one_line(world, call, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says) as raised:
        call(world)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(world):
    plain = world.generate("up", seconds=0.5, seed=3, guidance=2)
    assert (
        world.generate("up", seconds=np.float64(0.5), seed=np.int64(3), guidance=np.float32(2)).frames == plain.frames
    ).all()


@pytest.mark.parametrize("fps, count", [(8, 20), (23.976, 25), (29.97, 125), (0.7, 27)])
def test_a_video_read_at_its_own_rate_has_all_of_its_frames(fps, count):
    """And no other, as its length is rounded."""
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3).repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_array_equal(list(read_clip(Video(frames, fps), fps, (4, 4))), frames)


def test_a_video_begins_with_a_picture_or_another_video(world, tmp_path):
    """In whatever form: the same pixels, the same video."""
    PIL.Image.fromarray(PICTURE).save(tmp_path / "a.png")
    forms = (PICTURE, PIL.Image.fromarray(PICTURE), tmp_path / "a.png", str(tmp_path / "a.png"))
    one, *others = [world.generate("up", seconds=0.5, image=form, guidance=1).frames for form in forms]
    assert all((one == other).all() for other in others)
    assert (one[1:] != world.generate("up", seconds=0.5, guidance=1).frames[1:]).any()
    clips = (FRAMES, [PIL.Image.fromarray(frame) for frame in FRAMES], Video(FRAMES, 8))
    one, *others = [world.extend(clip, "up", seconds=0.5, guidance=1) for clip in clips]
    assert (len(one), one.known) == (13, 9) and all((one.frames == other.frames).all() for other in others)
    assert world.extend(FRAMES[:1], "up", seconds=1, guidance=1).frames.shape[0] == 9
    with pytest.raises(UserError, match="not both"):
        world.generate("up", image=PICTURE, video=FRAMES)


def test_videos_are_made_from_videos(trained_for, tmp_path):
    trained_for(["interpolation", "infilling"])
    world, clip = package.load(tmp_path / "w", quiet=True), Video(FRAMES[:5], 4)
    assert world.tasks == ("interpolation", "infilling")
    smooth = world.interpolate(clip)
    assert (len(smooth), smooth.fps) == (9, 8.0) and (smooth.frames[::2] == [*read_clip(clip, 4, (16, 16))]).all()
    assert (smooth.story.guidance, smooth.story.sampling.temperature) == (1.0, 0.0)
    assert (smooth.story.frames, smooth.story.fps) == (9, 8.0)
    several = world.interpolate(clip, draws=2)
    assert several.story.sampling == Sampling(temperature=1.0, later_temperature=1.0)
    assert (several.frames[::2] == smooth.frames[::2]).all()
    assert (several.frames != smooth.frames).any()
    assert world.interpolate(clip, draws=2, sampling={"top_p": 0.5}).story.sampling.temperature == 1.0
    cool, warm = (world.interpolate(clip, draws=2, sampling={"temperature": each}) for each in (0.001, 1.0))
    assert cool.story.sampling == Sampling(temperature=0.001, later_temperature=0.001)
    assert (cool.frames != warm.frames).any() and (warm.frames == several.frames).all()
    own = world.interpolate(clip, draws=2, sampling={"temperature": 0.5, "later_temperature": 1.0})
    assert (own.frames == several.frames).all()  # its first latent frame is given
    edited = world.edit(clip, "interpolation", fps=8)
    assert (edited.frames == smooth.frames).all()
    with pytest.raises(UserError, match=r"sampling\.temperature should be a number"):
        world.interpolate(clip, sampling={"temperature": 10**400})
    again = world.interpolate(clip, guidance=1, sampling={"temperature": 0.9}).story
    assert (again.guidance, again.sampling.temperature) == (1.0, 0.9)
    assert world.edit(clip, "interpolation", fps=8, guidance=2).story.guidance == 2.0
    assert world.interpolate(clip, negative="blue").story.guidance == GUIDANCE  # without it, "blue" would not be read
    stream = world.loop.stream(clip, guidance=1, fps=4)
    assert (stream.total, stream.known, stream.left_out) == (8, 4, 1) and len(stream.video(quiet=True)) == 8
    rebuilt = world.reconstruct(clip, size=(16, 24), fit="letterbox")
    assert rebuilt.frames.shape == (5, 16, 24, 3) and rebuilt.figures["frames"] == 5 and rebuilt.fps == 4.0
    with pytest.raises(UserError, match="these frames have no rate; give fps"):
        world.interpolate(FRAMES)
    with pytest.raises(UserError, match=r"animate has a method of its own, animate; edit takes restyle, "):
        world.edit(clip, "animate")
    with pytest.raises(UserError, match="inpaint needs either a box"):
        world.edit(clip, "inpaint")
    with pytest.raises(UserError, match=r"unknown task 'interpolate' \(did you mean 'interpolation'\?\)"):
        world.edit(clip, "interpolate")


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_a_sheet_shows_the_prompt_and_what_was_given(able, tmp_path, seconds):
    """Of a video made from another, whatever the length that its settings have by default."""
    clip = Video(np.zeros((round(8 * seconds), *FRAMES.shape[1:]), np.uint8), 8)
    made = {
        "edit": (able.edit.stream(clip, "variation", "up"), ["up"]),
        "loop": (able.loop.stream(clip, "up"), ["given", "up"]),
        "extend": (able.extend.stream(clip, "up", seconds=0.5), ["given", "up"]),
    }
    for name, (stream, captions) in made.items():
        stream.save(tmp_path / f"{name}.mp4", sheet=tmp_path / "streamed.png")
        assert PIL.Image.open(tmp_path / "streamed.png").text["captions"].split("\n") == captions, name
    able.edit(clip, "variation", "up").save(tmp_path / "whole.png")
    assert PIL.Image.open(tmp_path / "whole.png").text["captions"] == "up"


@pytest.mark.parametrize("fps, made", [(2, 4), (5, 5), (24, 8)])  # the weights were trained on 4 and 8
def test_a_video_made_from_another_has_its_rate(able, tmp_path, fps, made):
    clip = Video(FRAMES, fps)
    streams = {
        "generate": able.generate.stream("up", video=clip, seconds=0.5),
        "extend": able.extend.stream(clip, seconds=0.5),
        "restyle": able.edit.stream(clip, "restyle"),
        "animate": able.animate.stream(PICTURE, like=clip),
        "loop": able.loop.stream(clip),
    }
    assert {name: stream.fps for name, stream in streams.items()} == dict.fromkeys(streams, made)
    assert {name: stream.known + stream.story.frames for name, stream in streams.items() if name != "generate"} == {
        name: stream.total for name, stream in streams.items() if name != "generate"
    }
    assert able.extend.stream(clip, fps=6).fps == 6
    assert able.edit.stream(FRAMES, "restyle").fps == 8  # an array has no rate
    Video(FRAMES[:1], 8).save(tmp_path / "a.png")
    assert able.extend.stream(tmp_path / "a.png").fps == 8  # nor has a picture


def test_larger_videos_have_the_detail_of_what_is_given(trained_for, tmp_path, caplog):
    """At any multiple of the weights' size; the tokens are those of the frames in that size."""
    trained_for(["interpolation", "infilling", "image_to_video", "continuation"])
    world, rng = package.load(tmp_path / "w", quiet=True), np.random.default_rng(1)
    large = rng.integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    for made, given in (
        (world.generate("up", image=large[0], larger=2, seconds=1), [0]),
        (world.extend(large, "up", larger=2, seconds=1), [0, 1, 2, 3, 4]),
        (world.interpolate(large, fps=4, larger=2), [0, 2, 4, 6, 8]),
        (world.loop(large, fps=4, larger=2), [0, 1, 2, 3]),
    ):
        assert made.frames.shape[1:] == (32, 32, 3)
        np.testing.assert_array_equal(made.frames[given], large[5 - len(given) :] if len(given) > 1 else large[:1])
        assert (made.frames[len(given)] != large[-1]).any()
    made.save(tmp_path / "a.mp4", scale=1)
    assert probe(tmp_path / "a.mp4").width == 32
    for larger in (0, 17):
        with pytest.raises(UserError, match=f"larger should be 1 to 16 times the weights' size, got {larger}"):
            world.interpolate(large, fps=4, larger=larger)
    with pytest.raises(UserError, match="larger needs an image or a video"):
        world.generate("up", larger=2)


@pytest.mark.parametrize(
    "shape, fit, warned", [((40, 80), "crop", True), ((40, 80), "letterbox", False), ((40, 43), "crop", False)]
)
def test_what_a_crop_leaves_out_is_said(tmp_path, caplog, shape, fit, warned):
    picture, video = tmp_path / "a.png", tmp_path / "a.mp4"
    PIL.Image.new("RGB", shape[::-1]).save(picture)
    Video(np.zeros((2, *shape, 3), np.uint8), 4).save(video, scale=2)
    read_picture(picture, (16, 16), fit)
    next(read_clip(video, 4, (16, 16), fit))
    said = [
        f"{picture} is 80x40; only its middle, 40x40, is used",
        f"{video} is 160x80; only its middle, 80x80, is used",
    ]
    assert [line for line in said if line in caplog.text] == (said if warned else [])
    assert len(caplog.records) == 2 * warned


def test_frames_are_read_as_from_a_file(tmp_path):
    """At another rate, those that are shown then."""
    Video(FRAMES, 8).save(tmp_path / "a.mp4", scale=1)
    for fps in (8, 4, 5, 16):
        own = list(read_clip(Video(np.stack(list(stream_frames(tmp_path / "a.mp4"))), 8), fps, (20, 30)))
        np.testing.assert_array_equal(own, list(read_clip(tmp_path / "a.mp4", fps, (20, 30))))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I"])
def test_pictures_of_any_mode(mode):
    image = PIL.Image.new(mode, (20, 20))
    assert read_picture(image, (16, 16)).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "picture, said",
    [
        (PICTURE / 255, "a picture should be uint8 (height, width, 3), RGB, got float64; convert it"),
        (PICTURE[..., 0], "a picture should be uint8 (height, width, 3), RGB, got shape (20, 30)"),
        (FRAMES, "got shape (9, 20, 30, 3)"),
        (PICTURE[:0], "got shape (0, 30, 3)"),
        (PICTURE[..., [0, 1, 2, 2]], "got shape (20, 30, 4)"),
        (None, "a picture should be uint8 (height, width, 3), RGB, got shape ()"),
        (PIL.Image.new("F", (9, 9)), "cannot use a picture of mode F"),
        (PIL.Image.new("L", (0, 9)), "a picture of 0x9 pixels"),
        ("nowhere.png", "nowhere.png is not there"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_that_cannot_be_used(picture, said):
    with pytest.raises(UserError) as raised:
        read_picture(picture, (16, 16))
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "clip, fps, said",
    [
        (PICTURE, 8, "the frames of a video should be uint8 (T, H, W, 3), RGB, got shape (20, 30, 3)"),
        (FRAMES, 0, "fps should be above 0"),
        (FRAMES.astype(int), 8, "got int64; convert it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_videos_that_cannot_be(clip, fps, said):
    with pytest.raises(UserError) as raised:
        Video(clip, fps)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "name, said", [("a.avi", "should end in .mp4 or .gif or .png or .yaml"), ("a.yaml", "this video tells no story")]
)
def test_files_that_a_video_cannot_be(tmp_path, name, said):
    with pytest.raises(UserError, match=said):
        Video(FRAMES, 8).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_sound_is_joined(tmp_path):
    sound, stream = tmp_path / "tone.wav", Stream(iter([FRAMES]), len(FRAMES), 8, FRAMES.shape[1:3])
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2000))
    with pytest.raises(UserError, match=r"audio needs an \.mp4, because a \.gif has no sound"):
        Video(FRAMES, 8).save(tmp_path / "a.gif", audio=sound)
    with pytest.raises(UserError, match=r"none\.wav is not there"):
        stream.save(tmp_path / "b.mp4", audio=tmp_path / "none.wav")
    assert os.listdir(tmp_path) == ["tone.wav"]
    Video(FRAMES, 8).save(tmp_path / "a.mp4", audio=sound)
    stream.save(tmp_path / "b.mp4", tmp_path / "b.gif", audio=str(sound))
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(tmp_path / name)) as video:
            assert [stream.type for stream in video.streams] == ["video", "audio"]
        assert probe(tmp_path / name).frames == len(FRAMES)


def test_prompts_are_subtitles_after_what_is_continued(tmp_path):
    with pytest.raises(UserError, match=r"captions are the prompts of a story, and this video tells none"):
        Video(FRAMES, 8).save(tmp_path / "a.mp4", captions=True)
    story = package.make_story(["a red circle", {"prompt": "", "seconds": 1}, "up"], 0.5, {"fps": 8})
    video = Video(np.zeros((20, 16, 16, 3), np.uint8), 8, story=story)
    with pytest.raises(UserError, match=r"captions need an \.mp4, because a \.gif has no subtitles"):
        video.save(tmp_path / "a.gif", captions=True)
    assert not list(tmp_path.iterdir())
    video.save(tmp_path / "a.mp4", captions=True)
    with av.open(str(tmp_path / "a.mp4")) as file:
        texts = [(packet.pts, bytes(packet)[2:].decode()) for packet in file.demux(file.streams.subtitles[0])]
    assert [text for text in texts if text[1]] == [(500, "a red circle"), (2000, "up")]


@pytest.mark.parametrize(
    "call",
    [
        lambda world, video: package.load(3),
        lambda world, video: package.load("shapes", loras=[3]),
        lambda world, video: package.fit(3, "runs"),
        lambda world, video: package.highlights(3, "best"),
        lambda world, video: video.save(3),
        lambda world, video: video.save("a.mp4", audio=3),
        lambda world, video: world.generate.stream("up").save(b"a.mp4"),
        lambda world, video: world.fill(3, ["up"]),
        lambda world, video: world.animate("a.png", track=3),
    ],
    ids=range(9),
)
def test_what_is_no_path(world, call):
    with pytest.raises(UserError, match=r"^a path or a URL should be text or a pathlib\.Path, got (3|b'a\.mp4')$"):
        call(world, Video(FRAMES, 8))


def test_a_single_frame_is_a_picture(tmp_path):
    video = Video(PICTURE[None], 1)
    assert (np.asarray(PIL.Image.open(video.save(tmp_path / "a.png"))) == PICTURE).all()
    assert 'src="data:image/png;base64,' in video._repr_html_()


def test_a_stream_stops_goes_on_and_keeps_what_did_not_change(world, monkeypatch):
    from tokvid.sampling import window as sampling

    calls = []
    generate = sampling.generate
    monkeypatch.setattr(sampling, "generate", lambda *a, **k: calls.append(1) or generate(*a, **k))
    story = world.story.stream(["up", "down", "left"], seconds=1, guidance=1).story
    windows, seen = {}, []

    def stop(done, total):
        seen.append((done, total))
        if done > 8:
            raise KeyboardInterrupt

    others = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        list(world.stream(story, windows=windows, on_progress=stop))
    for thread in set(threading.enumerate()) - others:  # with the window under way
        thread.join()
    assert seen[-1][1] == 24 and 8 < seen[-1][0] < 24 and len(calls) == len(windows) > 1
    whole = np.concatenate(list(world.stream(story, windows=windows)))
    total = len(calls)
    assert total == len(windows)  # none was made twice
    np.testing.assert_array_equal(whole, world.story(story).frames)
    calls.clear()
    changed = Story((*story.segments[:2], Segment("left", 1.0, seed=9)), guidance=1.0)
    again = np.concatenate(list(world.stream(changed, windows=windows)))
    assert 0 < len(calls) < total - 1
    np.testing.assert_array_equal(again[:16], whole[:16])
    assert (again[17:] != whole[17:]).any()


def test_a_stream_of_which_frames_were_taken_is_not_shortened(world, tmp_path):
    taken = r"frames of this stream were taken already \(.* of 16\)"
    for begin in (lambda stream: next(iter(stream)), lambda stream: stream.video(quiet=True)):
        stream = world.story.stream(["up", "down"], seconds=1, guidance=1)
        begin(stream)
        assert 0 < stream.done <= 16
        with pytest.raises(UserError, match=taken):
            stream.video()
        with pytest.raises(UserError, match=taken):
            stream.save(tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
    stream = world.story.stream(["up", "down"], seconds=1, guidance=1)
    stream.save(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=taken):
        stream.video()


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"guidance": 1, "negative": "a star"}, "a negative prompt has no effect where guidance is 1"),
        ({"sampling": {"rounds": 3}}, "rounds has no effect: it is for drawing all rows at once; give rows 2"),
        ({"sampling": {"choice_temperature": 2}}, "choice_temperature has no effect: it is for drawing all rows"),
        ({"sampling": {"temperature": 0, "top_p": 0.5}}, "top_p has no effect: it is for drawing at random"),
        ({"guidance": 1, "last_guidance": 2, "negative": "a star"}, ""),
    ],
)
def test_settings_without_an_effect_are_told(world, caplog, settings, said):
    world.generate.stream("up", **settings)
    assert said in caplog.text and ("no effect" in caplog.text) == bool(said)
    caplog.clear()
    world.many(["up", "down"], count=2, **settings)
    assert said in caplog.text and caplog.text.count("no effect") == bool(said)


def test_progress_that_raises_loses_no_frames(world):
    def stop(done, total):
        if done < 8:
            raise RuntimeError

    stream = world.stream([{"prompt": "up", "seconds": 1.0}], guidance=1, on_progress=stop)
    seen, raised = [], 0
    for _ in range(9):
        try:
            for part in stream:
                seen.append(part)
        except RuntimeError:
            raised += 1
    assert raised > 0 and sum(map(len, seen)) == stream.done == stream.total == 8


@pytest.mark.parametrize("kept", [True, False])
def test_a_saved_stream_tells_its_progress_and_keeps_its_windows(world, tmp_path, kept):
    told, windows = [], {}
    stream = world.stream(
        [{"prompt": "up", "seconds": 1.0}],
        guidance=1,
        windows=windows if kept else None,
        on_progress=lambda done, total: told.append((done, total)),
    )
    stream.save(tmp_path / "a.mp4")
    assert stream.done == 8 and told[-1] == (8, 8) and bool(windows) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("given", [1, 2, 3, 4])
def test_the_story_of_a_continued_video_is_the_one_that_was_asked_for(world, tmp_path, given):
    """So its file, told again from the same frames, gives the same video."""
    made = world.extend(FRAMES[:given], "up", seconds=0.5, guidance=1, fps=8)
    assert len(made) == given + 4 and made.known == given and made.story.seconds == 0.5
    made.save(tmp_path / "a.yaml")
    again = world.story(tmp_path / "a.yaml", video=FRAMES[:given])
    np.testing.assert_array_equal(again.frames, made.frames)
    made.save(tmp_path / "a.png")
    stream = world.extend.stream(FRAMES[:given], "up", seconds=0.5, guidance=1, fps=8)
    stream.save(tmp_path / "a.mp4", sheet=tmp_path / "b.png")
    assert PIL.Image.open(tmp_path / "a.png").text["captions"] == "given\nup"
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_a_story_may_be_told_in_json(world, tmp_path):
    (tmp_path / "a.json").write_text('{"segments": [{"prompt": "up", "seconds": 0.5}]}', encoding="utf-8")
    assert world.story.stream(tmp_path / "a.json").story == Story((Segment("up", 0.5),))
    assert world.story.stream({"segments": [Segment("up", 0.5)]}).story == Story((Segment("up", 0.5),))


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"segments": [\n\t{"prompt": "\\ud83e\\udd8a"}]}', ""),
        ('{"segments": [', "a.json is not valid JSON: Expecting"),
    ],
)
def test_json_is_read_as_json(world, tmp_path, text, said):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    if not said:
        assert world.story.stream(tmp_path / "a.json").story.segments[0].prompt == "🦊"
        return
    with pytest.raises(UserError, match=said):
        world.story.stream(tmp_path / "a.json")


def test_several_threads_may_share_a_world(tiny_weights, world):
    shared, videos = World(tiny_weights, quiet=True), {}

    def work(seed):
        videos[seed] = shared.generate("up", seconds=0.6, seed=seed, guidance=1).frames

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2, 3):
        np.testing.assert_array_equal(videos[seed], world.generate("up", seconds=0.6, seed=seed, guidance=1).frames)


@pytest.mark.parametrize("last, warned", [(3, True), (1, False)])
def test_a_loop_that_jumps_says_so(monkeypatch, caplog, able, last, warned):
    """Frames of grey 0, 1, 2, then `last`: it is compared with the first one."""
    made_THWC = np.full((4, 16, 16, 3), np.array([0, 1, 2, last])[:, None, None, None], np.uint8)
    monkeypatch.setattr(edits, "loop", lambda *_: (made_THWC, 1))
    able.loop.stream(Video(made_THWC, 4.0), fps=4)
    assert ("the loop jumps where it begins again: by 3.0 times" in caplog.text) == warned
