"""Whatever a user gives, nothing but a UserError comes of it: captions, stories, options, files of strangers.

TOKVID_EXAMPLES says how many examples each test tries (200): TOKVID_EXAMPLES=10000 pytest tests/test_any_input.py
"""

import contextlib
import dataclasses
import io
import itertools
import json
import logging
import os
import tempfile
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tokvid import weights
from tokvid.api import world
from tokvid.cli.main import main
from tokvid.config import Sampling, load_recipe
from tokvid.errors import UserError
from tokvid.input_pipeline.clips import probe, read_clip, stream_frames
from tokvid.input_pipeline.folder import FolderSource
from tokvid.input_pipeline.records import RecordWriter
from tokvid.input_pipeline.stored import stored
from tokvid.sampling import codec, film, window
from tokvid.sampling.story import load_story, prompts_of, tell

EXAMPLES = int(os.environ.get("TOKVID_EXAMPLES", "200"))
often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 200,  # the suite always tries the same ones
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(0 if EXAMPLES > 200 else 300)

LONGEST = 16  # frames that are made
LETTERS = st.text(st.characters(codec=None) | st.sampled_from(',;\t"\\\n\r\0\ufeff\ud83d\u200b'), max_size=8)
FILES = [
    "a.png",
    "b.png",
    "sub/c.png",
    "sub\\c.png",
    "gone.png",
    "sub",
    ".",
    "..",
    "../x.png",
    "c:d.png",
    "/",
    "x" * 300,
]
ODD = ["-1", "0", "1e-300", "5e-324", "1e308", "-0.0", "nan", "inf", "-inf", "1e3", "9" * 5000, "", " ", "x", "١"]
WHOLE = st.sampled_from(["0", "1", "2", "3", "4", "8"]) | st.integers(-3, 300).map(str) | st.sampled_from(ODD)
NUMBERS = (
    st.sampled_from(["0.1", "0.5", "1", "2", "4", "8"])
    | st.floats(1e-3, 300).map(str)
    | st.floats().map(str)
    | st.sampled_from(ODD)
)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Logging thousands of warnings takes longer than all else."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def trial(action):
    """What `action` gives, or None where it is refused in one line."""
    try:
        return action()
    except UserError as error:
        assert str(error)
        return None


# Captions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    (folder / "sub").mkdir()
    for name in ("a.png", "b.png", "sub/c.png"):
        PIL.Image.new("RGB", (4, 4)).save(folder / name)
    return folder


