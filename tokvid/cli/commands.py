"""What each command does. A command imports what it needs when it runs, so that no other waits for it."""

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import logging.handlers
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokvid.errors import UserError
from tokvid.io.files import check_output, write_json, write_text
from tokvid.io.urls import URL, local

if TYPE_CHECKING:
    from tokvid.config import Sampling
    from tokvid.sampling.story import Story
    from tokvid.sampling.stream import Models

log = logging.getLogger(__name__)

DEMO_STORY = "demo/story.yaml"  # within the shipped folder
DEMO_FILES = ("story.mp4", "story.gif", "sheet.png", "report.json")
LEAST_FOR_SSIM = 11  # pixels
SAMPLING = ("temperature", "top_k", "top_p", "rows", "rounds")
EVALUATED_WITH = {  # options that some evaluations have no use for
    "shapes": {"fps", "guidance", "scheme", *SAMPLING},
    "reconstruction": {"data", "features", "sheet"},
    "interpolation": {"data", "factor", "sheet", "guidance", *SAMPLING},
    "generation": {"data", "features", "fps", "seconds", "sheet", "guidance", "scheme", *SAMPLING},
}


def run(options: argparse.Namespace, rest: list[str]) -> None:
    """Calls the command; `rest` are overrides of a recipe's fields."""
    from tokvid.cli.options import OF_RECIPES

    command = COMMANDS[options.command]
    for name, value in vars(options).items():
        if isinstance(value, URL):
            setattr(options, name, local(value))
    if options.command in OF_RECIPES:
        return command(options, rest)
    if hasattr(options, "weights"):  # it computes
        from tokvid.io.compiled import keep_programs

        keep_programs()
    if shape := getattr(options, "mesh", None):
        from tokvid.sharding import make_mesh, running_on

        with running_on(make_mesh(tuple(shape))):
            return command(options)
    command(options)


def demo(options: argparse.Namespace) -> None:
    """The shipped story: story.mp4, story.gif, sheet.png and report.json."""
    from tokvid.cli.options import SHIPPED
    from tokvid.sampling.film import film
    from tokvid.sampling.story import load_story
    from tokvid.sampling.stream import load_models
    from tokvid.shapes.reading import read_attributes

    out: Path = options.out
    for name in DEMO_FILES:
        check_output(out / name)
    began = time.monotonic()
    told, models = load_story(SHIPPED / DEMO_STORY), load_models(options.weights)
    loaded = time.monotonic()
    frames: list[np.ndarray] = []
    film(models, told, [out / "story.mp4", out / "story.gif"], sheet=out / "sheet.png", watch=frames.append)
    made = time.monotonic()
    segments = []
    for segment, (first, end) in zip(told.segments, told.spans, strict=True):
        reading = read_attributes(np.stack(frames[first:end]), told.fps)
        fields = ("size", "color", "shape", "direction", "speed", "pixels_per_second")
        read = None if reading is None else {name: getattr(reading, name) for name in fields}
        segments.append({"prompt": segment.prompt, "seconds": segment.seconds, "read_from_the_pixels": read})
    report = {
        "seconds": told.seconds,
        "fps": told.fps,
        "frames": len(frames),
        "segments": segments,
        "seconds_to_load": round(loaded - began, 2),
        "seconds_to_make": round(made - loaded, 2),
        "milliseconds_per_frame": round(1000 * (made - loaded) / len(frames), 1),
        "weights": models.mark,
    }
    write_json(out / "report.json", report)
    print(f"{told.seconds:g} s of video from {len(told.segments)} prompts in {made - began:.0f} s:")
    for name in DEMO_FILES:
        print(f"  {out / name}")


