"""What each command does. A command imports what it needs when it runs, so that no other waits for it."""

import argparse
import dataclasses
import json
import math
import runpy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokvid.errors import UserError
from tokvid.files import read_json, write_json

if TYPE_CHECKING:
    from tokvid.config import Recipe
    from tokvid.sampling.story import Story
    from tokvid.sampling.stream import Models
    from tokvid.types import VideoItem

DEMO_STORY = "demo/story.yaml"  # within the shipped folder
WATCHABLE = 256  # pixels: smaller videos are enlarged by whole factors, so that a person can watch them


def run(options: argparse.Namespace, rest: list[str]) -> None:
    """Calls the command; `rest` are overrides of a recipe's fields."""
    command = COMMANDS[options.command]
    command(options, rest) if options.command in ("train", "tokenize") else command(options)


def demo(options: argparse.Namespace) -> None:
    """The shipped story: story.mp4, story.gif, sheet.png and report.json."""
    from tokvid.cli import SHIPPED
    from tokvid.metrics.attributes import read_attributes
    from tokvid.sampling.story import load_story
    from tokvid.sampling.stream import load_models

    began = time.monotonic()
    story, models = load_story(SHIPPED / DEMO_STORY), load_models(options.weights)
    loaded = time.monotonic()
    out: Path = options.out
    frames_THWC = make(models, story, out / "story.mp4", also=[out / "story.gif"], sheet=out / "sheet.png")
    made = time.monotonic()
    segments = []
    for segment, (first, end) in zip(story.segments, _spans(story), strict=True):
        reading = read_attributes(frames_THWC[first:end], story.fps)
        fields = ("size", "color", "shape", "direction", "speed", "pixels_per_second")
        read = None if reading is None else {name: getattr(reading, name) for name in fields}
        segments.append({"prompt": segment.prompt, "seconds": segment.seconds, "read_from_the_pixels": read})
    report = {
        "seconds": story.seconds,
        "fps": story.fps,
        "frames": len(frames_THWC),
        "segments": segments,
        "seconds_to_load": round(loaded - began, 2),
        "seconds_to_make": round(made - loaded, 2),
        "milliseconds_per_frame": round(1000 * (made - loaded) / len(frames_THWC), 1),
        "weights": models.mark,
    }
    write_json(out / "report.json", report)
    print(f"{story.seconds:g} s of video from {len(story.segments)} prompts in {made - began:.0f} s:")
    for name in ("story.mp4", "story.gif", "sheet.png", "report.json"):
        print(f"  {out / name}")


def story(options: argparse.Namespace) -> None:
    """A story file, or prompts, to one video."""
    from tokvid.sampling.story import Segment, Story, load_story
    from tokvid.sampling.stream import load_models

    if (options.file is None) == (not options.prompt):
        raise UserError("give either a story file or one --prompt for each segment")
    if options.file is not None:
        told = load_story(options.file)
    else:
        told = Story(tuple(Segment(prompt, options.seconds) for prompt in options.prompt))
    told = _with_options(told, options)
    models = load_models(options.weights)
    make(models, told, options.out, sheet=options.sheet, scale=options.scale, opening=_opening(options, models, told.fps))
    print(f"{options.out}: {told.seconds:g} s, {len(told.segments)} prompts")


def generate(options: argparse.Namespace) -> None:
    """One prompt, one clip."""
    from tokvid.sampling.story import Segment, Story
    from tokvid.sampling.stream import load_models

    told = _with_options(Story((Segment(options.prompt, options.seconds),)), options)
    models = load_models(options.weights)
    make(models, told, options.out, sheet=options.sheet, scale=options.scale, opening=_opening(options, models, told.fps))
    print(f"{options.out}: {told.seconds:g} s at {told.fps:g} fps")