names = st.sampled_from(["file", "caption", "File", " caption", "text", ""]) | LETTERS
cells = st.sampled_from([*FILES, "", " ", "red", '"red"', '"red', 'red"', '"a, b"']) | LETTERS
rows = st.lists(cells, max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | LETTERS | st.sampled_from(FILES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
objects = st.fixed_dictionaries({"file": st.sampled_from(FILES) | values, "caption": LETTERS | values}) | values


@st.composite
def tables(draw):
    """CSV, more or less."""
    header = draw(
        st.sampled_from([["file", "caption"], ["caption", "file", "x"], ["File ", '"caption"']]) | st.lists(names)
    )
    delimiter, end = draw(st.sampled_from([",", ";", "\t", ", "])), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = [header, *draw(st.lists(rows, max_size=5))]
    return end.join(delimiter.join(line) for line in lines).encode("utf-8", "surrogatepass")


@st.composite
def json_lines(draw):
    """JSON lines, whole or cut."""
    lines = [json.dumps(value, ensure_ascii=draw(st.booleans())) for value in draw(st.lists(objects, max_size=4))]
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    return text[: draw(st.integers(0, len(text)) | st.just(len(text)))]


@given(
    name=st.sampled_from(["captions.csv", "captions.jsonl"]),
    data=tables() | json_lines() | st.binary(max_size=40),
    share=st.sampled_from([0.1, 0.6, 1.0]),
)
@often
def test_captions(folder, name, data, share):
    for other in folder.glob("captions.*"):
        other.unlink()
    (folder / name).write_bytes(data)
    source = trial(lambda: FolderSource(folder, max_unreadable=share, mapped=map))
    if source is not None:  # what is taken can be written
        with tempfile.TemporaryDirectory() as place, RecordWriter(Path(place) / "d", "video") as writer:
            for item in source:
                writer.write(stored(item, fps=8, size=(4, 4)))


# Stories

fields = st.sampled_from(
    [
        "fps",
        "seed",
        "guidance",
        "last_guidance",
        "negative",
        "scheme",
        "keep",
        "sampling",
        "segments",
        "prompt",
        "seconds",
    ]
)
told = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | LETTERS
    | st.sampled_from([1, 4.0, "one-level", "a circle"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields | LETTERS, inner, max_size=4),
    max_leaves=8,
)
segment = st.dictionaries(fields, told, max_size=3).map(lambda more: {"prompt": "a", **more})
stories = st.dictionaries(fields, told, max_size=3).flatmap(
    lambda more: st.lists(segment | told, max_size=3).map(lambda parts: {**more, "segments": parts})
)


def as_yaml(value):
    with contextlib.suppress(Exception):  # the writer is not what is tested
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    return repr(value).encode("utf-8", "surrogatepass")


PIECES = [
    "segments:",
    "- prompt: a",
    "  seconds: ",
    "fps: ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "!!int ",
    "!!binary ",
    "? ",
    "<<: ",
    "2020-01-01",
    "0x",
    "1_0",
    "1:1:1",
    ".nan",
    ".inf",
    "~",
    "%YAML 9",
    "---",
    "'",
    '"\\ud83d"',
    "!!python/object:os.system ",
    "0b_",
    "1e999",
    "!!timestamp 9999-99-99",
    "!!float ''",
    "!!set {a}",
    "=",
    "|",
    "\n",
    "\t",
    "\x85",
    "\0",
]
scribbles = st.lists(st.sampled_from(PIECES) | LETTERS, max_size=12).map(
    lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
)


@given(data=stories.map(as_yaml) | told.map(as_yaml) | scribbles | st.binary(max_size=40))
@often
def test_stories(tmp_path_factory, tiny_models, without_models, data):
    path = tmp_path_factory.getbasetemp() / "story.yaml"
    path.write_bytes(data)
    story = trial(lambda: load_story(path))
    if story is not None:
        assert story.frames >= 1 and story.spans[-1][1] == story.frames
        assert len(prompts_of(story, tiny_models)) == len(story.segments)
        if story.frames <= LONGEST and (parts := trial(lambda: list(tell(tiny_models, story)))) is not None:
            assert sum(map(len, parts)) == story.frames


# Options


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a video, a picture, a story, clips and a recipe."""
    place = tmp_path_factory.mktemp("place")
    video(place / "in.mp4", "libx264")
    PIL.Image.new("RGB", (9, 7)).save(place / "in.png")
    (place / "story.yaml").write_text("segments: [{prompt: a, seconds: 0.2}]")
    (place / "recipe.py").write_text("from tokvid.config import *\nrecipe = Recipe()\n")
    (place / "clips").mkdir()
    (place / "clips" / "a.mp4").write_bytes((place / "in.mp4").read_bytes())
    (place / "clips" / "captions.csv").write_text("file,caption\na.mp4,x\n")
    return place


@pytest.fixture
def without_models(tiny_models, monkeypatch):
    """All that comes out is black, but nothing is loaded or compiled."""

    def generate(graph, params, request, *, sampling, guided):
        return np.where(request.batch.known[..., None], request.batch.tokens, 0)

    def generate_means(graph, params, request, latents_VC, *, sampling, guided):
        tokens = generate(graph, params, request, sampling=sampling, guided=guided)
        return tokens, np.asarray(latents_VC)[tokens]

    def encode(graph, params, video_BTHWC, cache, first):
        B, _, height, width, _ = video_BTHWC.shape
        return np.zeros((B, 1, height // 8, width // 8, 1), np.int32), cache

    def decode(graph, params, tokens, cache, first):
        B, _, rows, columns, *_ = tokens.shape
        return np.zeros((B, 1 if first else 2, 8 * rows, 8 * columns, 3), np.uint8), cache

    for fake in (generate, generate_means):
        monkeypatch.setattr(window, fake.__name__, fake)
    for fake in (encode, decode):
        monkeypatch.setattr(codec, f"_{fake.__name__}", fake)
    about = {"layouts": {"tasks": {"interpolation": 1.0, "infilling": 1.0}, "rows": [0, 1, 2]}}
    transformer = tiny_models.transformer._replace(about=tiny_models.transformer.about | about)
    monkeypatch.setattr(world, "load_models", lambda folder, loras=(): tiny_models._replace(transformer=transformer))
    monkeypatch.setattr(weights, "load", lambda folder, kind: tiny_models.tokenizer)
    monkeypatch.setattr(film, "WATCHABLE", 16)


PATHS = st.sampled_from(["in.mp4", "in.png", "story.yaml", "clips", "nowhere", "", ".", "\udcff", "recipe.py"])
OUTS = st.sampled_from(
    ["o.mp4", "o.gif", "o.png", "new/o.mp4", "clips", "", ".", "/proc/o.mp4", "in.mp4/o.mp4", "\udcff.mp4"]
)
TEXTS = LETTERS.filter(lambda text: "\0" not in text) | st.sampled_from(["a red circle", ""])  # a shell passes no NUL
SIZES = st.tuples(*[st.sampled_from(["8", "16", "24", "0", "-8", "7", "100000", "1e3"])] * 2)
SAMPLED = {
    f"--{field.name.replace('_', '-')}": WHOLE if field.type is int else NUMBERS
    for field in dataclasses.fields(Sampling)
}
MAKING = {
    "--out": OUTS,
    "--sheet": OUTS,
    "--fps": NUMBERS,
    "--seed": WHOLE,
    "--guidance": NUMBERS,
    "--last-guidance": NUMBERS,
    "--negative": TEXTS,
    "--scale": WHOLE,
    "--audio": PATHS,
    "--scheme": st.sampled_from(["one-level", "hierarchical", "re-encoding"]),
    **SAMPLED,
}
WRITTEN = {"--size": SIZES, "--fps": NUMBERS, "--tfds": None, "--out": st.sampled_from(["d", "clips", "in.mp4", ""])}
COMMANDS = {
    ("story",): {"--prompt": TEXTS, "--seconds": NUMBERS, "--image": PATHS, **MAKING},
    ("story", "story.yaml"): {"--image": PATHS, **MAKING},
    ("generate", "--prompt", "a"): {"--seconds": NUMBERS, "--image": PATHS, "--video": PATHS, **MAKING},
    ("extend", "in.mp4"): {"--prompt": TEXTS, "--seconds": NUMBERS, **MAKING},
    ("interpolate", "in.mp4"): {"--factor": WHOLE, "--draws": WHOLE, "--larger": WHOLE, "--prompt": TEXTS, **MAKING},
    ("loop", "in.mp4"): {"--prompt": TEXTS, **MAKING},
    ("edit", "in.mp4", "--task", "inpaint", "--box", "0", "0", "4", "4"): {"--larger": WHOLE, **MAKING},
    ("loop", "in.png"): {"--larger": WHOLE, "--prompt": TEXTS, **MAKING},
    ("reconstruct", "in.mp4", "--out", "o.mp4"): {
        "--out": OUTS,
        "--fps": NUMBERS,
        "--size": SIZES,
        "--json": None,
        "--later-codes": WHOLE,
    },
    ("reconstruct", "in.png", "--out", "o.png"): {"--out": OUTS, "--fps": NUMBERS, "--size": SIZES, "--json": None},
    ("data", "shapes", "--videos", "1", "--out", "d"): {"--seed": WHOLE, "--held-out": None, **WRITTEN},
    ("data", "folder", "clips"): {"--max-unreadable": NUMBERS, "--check": None, **WRITTEN},
    ("inspect",): {},
}


@st.composite
def commands(draw):
    words, options = draw(st.sampled_from(list(COMMANDS.items())))
    words, length = list(words), {"--seconds": 2.0, "--fps": 8.0}
    for name in draw(st.lists(st.sampled_from(list(options)), max_size=3, unique=True)) if options else []:
        value = None if options[name] is None else draw(options[name])
        words += [name] if value is None else [name, *value] if isinstance(value, tuple) else [f"{name}={value}"]
        with contextlib.suppress(ValueError, KeyError):
            length[name] = float(value) if name in length else 0
    frames = length["--seconds"] * length["--fps"]
    assume(not LONGEST < frames <= 86400 * 1000 and length["--fps"] <= 1000)  # a long video takes long
    return (
        [*words, *draw(st.lists(PATHS, max_size=1))] if words == ["inspect"] or not draw(st.integers(0, 9)) else words
    )


@given(words=commands())
@often
def test_options(place, without_models, words):
    with (
        contextlib.chdir(place),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        try:
            main(words)
        except SystemExit as ended:
            assert ended.code == 2, (words, ended.code)
            assert said.getvalue().count("tokvid: ") >= 1 and "Traceback" not in said.getvalue()


NAMES = [
    "data.size",
    "data.fps",
    "data.path",
    "data.fit",
    "data.videos",
    "train_tokenizer.steps",
    "train_tokenizer.betas",
    "tokenizer.encoder",
    "tokenizer.remat",
    "transformer.scan_layers",
    "layouts.rows",
    "data",
    ".",
]


@given(
    words=st.lists(
        st.sampled_from([f"--{name}" for name in NAMES])
        | NUMBERS
        | LETTERS
        | st.sampled_from(["True", "[1]", "null", "{}"]),
        max_size=6,
    )
)
@often
def test_fields_of_a_recipe(place, words):
    trial(lambda: load_recipe(place / "recipe.py", words))


# Files of strangers


def video(path, codec, pixels="yuv420p", frames=8):
    with av.open(str(path), "w") as file:
        track = file.add_stream(codec, rate=8)
        track.width, track.height, track.pix_fmt = 32, 32, pixels
        for index in range(frames):
            shown = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * index, np.uint8), format="rgb24")
            file.mux(track.encode(shown.reformat(format=pixels)))
        file.mux(track.encode(None))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A small file of each kind."""
    folder, files = tmp_path_factory.mktemp("originals"), []
    for name in [
        "libx264.mp4",
        "libx264.mkv",
        "mpeg2video.ts",
        "mpeg4.avi",
        "libx264.flv",
        "libvpx-vp9.webm",
        "mjpeg.mov",
        "libx265.mp4",
    ]:
        codec = name.partition(".")[0]
        path = folder / name
        video(path, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p")
        files.append(path.read_bytes())
    images = [PIL.Image.fromarray(np.full((16, 16, 3), 40 * index, np.uint8)) for index in range(5)]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for name, options in {
        "GIF": {"save_all": True, "append_images": images[1:], "duration": 120},
        "PNG": {"exif": exif},
        "JPEG": {"exif": exif},
        "BMP": {},
    }.items():
        file = io.BytesIO()
        images[0].save(file, name, **options)
        files.append(file.getvalue())
    for mode in ("P", "LA", "RGBA", "1", "I;16"):
        file = io.BytesIO()
        (PIL.Image.new("I;16", (9, 9), 500) if mode == "I;16" else images[1].convert(mode)).save(file, "PNG")
        files.append(file.getvalue())
    return Files(files)


class Files(list):
    """What a failing test prints shortly."""

    def __repr__(self):
        return f"{len(self)} files"


@st.composite
def mutations(draw):
    """Which file, and what to do with it: (where from its beginning or end, the bytes written there or left out)."""
    edits = st.tuples(st.integers(-600, 1500), st.binary(max_size=9) | st.integers(1, 60))
    return draw(st.integers(0, 99)), draw(st.lists(edits, max_size=4)), draw(st.floats(0, 1) | st.just(1.0))


@given(mutation=mutations(), fps=st.sampled_from([None, 8.0, 1000.0, 1e-3]))
@often
def test_files(originals, tmp_path_factory, mutation, fps):
    which, edits, share = mutation
    data = bytearray(originals[which % len(originals)])
    for place, change in edits:
        place = place % len(data) if data else 0
        if isinstance(change, int):
            del data[place : place + change]
        else:
            data[place : place + len(change)] = change
    data = bytes(data[: round(share * len(data))])
    path = tmp_path_factory.getbasetemp() / "mutated.bin"
    path.write_bytes(data)
    for source in (data, path):
        info = trial(lambda source=source: probe(source, full=True))
        if info is not None:
            assert np.isfinite([info.fps, info.seconds]).all() and info.frames > 0 and min(info.fps, info.seconds) >= 0
        trial(lambda source=source: list(itertools.islice(stream_frames(source, fps=fps, size=(8, 8)), 30)))
        for start in (0.0, 0.4):
            ask = {"start": start, "fps": 8.0, "frames": 2, "size": (8, 8)}
            trial(lambda source=source, ask=ask: read_clip(source, **ask))