def story(options: argparse.Namespace) -> None:
    """A story file, or prompts, to one video."""
    from tokvid.sampling.film import film
    from tokvid.sampling.story import Segment, Story, load_story
    from tokvid.sampling.stream import load_models

    if (options.file is None) == (not options.prompt):
        raise UserError("give either a story file or one --prompt for each segment")
    if options.file is None:
        seconds = 4.0 if options.seconds is None else options.seconds
        told = Story(tuple(Segment(prompt, seconds) for prompt in options.prompt))
    elif options.seconds is None:
        told = load_story(options.file)
    else:
        raise UserError("--seconds is for --prompt; in a story file each segment has its own seconds")
    told = _with_options(told, options)
    models = load_models(options.weights)
    _check_rounds(told.sampling, models, options)
    opening = None if options.image is None else _picture(options.image, models)
    film(models, told, [options.out], sheet=options.sheet, scale=options.scale, opening=opening)
    print(f"{options.out}: {told.seconds:g} s, {len(told.segments)} prompt{'s' * (len(told.segments) > 1)}")


def generate(options: argparse.Namespace) -> None:
    """One prompt, one clip."""
    from tokvid.input_pipeline.clips import stream_frames
    from tokvid.sampling.film import film
    from tokvid.sampling.story import Segment, Story, encode_video
    from tokvid.sampling.stream import frames_of, load_models

    told = _with_options(Story((Segment(options.prompt, options.seconds),)), options)
    if options.video is not None and told.scheme == "hierarchical":
        raise UserError("what goes on from a video is told at one level; leave out --scheme hierarchical")
    models = load_models(options.weights)
    _check_rounds(told.sampling, models, options)
    opening, before, given = None, None, 0
    if options.image is not None:
        opening = _picture(options.image, models)
    if options.video is not None:
        frames = stream_frames(options.video, fps=told.fps, size=models.size)
        opening, before = encode_video(models, frames)
        given = len(before) + frames_of(len(opening), models.tokenizer.config.temporal_patch)
        if len(opening) == 1:  # which is the story's first frame
            told = dataclasses.replace(told, segments=(Segment(options.prompt, options.seconds + 1 / told.fps),))
    total = film(models, told, [options.out], sheet=options.sheet, scale=options.scale, opening=opening, before=before)
    parts = f"{given} frames of {options.video}, then {total - given} new ones" if given else f"{total} frames"
    print(f"{options.out}: {parts} at {told.fps:g} fps")


def extend(options: argparse.Namespace) -> None:
    """A video, and then new frames."""
    generate(argparse.Namespace(**vars(options), image=None))


def interpolate(options: argparse.Namespace) -> None:
    """A video with more frames between its own."""
    from tokvid.input_pipeline.clips import probe, stream_frames
    from tokvid.sampling import edits
    from tokvid.sampling.film import write
    from tokvid.sampling.story import Segment, Story
    from tokvid.sampling.stream import load_models

    fps = (probe(options.video).rate or 1.0) if options.fps is None else options.fps
    models = load_models(options.weights)
    told = _with_options(Story((Segment(options.prompt),), fps), options)
    _check_rounds(told.sampling, models, options)
    frames = stream_frames(options.video, fps=fps, size=models.size)
    count, made = edits.interpolate(models, told, frames, options.factor)
    write(made, [options.out], fps * options.factor, count, models.size, scale=options.scale, sheet=options.sheet)
    print(f"{options.out}: {count} frames at {fps * options.factor:g} fps")


def loop(options: argparse.Namespace) -> None:
    """A video that can be repeated without a seam."""
    from tokvid.input_pipeline.clips import stream_frames
    from tokvid.sampling import edits
    from tokvid.sampling.film import write
    from tokvid.sampling.story import Segment, Story, encode_video
    from tokvid.sampling.stream import load_models

    models = load_models(options.weights)
    told = _with_options(Story((Segment(options.prompt),)), options)
    _check_rounds(told.sampling, models, options)
    tokens_THWQ, before = encode_video(models, stream_frames(options.video, fps=told.fps, size=models.size))
    made, new = edits.loop(models, told, tokens_THWQ)
    write(iter([made]), [options.out], told.fps, len(made), models.size, scale=options.scale, sheet=options.sheet)
    left_out = 1 + len(before)
    print(
        f"{options.out}: {len(made)} frames at {told.fps:g} fps, the last {new} of them new; left out: "
        f"{options.video}'s first {f'{left_out} frames' if left_out > 1 else 'frame'}"
    )


