"""Writes the token cache: every video is tokenized once, and the transformer trains on the tokens.

Videos are tokenized in parts, which are kept until all are done: several processes share the parts, and a new start
resumes after the last one. A whole cache is never made again, nor replaced by another.
"""

import contextlib
import dataclasses
import itertools
import json
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tokvid import weights
from tokvid.config import DataConfig, Recipe
from tokvid.distributed import check_same, check_shared, first, from_first, reached, together
from tokvid.errors import UserError, difference
from tokvid.input_pipeline import augment
from tokvid.input_pipeline.loader import captions_within, usable_rates
from tokvid.input_pipeline.records import RecordSource, RecordWriter, check_replaceable, join_records
from tokvid.input_pipeline.source import Unreadable
from tokvid.input_pipeline.sources import fingerprint, holds_out, open_source
from tokvid.input_pipeline.stored import StoredVideo
from tokvid.input_pipeline.text import TextModel, train_text_model
from tokvid.io.progress import progress
from tokvid.io.settings import to_dict
from tokvid.io.threads import map_in_threads
from tokvid.io.urls import local
from tokvid.sharding import make_mesh, running_on
from tokvid.tasks.conditions import CONDITIONS
from tokvid.tasks.tasks import conditions_of
from tokvid.text.t5 import drop_t5, load_text, take_t5
from tokvid.tokenizer.cvivit import latent_shape
from tokvid.tokenizer.quantizers import codes_of
from tokvid.train.checkpoints import locked
from tokvid.train.token_cache import HELD_OUT
from tokvid.train.tokenizer_step import describe_data, encode_ids
from tokvid.train.windows import batch_kinds
from tokvid.types import Caption, VideoItem, VideoSource

BATCH = 16  # videos that a device tokenizes at once
PART = 4096  # videos; whole batches for any usual number of devices
JUDGED = 4096  # reads before which a share of unusable videos says nothing
Stretch = tuple[np.ndarray, float, tuple[Caption, ...], str]


def write_token_cache(recipe: Recipe, workdir: Path) -> None:
    """Reads the recipe's videos and `workdir`/tokenizer; writes text.model, tokens/ and HELD_OUT there.

    Each video gives one stretch, from a random second on, at one of the rates, augmented as clips for the tokenizer are
    (held-out ones are not), with its captions shifted. The tokens of
    the conditions that the recipe's tasks read are stored with it. A source with fewer videos than `tokens.videos` is
    read repeatedly, with other stretches and rates. Several processes share the work, each on its own devices; the
    records and their order don't depend on the number of processes. A cache that is there already stays as it is.
    UserError where that is another's, the tokenizer is missing or for other videos, stretches are shorter than a
    window, or too many videos cannot be used.
    """
    folders = {"train": workdir / "tokens", "held_out": workdir / HELD_OUT}
    for folder in folders.values():
        check_replaceable(folder)
    with running_on(make_mesh((-1, 1, 1, 1), jax.local_devices())):
        check_shared(workdir)
        _take_tokenizer(recipe, workdir)
        tokenizer = weights.load(workdir / "tokenizer", "tokenizer")
        _check(recipe, tokenizer, workdir)
        source, known = open_source(recipe.data), (workdir / weights.TEXT_MODEL).exists()
        keep_text = from_first(known and _metadata_of(folders["train"]) is not None)
        text = load_text(workdir) if keep_text else write_text_model(recipe, source, workdir)
        _write(recipe, (tokenizer, text), source, folders["train"], replace=False)
        if holds_out(recipe.data) and recipe.tokens.held_out:
            few = dataclasses.replace(recipe.tokens, videos=recipe.tokens.held_out)
            plain = dataclasses.replace(recipe.data, flip=0.0, zoom=1.0, light=0.0)
            held_out = dataclasses.replace(recipe, tokens=few, data=plain)
            source = open_source(recipe.data, "held_out")
            _write(held_out, (tokenizer, text), source, folders["held_out"], replace=True)
        elif first():  # an earlier tokenizer's would be used for validation
            shutil.rmtree(folders["held_out"], ignore_errors=True)


