"""The token cache: which stretches of videos are tokenized, under which captions, and what belongs together."""

import dataclasses
import queue
import shutil
import signal
import threading

import jax
import numpy as np
import pytest
from flax import nnx

from tokvid import weights
from tokvid.config import DataConfig, Recipe, TokenizerConfig, TokensConfig, TransformerConfig
from tokvid.errors import UserError
from tokvid.input_pipeline import records
from tokvid.input_pipeline.records import RecordSource, RecordWriter
from tokvid.input_pipeline.sources import fingerprint, open_source
from tokvid.input_pipeline.stored import StoredVideo
from tokvid.input_pipeline.text import train_text_model
from tokvid.io.media import write_video
from tokvid.io.settings import to_dict
from tokvid.tokenizer.cvivit import CViViT
from tokvid.train import tokenize
from tokvid.train.checkpoints import locked
from tokvid.train.token_cache import TokenCache, open_token_cache
from tokvid.train.tokenize import cut_stretch, write_token_cache
from tokvid.train.tokenizer_step import to_signed
from tokvid.train.transformer_step import TransformerTraining
from tokvid.types import Caption

SIZE = (16, 16)
RECIPE = Recipe(
    data=DataConfig(size=SIZE, videos=30, fps=(2.0, 4.0)),
    tokenizer=TokenizerConfig(
        size=SIZE,
        width=16,
        heads=2,
        mlp=32,
        encoder=("space",),
        decoder=("space", "time"),
        quantizer="fsq",
        levels=(4, 4),
        patch=4,
        fold=2,
        groups=3,
        dtype="float32",
    ),
    transformer=TransformerConfig(
        vocabulary=16, subcodes=12, text_vocabulary=330, text_length=8, latent_frames=3, grid=(2, 2), width=16
    ),
    tokens=TokensConfig(videos=40, held_out=0, latent_frames=5, text_samples=30),
)


def change(recipe, **rooms):
    """`recipe` with fields of its rooms replaced: change(RECIPE, data={"fps": (2.0,)})."""
    changed = {room: dataclasses.replace(getattr(recipe, room), **fields) for room, fields in rooms.items()}
    return dataclasses.replace(recipe, **changed)


def save_tokenizer(folder, model):
    weights.save(folder / "tokenizer", "tokenizer", RECIPE.tokenizer, nnx.state(model, nnx.Param))


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(CViViT, RECIPE.tokenizer)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("workdir")
    save_tokenizer(folder, model)
    write_token_cache(RECIPE, folder)
    return folder


class Told:
    """A video whose frame at second t is full of 10 * t; it is told in three captions, from 0, 2 and 4 s on."""

    key, captions = "told", (Caption(0.0, "a"), Caption(2.0, "b"), Caption(4.0, "c"))

    def __init__(self, seconds):
        self.seconds = seconds

    def read(self, start, fps, frames, size):
        assert start >= 0 and (frames == 1 or start + (frames - 1) / fps < self.seconds)
        seconds_T = start + np.arange(frames) / fps
        return np.broadcast_to(np.rint(10 * seconds_T)[:, None, None, None], (frames, *size, 3)).astype(np.uint8)


def test_stretches_and_their_captions():
    """A stretch of 5 latent frames is 9 frames: 4.5 s at 2 fps, 2.25 s at 4 fps. Captions are moved along with it."""
    rates, firsts = set(), set()
    for seed in range(40):
        video_THWC, fps, captions, key = cut_stretch(Told(6.0), RECIPE, 2, np.random.default_rng(seed))
        start = float(key.removeprefix("told@").removesuffix("s"))
        assert len(video_THWC) == 9 and 0 <= start <= 6 - 9 / fps + 0.01
        assert video_THWC[0, 0, 0, 0] == pytest.approx(10 * start, abs=0.6)
        assert video_THWC[-1, 0, 0, 0] == pytest.approx(10 * (start + 8 / fps), abs=0.6)
        assert captions[0].start == 0.0
        for caption in captions[1:]:
            assert caption.start == pytest.approx({"b": 2.0, "c": 4.0}[caption.text] - start, abs=0.01)
            assert 0 < caption.start < 9 / fps
        for second in np.arange(0.02, 9 / fps, 0.1):  # whoever asks, hears what the video is told to be
            told = [caption.text for caption in captions if caption.start <= second][-1]
            there = start + second
            if min(abs(there - 2), abs(there - 4)) > 0.02:
                assert told == ("a" if there < 2 else "b" if there < 4 else "c")
        rates.add(fps)
        firsts.add(captions[0].text)
    assert rates == {2.0, 4.0} and firsts == {"a", "b"}