def reconstruct(options: argparse.Namespace) -> None:
    """A video through the tokenizer, streaming: PSNR, SSIM, tokens, bits per pixel."""
    from tokvid import weights
    from tokvid.input_pipeline.clips import probe, stream_frames
    from tokvid.io.media import VideoWriter, write_image
    from tokvid.metrics.video import psnr, ssim
    from tokvid.sampling.stream import StreamDecoder, StreamEncoder
    from tokvid.tokenizer.cvivit import latent_shape
    from tokvid.tokenizer.quantizers import codes_of

    if options.out.suffix.lower() == ".png":
        if (frames_there := probe(options.file).frames) > 1:
            raise UserError(f"{options.file} has {frames_there} frames, {options.out} holds one; write .mp4 or .gif")
        _refuse(options, ["fps"], "has no meaning for a picture; leave it out")
    tokenizer = weights.load(options.weights / "tokenizer", "tokenizer")
    size = tuple(options.size or tokenizer.config.size)
    _, rows, columns = latent_shape(tokenizer.config, 1, *size)
    encoder, decoder = StreamEncoder(tokenizer, 1, size), StreamDecoder(tokenizer, 1, rows, columns)
    fps = probe(options.file).rate or 1.0 if options.fps is None else options.fps  # an image has no rate
    frames = stream_frames(options.file, fps=fps, size=size, fit=options.fit)
    psnrs: list[float] = []
    ssims: list[float] = []
    waiting: list[np.ndarray] = []
    tokens, measured = 0, False

    def through(truth_HWC: np.ndarray) -> Iterator[np.ndarray]:
        """The frames that come out when this one goes in."""
        nonlocal tokens
        ids_BTHWQ = encoder.feed(truth_HWC[None, None])
        tokens += ids_BTHWQ[..., 0].size
        for made_HWC in decoder.feed(ids_BTHWQ)[0][: len(waiting)]:  # others only filled up the last latent frame
            truth_1HWC, made_1HWC = waiting.pop(0)[None], made_HWC[None]
            psnrs.append(min(psnr(truth_1HWC, made_1HWC), 100.0))
            if min(size) >= LEAST_FOR_SSIM:
                ssims.append(ssim(truth_1HWC, made_1HWC))
            yield made_HWC

    def made() -> Iterator[np.ndarray]:
        for truth_HWC in frames:
            waiting.append(truth_HWC)
            yield from through(truth_HWC)
        while waiting:
            yield from through(waiting[-1])

    def write() -> None:
        nonlocal measured
        if options.out.suffix.lower() == ".png":
            image_HWC = next(made())
            measured = True
            write_image(options.out, image_HWC)
            return
        with VideoWriter(options.out, fps) as writer:
            for made_HWC in made():
                writer.write(made_HWC)
            measured = True

    def say() -> None:
        if not measured:  # it failed before the end
            return
        pixels = len(psnrs) * size[0] * size[1]
        figures = {
            "psnr": round(float(np.mean(psnrs)), 4),
            "ssim": round(float(np.mean(ssims)), 5) if ssims else None,
            "frames": len(psnrs),
            "tokens": tokens,
            "bits_per_pixel": round(tokens * codes_of(tokenizer.config).bits / pixels, 6),
            "size": list(size),
            "out": str(options.out),
        }
        _print(json.dumps(figures) if options.json else _table(figures))

    _in_any_case(write, say)