def make(
    models: "Models",
    story: "Story",
    out: Path,
    *,
    also: list[Path] | None = None,
    sheet: Path | None = None,
    scale: int = 0,
    opening: np.ndarray | None = None,
) -> np.ndarray:
    """Writes a story to `out` (and `also`) as it is made. Returns about 1,000 of its frames at most, uint8 (T, H, W, 3):
    all of a short story, evenly thinned of a long one, for a sheet."""
    import contextlib

    from tokvid.media import VideoWriter, contact_sheet
    from tokvid.progress import progress
    from tokvid.sampling.story import tell

    scale = scale or max(1, math.ceil(WATCHABLE / min(models.size)))
    if not 1 <= scale <= 64:
        raise UserError(f"scale should be 1 to 64, got {scale}")
    partial = out.with_name(f".{out.name}.tokens")
    kept: list[np.ndarray] = []
    thin, count = max(1, story.frames // 1000), 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(VideoWriter(path, story.fps)) for path in [out, *(also or [])]]
        advance = stack.enter_context(progress(out.name, story.frames, "frames"))
        for video_THWC in tell(models, story, partial, opening):
            for frame_HWC in video_THWC:
                large_HWC = frame_HWC.repeat(scale, axis=0).repeat(scale, axis=1)
                for writer in writers:
                    writer.write(large_HWC)
                if count % thin == 0:
                    kept.append(frame_HWC)
                count += 1
            advance(len(video_THWC))
    partial.unlink(missing_ok=True)
    frames_THWC = np.stack(kept)
    if sheet is not None:
        rows = [frames_THWC[first // thin : max(first // thin + 1, end // thin)] for first, end in _spans(story)]
        contact_sheet(sheet, rows, captions=[segment.prompt for segment in story.segments])
    return frames_THWC


def reconstruct(options: argparse.Namespace) -> None:
    """A video through the tokenizer, streaming: PSNR, SSIM, tokens, bits per pixel."""
    from tokvid import weights
    from tokvid.input_pipeline.clips import probe, stream_frames
    from tokvid.media import VideoWriter, write_image
    from tokvid.metrics.video import psnr, ssim
    from tokvid.sampling.stream import StreamDecoder, StreamEncoder
    from tokvid.tokenizer.cvivit import latent_shape

    tokenizer = weights.load(options.weights / "tokenizer", "tokenizer")
    size = tuple(options.size or tokenizer.config.size)
    _, rows, columns = latent_shape(tokenizer.config, 1, *size)
    info = probe(options.file)
    for warning in info.warnings:
        print(f"tokvid: {options.file}: {warning}")
    fps = options.fps or info.fps or 1.0
    encoder, decoder = StreamEncoder(tokenizer, 1, size), StreamDecoder(tokenizer, 1, rows, columns)
    image = options.out.suffix.lower() == ".png"
    psnrs: list[float] = []
    ssims: list[float] = []
    tokens, waiting = 0, []
    made_HWC = None

    def measured(ids_BTHW: np.ndarray) -> Iterator[np.ndarray]:
        nonlocal tokens
        tokens += ids_BTHW.size
        for made_HWC in decoder.feed(ids_BTHW)[0] if ids_BTHW.shape[1] else ():
            if waiting:  # not the frames that only filled up the last latent frame
                truth_HWC = waiting.pop(0)
                psnrs.append(min(psnr(truth_HWC[None], made_HWC[None]), 100.0))
                ssims.append(ssim(truth_HWC[None], made_HWC[None]))
                yield made_HWC

    def made() -> Iterator[np.ndarray]:
        last = None
        for last in stream_frames(options.file, fps=options.fps, size=size, fit=options.fit):
            waiting.append(last)
            yield from measured(encoder.feed(last[None, None]))
        while waiting and last is not None:
            yield from measured(encoder.feed(last[None, None]))

    if image:
        made_HWC = next(made())
        write_image(options.out, made_HWC)
    else:
        with VideoWriter(options.out, fps) as writer:
            for made_HWC in made():
                writer.write(made_HWC)
    pixels = len(psnrs) * size[0] * size[1]
    figures = {
        "psnr": round(float(np.mean(psnrs)), 4),
        "ssim": round(float(np.mean(ssims)), 5),
        "frames": len(psnrs),
        "tokens": tokens,
        "bits_per_pixel": round(tokens * math.log2(tokenizer.model.quantizer.vocabulary) / pixels, 6),
        "size": list(size),
        "out": str(options.out),
    }
    print(json.dumps(figures) if options.json else _table(figures))


def train(options: argparse.Namespace, rest: list[str]) -> None:
    """Trains the tokenizer or the transformer of a recipe."""
    from tokvid.train.loop import train as run_training
    from tokvid.train.token_cache import open_token_cache
    from tokvid.train.tokenizer_step import TokenizerTask
    from tokvid.train.transformer_step import TransformerTask

    recipe = load_recipe(options.config, rest)
    folder = options.workdir / options.model
    if options.model == "tokenizer":
        run_training(TokenizerTask(recipe), recipe.train_tokenizer, folder)
    else:
        cache, about, text = open_token_cache(options.workdir)
        task = TransformerTask(recipe, cache, about, text, show=_sample_videos(options.workdir, about, text))
        run_training(task, recipe.train_transformer, folder)


def tokenize(options: argparse.Namespace, rest: list[str]) -> None:
    """Writes the token cache and the text model of a recipe."""
    from tokvid.train.token_cache import write_token_cache

    write_token_cache(load_recipe(options.config, rest), options.workdir)


def evaluate(options: argparse.Namespace) -> None:
    """Figures of the weights, printed and written."""
    from tokvid import evaluate as evaluation
    from tokvid import weights
    from tokvid.config import DataConfig, from_dict
    from tokvid.sampling.methods import Sampling
    from tokvid.sampling.story import check_guidance
    from tokvid.sampling.stream import load_models

    if options.seed < 0:
        raise UserError(f"seed should be 0 or more, got {options.seed}")
    if options.what == "shapes":
        check_guidance(options.guidance)
        method = Sampling(options.temperature, options.top_k, options.top_p)
        settings = evaluation.Settings(options.guidance, sampling=method)
        figures = evaluation.evaluate_shapes(load_models(options.weights), options.samples, options.seed, settings)
    else:
        tokenizer = weights.load(options.weights / "tokenizer", "tokenizer")
        data = from_dict(DataConfig, tokenizer.about["data"], "the tokenizer's data")
        if options.data is not None:
            data = dataclasses.replace(data, path=str(options.data))
        figures = evaluation.evaluate_reconstruction(tokenizer, data, options.samples, options.seed)
    if options.json is not None:
        write_json(options.json, figures)
    print(_table(figures))


def data(options: argparse.Namespace) -> None:
    """Writes a dataset as records, or prepares it with TFDS."""
    from tokvid.input_pipeline.records import RecordWriter, stored
    from tokvid.progress import progress

    if options.tfds:
        _prepare_tfds(options)
        return
    size, fps = tuple(options.size or (64, 64)), options.fps or 8.0
    source: Any
    if options.kind == "shapes":
        from tokvid.input_pipeline.shapes import ShapesDataset

        source = ShapesDataset(options.videos, options.seed, options.held_out)
    elif options.kind == "mnist":
        from tokvid.input_pipeline.mnist import MovingMnist

        source = MovingMnist(options.file, options.split, options.seed)
    else:
        from tokvid.input_pipeline.clips import FolderSource

        source = FolderSource(
            options.file, fit=options.fit, max_unreadable=options.max_unreadable, full=options.check
        )
        for path, reason in source.unreadable:
            print(f"skipped {path}: {reason}")
    frames = options.kind != "folder" or options.size is not None or options.fps is not None
    about = {"source": options.kind, "videos": len(source), **({"size": size, "fps": fps} if frames else {})}
    with (
        RecordWriter(options.out, "frames" if frames else "video", about) as writer,
        progress("data", len(source), "videos") as advance,
    ):
        for index in range(len(source)):
            item: VideoItem = source[index]
            writer.write(stored(_Frames(item) if frames else item, fps=fps, size=size))
            advance()
    print(f"{options.out}: {len(source)} videos")


def inspect(options: argparse.Namespace) -> None:
    """What a file or folder is, in a few lines."""
    path: Path = options.path
    if not path.exists():
        raise UserError(f"there is nothing at {path}")
    if path.is_file():
        print(_table(_inspect_file(path)))
    elif (path / "dataset.json").is_file():
        from tokvid.input_pipeline.records import RecordSource

        source = RecordSource(path)
        print(_table({"kind": f"dataset of {source.kind}", "videos": len(source), **source.metadata}))
    elif (path / "config.json").is_file():
        print(_table(_inspect_weights(path)))
    elif (path / "commit.json").is_file():
        print(_table(_inspect_checkpoint(path)))
    elif (path / "checkpoints").is_dir():
        steps = sorted(int(p.parent.name) for p in path.glob("checkpoints/*/commit.json") if p.parent.name.isdigit())
        print(_table({"kind": "training in progress, no weights yet", "checkpoints at steps": steps}))
    elif parts := [part for part in ("tokenizer", "transformer", "tokens") if (path / part).is_dir()]:
        for part in parts:
            print(f"{part}/")
            inspect(argparse.Namespace(path=path / part))
    else:
        raise UserError(f"{path} is no checkpoint, weights folder, workdir, token cache or dataset of tokvid")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "story": story,
    "generate": generate,
    "reconstruct": reconstruct,
    "train": train,
    "tokenize": tokenize,
    "evaluate": evaluate,
    "data": data,
    "inspect": inspect,
}


def load_recipe(path: Path, overrides: list[str]) -> "Recipe":
    """Runs a config file of the user's own and gives its `recipe`, with fields changed by `--field.name value`."""
    import tyro

    from tokvid.config import Recipe

    if not path.is_file():
        raise UserError(f"no config file {path}; recipes are in configs/")
    try:
        recipe = runpy.run_path(str(path)).get("recipe")
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code does wrong
        raise UserError(f"config {path} fails with {type(error).__name__}: {error}") from error
    if not isinstance(recipe, Recipe):
        raise UserError(f"config {path} should define `recipe = Recipe(...)`, see configs/quickstart.py")
    return tyro.cli(Recipe, default=recipe, args=overrides, prog=f"tokvid … {path}") if overrides else recipe


def _with_options(told: "Story", options: argparse.Namespace) -> "Story":
    """The story with what the command line says on top."""
    names = ("temperature", "top_k", "top_p")
    sampling = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    changes = {name: getattr(options, name) for name in ("fps", "seed", "guidance") if getattr(options, name) is not None}
    return dataclasses.replace(told, **changes, sampling=dataclasses.replace(told.sampling, **sampling))


def _opening(options: argparse.Namespace, models: "Models", fps: float) -> np.ndarray | None:
    """Tokens of --image or --video."""
    from tokvid.input_pipeline.clips import read_image, stream_frames
    from tokvid.sampling.story import encode_opening

    if options.image is not None:
        return encode_opening(models, iter([read_image(options.image, models.size)]))
    if getattr(options, "video", None) is not None:
        return encode_opening(models, stream_frames(options.video, fps=fps, size=models.size))
    return None


def _spans(story: "Story") -> list[tuple[int, int]]:
    """First and one past the last frame of every segment."""
    ends = np.rint(np.cumsum([segment.seconds for segment in story.segments]) * story.fps).astype(int).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _sample_videos(workdir: Path, about: dict[str, Any], text: Any) -> Callable[..., None]:
    """What `TransformerTask` shows while it trains: clips of a few training prompts, one sheet and one video each time."""
    from flax import nnx

    from tokvid import weights
    from tokvid.evaluate import Settings, generate_batch
    from tokvid.input_pipeline.records import RecordSource
    from tokvid.media import contact_sheet, write_video
    from tokvid.sampling.stream import Models

    tokenizer, source = weights.load(workdir / "tokenizer", "tokenizer"), RecordSource(workdir / "tokens")
    prompts = [source[index].captions[0].text for index in range(min(4, len(source)))]

    def show(model: Any, directory: Path, step: int) -> None:
        graph, params, _ = nnx.split(model, nnx.Param, ...)
        models = Models(tokenizer, weights.Loaded(model.config, graph, params, {}), text)
        fps = float(max(about["fps"]))
        parts = [(2 * model.config.latent[0], prompts)]
        videos = generate_batch(models, fps, parts, np.arange(len(prompts)), Settings())
        contact_sheet(directory / f"{step:07d}.png", list(videos), captions=prompts)
        write_video(directory / f"{step:07d}.mp4", np.concatenate(list(videos), axis=2).repeat(4, 1).repeat(4, 2), fps)

    return show


def _prepare_tfds(options: argparse.Namespace) -> None:
    from tokvid.input_pipeline import builders

    raise UserError("not wired yet") if not hasattr(builders, "prepare") else None
    builders.prepare(options)


@dataclasses.dataclass(frozen=True)
class _Frames:
    """An item without its path, so that its frames are stored and not its file."""

    item: "VideoItem"

    @property
    def key(self) -> str:
        return self.item.key

    @property
    def seconds(self) -> float:
        return self.item.seconds

    @property
    def captions(self) -> tuple[Any, ...]:
        return self.item.captions

    def read(self, start: float, fps: float, frames: int, size: tuple[int, int]) -> np.ndarray:
        return self.item.read(start, fps, frames, size)


def _inspect_file(path: Path) -> dict[str, Any]:
    from tokvid.input_pipeline.clips import probe
    from tokvid.input_pipeline.text import TextModel

    if path.suffix == ".model":
        text = TextModel.load(path)
        return {"kind": "text model", "vocabulary": text.vocabulary, "fingerprint": text.fingerprint}
    return {"kind": "video file", **dataclasses.asdict(probe(path))}


def _inspect_weights(path: Path) -> dict[str, Any]:
    from tokvid import weights

    about = read_json(path / "config.json", "config")
    if about.get("kind") not in weights.KINDS:
        raise UserError(f"{path}/config.json is not of weights of tokvid")
    loaded = weights.load(path, about["kind"])
    values = {"kind": about["kind"], "parameters": weights.parameter_count(loaded.params)}
    return values | {name: value for name, value in about.items() if name != "kind"}


def _inspect_checkpoint(path: Path) -> dict[str, Any]:
    record = read_json(path / "commit.json", "commit record")
    return {"kind": "checkpoint", "step": record.get("step"), "files": len(record.get("files", {})), **record.get("agree", {})}


def _table(values: dict[str, Any], indent: str = "") -> str:
    """Nested values, a line each."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", _table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name:24} {value:.4g}" if isinstance(value, float) else f"{indent}{name:24} {value}")
    return "\n".join(lines)