class Ramp(Told):
    """Brighter to the right."""

    def read(self, start, fps, frames, size):
        ramp_W = np.linspace(0, 200, size[1]).astype(np.uint8)
        return np.broadcast_to(ramp_W[None, None, :, None], (frames, *size, 3))


def test_stretches_are_augmented_as_clips_are():
    """A mirrored ramp falls, a magnified one shows a part of it; captions that name sides forbid the mirror."""
    mirrored = change(RECIPE, data={"flip": 1.0, "zoom": 4.0})
    video_THWC, *_ = cut_stretch(Ramp(6.0), mirrored, 2, np.random.default_rng(0))
    row_W = video_THWC[0, 0, :, 0].astype(int)
    assert video_THWC.shape[1:] == (16, 16, 3) and (np.diff(row_W) <= 0).all() and np.ptp(row_W) < 199
    sided = Ramp(6.0)
    sided.captions = (Caption(0.0, "to the left"),)
    video_THWC, *_ = cut_stretch(sided, mirrored, 2, np.random.default_rng(0))
    assert (np.diff(video_THWC[0, 0, :, 0].astype(int)) >= 0).all()


def test_short_videos_give_what_they_have():
    """A window of 3 latent frames is 5 frames: the last begins at 2 s at 2 fps, and at 1 s at 4 fps."""
    rng = np.random.default_rng(0)
    assert cut_stretch(Told(1.0), RECIPE, 2, rng) is None
    for seconds, rates in ((1.1, {4.0}), (2.1, {2.0, 4.0})):
        stretches = [cut_stretch(Told(seconds), RECIPE, 2, rng) for _ in range(20)]
        assert {fps for _, fps, _, _ in stretches} == rates
        for video_THWC, fps, captions, _ in stretches:
            assert len(video_THWC) == (5 if fps == 2 or seconds < 2 else 9)
            assert captions[0].text == "a"
    lowest = change(RECIPE, data={"fps_rule": "lowest"})
    assert {cut_stretch(Told(3.0), lowest, 2, rng)[1] for _ in range(10)} == {2.0}


def test_where_short_windows_are_trained_short_videos_are_of_use():
    """An image is a video of one frame. What is long enough for a whole window gives one, at a rate where it is."""
    rng, images = np.random.default_rng(0), change(RECIPE, layouts={"lengths": (0, 1)})
    for seconds, rule, wanted in (
        (0.0, "uniform", {(2.0, 1), (4.0, 1)}),
        (0.01, "lowest", {(4.0, 1)}),
        (0.6, "lowest", {(4.0, 3)}),  # frames at 0, .25 and .5 s; at 2 fps only one and a half
        (1.1, "lowest", {(4.0, 5)}),
        (2.1, "lowest", {(2.0, 5)}),
        (2.1, "uniform", {(2.0, 5), (4.0, 9)}),
    ):
        recipe = change(images, data={"fps_rule": rule})
        stretches = [cut_stretch(Told(seconds), recipe, 2, rng) for _ in range(20)]
        assert {(fps, len(video_THWC)) for video_THWC, fps, *_ in stretches} == wanted, (seconds, rule)


def test_the_cache_holds_the_tokens_of_its_stretches(workdir, model):
    """Each record's tokens are those of its very frames, encoded alone; the source is gone through again."""
    cache, source = open_token_cache(workdir, RECIPE), open_source(RECIPE.data)
    records, about, text = cache.source, cache.about, cache.text
    assert len(records) == 40 and about["grid"] == [2, 2]
    assert (about["vocabulary"], about["subcodes"]) == (16, 12) and records[0].tokens.shape == (5, 2, 2, 12)
    assert about["text_vocabulary"] == text.vocabulary <= 330
    assert len({records[i].key for i in range(40)}) == 40  # 30 videos, ten of them twice, at other seconds
    encode = jax.jit(model.encode)
    for i in (0, 7, 31, 39):
        stretch = cut_stretch(source[i % 30], RECIPE, 2, np.random.default_rng([RECIPE.data.seed, i]))
        video_THWC, fps, captions, key = stretch
        record = records[i]
        assert (record.key, record.fps, record.captions) == (key, fps, captions)
        assert record.seconds == pytest.approx(len(video_THWC) / fps)
        ids_BTHWQ = encode(to_signed(video_THWC[None])).ids
        assert np.mean(record.tokens == ids_BTHWQ[0]) > 0.95  # weights are stored in 16 bits