def train(options: argparse.Namespace, rest: list[str]) -> None:
    """Trains the tokenizer or the transformer of a recipe."""
    from tokvid.distributed import joined

    with joined(options.coordinator, options.processes, options.process, options.distributed):
        _train(options, rest)


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    from tokvid.config import load_recipe
    from tokvid.input_pipeline.datasets import open_source
    from tokvid.io.compiled import keep_programs
    from tokvid.train.loop import train as run_training
    from tokvid.train.token_cache import open_token_cache, write_text_model
    from tokvid.train.tokenizer_step import TokenizerTask
    from tokvid.train.transformer_step import TransformerTask

    recipe = load_recipe(options.config, rest)
    keep_programs()
    folder = options.workdir / options.model
    if options.model == "tokenizer":
        text = None
        if recipe.adversary.captions:
            text = write_text_model(recipe, open_source(recipe.data), options.workdir)
        run_training(TokenizerTask(recipe, text), recipe.train_tokenizer, folder)
    else:
        cache, about, text = open_token_cache(options.workdir)
        task = TransformerTask(recipe, cache, about, text, show=_sample_videos(options.workdir, about, text))
        run_training(task, recipe.train_transformer, folder)


def tokenize(options: argparse.Namespace, rest: list[str]) -> None:
    """Writes the token cache and the text model of a recipe."""
    from tokvid.config import load_recipe
    from tokvid.distributed import joined
    from tokvid.io.compiled import keep_programs
    from tokvid.train.token_cache import write_token_cache

    several = (options.coordinator, options.processes, options.process, options.distributed)
    with joined(*several, agree_to_stop=False):  # what is whole by then is kept
        keep_programs()
        write_token_cache(load_recipe(options.config, rest), options.workdir)


def plan(options: argparse.Namespace, rest: list[str]) -> None:
    """What a recipe needs and can reach on a TPU pod. Ends the program with 1 where it doesn't fit."""
    from tokvid.config import load_recipe
    from tokvid.plan import report

    if options.only == "training":
        _refuse(options, ["rows"], "is for decoding; leave out --only training")
    recipe, mesh = load_recipe(options.config, rest), options.mesh and tuple(options.mesh)
    steps: list[Callable[[], object]] = []

    def keep(name: str, text: str) -> None:
        if options.hlo is not None:
            steps.append(lambda: write_text(options.hlo / f"{name}.hlo", text))

    how = {"slices": options.slices, "only": options.only, "rows": options.rows or 0, "keep": keep}
    result = report.plan(recipe, options.topology, mesh, **how)
    if options.json is not None:
        steps.append(lambda: write_json(options.json, {"config": str(options.config), **result}))
    _in_any_case(lambda: _print("\n".join(report.lines(options.config, result))), *steps)
    if not result["fits"]:
        raise SystemExit(1)


def evaluate(options: argparse.Namespace) -> None:
    """Figures of the weights, printed and written."""
    from tokvid import weights
    from tokvid.config import GUIDANCE, DataConfig, Sampling, check_guidance, check_seed, from_dict
    from tokvid.evaluate.batches import Settings
    from tokvid.evaluate.generation import Request, evaluate_generation
    from tokvid.evaluate.interpolation import evaluate_interpolation
    from tokvid.evaluate.reconstruction import evaluate_reconstruction
    from tokvid.evaluate.shapes import evaluate_shapes
    from tokvid.io.media import contact_sheet
    from tokvid.metrics.features import load_features
    from tokvid.sampling.stream import load_models

    unused = set().union(*EVALUATED_WITH.values()) - EVALUATED_WITH[options.what]
    _refuse(options, sorted(unused), f"is not for evaluate {options.what}; leave it out")
    guidance = GUIDANCE if options.guidance is None else options.guidance
    check_seed(options.seed)
    check_guidance(guidance)
    settings = Settings(guidance, scheme=options.scheme, sampling=_sampled(Sampling(), options))
    steps: list[Callable[[], object]] = []

    def show(rows: list[np.ndarray], **how: Any) -> None:
        if options.sheet is not None:
            steps.append(functools.partial(contact_sheet, options.sheet, rows, **how))

    if options.what == "shapes":
        models = load_models(options.weights)
        _check_rounds(settings.sampling, models, options)
        figures = evaluate_shapes(models, options.samples, options.seed, settings, options.fps or ())
    else:
        tokenizer = weights.load(options.weights / "tokenizer", "tokenizer")
        data = from_dict(DataConfig, tokenizer.about["data"], "the tokenizer's data")
        if options.data is not None:
            source = "records" if (options.data / "dataset.json").is_file() else "folder"
            data = dataclasses.replace(data, source=source, path=str(options.data), held_out=0)
        if options.what == "generation":
            models, fps = load_models(options.weights), max(data.fps) if options.fps is None else options.fps[0]
            _check_rounds(settings.sampling, models, options)
            request = Request(options.samples, options.seconds or 3.0, fps, options.seed)
            features = load_features(options.features or "random-convolutions")
            figures = evaluate_generation(models, data, request, features, settings, show)
        elif options.what == "interpolation":
            models, factor = load_models(options.weights), 2 if options.factor is None else options.factor
            _check_rounds(settings.sampling, models, options)
            figures = evaluate_interpolation(models, data, options.samples, factor, options.seed, settings, show)
        else:
            features = load_features(options.features or "random-convolutions")
            figures = evaluate_reconstruction(tokenizer, data, options.samples, options.seed, features, show)
    if options.json is not None:
        steps.append(lambda: write_json(options.json, figures))
    if options.markdown is not None:
        steps.append(lambda: write_text(options.markdown, _markdown(figures)))
    _in_any_case(lambda: _print(_table(figures)), *steps)


