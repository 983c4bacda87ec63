"""Every command, from its arguments to its files; and whatever a user gets wrong ends in one clear line."""

import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from tokvid import input_pipeline
from tokvid.cli import main as cli
from tokvid.cli.main import main
from tokvid.config import DataConfig, Recipe, TrainConfig, load_recipe
from tokvid.errors import UserError
from tokvid.evaluate import interpolation as interpolation_module
from tokvid.evaluate import shapes as shapes_module
from tokvid.input_pipeline.clips import probe
from tokvid.input_pipeline.records import RecordSource
from tokvid.io.media import write_image, write_video
from tokvid.sampling import film

STORY = "segments:\n  - {prompt: a red circle, seconds: 1.3}\n  - {prompt: 一个圆, seconds: 0.8}\n"


SMALLEST = """
from tokvid.config import *

layers = ("space", "time")
recipe = Recipe(
    data=DataConfig(size=(16, 16), frames=5, videos=50, threads=1),
    tokenizer=TokenizerConfig(
        size=(16, 16), width=16, heads=2, mlp=16, encoder=layers, decoder=layers, quantizer="fsq", levels=(4, 4)
    ),
    tokens=TokensConfig(videos=40, latent_frames=6, text_samples=100),
    transformer=TransformerConfig(
        text_vocabulary=320, latent_frames=4, width=16, layers=1, heads=2, kv_heads=2, mlp=16
    ),
    train_tokenizer=TrainConfig(steps=3, batch=2),
    train_transformer=TrainConfig(steps=9),
)
"""


@pytest.fixture
def tokvid(capfd, monkeypatch, tmp_path):
    """`tokvid(arguments…)` runs the command in `tmp_path` as the shell would: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capfd.readouterr()
        monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own would keep warnings off stderr
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def refused(tokvid, tmp_path):
    """Runs a command that should fail, in one line and leaving nothing; gives the line."""

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = tokvid(*arguments)
        assert code == 2 and out == "", (code, out, err)
        assert re.fullmatch(r"tokvid: [^\n]{5,2010}\n", err), err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.fixture
def movie(tmp_path):
    """A short video, and a picture."""
    rng = np.random.default_rng(0)
    write_video(tmp_path / "in.mp4", rng.integers(256, size=(10, 40, 60, 3), dtype=np.uint8), 10)
    write_image(tmp_path / "in.png", rng.integers(256, size=(30, 20, 3), dtype=np.uint8))


# Commands


def test_help_is_quick_and_imports_nothing_slow():
    code = """
import sys, time
from tokvid.cli.main import main
for command in ([], ["demo"], ["story"], ["generate"], ["extend"], ["interpolate"], ["loop"], ["reconstruct"],
                ["train"], ["tokenize"], ["evaluate"], ["data"], ["data", "shapes"], ["data", "mnist"],
                ["data", "folder"], ["inspect"]):
    try:
        main([*command, "--help"])
    except SystemExit as error:
        assert error.code == 0
assert not {"jax", "numpy", "yaml", "av"} & set(sys.modules), sorted(sys.modules)
assert time.process_time() < 1, time.process_time()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "--prompt PROMPT" in done.stdout and "COMMAND" in done.stdout


def test_a_story_from_a_file(tokvid, tiny_weights, tmp_path):
    (tmp_path / "story.yaml").write_text(STORY)
    code, out, err = tokvid("story", "story.yaml", "--weights", tiny_weights, "--sheet", "s.png")
    assert (code, out) == (0, "story.mp4: 2.1 s, 2 prompts\n") and "tokvid:" not in err
    info = probe(tmp_path / "story.mp4")
    assert (info.frames, info.fps, info.width) == (17, 8.0, 256)
    assert PIL.Image.open(tmp_path / "s.png").text["captions"] == "a red circle\n一个圆"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.png", "story.mp4", "story.yaml"]


def test_a_story_from_prompts_and_a_picture(tokvid, tiny_weights, movie, tmp_path):
    prompts = ("--prompt", "up", "--prompt", "down", "--seconds", 0.9, "--fps", 10)
    arguments = ("--weights", tiny_weights, "--image", "in.png", "--scale", 2, "--seed", 3, "--guidance", 1)
    code, out, _ = tokvid("story", *prompts, *arguments, "--out", "new/a.mp4")
    assert (code, out) == (0, "new/a.mp4: 1.8 s, 2 prompts\n")
    info = probe(tmp_path / "new" / "a.mp4")
    assert (info.frames, info.fps, info.width) == (18, 10.0, 32)


def test_given_videos_are_extended_interpolated_and_looped(tokvid, tiny_weights, movie, tmp_path):
    shutil.copytree(tiny_weights, tmp_path / "w")
    about = json.loads((tmp_path / "w" / "transformer" / "config.json").read_text())
    about["layouts"] = {"tasks": {"interpolation": 1.0, "infilling": 1.0}, "rows": [0, 1, 2]}
    (tmp_path / "w" / "transformer" / "config.json").write_text(json.dumps(about))
    code, out, err = tokvid("extend", "in.mp4", "--seconds", 1, "--weights", "w", "--fps", 5)
    assert (code, out) == (0, "extended.mp4: 5 frames of in.mp4, then 5 new ones at 5 fps\n"), err
    code, out, err = tokvid("interpolate", "in.mp4", "--factor", 4, "--weights", "w", "--sheet", "s.png", "--rows", 1)
    assert (code, out) == (0, "interpolated.mp4: 37 frames at 40 fps\n"), err
    info = probe(tmp_path / "interpolated.mp4")
    assert (info.frames, info.fps) == (37, 40.0) and PIL.Image.open(tmp_path / "s.png").width > 100
    code, out, err = tokvid("loop", "in.mp4", "--weights", "w", "--fps", 10, "--rows", 2, "--rounds", 3)
    said = "loop.mp4: 12 frames at 10 fps, the last 4 of them new; left out: in.mp4's first 2 frames\n"
    assert (code, out) == (0, said), err
    assert probe(tmp_path / "loop.mp4").frames == 12


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
    assert (code, out) == (0, "on.mp4: 1 frames of one.mp4, then 8 new ones at 8 fps\n")
    assert probe(tmp_path / "on.mp4").frames == 9