def test_conditions_are_of_the_same_frames(tmp_path, model):
    """Coarse tokens of every other one; a picture of any single one."""
    save_tokenizer(tmp_path, model)
    tasks, encode = {"text_to_video": 1.0, "interpolation": 1.0, "animate": 1.0}, jax.jit(model.encode)
    write_token_cache(change(RECIPE, tokens={"videos": 6}, layouts={"tasks": tasks}), tmp_path)
    records, source, pictured = RecordSource(tmp_path / "tokens"), open_source(RECIPE.data), set()
    for i in range(6):
        video_THWC, *_ = cut_stretch(source[i], RECIPE, 2, np.random.default_rng([RECIPE.data.seed, i]))
        slower_THWC = video_THWC[::2]
        slower_THWC = slower_THWC[: 1 + (len(slower_THWC) - 1) // 2 * 2]
        ids_BTHWQ = encode(to_signed(slower_THWC[None])).ids
        conditions = records[i].conditions
        assert set(conditions) == {"coarse", "picture", "track"} and conditions["coarse"].shape == ids_BTHWQ.shape[1:]
        assert np.mean(conditions["coarse"] == ids_BTHWQ[0]) > 0.95
        alone_T1HWQ = encode(to_signed(video_THWC[:, None])).ids
        assert conditions["picture"].shape == alone_T1HWQ.shape[1:]
        alike_T = (conditions["picture"] == alone_T1HWQ).mean(axis=(1, 2, 3, 4))
        assert alike_T.max() > 0.95
        pictured.add(int(alike_T.argmax()))
    assert len(pictured) > 2


def test_the_same_recipe_makes_the_same_cache(workdir, tmp_path, model):
    save_tokenizer(tmp_path, model)
    write_token_cache(change(RECIPE, data={"threads": 5}), tmp_path)
    for name in ("text.model", "tokens/00000.array_record", "tokens/dataset.json"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()


@pytest.fixture
def small_parts(monkeypatch):
    """Three parts of 16, 16 and 8 videos."""
    monkeypatch.setattr(tokenize, "PART", 16)


def records_of(workdir):
    """All that the records of a token cache say, in their order."""
    source = RecordSource(workdir / "tokens")
    return [
        (video.key, video.fps, video.captions, video.tokens.tolist())
        for video in map(source.__getitem__, range(len(source)))
    ]


def test_the_parts_together_are_the_cache(workdir, tmp_path, model, small_parts):
    save_tokenizer(tmp_path, model)
    write_token_cache(RECIPE, tmp_path)
    assert records_of(tmp_path) == records_of(workdir)
    assert RecordSource(tmp_path / "tokens").counts == [16, 16, 8]
    assert open_token_cache(tmp_path, RECIPE).about == open_token_cache(workdir, RECIPE).about
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.model", "tokenizer", "tokens"]


class Broken:
    """A source that is gone through, and ends in `error` at one of its videos."""

    def __init__(self, source, at=None, error=None):
        self.source, self.at, self.error, self.read = source, at, error, []

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        item = self.source[index]
        if threading.current_thread() is threading.main_thread():
            return item  # for its captions
        self.read.append(index)
        if self.at is not None and len(self.read) > self.at:
            raise self.error
        return item


def test_who_starts_again_goes_on_behind_the_last_part(workdir, tmp_path, model, small_parts, monkeypatch):
    save_tokenizer(tmp_path, model)
    stopped = Broken(open_source(RECIPE.data), at=39, error=KeyboardInterrupt())
    again, other = Broken(stopped.source), Broken(stopped.source)
    monkeypatch.setattr(tokenize, "open_source", lambda config, split="train": stopped)
    with pytest.raises(KeyboardInterrupt):
        write_token_cache(RECIPE, tmp_path)
    kept = tmp_path / "tokens.parts"
    assert {path.name for path in kept.iterdir()} == {"00000", "00001"} and not (tmp_path / "tokens").exists()
    shutil.copytree(tmp_path, tmp_path / "copy")
    monkeypatch.setattr(tokenize, "open_source", lambda config, split="train": again)
    write_token_cache(RECIPE, tmp_path)
    assert sorted(again.read) == sorted(index % 30 for index in range(32, 40))
    assert records_of(tmp_path) == records_of(workdir) and not kept.exists()
    # A part whose file is gone is none.
    (tmp_path / "copy" / "tokens.parts" / "00000" / "00000.array_record").unlink()
    monkeypatch.setattr(tokenize, "open_source", lambda config, split="train": other)
    write_token_cache(RECIPE, tmp_path / "copy")
    assert len(other.read) == 16 + 8 and records_of(tmp_path / "copy") == records_of(workdir)


def test_an_interruption_waits_for_no_video():
    """As one on a disk in a network that doesn't answer."""
    begun, first, answered, ended = queue.SimpleQueue(), [], threading.Event(), []

    class Silent(Broken):
        def __getitem__(self, index):
            begun.put(index)
            ended.append(answered.wait(60))
            raise UserError("it cannot be read")

    def interrupt():
        first.extend(begun.get() for _ in range(2))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    recipe, source = change(RECIPE, data={"threads": 2}), Silent(open_source(RECIPE.data))
    with pytest.raises(KeyboardInterrupt):
        threading.Thread(target=interrupt, daemon=True).start()
        next(tokenize._read_ahead(recipe, source, 2, range(40)))
    assert not ended and sorted(first) == [0, 1] and begun.empty()
    answered.set()


def test_parts_that_were_joined_do_not_stay(workdir, tmp_path, model, monkeypatch):
    """A job was killed before it removed them."""
    save_tokenizer(tmp_path, model)

    def join(*arguments):
        records.join_records(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tokenize, "join_records", join)
        write_token_cache(RECIPE, tmp_path)
    assert records_of(tmp_path) == records_of(workdir) and (tmp_path / "tokens.parts").exists()
    with locked(tmp_path / ".tokens.lock", "tokenizing"):
        write_token_cache(RECIPE, tmp_path)
        assert (tmp_path / "tokens.parts").exists()
    write_token_cache(RECIPE, tmp_path)
    assert records_of(tmp_path) == records_of(workdir) and not (tmp_path / "tokens.parts").exists()


def test_parts_outlive_a_join_that_fails(workdir, tmp_path, model, small_parts, monkeypatch):
    save_tokenizer(tmp_path, model)

    def interrupted(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(records, "write_json", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
            records.join_records(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tokenize, "join_records", interrupted)
        write_token_cache(RECIPE, tmp_path)
    assert len(list((tmp_path / "tokens.parts").glob("*/00000.array_record"))) == 3
    assert not (tmp_path / "tokens").exists()
    again, longer = Broken(open_source(RECIPE.data)), Broken(open_source(change(RECIPE, data={"videos": 31}).data))
    shutil.copytree(tmp_path, tmp_path / "copy")
    monkeypatch.setattr(tokenize, "open_source", lambda config, split="train": again)
    write_token_cache(RECIPE, tmp_path)
    assert not again.read and records_of(tmp_path) == records_of(workdir)
    monkeypatch.setattr(tokenize, "open_source", lambda config, split="train": longer)
    write_token_cache(RECIPE, tmp_path / "copy")
    assert len(longer.read) == 40, "of another source they don't belong to it"


def test_what_is_no_token_cache_is_not_replaced(tmp_path, model):
    save_tokenizer(tmp_path, model)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already and holds no records"):
        write_token_cache(RECIPE, tmp_path)
    assert (tmp_path / "tokens" / "mine.txt").read_text() == "mine" and not (tmp_path / "text.model").exists()


def test_a_finished_cache_is_neither_made_again_nor_replaced(workdir, tmp_path, model, random_model, capsys):
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    write_token_cache(change(RECIPE, data={"threads": 5}), folder)
    assert capsys.readouterr().err == (
        f"{folder}/tokens is finished already; to do it again, delete it or use another --workdir\n"
    )
    for other, said in (
        (change(RECIPE, data={"seed": 1}), r"data seed=0 \(asked for: 1\)"),
        (change(RECIPE, transformer={"text_vocabulary": 331}), r"text vocabulary=330 \(asked for: 331\)"),
        (change(RECIPE, layouts={"tasks": {"interpolation": 1.0}}), r"conditions coarse=None \(asked for: {.*}\)"),
    ):
        with pytest.raises(UserError, match=f"run/tokens was made with {said}; use the same config or another --workd"):
            write_token_cache(other, folder)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    save_tokenizer(folder, random_model(CViViT, RECIPE.tokenizer, seed=1))
    with pytest.raises(
        UserError, match=r"run/tokens was made with tokenizer '[0-9a-f]{16}' \(asked for: '[0-9a-f]{16}"
    ):
        write_token_cache(RECIPE, folder)
    assert records_of(folder) == records_of(workdir)


def test_parts_of_other_settings_are_made_again(workdir, tmp_path, model, small_parts, monkeypatch):
    save_tokenizer(tmp_path, model)
    with monkeypatch.context() as patched:
        patched.setattr(tokenize, "join_records", lambda *arguments: None)
        patched.setattr(tokenize.shutil, "rmtree", lambda folder, **options: None)
        write_token_cache(change(RECIPE, data={"seed": 1}), tmp_path)
    write_token_cache(RECIPE, tmp_path)
    assert records_of(tmp_path) == records_of(workdir)


def test_a_second_job_is_refused(workdir, tmp_path, model, capsys):
    shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "tokens")
    with (
        locked(tmp_path / "copy" / ".tokens.lock", "tokenizing in it"),
        pytest.raises(UserError, match="another job is tokenizing in "),
    ):
        write_token_cache(RECIPE, tmp_path / "copy")
    assert not (tmp_path / "copy" / "tokens").exists()
    write_token_cache(RECIPE, tmp_path / "copy")
    assert (tmp_path / "copy" / "tokens" / "dataset.json").read_bytes() == (
        workdir / "tokens" / "dataset.json"
    ).read_bytes()


def test_parts_of_another_job_are_not_joined(workdir, tmp_path, model, small_parts, monkeypatch):
    """As where a folder can't be locked."""
    shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "tokens")
    write = tokenize._write_parts

    def another_comes(recipe, models, source, parts, metadata):
        write(recipe, models, source, parts, metadata)
        shutil.rmtree(parts[0])
        write(recipe, models, source, parts[:1], metadata | {"fps": [3.0]})

    monkeypatch.setattr(tokenize, "_write_parts", another_comes)
    with pytest.raises(UserError, match=r"has parts with fps .* of another job; run again"):
        write_token_cache(RECIPE, tmp_path / "copy")
    assert not (tmp_path / "copy" / "tokens").exists()


def test_failures_of_all_parts_are_added_up(tmp_path, model, small_parts, monkeypatch):
    """Two of each part's videos are no use: too many of 40 where a tenth may be, though of no single part."""
    save_tokenizer(tmp_path, model)
    source = open_source(RECIPE.data)

    def cut(item, recipe, patch, rng):
        return None if item.key in unusable else cut_stretch(item, recipe, patch, rng)

    unusable = {source[index].key for index in (3, 4, 20, 21, 29)}  # 3 and 4 come twice: 7 of 40
    monkeypatch.setattr(tokenize, "cut_stretch", cut)
    said = r"7 of the 40 videos read cannot be used, .* the first: .* has \d+\.\d\d s, shorter than a window"
    with pytest.raises(UserError, match=said):
        write_token_cache(change(RECIPE, data={"max_unreadable": 0.15}), tmp_path)
    assert not (tmp_path / "tokens").exists()
    write_token_cache(change(RECIPE, data={"max_unreadable": 0.2}), tmp_path)
    assert len(RecordSource(tmp_path / "tokens")) == 33


def test_parts_that_do_not_belong_together(workdir, tmp_path, random_model, model):
    with pytest.raises(UserError, match=r"no token cache in .*make it with `tokvid tokenize"):
        open_token_cache(tmp_path, RECIPE)
    (tmp_path / "tokens").symlink_to(workdir / "tokens")
    (tmp_path / "text.model").symlink_to(workdir / "text.model")
    save_tokenizer(tmp_path, random_model(CViViT, RECIPE.tokenizer, seed=1))
    with pytest.raises(UserError, match=r"was made with tokenizer [0-9a-f]{16}, .* has [0-9a-f]{16}; delete it and"):
        open_token_cache(tmp_path, RECIPE)
    save_tokenizer(tmp_path, model)
    assert open_token_cache(tmp_path, RECIPE).source.path == tmp_path / "tokens"
    (tmp_path / "text.model").unlink()
    train_text_model(["other words"], tmp_path / "text.model", 300)
    with pytest.raises(UserError, match="was made with text model "):
        open_token_cache(tmp_path, RECIPE)


def test_records_of_something_else_are_no_cache(tmp_path):
    with RecordWriter(tmp_path / "tokens", "frames") as writer:
        writer.write(StoredVideo("v", 1.0, (Caption(0.0, "a"),), frames=np.zeros((2, 4, 4, 3), np.uint8), fps=2.0))
    text = train_text_model(["a b"], tmp_path / "text.model", 300)
    with pytest.raises(UserError, match="holds 1 records of kind frames, no tokens"):
        TokenCache(RecordSource(tmp_path / "tokens"), text, RECIPE.transformer)


@pytest.mark.parametrize(
    "changes,named",
    [
        ({"data": {"size": (24, 24)}}, r"is for size \(16, 16\), data.size is \(24, 24\)"),
        ({"tokens": {"videos": 0}}, "tokens.videos should be 1 or more, got 0"),
        (
            {
                "tokens": {"latent_frames": 1},
                "layouts": {"lengths": (1,), "tasks": {"interpolation": 1.0}},
            },
            "latent_frames 1 is less than the 3 of a window",
        ),
        ({"tokens": {"latent_frames": 2}}, "latent_frames 2 is less than the 3 of a window .*raise it"),
        (
            {"data": {"fps": (0.01,)}},
            r"16 of the 16 videos read cannot be used, .*shorter than a wind",
        ),
    ],
)
def test_recipes_that_make_no_cache(tmp_path, model, changes, named):
    save_tokenizer(tmp_path, model)
    with pytest.raises(UserError, match=named):
        write_token_cache(change(RECIPE, **changes), tmp_path)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    "changes,named",
    [
        ({"vocabulary": 17}, "needs transformer vocabulary 16, the config has 17"),
        ({"subcodes": 1}, "needs transformer subcodes 12, the config has 1"),
        ({"grid": (4, 4)}, r"needs transformer grid \[2, 2\], the config has \[4, 4\]"),
        ({"temporal_patch": 1}, "needs transformer temporal_patch 2, the config has 1"),
        ({"text_vocabulary": 300}, "has 3.. ids, the config's transformer.text_vocabulary is 300; raise it to 3"),
    ],
)
def test_transformers_that_do_not_fit_the_cache(workdir, changes, named):
    with pytest.raises(UserError, match=named):
        open_token_cache(workdir, change(RECIPE, transformer=changes))


def test_caches_of_earlier_versions_are_of_one_code(workdir):
    """Their metadata says nothing of sub-codes."""
    cache = open_token_cache(workdir, RECIPE)
    del cache.source.metadata["subcodes"]
    with pytest.raises(UserError, match="needs transformer subcodes 1, the config has 12"):
        TokenCache(cache.source, cache.text, RECIPE.transformer)
    TokenCache(cache.source, cache.text, dataclasses.replace(RECIPE.transformer, subcodes=1))


def test_what_has_changed_since_or_is_missing_is_told(workdir, tmp_path, model, caplog):
    """Of clips on this machine; on another one, tokens are enough."""
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", np.random.default_rng(0).integers(0, 255, (20, *SIZE, 3), np.uint8), 4)
    captions = tmp_path / "clips" / "captions.jsonl"
    captions.write_text('{"file": "a.mp4", "caption": "noise"}\n')
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("tokens"))
    here = {"source": "folder", "path": str(tmp_path / "clips")}
    recipe = change(RECIPE, data=here, tokens={"videos": 4})
    write_token_cache(recipe, tmp_path / "run")

    def told(recipe):
        caplog.clear()
        open_token_cache(tmp_path / "run", recipe)
        return caplog.text

    assert not told(recipe)
    assert "tokens_held_out is not there, so" in told(change(recipe, data={"held_out": 1}, tokens={"held_out": 1}))
    captions.write_text('{"file": "a.mp4", "caption": "other noise"}\n')
    assert "clips have changed since they were tokenized" in told(recipe)
    with pytest.raises(UserError, match=r"made with other files in .*clips \(a clip or a caption has changed since\);"):
        write_token_cache(recipe, tmp_path / "run")
    captions.unlink()
    assert not told(recipe)
    shutil.rmtree(tmp_path / "clips")
    assert not told(recipe)


def test_a_cache_of_other_data_is_another_training(workdir):
    training = TransformerTraining(RECIPE, open_token_cache(workdir, RECIPE))
    about = training.describe()
    assert to_dict(RECIPE.tokens).items() <= about["tokens"].items() and about["data"]["fps"] == [2.0, 4.0]
    assert about["tokens"]["files"] == fingerprint(DataConfig(source="records", path=str(workdir / "tokens")))
    assert "threads" not in about["data"]  # how fast it was read changes nothing