def data(options: argparse.Namespace) -> None:
    """Writes a dataset as records, or prepares it with TFDS; a folder without --out is only looked at."""
    from tokvid.input_pipeline.records import RecordWriter, check_replaceable, stored
    from tokvid.io.progress import progress

    if options.size is not None and min(options.size) < 1:
        raise UserError(f"size should be 1 or more pixels, got {options.size[0]} {options.size[1]}")
    if options.fps is not None and not 0 < options.fps <= 1000:
        raise UserError(f"fps should be above 0 and at most 1000, got {options.fps}")
    if options.kind == "folder" and not 0 <= options.max_unreadable <= 1:
        raise UserError(f"max-unreadable should be a share from 0 to 1, got {options.max_unreadable}")
    if options.tfds:
        _prepare_tfds(options)
        return
    as_frames = options.kind != "folder" or options.size is not None or options.fps is not None
    if options.kind == "folder" and options.out is None:
        _refuse(options, ["size", "fps", "fit"], "is for what is written; give --out, too")
    if options.out is not None:
        check_replaceable(options.out)
    source: Any
    if options.kind == "shapes":
        from tokvid.shapes.drawing import ShapesDataset

        source = ShapesDataset(options.videos, options.seed, options.held_out)
    elif options.kind == "mnist":
        from tokvid.input_pipeline.mnist import MovingMnist

        source = MovingMnist(options.file, options.split or "train", options.seed)
    else:
        from tokvid.input_pipeline.clips import FolderSource

        with _warnings_unless_it_fails():
            source = FolderSource(
                options.file, fit=options.fit or "crop", max_unreadable=options.max_unreadable, full=options.check
            )
        if options.out is None:
            print(f"{options.file}: {len(source)} videos can be used, {len(source.unreadable)} cannot")
            return
    size, fps = tuple(options.size or (64, 64)), options.fps or 8.0
    about = {"source": options.kind}
    if as_frames:
        about |= {"size": size, "fps": fps}
    elif options.fit is not None:
        about["fit"] = options.fit  # for whoever reads the files
    skipped = 0
    with (
        RecordWriter(options.out, "frames" if as_frames else "video", about) as writer,
        progress("data", len(source), "videos") as advance,
    ):
        for index in range(len(source)):
            try:
                record = stored(source[index], fps=fps, size=size, as_frames=as_frames)
            except UserError as error:  # damaged where only decoding finds it
                if options.kind != "folder":
                    raise
                skipped += 1
                if skipped > options.max_unreadable * len(source) or skipped == len(source):
                    raise UserError(f"{skipped} of {len(source)} videos cannot be used; the last: {error}") from error
                log.warning("skipped: %s", error)
            else:
                writer.write(record)
            advance()
    made_of = f", frames of {size[0]}x{size[1]} at {fps:g} fps" if as_frames and options.kind == "folder" else ""
    print(f"{options.out}: {len(source) - skipped} videos{made_of}")