@pytest.mark.parametrize(
    "source, out, frames", [("in.mp4", "a.mp4", 10), ("in.png", "a.png", 1), ("in.png", "b.mp4", 1)]
)
def test_reconstruct(tokvid, tiny_weights, movie, tmp_path, source, out, frames):
    code, text, err = tokvid("reconstruct", source, "--out", out, "--weights", tiny_weights, "--json")
    figures = json.loads(text)
    assert (code, err, figures["frames"], figures["size"]) == (0, "", frames, [16, 16])
    latent_frames = 6 if frames == 10 else 1
    assert figures["tokens"] == 4 * latent_frames and 3 < figures["psnr"] < 30 and -1 < figures["ssim"] < 1
    assert abs(figures["bits_per_pixel"] - 4 * latent_frames * np.log2(30) / (frames * 256)) < 1e-6
    info, rate = probe(tmp_path / out), {"a.mp4": 10.0, "a.png": 0.0, "b.mp4": 1.0}[out]
    assert (info.width, info.height, info.frames, info.fps) == (16, 16, frames, rate)


def test_a_varying_rate_keeps_its_times(tokvid, tiny_weights, tmp_path):
    """A GIF of twelve frames, the first of which lasts two seconds: each is written when it was shown."""
    noise = np.random.default_rng(0).integers(256, size=(12, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "in.gif", [*noise[:1].repeat(16, 0), *noise[1:]], 8)
    assert probe(tmp_path / "in.gif").frames == 12
    code, text, err = tokvid("reconstruct", "in.gif", "--out", "a.mp4", "--weights", tiny_weights, "--json")
    assert (code, err) == (0, "") and json.loads(text)["frames"] == 27
    info = probe(tmp_path / "a.mp4")
    assert (info.fps, info.frames) == (8.0, 27)
    shutil.copytree(tiny_weights, tmp_path / "w")
    about = json.loads((tmp_path / "w" / "transformer" / "config.json").read_text())
    about["layouts"] = {"tasks": {"interpolation": 1.0}, "rows": [0, 1, 2]}
    (tmp_path / "w" / "transformer" / "config.json").write_text(json.dumps(about))
    code, out, err = tokvid("interpolate", "in.gif", "--factor", 2, "--weights", "w", "--rows", 1)
    assert (code, out) == (0, "interpolated.mp4: 53 frames at 16 fps\n"), err


def test_reconstruct_at_another_rate_and_size(tokvid, tiny_weights, movie, tmp_path):
    arguments = ("--fps", 3, "--size", 8, 24, "--fit", "letterbox", "--weights", tiny_weights)
    code, text, _ = tokvid("reconstruct", "in.mp4", "--out", "a.gif", *arguments)
    assert code == 0 and "ssim                     None" in text  # too small for its window
    info = probe(tmp_path / "a.gif")
    assert (info.width, info.height, info.frames) == (24, 8, 3)


def test_evaluate(tokvid, tiny_weights, tmp_path, monkeypatch):
    code, text, _ = tokvid(
        "evaluate",
        "reconstruction",
        "--samples",
        4,
        "--weights",
        tiny_weights,
        "--json",
        "e.json",
        "--markdown",
        "e.md",
        "--sheet",
        "e.png",
    )
    figures = json.loads((tmp_path / "e.json").read_text())
    assert code == 0 and figures["samples"] == 4 and "repeat_psnr" in text
    assert "| features | random-convolutions " in (tmp_path / "e.md").read_text() and (tmp_path / "e.png").is_file()

    def shapes(models, samples, seed, settings, rates):
        return {"size": models.size, "asked": [samples, seed, settings.guidance, settings.sampling.top_k, rates]}

    monkeypatch.setattr(shapes_module, "evaluate_shapes", shapes)  # which is tested in test_evaluate.py
    asked = []

    def interpolated(models, data, samples, factor, seed, settings, show):
        asked.append((data.source, samples, factor, settings.sampling.rows))
        show([np.zeros((2, 16, 16, 3), np.uint8)], captions=["black"])
        return {"psnr": 20.0}

    monkeypatch.setattr(interpolation_module, "evaluate_interpolation", interpolated)
    arguments = ("--samples", 5, "--factor", 4, "--rows", 1, "--sheet", "s.png", "--weights", tiny_weights)
    assert tokvid("evaluate", "interpolation", *arguments)[0] == 0 and asked == [("shapes", 5, 4, 1)]
    assert PIL.Image.open(tmp_path / "s.png").text["captions"] == "black"
    arguments = ("--samples", 4, "--guidance", 3, "--top-k", 5, "--fps", 3, 6, "--weights", tiny_weights)
    assert tokvid("evaluate", "shapes", *arguments, "--json", "e.json")[0] == 0
    assert json.loads((tmp_path / "e.json").read_text()) == {"size": [16, 16], "asked": [4, 0, 3.0, 5, [3.0, 6.0]]}


def test_datasets_and_what_inspect_says_of_them(tokvid, tiny_weights, movie, tmp_path, dev_data):
    def said(path):
        code, out, err = tokvid("inspect", path)
        assert (code, err) == (0, "")
        return " ".join(out.split())

    assert tokvid("data", "shapes", "--videos", 3, "--size", 16, 16, "--fps", 4, "--out", "shapes")[:2] == (
        0,
        "shapes: 3 videos\n",
    )
    source = RecordSource("shapes")
    assert len(source) == 3 and source[0].frames.shape[1:] == (16, 16, 3) and source[0].fps == 4
    assert said("shapes").startswith("kind dataset of frames videos 3 source shapes size [16, 16] fps 4")
    (tmp_path / "clips").mkdir()
    shutil.copy("in.mp4", "clips/a.mp4")
    (tmp_path / "clips" / "bad.mp4").write_bytes(b"no video")
    lines = [json.dumps({"file": name, "caption": "x"}) for name in ("a.mp4", "bad.mp4")]
    (tmp_path / "clips" / "captions.jsonl").write_text("\n".join(lines))
    code, out, err = tokvid("data", "folder", "clips", "--max-unreadable", 0.5)
    assert (code, out) == (0, "clips: 1 videos can be used, 1 cannot\n") and re.fullmatch("tokvid: skipped: .*\n", err)
    assert tokvid("data", "folder", "clips", "--max-unreadable", 0.5, "--out", "bytes")[1] == "bytes: 1 videos\n"
    assert tokvid("data", "folder", "clips", "--max-unreadable", 0.5, "--fit", "letterbox", "--out", "fitted")[0] == 0
    assert RecordSource("fitted")[0].fit == "letterbox" and RecordSource("bytes")[0].fit == "crop"
    assert RecordSource("bytes")[0].video == (tmp_path / "in.mp4").read_bytes()
    options = ("--max-unreadable", 0.5, "--size", 8, 8, "--fps", 5, "--out", "frames")
    assert tokvid("data", "folder", "clips", *options)[1] == "frames: 1 videos, frames of 8x8 at 5 fps\n"
    assert RecordSource("frames")[0].frames.shape == (5, 8, 8, 3)

    for path, words in {
        tiny_weights: ["tokenizer/", "kind tokenizer", "transformer/", "levels [5, 3, 2]", "parameters"],
        tiny_weights / "transformer": ["kind transformer", "latent_frames 4", "grid [2, 2]"],
        tiny_weights / "text.model": ["kind text model", "vocabulary 320"],
        "in.mp4": ["kind video file", "width 60", "frames 10"],
        "in.png": ["height 30", "frames 1"],
        "bytes": ["kind dataset of video", "videos 1"],
    }.items():
        assert all(word in said(path) for word in words), said(path)


def test_a_dataset_for_tfds(tokvid, movie, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    code, out, _ = tokvid("data", "shapes", "--tfds", "--videos", 3, "--size", 16, 16, "--out", "shapes")
    assert code == 0 and "train 3, held_out 1" in out
    for path in ("shapes", "shapes/moving_shapes/1.0.0"):
        code, out, _ = tokvid("inspect", path)
        assert code == 0 and "videos in train          3" in out and "moving_shapes" in out
    shutil.copytree(tmp_path, tmp_path / "clips", ignore=lambda *_: ["shapes"])
    (tmp_path / "clips" / "captions.csv").write_text("file,caption\nin.mp4,noise\n")
    code, out, _ = tokvid("data", "folder", "clips", "--tfds", "--out", "prepared")
    assert code == 0 and "train 1" in out and "prepared before" not in out
    code, out, _ = tokvid("data", "folder", "clips", "--tfds", "--out", "prepared")
    assert code == 0 and "train 1 (prepared before; remove it to prepare it anew)" in out


def test_a_dataset_for_tfds_is_checked(tokvid, tmp_path):
    """What only decoding finds is said, as it is where records are written."""
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "clips").mkdir()
    noise_THWC = np.random.default_rng(0).integers(256, size=(40, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "clips" / "a.mp4", noise_THWC, 8)
    data = bytearray((tmp_path / "clips" / "a.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(20_000)
    (tmp_path / "clips" / "a.mp4").write_bytes(data)
    (tmp_path / "clips" / "captions.csv").write_text("file,caption\na.mp4,noise\n")
    for options in ((), ("--tfds",)):
        code, _, err = tokvid("data", "folder", "clips", "--check", "--out", f"d{len(options)}", *options)
        assert code == 0 and "a.mp4: damaged at " in err


def test_moving_mnist(tokvid, tmp_path, monkeypatch):
    from tokvid.input_pipeline import mnist

    monkeypatch.setitem(mnist.VIDEOS, "test", 2)
    images = np.zeros((10, 28, 28), np.uint8)
    images[:, 5:20, 8:20] = 255
    np.savez(tmp_path / "digits.npz", images=images, labels=np.arange(10))
    assert tokvid("data", "mnist", "digits.npz", "--split", "test", "--out", "d")[:2] == (0, "d: 2 videos\n")
    assert RecordSource("d")[1].frames.shape == (20, 64, 64, 3)


def test_demo(tokvid, tiny_weights, tmp_path, monkeypatch):
    (tmp_path / "shipped" / "demo").mkdir(parents=True)
    (tmp_path / "shipped" / "demo" / "story.yaml").write_text(STORY)
    monkeypatch.setattr("tokvid.cli.options.SHIPPED", tmp_path / "shipped")
    code, out, _ = tokvid("demo", "--weights", tiny_weights)
    assert code == 0 and out.startswith("2.1 s of video from 2 prompts in ")
    names = ["report.json", "sheet.png", "story.gif", "story.mp4"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == names
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["frames"] == 17 and [s["prompt"] for s in report["segments"]] == ["a red circle", "一个圆"]


SUBCODES = "--tokenizer.patch 4 --tokenizer.fold 2 --tokenizer.groups 2 --transformer.subcodes 8"


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["", SUBCODES], ids=["one code", "eight sub-codes"])
def test_training_from_nothing_to_a_story(tokvid, tmp_path, tokens):
    (tmp_path / "recipe.py").write_text(SMALLEST)
    for words in (["train", "tokenizer"], ["tokenize"], ["train", "transformer"]):
        override = [
            "--train_transformer.steps",
            2,
            "--train_transformer.batch=2",
            "--train_transformer.sample_every",
            2,
            *tokens.split(),
        ]
        code, _, err = tokvid(*words, "recipe.py", "--workdir", "run", *override)
        assert code == 0, err
    assert (tmp_path / "run" / "transformer" / "samples" / "0000002.mp4").is_file()
    assert tokvid("story", "--prompt", "a red circle", "--seconds", 1, "--weights", "run")[0] == 0
    assert probe(tmp_path / "story.mp4").frames == 8
    code, out, _ = tokvid("inspect", "run")
    assert code == 0 and "kind                     dataset of tokens" in out
    assert tokvid("inspect", "run/transformer/checkpoints/2")[1].startswith("kind                     checkpoint")


# Recipes


def test_fields_of_a_recipe_can_be_changed(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text("from tokvid.config import *\nrecipe = Recipe(data=DataConfig(videos=7))\n")
    words = "--data.fps 2 --train_tokenizer.steps 5 --train_tokenizer.learning_rate=1e-4 --transformer.scan_layers True"
    words += " --train_tokenizer.mesh -1 2 1 1 --data.path=7 --tokenizer.encoder space --data.fit letterbox"
    found = load_recipe(path, words.split())
    assert found.data == DataConfig(videos=7, fps=(2.0,), path="7", fit="letterbox")
    assert found.train_tokenizer == TrainConfig(steps=5, learning_rate=1e-4, mesh=(-1, 2, 1, 1))
    assert found.transformer.scan_layers is True and found.tokenizer.encoder == ("space",)
    assert load_recipe(path, []) == Recipe(data=DataConfig(videos=7))


@pytest.mark.parametrize(
    "words, said",
    [
        ("--train_tokeniser.steps 5", "did you mean 'train_tokenizer.steps'?"),
        ("--train_tokenizer.stepz 5", "did you mean 'train_tokenizer.steps'?"),
        ("--steps 5", "unknown field of the recipe 'steps'"),
        ("--data", "unknown field of the recipe 'data'"),
        ("--train_tokenizer.steps five", "recipe.train_tokenizer.steps should be int, got 'five'"),
        ("--train_tokenizer.steps", "--train_tokenizer.steps takes one value, got 0"),
        ("--train_tokenizer.steps 1 2", "--train_tokenizer.steps takes one value, got 2"),
        ("--train_tokenizer.learning_rate NaN", "should be a finite number"),
        ("--data.size 64", "recipe.data.size should be a list of 2, got [64]"),
        ("--data.fit stretch", "recipe.data.fit: unknown value 'stretch'"),
        ("steps", "fields are changed like this"),
    ],
)
def test_fields_that_cannot_be_changed_so_are_refused(tmp_path, words, said):
    (tmp_path / "recipe.py").write_text("from tokvid.config import *\nrecipe = Recipe()\n")
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "recipe.py", words.split())
    assert said in str(error.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("recipe = 3", "should define `recipe"),
        ("", "should define `recipe"),
        ("\nimport nothing_like_it", "fails in line 2 with ModuleNotFoundError"),
        ("from tokvid.config import *\nTrainConfig(batchsize=4)", "argument 'batchsize' (did you mean 'batch'?)"),
        ("recipe = (", "fails with SyntaxError"),
        ("from tokvid.errors import UserError\nraise UserError('so it is')", "so it is"),
        (None, "no config file"),
    ],
)
@pytest.mark.parametrize("command", [("train", "tokenizer"), ("tokenize",)])
def test_recipes_that_are_none(refused, tmp_path, command, text, said):
    if text is not None:
        (tmp_path / "recipe.py").write_text(text)
    assert said in refused(*command, "recipe.py", "--workdir", "w")


# What a user gets wrong

NUMBERS = {
    "--seconds": ("nan", "inf", "-1", "0", "1e9", "x", ""),
    "--fps": ("nan", "inf", "-1", "0", "1e9"),
    "--seed": ("-1", "4294967296", "1" * 30, "1.5", "9" * 5000),
    "--guidance": ("nan", "inf", "-1", "101"),
    "--temperature": ("nan", "-1", "1e-9"),
    "--top-k": ("-1", "0.5"),
    "--top-p": ("nan", "0", "2"),
    "--scale": ("-1", "65", "x"),
}


@pytest.mark.parametrize("option, value", [(name, value) for name, values in NUMBERS.items() for value in values])
def test_numbers_that_cannot_be(refused, tiny_weights, option, value):
    line = refused("generate", "--prompt", "a", f"{option}={value}", "--weights", tiny_weights)
    assert option.removeprefix("--").replace("-", "_") in line.replace("-", "_")


@pytest.mark.parametrize(
    "words, said",
    [
        ("", "COMMAND"),
        ("paint", "invalid choice: 'paint'"),
        ("story", "give either a story file or one --prompt"),
        ("story a.yaml --prompt b", "give either a story file or one --prompt"),
        ("story a.yaml --seconds 3", "--seconds is for --prompt"),
        ("story a.yaml", "cannot read story a.yaml"),
        ("story --prompt a --weights nowhere", "no weights folder nowhere"),
        ("generate --prompt a --weights .", "no tokenizer weights in tokenizer"),
        ("generate --prompt a --image in.png --video in.mp4", "not allowed with"),
        ("generate --prompt a --image nowhere.png", "nowhere.png is not there"),
        ("generate --prompt a --image recipe.py", "recipe.py"),
        ("generate --prompt a --video recipe.py", "recipe.py"),
        ("generate --prompt a --out a.avi", "should end in .mp4 or .gif"),
        ("generate --prompt a --out .", "should end in .mp4 or .gif"),
        ("generate --prompt a --out=", "argument --out: it is empty; give a path"),
        ("generate --prompt a --image=", "argument --image: it is empty; give a path"),
        ("generate --prompt a --out /proc/none/a.mp4", "cannot write /proc/none/a.mp4"),
        ("generate --prompt a --out recipe.py/a.mp4", "cannot write"),
        ("generate --prompt a --sheet a.jpg", "should end in .png"),
        ("generate --prompt a --fps 60 --out a.gif", "allowed for .gif"),
        ("extend nowhere.mp4", "nowhere.mp4 is not there"),
        ("generate --prompt a --out gs://bucket/a.mp4", "argument --out: gs://bucket/a.mp4 is a URL; write to a file"),
        ("story memory://nowhere/story.yaml", "there is nothing at memory://nowhere/story.yaml"),
        ("loop in.mp4", "train some with the task infilling"),
        ("interpolate in.mp4", "not trained to interpolate"),
        ("interpolate in.mp4 --factor two", "invalid int value: 'two'"),
        ("story --prompt a --scheme best", "invalid choice: 'best'"),
        ("story --prompt a --scheme hierarchical", "not trained to interpolate"),
        ("generate --prompt a --rows 1", "these weights draw [0] rows at once"),
        ("generate --prompt a --rounds 0", "rounds should be 1 to 1000"),
        ("generate --prompt a --last-guidance -1", "guidance should be 0 to 100"),
        ("generate --prompt a --nonsense", "unrecognized arguments: --nonsense"),
        ("story --promt a", "unrecognized arguments: --promt (did you mean '--prompt'?); see tokvid story --help"),
        ("reconstruct nowhere.mp4 --out a.mp4", "nowhere.mp4 is not there"),
        ("reconstruct . --out a.mp4", "not a file"),
        ("reconstruct in.mp4 --out a.txt", "should end in"),
        ("reconstruct in.mp4 --out a.mp4 --size 20 16", "height 20 is no multiple of a token's 8 pixels: use 16 or 24"),
        ("reconstruct in.mp4 --out a.mp4 --size -8 16", "height -8 is no multiple"),
        ("reconstruct in.mp4 --out a.mp4 --size 0 16", "height 0 is no multiple"),
        ("reconstruct in.mp4 --out a.mp4 --size 80000 80000", "at most 8192 are allowed"),
        ("reconstruct in.mp4 --out a.mp4 --fps 0", "0"),
        ("reconstruct in.mp4 --out a.mp4 --fps nan", "nan"),
        ("evaluate shapes --samples 3", "4 or more samples"),
        ("evaluate shapes --seed -1", "seed should be"),
        ("evaluate shapes --seed 4294967296", "seed should be"),
        ("evaluate shapes --guidance nan", "guidance should be"),
        ("evaluate reconstruction --samples 0", "need 4 or more samples"),
        ("evaluate reconstruction --data nowhere", "nowhere"),
        ("evaluate all", "invalid choice: 'all'"),
        ("data shapes --out d --videos 0", "length must be >= 1"),
        ("data shapes --out d --seed -1", "seed >= 0"),
        ("data shapes --out d --size 16 32", "Moving Shapes are square"),
        ("data shapes --out d --size 0 0", "size should be 1 or more"),
        ("data shapes --out d --fps 0", "fps should be above 0"),
        ("data shapes --out d --fps nan", "fps should be above 0"),
        ("data shapes", "--out"),
        ("data shapes --out . --videos 1", "holds no records"),
        ("data shapes --out /proc/none --videos 1", "cannot write"),
        ("data mnist nowhere --out d", "nowhere"),
        ("data mnist recipe.py --out d", "recipe.py"),
        ("data folder nowhere --out d", "there is no folder nowhere"),
        ("data folder . --out d", "no captions.jsonl"),
        ("data folder . --max-unreadable 2", "max_unreadable"),
        ("data folder . --tfds", "--tfds needs --out"),
        ("data mnist x --tfds --size 8 8 --out d", "--size doesn't go with mnist --tfds"),
        # Options that would change nothing.
        ("data shapes --out d --fit crop", "unrecognized arguments: --fit"),
        ("data mnist x --out d --fit crop", "unrecognized arguments: --fit"),
        ("data mnist x --tfds --split test --out d", "--split doesn't go with --tfds"),
        ("data folder . --tfds --fit letterbox --out d", "--fit doesn't go with folder --tfds"),
        ("data folder . --tfds --fps 8 --out d", "--fps doesn't go with folder --tfds"),
        ("data folder . --fit letterbox", "--fit is for what is written; give --out"),
        ("data folder . --size 8 8", "--size is for what is written; give --out"),
        ("data folder . --fps 8", "--fps is for what is written; give --out"),
        ("evaluate shapes --factor 2", "--factor is not for evaluate shapes"),
        ("evaluate shapes --data .", "--data is not for evaluate shapes"),
        ("evaluate shapes --sheet a.png", "--sheet is not for evaluate shapes"),
        ("evaluate shapes --features x", "--features is not for evaluate shapes"),
        ("evaluate shapes --rounds 3", "--rounds is for drawing all rows at once; give --rows 2"),
        ("evaluate reconstruction --guidance 3", "--guidance is not for evaluate reconstruction"),
        ("evaluate reconstruction --fps 8", "--fps is not for evaluate reconstruction"),
        ("evaluate reconstruction --temperature 0", "--temperature is not for evaluate reconstruction"),
        ("evaluate interpolation --features x", "--features is not for evaluate interpolation"),
        ("evaluate interpolation --scheme one-level", "--scheme is not for evaluate interpolation"),
        ("interpolate in.mp4 --scheme one-level", "unrecognized arguments: --scheme"),
        ("loop in.mp4 --scheme one-level", "unrecognized arguments: --scheme"),
        ("extend in.mp4 --scheme hierarchical", "told at one level"),
        ("generate --prompt a --rounds 4", "--rounds is for drawing all rows at once; give --rows 2"),
        ("generate --prompt a --guidance 1 --negative b", "--negative has no effect where guidance is 1"),
        ("generate --prompt a --image in.mp4", "in.mp4 is a video of 10 frames; give a picture"),
        ("story --prompt a --image in.mp4", "in.mp4 is a video of 10 frames; give a picture"),
        ("story own.yaml --seed 3", "--seed has no effect: each segment has its own seed"),
        ("story own.yaml --last-guidance 3", "--last-guidance has no effect"),
        ("reconstruct in.mp4 --out a.png", "in.mp4 has 10 frames, a.png holds one; write .mp4 or .gif"),
        ("reconstruct in.png --out a.png --fps 3", "--fps has no meaning for a picture"),
        ("plan recipe.py --topology v5e:2x2 --only training --rows 1", "--rows is for decoding"),
        ("inspect nowhere", "there is nothing at nowhere"),
        ("inspect .", "is no checkpoint"),
        ("inspect recipe.py", "recipe.py"),
        ("demo --weights nowhere", "nowhere"),
        ("train tokenizer", "CONFIG.py, --workdir"),
        ("train painter recipe.py --workdir w", "invalid choice: 'painter'"),
        ("train transformer recipe.py --workdir w", "no token cache in w/tokens"),
        ("tokenize recipe.py --workdir w", "no tokenizer weights in w/tokenizer"),
    ],
)
def test_mistakes_end_in_one_line(refused, tiny_weights, movie, tmp_path, words, said):
    (tmp_path / "recipe.py").write_text("from tokvid.config import Recipe\nrecipe = Recipe()\n")
    (tmp_path / "own.yaml").write_text("segments: [{prompt: a, seed: 1, guidance: 2, last_guidance: 3}]")
    words = words.split()
    with_weights = ("story", "generate", "extend", "loop", "interpolate", "reconstruct", "evaluate")
    if words and words[0] in with_weights and "--weights" not in words:
        words += ["--weights", tiny_weights]
    assert said.replace("-", "_") in refused(*words).replace("-", "_")


def test_an_interpreter_without_tfds_is_told_what_to_install(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delitem(sys.modules, "tokvid.input_pipeline.builders", raising=False)
    monkeypatch.delattr(input_pipeline, "builders", raising=False)
    assert "pip install 'tokvid[tfds]'" in refused("data", "shapes", "--tfds", "--out", "d")


@pytest.mark.parametrize(
    "prompt", ["", " \t\n", "🦊" * 50, "word " * 200_000, "圆" * 100_000, "\x00\x1b[31m"], ids=lambda p: repr(p)[:12]
)
def test_any_prompt_makes_a_video(tokvid, tiny_weights, tmp_path, prompt):
    words = ("--prompt", prompt, "--seconds", 0.2, "--sheet", "s.png", "--weights", tiny_weights)
    code, _, err = tokvid("generate", *words)
    assert code == 0 and len(err) < 300 and err.count("is cut to its first 32 tokens") == (len(prompt) > 30)
    assert probe(tmp_path / "clip.mp4").frames == 2 and (tmp_path / "s.png").is_file()


def test_arguments_that_are_not_utf8(tokvid, refused, tiny_weights, tmp_path):
    assert "TFDS can't write to 'a\\udcff'" in refused("data", "shapes", "--tfds", "--out", "a\udcff")
    assert "not valid UTF-8" in refused("generate", "--prompt", "a\udcff", "--weights", tiny_weights)
    assert "\\udcff" in refused("inspect", "a\udcff")
    assert "\\udcff" in refused("story", "a\udcff.yaml", "--weights", tiny_weights)
    words = ("--prompt", "a", "--seconds", 0.2, "--weights", tiny_weights, "--out", "a\udcff.mp4")
    assert tokvid("generate", *words)[:2] == (0, "a\\udcff.mp4: 2 frames at 8 fps\n")
    assert os.listdir(os.fsencode(tmp_path)) == [b"a\xff.mp4"]


@pytest.mark.parametrize("part", ["tokenizer", "transformer"])
@pytest.mark.parametrize(
    "name, damage", [("config.json", "cut"), ("weights.safetensors", "cut"), ("weights.safetensors", "bit")]
)
def test_damaged_weights(refused, tiny_weights, tmp_path, part, name, damage):
    shutil.copytree(tiny_weights, tmp_path / "w")
    path, rng = tmp_path / "w" / part / name, np.random.default_rng(0)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[rng.integers(len(data)) :]
    else:
        data[rng.integers(len(data))] ^= 8
    path.write_bytes(data)
    refused("generate", "--prompt", "a", "--seconds", 0.2, "--weights", "w")
    refused("inspect", f"w/{part}")


def test_a_full_disk(tokvid, tiny_weights, movie, tmp_path):
    """As far as a limit on the size of files is one: one clear line, and no half of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        for words in (
            ("generate", "--prompt", "a", "--seconds", 1, "--weights", tiny_weights),
            ("generate", "--prompt", "a", "--seconds", 1, "--weights", tiny_weights, "--out", "a.gif"),
            ("reconstruct", "in.mp4", "--size", 64, 64, "--out", "b.mp4", "--weights", tiny_weights),
            ("data", "shapes", "--videos", 3, "--out", "d"),
        ):
            code, out, err = tokvid(*words)
            lines = [line for line in err.splitlines() if line.startswith("tokvid:")]
            assert (code, len(lines)) == (2, 1) and "cannot write" in lines[0], (words, err)
            assert "psnr " in out if words[0] == "reconstruct" else out == ""  # what was measured is told
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.gif.tokens", ".clip.mp4.tokens", "in.mp4", "in.png"]


WRITTEN = {
    ("demo",): ["--out folder"],
    ("story", "--prompt", "a"): ["--out mp4", "--out gif", "--sheet png"],
    ("generate", "--prompt", "a"): ["--out mp4", "--sheet png"],
    ("extend", "in.mp4"): ["--out mp4", "--sheet png"],
    ("interpolate", "in.mp4"): ["--out mp4", "--sheet png"],
    ("loop", "in.mp4"): ["--out mp4", "--sheet png"],
    ("reconstruct", "in.mp4"): ["--out mp4", "--out png"],
    ("train", "tokenizer", "recipe.py"): ["--workdir folder"],
    ("tokenize", "recipe.py"): ["--workdir folder"],
    ("plan", "recipe.py", "--topology", "v5p:2x2x1"): ["--json json", "--hlo folder"],
    ("evaluate", "shapes"): ["--json json", "--markdown md"],
    ("evaluate", "reconstruction"): ["--json json", "--markdown md", "--sheet png"],
    ("evaluate", "interpolation"): ["--json json", "--markdown md", "--sheet png"],
    ("data", "shapes"): ["--out folder"],
    ("data", "mnist", "digits.npz"): ["--out folder"],
    ("data", "folder", "clips"): ["--out folder"],
    ("export", "model"): ["--out safetensors"],
    ("import", "model.safetensors"): ["--out folder"],
}
CASES = [(words, *written.split()) for words, options in WRITTEN.items() for written in options]


def test_every_output_is_in_the_table():
    """Of each command, all arguments that are checked as outputs, and all that are called as outputs are."""

    def options(parser, words=()):
        for action in parser._actions:
            if action.choices and action.dest in ("command", "kind"):
                for name, inner in action.choices.items():
                    yield from options(inner, (*words, name))
            elif "Outputs." in getattr(action.type, "__qualname__", "") or (
                action.dest in ("out", "sheet", "json", "markdown", "hlo", "workdir") and action.nargs != 0
            ):
                yield words, action.option_strings[0]

    table = {(words[: 1 + (words[0] == "data")], option) for words, option, _ in CASES}
    assert set(options(cli.parser())) == table


@pytest.mark.parametrize("words, option, kind", CASES, ids=lambda value: "-".join(value).replace("--", ""))
def test_an_output_that_cannot_be_is_refused_before_the_work(refused, tmp_path, words, option, kind):
    """Nothing that these commands are to read is there: they would say so if they had begun."""
    (tmp_path / "file").write_text("keep")
    (tmp_path / "folder.d").mkdir()
    (tmp_path / "folder.d" / "kept").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    suffix = "" if kind == "folder" else f".{kind}"
    places = {
        f"/proc/none/x{suffix}": "cannot write /proc/none/x",
        f"file/x{suffix}": "cannot write file/x",
        f"file/x/y{suffix}": "cannot write file/x/y",
        f"loop/x{suffix}": "cannot write loop/x",
        f"{'x' * 300}{suffix}": "File name too long",
        f"new/{'x' * 300}/y{suffix}": "File name too long",
        f"gs://bucket/x{suffix}": "is a URL; write to a file system",
    }
    if kind == "folder":
        places |= {"file": "it is there and no folder", "pipe": "it is there and no folder"}
    else:
        for name in ("folder.d", "pipe"):
            (tmp_path / name).rename(tmp_path / f"{name}{suffix}")
        places |= {f"folder.d{suffix}": "it is a folder", f"pipe{suffix}": "no ordinary file"}
    if kind in ("mp4", "gif", "png"):
        places["x.jpg"] = places["x"] = places["mp4"] = "its name should end in ."
    needed = () if words[0] in ("train", "tokenize", "plan", "data", "export", "import") else ("--weights", "nowhere")
    for place, said in places.items():
        line = refused(*words, *needed, option, place)
        assert f"argument {option}: " in line and said in line, line


def test_no_two_outputs_share_a_place(refused, tmp_path):
    (tmp_path / "same").symlink_to(".")
    for one, other in (("e.txt", "e.txt"), ("e.txt", "./x/../e.txt"), ("same/e.txt", "e.txt")):
        line = refused("evaluate", "shapes", "--json", one, "--markdown", other)
        assert f"argument --markdown: {other} is named for another output, too" in line
    assert "another output" in refused("reconstruct", "a", "--out", "a.png", "--out", "a.png")


def test_a_dataset_is_refused_where_it_could_not_be_put(refused, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == "disk")
    assert "something is mounted there; name a folder in it" in refused("data", "shapes", "--out", "disk")


def test_a_sheet_of_shapes_is_refused(refused):
    assert "--sheet is not for evaluate shapes; leave it out" in refused("evaluate", "shapes", "--sheet", "a.png")


@pytest.mark.parametrize("lost", ["--json", "--markdown", "--sheet"])
def test_figures_are_told_whatever_becomes_of_their_files(tokvid, tiny_weights, tmp_path, monkeypatch, lost):
    """The disk fills up while it measures: the other files are there, and the figures on the screen."""
    files = {"--json": "e.json", "--markdown": "e.md", "--sheet": "e.png"}
    replace = os.replace

    def full(old, new):
        if str(new).endswith(files[lost]):
            raise OSError(28, "No space left on device")
        replace(old, new)

    monkeypatch.setattr(os, "replace", full)
    words = [word for pair in files.items() for word in pair]
    code, out, err = tokvid("evaluate", "reconstruction", "--samples", 4, "--weights", tiny_weights, *words)
    assert (
        code == 2
        and "psnr " in out
        and err.endswith(
            f"tokvid: cannot write {files[lost]}: No space left on device; free some space or choose another place\n"
        )
    )
    others = {name for option, name in files.items() if option != lost}
    assert {path.name for path in tmp_path.iterdir()} == others


def test_a_plan_is_told_whatever_becomes_of_its_files(tokvid, tmp_path, monkeypatch):
    """Programs' texts are kept until the figures are printed: compiling them took minutes."""
    from tokvid.plan import report

    def plan(recipe, where, mesh, *, keep, **how):
        (tmp_path / "texts").write_text("in the way now")
        keep("training", "HloModule training")
        return {"fits": True}

    monkeypatch.setattr(report, "plan", plan)
    monkeypatch.setattr(report, "lines", lambda config, result: ["a pod", "fits"])
    (tmp_path / "recipe.py").write_text("from tokvid.config import Recipe\nrecipe = Recipe()\n")
    words = ("plan", "recipe.py", "--topology", "v5p:2x2x1", "--json", "p.json", "--hlo", "texts")
    code, out, err = tokvid(*words)
    assert (code, out) == (2, "a pod\nfits\n") and "cannot write texts/training.hlo" in err
    assert json.loads((tmp_path / "p.json").read_text()) == {"config": "recipe.py", "fits": True}


def test_files_are_written_though_nobody_reads_the_figures(tiny_weights, tmp_path):
    """`tokvid evaluate … | head -0`"""
    words = ["evaluate", "reconstruction", "--samples", "4", "--weights", str(tiny_weights), "--json", "e.json"]
    command = [sys.executable, "-m", "tokvid", *words]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, timeout=200)
    os.close(write)
    assert done.returncode == 141 and b"Traceback" not in done.stderr
    assert json.loads((tmp_path / "e.json").read_text())["samples"] == 4


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
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
    assert re.fullmatch(r"tokvid: interrupted after 1\.\d of 2\.0 s; run the same command again to go on .*\n", err)
    assert [path.name for path in tmp_path.iterdir()] == [".story.mp4.tokens"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert tokvid(*words)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["story.mp4"]


def test_an_interrupted_dataset_leaves_nothing(tokvid, tmp_path, monkeypatch):
    from tokvid.shapes.drawing import ShapesDataset

    monkeypatch.setattr(ShapesDataset, "__getitem__", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert tokvid("data", "shapes", "--out", "d") == (143, "", "tokvid: interrupted\n")
    assert list(tmp_path.iterdir()) == []


# Files of strangers

SWEEP = ("empty.mp4", "trunc_half.mp4", "bitflips_in_mdat.mp4", "text_named.mp4", "tiny_av1.mp4", "metadata_gnre.mp4")


def sweep(tokvid, tmp_path, weights, file):
    """Either a command makes something usable of a file, or it says in one line what is wrong and leaves nothing."""
    code, out, err = tokvid("reconstruct", file, "--out", "out.mp4", "--weights", weights, "--json")
    if code == 0:
        assert json.loads(out)["frames"] == probe(tmp_path / "out.mp4").frames > 0
        assert all(line.startswith("tokvid: ") for line in err.splitlines())
        (tmp_path / "out.mp4").unlink()
    else:
        assert (code, out) == (2, "") and re.fullmatch(r"tokvid: [^\n]+\n", err), err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "clips").mkdir()
    shutil.copy(file, tmp_path / "clips" / "a b.mp4")
    (tmp_path / "clips" / "captions.jsonl").write_text('{"file": "a b.mp4", "caption": "x"}')
    for options in (["--check"], ["--size", "16", "16", "--fps", "4"]):
        code, out, err = tokvid("data", "folder", "clips", "--out", "d", *options)
        if code == 0:
            assert len(RecordSource("d")) == 1
            shutil.rmtree("d")
        else:
            assert (code, out) == (2, "") and re.fullmatch(r"tokvid: [^\n]+\n", err), err
        assert [path.name for path in tmp_path.iterdir()] == ["clips"]
    shutil.rmtree("clips")


@pytest.mark.parametrize("name", SWEEP)
def test_broken_files(tokvid, tiny_weights, tmp_path, dev_data, name):
    sweep(tokvid, tmp_path, tiny_weights, dev_data / "malformed" / name)


@pytest.mark.slow
def test_all_broken_files(tokvid, tiny_weights, tmp_path, dev_data):
    files = [path for path in sorted((dev_data / "malformed").iterdir()) if path.suffix != ".jsonl"]
    assert len(files) > 30
    for file in files:
        sweep(tokvid, tmp_path, tiny_weights, file)
