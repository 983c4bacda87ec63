"""The token cache: every video through the tokenizer once, so that the transformer trains on ready tokens."""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tokvid import weights
from tokvid.config import Recipe, to_dict
from tokvid.errors import UserError
from tokvid.input_pipeline.datasets import captions_within, open_source, usable_rates
from tokvid.input_pipeline.records import RecordSource, RecordWriter, StoredVideo
from tokvid.input_pipeline.text import TextModel, train_text_model
from tokvid.progress import progress
from tokvid.tokenizer.cvivit import latent_shape
from tokvid.train.tokenizer_step import describe_data, encode_ids
from tokvid.types import Caption, VideoItem, VideoSource

BATCH = 16


def write_token_cache(recipe: Recipe, workdir: Path) -> None:
    """Reads the recipe's videos and `workdir`/tokenizer; writes `workdir`/text.model and `workdir`/tokens.

    Each video gives one stretch, from a random second on, at one of the rates; its captions are moved along. With
    `tokens.coarse_factor` the tokens of the same seconds at a rate so many times lower are kept beside it. A source
    with fewer videos than `tokens.videos` is gone through again, with other stretches and rates. UserError where the
    tokenizer is missing or not for these videos, stretches are shorter than a window, or too many videos are no use.
    """
    tokenizer = weights.load(workdir / "tokenizer", "tokenizer")
    config, size = tokenizer.config, recipe.data.size
    if size != config.size:
        raise UserError(f"the tokenizer in {workdir} is for size {config.size}, data.size is {size}; make them equal")
    window, longest = recipe.transformer.latent[0], recipe.tokens.latent_frames
    if longest < window:
        raise UserError(f"tokens.latent_frames {longest} is less than transformer.latent's {window}; raise it")
    source = open_source(recipe.data)
    text = write_text_model(recipe, source, workdir)
    grid = latent_shape(config, 1, *size)
    metadata = {
        "tokenizer": tokenizer.about.get("codes", tokenizer.about["fingerprint"]),
        "text_model": text.fingerprint,
        "vocabulary": tokenizer.model.quantizer.vocabulary,
        "text_vocabulary": text.vocabulary,
        "grid": [grid.rows, grid.columns],
        "temporal_patch": config.temporal_patch,
        "fps": list(recipe.data.fps),
        "size": list(size),
        "data": describe_data(recipe.data),
        "tokens": to_dict(recipe.tokens),
    }
    total, factor = recipe.tokens.videos, recipe.tokens.coarse_factor
    if factor < 1:
        raise UserError(f"tokens.coarse_factor should be 1 (no coarse tokens) or more, got {factor}")
    with RecordWriter(workdir / "tokens", "tokens", metadata) as writer, progress("tokens", total, "videos") as advance:
        for stretches in _read_ahead(recipe, source, config.temporal_patch):
            videos = [video_THWC for video_THWC, *_ in stretches]
            fine = _encode(tokenizer, videos, longest)
            coarse: Sequence[np.ndarray | None] = [None] * len(videos)
            if factor > 1:  # of the same frames, so that both show the same
                slower = [video_THWC[::factor] for video_THWC in videos]
                coarse = _encode(tokenizer, slower, 1 + (longest - 1) // factor)
            for (video_THWC, fps, captions, key), ids_THW, coarse_THW in zip(stretches, fine, coarse, strict=True):
                made = StoredVideo(key, len(video_THWC) / fps, captions, tokens=ids_THW, fps=fps)
                writer.write(dataclasses.replace(made, coarse=coarse_THW, coarse_factor=factor))
            advance(len(stretches))


def _encode(tokenizer: weights.Loaded, videos: list[np.ndarray], longest: int) -> list[np.ndarray]:
    """At most BATCH videos of up to `longest` latent frames → tokens (T, H, W) of those that are full."""
    patch = tokenizer.config.temporal_patch
    # One compiled shape: short videos show their last frame on, which changes nothing before it.
    video_BTHWC = np.zeros((BATCH, 1 + (longest - 1) * patch, *videos[0].shape[1:]), np.uint8)
    counts = []
    for i, video_THWC in enumerate(videos):
        latents = 1 + (len(video_THWC) - 1) // patch
        whole = video_THWC[: 1 + (latents - 1) * patch]
        video_BTHWC[i, : len(whole)], video_BTHWC[i, len(whole) :] = whole, whole[-1]
        counts.append(latents)
    ids_BTHW = np.asarray(encode_ids(tokenizer.graph, tokenizer.params, video_BTHWC))
    return [ids_BTHW[i, :count] for i, count in enumerate(counts)]


def write_text_model(recipe: Recipe, source: VideoSource, workdir: Path) -> TextModel:
    """Trains `workdir`/text.model from the captions of the source's videos; the same captions give the same bytes."""
    some = range(min(len(source), recipe.tokens.text_samples))
    captions = (caption.text for index in some for caption in source[index].captions)
    return train_text_model(captions, workdir / "text.model", recipe.transformer.text_vocabulary)


def open_token_cache(workdir: Path) -> tuple[Path, dict[str, Any], TextModel]:
    """The cache's folder, its metadata, and its text model; UserError where a part is missing or doesn't belong."""
    folder = workdir / "tokens"
    if not folder.is_dir():
        raise UserError(f"no token cache in {folder}; make it with `tokvid tokenize CONFIG.py --workdir {workdir}`")
    source, again = RecordSource(folder), "run `tokvid tokenize` again"
    if source.kind != "tokens" or not len(source):
        raise UserError(f"{folder} holds {len(source)} records of kind {source.kind}, no token cache; {again}")
    text = TextModel.load(workdir / "text.model")
    tokenizer = weights.describe(workdir / "tokenizer", "tokenizer")
    wanted = source.metadata.get("tokenizer")
    if not weights.same_codes(wanted, tokenizer):
        raise UserError(f"{folder} was made with tokenizer {wanted}, {workdir} has {tokenizer.get('codes')}; {again}")
    if (wanted := source.metadata.get("text_model")) != text.fingerprint:
        raise UserError(f"{folder} was made with text_model {wanted}, {workdir} has {text.fingerprint}; {again}")
    return folder, source.metadata, text


Stretch = tuple[np.ndarray, float, tuple[Caption, ...], str]


def cut_stretch(item: VideoItem, recipe: Recipe, temporal_patch: int, rng: np.random.Generator) -> Stretch | None:
    """Frames uint8 (T, H, W, 3) with T = 1 + n·temporal_patch, their rate, captions from 0 on, and a name; or None.

    At least a window of the transformer long; None where the video is too short for one at every rate. Captions that
    end before the stretch, or begin after it, are left out.
    """
    least = 1 + (recipe.transformer.latent[0] - 1) * temporal_patch
    rates = usable_rates(item.seconds, least, recipe.data.fps)
    if not rates:
        return None
    fps = rates[0] if recipe.data.fps_rule == "lowest" else float(rng.choice(rates))
    room = int(np.ceil(item.seconds * fps - 1e-6))
    latents = min(recipe.tokens.latent_frames, 1 + (room - 1) // temporal_patch)
    frames = 1 + (latents - 1) * temporal_patch
    start = float(rng.uniform(0, max(0.0, item.seconds - frames / fps)))
    video_THWC = item.read(start, fps, frames, recipe.data.size)
    return video_THWC, fps, captions_within(item.captions, start, start + frames / fps), f"{item.key}@{start:.2f}s"


def _read_ahead(recipe: Recipe, source: VideoSource, temporal_patch: int) -> Iterator[list[Stretch]]:
    """Batches of stretches in the order of the source, read by threads while the one before is tokenized."""
    total, failed = recipe.tokens.videos, 0

    def read(index: int) -> Stretch | str:
        rng = np.random.default_rng([recipe.data.seed, index])
        try:
            stretch = cut_stretch(source[index % len(source)], recipe, temporal_patch, rng)
        except (UserError, OSError) as error:
            return str(error)
        return stretch or "shorter than a window at every rate"

    def batch(pool: ThreadPoolExecutor, start: int) -> list[Future[Stretch | str]]:
        return [pool.submit(read, index) for index in range(start, min(start + BATCH, total))]

    with ThreadPoolExecutor(max(1, recipe.data.threads)) as pool:
        coming = batch(pool, 0)
        for start in range(0, total, BATCH):
            now, coming = coming, batch(pool, start + BATCH)
            found, read_so_far = [future.result() for future in now], min(start + BATCH, total)
            errors = [result for result in found if isinstance(result, str)]
            failed += len(errors)
            # Few failures, early on, say nothing yet of the share.
            hopeless = failed > BATCH and failed > recipe.data.max_unreadable * read_so_far
            if hopeless or failed > recipe.data.max_unreadable * total or failed == total:
                raise UserError(
                    f"{failed} of the first {read_so_far} videos cannot be used (the last: {errors[-1]}); "
                    "mend them, use faster rates (data.fps) or a smaller window (transformer.latent), or raise "
                    "data.max_unreadable"
                )
            if stretches := [result for result in found if not isinstance(result, str)]:
                yield stretches