def export(options: argparse.Namespace) -> None:
    """Weights as one file for other programs."""
    from tokvid.portable import export as write

    print(f"{options.out}: {write(options.file, options.out)} tensors")


def bring_in(options: argparse.Namespace) -> None:
    """Such a file as weights again."""
    from tokvid.portable import bring_in as read

    kind = read(options.file, options.out)
    print(f"{options.out / kind}: a {kind}")


def inspect(options: argparse.Namespace) -> None:
    """What a file or folder is, in a few lines."""
    from tokvid.cli.inspection import what_is

    print(_table(what_is(options.path)))


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "story": story,
    "generate": generate,
    "extend": extend,
    "interpolate": interpolate,
    "loop": loop,
    "reconstruct": reconstruct,
    "train": train,
    "tokenize": tokenize,
    "plan": plan,
    "evaluate": evaluate,
    "data": data,
    "export": export,
    "import": bring_in,
    "inspect": inspect,
}


def _with_options(told: "Story", options: argparse.Namespace) -> "Story":
    """The story with what the command line says on top."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    names = ("fps", "seed", "guidance", "last_guidance", "negative", "scheme")
    changes = {name: given[name] for name in names if name in given}
    for name in changes:
        if all(getattr(segment, name, None) is not None for segment in told.segments):
            raise UserError(f"{_dashed(name)} has no effect: each segment has its own {name}; change them in the story")
    told = dataclasses.replace(told, **changes, sampling=_sampled(told.sampling, options))
    if options.negative and _guidances(told) == {1.0}:
        raise UserError("--negative has no effect where guidance is 1; raise --guidance, or leave it out")
    return told


def _guidances(told: "Story") -> set[float | None]:
    """All that hold anywhere in the story."""
    found = {told.guidance if segment.guidance is None else segment.guidance for segment in told.segments}
    lasts = {
        told.last_guidance if segment.last_guidance is None else segment.last_guidance for segment in told.segments
    }
    return found | (lasts - {None})


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """UserError where one of these options is given, which would change nothing."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False:
            raise UserError(f"{_dashed(name)} {why}")


def _sampled(sampling: "Sampling", options: argparse.Namespace) -> "Sampling":
    """How tokens are drawn, with what the command line says on top."""
    return dataclasses.replace(
        sampling, **{name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}
    )


def _check_rounds(sampling: "Sampling", models: "Models", options: argparse.Namespace) -> None:
    """UserError where rounds are asked for, but rows are not drawn in rounds."""
    rows = models.transformer.config.latent[1]
    if options.rounds is not None and sampling.rows != rows:
        raise UserError(f"--rounds is for drawing all rows at once; give --rows {rows}, too, or leave it out")


def _picture(path: Path, models: "Models") -> np.ndarray:
    """Tokens of the picture that a story begins with."""
    from tokvid.input_pipeline.clips import probe, read_image
    from tokvid.sampling.story import encode_opening

    if (frames := probe(path).frames) > 1:
        raise UserError(f"{path} is a video of {frames} frames; give a picture, or go on from it with tokvid extend")
    return encode_opening(models, iter([read_image(path, models.size)]))


def _sample_videos(workdir: Path, about: dict[str, Any], text: Any) -> Callable[..., None]:
    """What `TransformerTask` shows while it trains: clips of a few training prompts, a sheet and a video each time."""
    from flax import nnx

    from tokvid import weights
    from tokvid.evaluate.batches import Settings, generate_batch
    from tokvid.input_pipeline.records import RecordSource
    from tokvid.io.media import contact_sheet, write_video
    from tokvid.sampling.stream import Models, frames_of

    tokenizer, source = weights.load(workdir / "tokenizer", "tokenizer"), RecordSource(workdir / "tokens")
    prompts = [source[index].captions[0].text for index in range(min(4, len(source)))]

    def show(model: Any, directory: Path, step: int) -> None:
        graph, params = nnx.split(model)
        models = Models(tokenizer, weights.Loaded(model.config, graph, params, {}), text)
        fps = float(max(about["fps"]))
        parts = [(frames_of(2 * model.config.latent[0], model.config.temporal_patch) / fps, prompts)]
        videos = generate_batch(models, fps, parts, np.arange(len(prompts)), Settings())
        contact_sheet(directory / f"{step:07d}.png", list(videos), captions=prompts)
        write_video(directory / f"{step:07d}.mp4", np.concatenate(list(videos), axis=2).repeat(4, 1).repeat(4, 2), fps)

    return show