def _write(
    recipe: Recipe, models: tuple[weights.Loaded, TextModel], source: VideoSource, folder: Path, replace: bool
) -> None:
    """Writes `tokens.videos` stretches of videos as one token cache, unless it is there already.

    UserError where another is there, which this is not to `replace`.
    """
    metadata = _metadata(recipe, *models) | _facts(recipe, source)
    check_same(metadata)
    there = _metadata_of(folder)
    others = [] if there is None else _differences(there, metadata)
    parts_folder = folder.with_name(f"{folder.name}.parts")
    if from_first(there is not None and not others):
        if first() and parts_folder.exists():  # a job was killed right after it had joined them
            with contextlib.suppress(UserError), _alone(folder):
                shutil.rmtree(parts_folder, ignore_errors=True)
        if first():
            print(f"{folder} is finished already; to do it again, delete it or use another --workdir", file=sys.stderr)
        return
    if others and not replace:
        raise UserError(f"{folder} was made with {others[0]}; use the same config or another --workdir, or delete it")
    parts = [parts_folder / f"{number:05d}" for number in range(-(-recipe.tokens.videos // PART))]
    with _alone(folder):
        _write_parts(recipe, models, source, parts, metadata)
        together("tokens")
        if first():
            _join(recipe, parts, folder, metadata)
        together("token cache")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second job from writing the same tokens; process 0 holds the lock."""
    if not first():
        yield
        return
    file = folder.with_name(f".{folder.name}.lock")
    with locked(file, f"tokenizing in {folder.parent}"):
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _join(recipe: Recipe, parts: Sequence[Path], folder: Path, metadata: Mapping[str, Any]) -> None:
    """Makes the token cache of its parts. UserError where another job has replaced one."""
    written = [RecordSource(part) for part in parts]
    if others := [what for part in written for what in _differences(part.metadata, metadata)]:
        raise UserError(f"{parts[0].parent} has parts with {others[0]}, of another job; run again to make them anew")
    failed = recipe.tokens.videos - sum(map(len, written))
    errors = [part.metadata["last_error"] for part in written if part.metadata["last_error"]]
    unreadable = _unreadable(recipe, recipe.tokens.videos)
    unreadable.good(recipe.tokens.videos - failed)
    unreadable.add(*(errors[-1:] * failed))
    join_records(parts, folder, metadata)
    shutil.rmtree(parts[0].parent)
    print(f"{folder}: tokens of {recipe.tokens.videos - failed} stretches of video", file=sys.stderr)


def _take_tokenizer(recipe: Recipe, workdir: Path) -> None:
    """Copies the tokenizer of the weights that the transformer starts from, unless `workdir` has its own."""
    if recipe.train_transformer.start and not (workdir / "tokenizer").exists() and first():
        weights.copy_files(weights.find(recipe.train_transformer.start), workdir, weights.TOKENIZER_FILES)
    together("tokenizer")


def _check(recipe: Recipe, tokenizer: weights.Loaded, workdir: Path) -> None:
    config, size, tokens = tokenizer.config, recipe.data.size, recipe.tokens
    if size != config.size:
        raise UserError(f"the tokenizer in {workdir} is for size {config.size}, data.size is {size}; make them equal")
    if tokens.videos < 1:
        raise UserError(f"tokens.videos should be 1 or more, got {tokens.videos}")
    if tokens.latent_frames < (longest := _lengths(recipe)[1]):
        raise UserError(
            f"tokens.latent_frames {tokens.latent_frames} is less than the {longest} of a window "
            "(transformer.latent_frames, layouts.lengths); raise it"
        )


def _metadata(recipe: Recipe, tokenizer: weights.Loaded, text: TextModel) -> dict[str, Any]:
    grid = latent_shape(tokenizer.config, 1, *recipe.data.size)
    return {
        "tokenizer": tokenizer.about.get("codes", tokenizer.about["fingerprint"]),
        "text_model": text.fingerprint,
        "vocabulary": codes_of(tokenizer.config).vocabulary,
        "subcodes": codes_of(tokenizer.config).per_token,
        "text_vocabulary": text.vocabulary,
        "grid": [grid.rows, grid.columns],
        "temporal_patch": tokenizer.config.temporal_patch,
        "fps": list(recipe.data.fps),
        "size": list(recipe.data.size),
        "data": describe_data(recipe.data),
        "tokens": to_dict(recipe.tokens) | {"t5": text.fingerprint if text.width else ""},  # not its path
        "conditions": {name: CONDITIONS[name].facts for name in conditions_of(recipe.layouts.tasks)},
    }


def _facts(recipe: Recipe, source: VideoSource) -> dict[str, Any]:
    """The data and the text model that a recipe asks for, as far as `_metadata` doesn't say it."""
    start, t5 = recipe.train_transformer.start, recipe.tokens.t5
    about = weights.describe(weights.find(start) / "transformer", "transformer") if start else {}
    text = {
        "vocabulary": recipe.transformer.text_vocabulary,
        "start": about.get("text_model", ""),
        "t5": fingerprint(DataConfig(source="records", path=t5)) if t5 else "",
    }
    return {"files": fingerprint(recipe.data), "count": len(source), "windows": _lengths(recipe), "text": text}


def _write_parts(
    recipe: Recipe,
    models: tuple[weights.Loaded, TextModel],
    source: VideoSource,
    parts: Sequence[Path],
    metadata: Mapping[str, Any],
) -> None:
    """Writes this process's share of the parts, except those already written."""
    tokenizer, text = models
    states = text.encoder(recipe.transformer.text_length) if text.width else None
    mine = range(jax.process_index(), len(parts), jax.process_count())
    there = {number: _metadata_of(parts[number]) for number in mine}
    missing = [number for number, written in there.items() if written is None or _differences(written, metadata)]
    total, left = (sum(len(_videos(recipe, number)) for number in numbers) for numbers in (mine, missing))
    unreadable = _unreadable(recipe, min(recipe.tokens.videos, JUDGED))
    with progress("tokens", total, "videos", done=total - left, quiet=not first()) as advance:
        for number in missing:
            reached(f"in part {number} of the tokens")
            with RecordWriter(parts[number], "tokens", metadata) as writer:
                writer.metadata["last_error"] = ""
                for results in _read_ahead(recipe, source, tokenizer.config.temporal_patch, _videos(recipe, number)):
                    errors = [result for result in results if isinstance(result, str)]
                    unreadable.good(len(results) - len(errors))
                    if errors:
                        writer.metadata["last_error"] = errors[-1]
                        unreadable.add(*errors)
                    for video in _tokenized(recipe, tokenizer, [it for it in results if not isinstance(it, str)]):
                        writer.write(video if states is None else _with_states(video, states))
                    advance(len(results))


def _tokenized(recipe: Recipe, tokenizer: weights.Loaded, stretches: list[Stretch]) -> Iterator[StoredVideo]:
    videos, longest = [video_THWC for video_THWC, *_ in stretches], recipe.tokens.latent_frames
    fine = _encode(tokenizer, videos, longest)
    # Were it always the same frame, an object would be found in that frame where the picture shows it, without a track.
    when_still = [np.random.default_rng(zlib.crc32(key.encode())).random() for *_, key in stretches]
    beside = {  # from the same frames
        name: _encode(
            tokenizer,
            [condition.apply(video, when) for video, when in zip(videos, when_still, strict=True)],
            1 if condition.still else 1 + (longest - 1) // condition.slower,
        )
        for name, condition in conditions_of(recipe.layouts.tasks).items()
    }
    for number, (video_THWC, fps, captions, key) in enumerate(stretches):
        conditions = {name: tokens[number] for name, tokens in beside.items()}
        seconds = len(video_THWC) / fps
        yield StoredVideo(key, seconds, captions, tokens=fine[number], fps=fps, conditions=conditions)


def _with_states(video: StoredVideo, encode: Callable[[str], np.ndarray]) -> StoredVideo:
    """The video with the hidden states of its captions, without their padding."""
    padded = [encode(caption.text) for caption in video.captions]
    return dataclasses.replace(video, states=tuple(each_LE[each_LE.any(axis=1)] for each_LE in padded))


def _lengths(recipe: Recipe) -> tuple[int, int]:
    """The latent frames of the transformer's shortest and longest training windows."""
    frames = [each.kind.frames for each in batch_kinds(recipe.layouts, recipe.transformer)]
    return min(frames), max(frames)


def _batch() -> int:
    """The number of videos that this process tokenizes at once."""
    return BATCH * jax.local_device_count()


def _videos(recipe: Recipe, part: int) -> range:
    return range(part * PART, min((part + 1) * PART, recipe.tokens.videos))


def _metadata_of(path: Path) -> dict[str, Any] | None:
    """The metadata of the tokens that an earlier run finished; None where there are none."""
    try:
        source = RecordSource(path)
    except UserError:
        return None
    return source.metadata if source.kind == "tokens" else None


def _differences(written: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    """The settings that differ, with both values. Earlier versions wrote fewer."""
    as_written = json.loads(json.dumps(metadata))
    other = {name: value for name, value in as_written.items() if written.get(name, value) != value}
    told = {name: f"{name} {difference(written[name], value)}" for name, value in other.items()}
    if "files" in told:  # marks, which say nothing
        told["files"] = f"other files in {metadata['data']['path']} (a clip or a caption has changed since)"
    return list(told.values())


def _unreadable(recipe: Recipe, sample: int) -> Unreadable:
    advice = (
        "mend them, use faster rates (data.fps) or a smaller window (transformer.latent_frames, layouts.lengths), or "
        "raise data.max_unreadable"
    )
    return Unreadable(recipe.data.max_unreadable, sample, advice=advice)


def _encode(tokenizer: weights.Loaded, videos: list[np.ndarray], longest: int) -> list[np.ndarray]:
    """At most a batch of videos of up to `longest` latent frames → tokens (T, H, W, Q) of the full latent frames."""
    if not videos:
        return []
    patch = tokenizer.config.temporal_patch
    # A single compiled shape: short videos are padded with their last frame, which changes no earlier latent frame.
    video_BTHWC = np.zeros((_batch(), 1 + (longest - 1) * patch, *videos[0].shape[1:]), np.uint8)
    counts = []
    for i, video_THWC in enumerate(videos):
        latents = 1 + (len(video_THWC) - 1) // patch
        whole = video_THWC[: 1 + (latents - 1) * patch]
        video_BTHWC[i, : len(whole)], video_BTHWC[i, len(whole) :] = whole, whole[-1]
        counts.append(latents)
    ids_BTHWQ = np.asarray(encode_ids(tokenizer.graph, tokenizer.params, video_BTHWC))
    return [ids_BTHWQ[i, :count] for i, count in enumerate(counts)]


def write_text_model(recipe: Recipe, source: VideoSource, workdir: Path) -> TextModel:
    """Trains `workdir`/text.model from the captions of the source's videos; the same captions give the same bytes.

    A transformer that starts from weights keeps their text model, in which unknown words are bytes. With `tokens.t5`,
    nothing is trained, and the T5's files are taken. Only the first of several processes does it.
    """
    if first() and recipe.train_transformer.start:
        start = weights.find(recipe.train_transformer.start)
        if not (start / weights.TEXT).is_dir():
            drop_t5(workdir)
        weights.copy_files(start, workdir, weights.text_files(start))
    elif first() and recipe.tokens.t5:
        take_t5(local(recipe.tokens.t5), workdir)
    elif first():
        drop_t5(workdir)
        some = range(min(len(source), recipe.tokens.text_samples))
        captions = (caption.text for index in some for caption in source[index].captions)
        train_text_model(captions, workdir / weights.TEXT_MODEL, recipe.transformer.text_vocabulary)
    together("text model")
    return load_text(workdir)


def cut_stretch(item: VideoItem, recipe: Recipe, temporal_patch: int, rng: np.random.Generator) -> Stretch | None:
    """Frames uint8 (T, H, W, 3) with T = 1 + n·temporal_patch, their rate, captions from 0 s on, and a name; or None.

    The stretch is as long as the longest window if the video is at any rate, else at least as the shortest (at the
    highest rate, where `fps_rule` is "lowest"); None for shorter videos. Captions that aren't in force within the
    stretch are left out.
    """
    lowest = recipe.data.fps_rule == "lowest"
    shortest, longest = (1 + (latents - 1) * temporal_patch for latents in _lengths(recipe))
    rates = usable_rates(item.seconds, longest, recipe.data.fps)
    if not rates:
        rates = usable_rates(item.seconds, shortest, recipe.data.fps)[-1 if lowest else 0 :]
    if not rates:
        return None
    fps = rates[0] if lowest else float(rng.choice(rates))
    room = max(1, int(np.ceil(item.seconds * fps - 1e-6)))  # an image has no length
    latents = min(recipe.tokens.latent_frames, 1 + (room - 1) // temporal_patch)
    frames = 1 + (latents - 1) * temporal_patch
    start = float(rng.uniform(0, max(0.0, item.seconds - frames / fps)))
    captions = captions_within(item.captions, start, start + frames / fps)
    video_THWC = item.read(start, fps, frames, augment.magnified(recipe.data, rng))
    video_THWC = augment.augment(video_THWC, [caption.text for caption in captions], recipe.data, rng)
    return video_THWC, fps, captions, f"{item.key}@{start:.2f}s"


def _read_ahead(
    recipe: Recipe, source: VideoSource, temporal_patch: int, videos: range
) -> Iterator[list[Stretch | str]]:
    """A batch of results at a time, a stretch or an error for each video; threads read the next batch meanwhile."""

    def read(index: int) -> Stretch | str:
        rng = np.random.default_rng([recipe.data.seed, index])
        try:
            item = source[index % len(source)]
            stretch = cut_stretch(item, recipe, temporal_patch, rng)
        except (UserError, OSError) as error:
            return str(error)
        return stretch or f"{item.key} has {item.seconds:.2f} s, shorter than a window at every rate"

    threads = max(1, recipe.data.threads)
    results = map_in_threads(read, videos, threads, ahead=-(-2 * _batch() // threads))
    for _ in range(0, len(videos), _batch()):
        yield list(itertools.islice(results, _batch()))