def _prepare_tfds(options: argparse.Namespace) -> None:
    """The same videos as a TFDS dataset, in array_record files, with a split that is held out."""
    from tokvid.input_pipeline import builders

    if options.out is None:
        raise UserError("--tfds needs --out, the folder to write to")
    if not str(options.out.absolute()).isprintable():
        raise UserError(f"TFDS can't write to {str(options.out)!a}: a path for it is of letters that can be printed")
    if options.kind != "shapes":
        why = f"doesn't go with {options.kind} --tfds, which stores the videos as they are; leave it out"
        _refuse(options, ["size", "fps", *(["fit"] if options.kind == "folder" else [])], why)
    where: dict[str, Any] = {"data_dir": str(options.out)}
    builder: Any
    if options.kind == "shapes":
        if options.held_out:
            raise UserError("--held-out doesn't go with --tfds: that has the split held_out beside train")
        held_out, size = math.ceil(options.videos / 10), tuple(options.size or (64, 64))
        builder = builders.MovingShapes(
            videos=options.videos, held_out=held_out, seed=options.seed, size=size, fps=options.fps or 8.0, **where
        )
    elif options.kind == "mnist":
        _refuse(options, ["split"], "doesn't go with --tfds: that has train, and test as held_out")
        builder = builders.CaptionedMovingMnist(digits=options.file, seed=options.seed, **where)
    else:
        builder = builders.ClipFolder(
            folder=options.file, max_unreadable=options.max_unreadable, full=options.check, **where
        )
    before = Path(builder.data_path).exists()
    builder.download_and_prepare()
    for name, split in builder.info.splits.items():
        if split.num_examples:  # the last one is read back
            builders.open_prepared(builder.data_path, name)[split.num_examples - 1]
    counts = ", ".join(f"{name} {split.num_examples}" for name, split in builder.info.splits.items())
    print(f"{builder.data_path}: {counts}{' (prepared before; remove it to prepare it anew)' * before}")


def _in_any_case(*steps: Callable[[], object]) -> None:
    """All of them, then the first error: what took minutes to measure isn't lost to a full disk or a closed pipe."""
    errors = []
    for step in steps:
        try:
            step()
        except (UserError, OSError) as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _print(text: str) -> None:
    print(text, flush=True)  # so that an error is raised here


@contextlib.contextmanager
def _warnings_unless_it_fails() -> Iterator[None]:
    """Holds warnings back until all went well: an error says by itself what it is about."""
    ours, held = logging.getLogger("tokvid"), logging.handlers.MemoryHandler(1_000_000, logging.CRITICAL)
    ours.addHandler(held)
    ours.propagate = False
    try:
        yield
    finally:
        ours.propagate = True
        ours.removeHandler(held)
    for record in held.buffer:
        ours.handle(record)


def _markdown(values: dict[str, Any], prefix: str = "") -> str:
    """Nested values as a table, a row each."""
    rows = [] if prefix else ["| figure | value |", "|---|---|"]
    for name, value in values.items():
        if isinstance(value, dict):
            rows.append(_markdown(value, f"{prefix}{name}: ").rstrip())
        else:
            rows.append(f"| {prefix}{name} | {f'{value:.4g}' if isinstance(value, float) else value} |")
    return "\n".join(rows) + "\n"


def _table(values: dict[str, Any], indent: str = "") -> str:
    """Nested values, a line each."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", _table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name:24} {value:.4g}" if isinstance(value, float) else f"{indent}{name:24} {value}")
    return "\n".join(lines)
