"""Measures the tasks on Moving Shapes, where the truth of every pixel is known: `tokvid evaluate shapes --task NAME`.

To add one: a function from a `Batch` to an `Outcome`, and a row of `MEASURES`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tokvid.distributed import first
from tokvid.errors import UserError, did_you_mean
from tokvid.evaluate.batches import BATCH, Padded, Settings, mean, measured, padded, through, usual
from tokvid.evaluate.clips import agreeing, all_hidden, all_pasted, bicubic, blackened, psnrs
from tokvid.evaluate.shapes import check, frames_at, stories_of, stream_of
from tokvid.evaluate.story_clips import Batch, boxes, dressed, in_the_middle, moved, others, texts
from tokvid.io.progress import progress
from tokvid.metrics.video import seam_ratio
from tokvid.sampling.canvas import canvas_sizes, doubled, paint, widened
from tokvid.sampling.codec import decode_clips, encode_clips
from tokvid.sampling.edits import beginning_with, check_trained, scattered
from tokvid.sampling.given import restored
from tokvid.sampling.models import Models
from tokvid.sampling.window import Around
from tokvid.shapes.drawing import ShapesStory
from tokvid.shapes.words import WORLD
from tokvid.tasks.conditions import grey
from tokvid.tasks.tasks import TASKS

STRENGTHS = (0.25, 0.5, 0.75, 1.0)  # of variation
GIVEN = 3  # latent frames, of continuation
CANVAS, CLIP = 16 / 9, (16, 9)  # of outpainting: width over height; height and width of what is given
SHOWN, COLUMNS, ROWS = 2, 6, "rows"  # clips of a task on a sheet, frames of each, and where they are kept
EARLIER = 80  # a random stream of `stream_of`, after those of `evaluate_shapes`


class Outcome(NamedTuple):
    """What a task was given and what it made, videos (B, T, H, W, 3), and its figures: a value for each video.

    NaN is no value, as the track error where no object is seen.
    """

    source: np.ndarray
    made: np.ndarray
    figures: Mapping[str, Sequence[float]]


def _text_to_video(batch: Batch) -> Outcome:
    made = batch.told()
    return Outcome(batch.truth, made, _anywhere(batch.read(made, batch.stories)))


def _via_image(batch: Batch) -> Outcome:
    """A picture of the prompt, then a video that begins with it; `direct_joint` is of videos without one."""
    pictures, direct = batch.told(frames=1), batch.told()
    made = batch.told(pictures)
    figures = _anywhere(batch.read(made, batch.stories))
    return Outcome(pictures, made, {**figures, "direct_joint": batch.read(direct, batch.stories)["joint"]})


def _image_to_video(batch: Batch) -> Outcome:
    made = batch.told(batch.truth[:, :1])
    return Outcome(batch.truth[:, :1], made, batch.read(made, batch.stories))


def _zero_shot(batch: Batch) -> Outcome:
    """The first frame takes the place of drawn tokens, as if the weights knew no pictures."""
    made = batch.edited(batch.stories, around=beginning_with(batch.tokens[:, :1]))
    made = np.concatenate(list(restored(iter([made]), iter([batch.truth[:, 0]]))), axis=1)
    return Outcome(batch.truth[:, :1], made, batch.read(made, batch.stories))


def _continuation(batch: Batch) -> Outcome:
    given = batch.truth[:, : 1 + (GIVEN - 1) * batch.models.temporal_patch]
    made = batch.told(given)
    return Outcome(given, made, batch.read(made, batch.stories))


def _infilling(batch: Batch) -> Outcome:
    """Every second latent frame is given."""
    tokens = batch.tokens
    known_BTHW = np.broadcast_to((np.arange(tokens.shape[1]) % 2 == 0)[:, None, None], tokens.shape[:-1])
    made = batch.edited(batch.stories, around=Around(tokens, known_BTHW))
    return Outcome(blackened(batch.pixels(known_BTHW), batch.truth), made, batch.read(made, batch.stories))


def _restyle(batch: Batch) -> Outcome:
    """Another colour: outlines have none."""
    return _from_condition(batch, "edges", others(batch, "color"))


def _reshape(batch: Batch) -> Outcome:
    """Another colour and another shape."""
    return _from_condition(batch, "rough", others(batch, "color", "shape"))


def _colourise(batch: Batch) -> Outcome:
    """The true colour; PSNR of luma, also after the tokenizer alone."""
    outcome = _from_condition(batch, "grey", batch.stories)
    again, _ = through(batch.models.tokenizer, batch.truth)
    made, truth, again = (np.stack([grey(each) for each in each_B]) for each_B in (outcome.made, batch.truth, again))
    lumas = {"psnr_of_luma": psnrs(truth, made), "ceiling_psnr_of_luma": psnrs(truth, again)}
    return outcome._replace(figures={**outcome.figures, **lumas})


def _inpaint(batch: Batch) -> Outcome:
    """A box follows the object, all of it; another colour and shape are asked for."""
    batch = dataclasses.replace(batch, stories=[in_the_middle(each, batch.seconds, "slow") for each in batch.stories])
    wanted, known_BTHW = others(batch, "color", "shape"), ~boxes(batch)
    outside = batch.pixels(known_BTHW)
    tokens = encode_clips(batch.models.tokenizer, all_hidden(batch.truth, outside))
    made = batch.edited(wanted, around=Around(tokens, known_BTHW))
    made = all_pasted(made, batch.truth, outside)
    figures = {**_anywhere(batch.read(made, wanted)), "psnr_outside": psnrs(batch.truth, made, outside)}
    return Outcome(blackened(outside, batch.truth), made, figures)


def _outpaint(batch: Batch) -> Outcome:
    """The middle of a clip, 9:16, on a canvas of 16:9, of which each part as wide as the world shows all of it.

    PSNR of the sides, also of repeated edges; `seams` is the change across the border, relative to other columns.
    """
    models, size = batch.models, batch.models.size[0]
    batch = dataclasses.replace(batch, stories=[in_the_middle(each, batch.seconds) for each in batch.stories])
    (_, inner), (_, outer) = canvas_sizes(models, CANVAS, *CLIP)
    left = (size - inner) // 2
    given = encode_clips(models.tokenizer, np.ascontiguousarray(batch.truth[:, :, :, left : left + inner]))
    side = inner // given.shape[3]
    around, places = widened(given, (given.shape[2], outer // side), models.transformer.config.latent[1:])
    first = int(np.flatnonzero(around.known_BTHW[0, 0, 0])[0]) * side
    painted = paint(models, batch.prompts(texts(batch.stories)), batch.levels, around, places)
    made = decode_clips(models.tokenizer, painted)[:, : batch.frames]
    column_W = (np.arange(outer) - first + left) % size  # of the world, which is a torus
    truth, inside_W = batch.truth[:, :, :, column_W], (np.arange(outer) >= first) & (np.arange(outer) < first + inner)
    made = all_pasted(made, truth, np.broadcast_to(inside_W, truth.shape[:-1]))
    units_W = column_W * WORLD / size
    edges = truth[:, :, :, np.clip(np.arange(outer), first, first + inner - 1)]
    ends = [
        batch.read(made[:, :, :, start : start + size], [moved(each, -units_W[start]) for each in batch.stories])
        for start in (0, outer - size)
    ]
    sides, border = np.broadcast_to(~inside_W, truth.shape[:-1]), [first, first + inner]
    figures: dict[str, Sequence[float]] = {
        **{name: np.mean([each[name] for each in ends], axis=0).tolist() for name in ends[0]},
        "psnr_of_sides": psnrs(truth, made, sides),
        "psnr_of_sides_repeated": psnrs(truth, edges, sides),
        "seams": [seam_ratio(each.transpose(2, 0, 1, 3), border) for each in made],
        "seams_of_truth": [seam_ratio(each.transpose(2, 0, 1, 3), border) for each in truth],
    }
    return Outcome(blackened(~sides, truth), made, figures)


def _upscale(batch: Batch) -> Outcome:
    """Half the size, doubled once and twice; PSNR, also of bicubic interpolation and after the tokenizer alone."""
    models, size = batch.models, batch.models.size[0]
    low, prompts = batch.seen("low"), batch.prompts(texts(batch.stories))
    made, figures = low, dict[str, Sequence[float]]()
    for times in (2, 4):
        made, truth = doubled(models, prompts, batch.levels, made), batch.drawn(batch.stories, times * size // 2)
        figures[f"psnr_{times}x"] = psnrs(truth, made)
        figures[f"bicubic_psnr_{times}x"] = psnrs(truth, bicubic(low, times))
        if times == 2:
            figures["ceiling_psnr_2x"] = psnrs(truth, through(models.tokenizer, truth)[0])
            figures |= batch.read(made, batch.stories)
    return Outcome(low, made, figures)


def _animate(batch: Batch) -> Outcome:
    """Another clip's first frame, whose object takes the path of the clip's; no prompt, which would tell it, too.

    `prompted_` figures are with one.
    """
    pictured = [*batch.stories[1:], batch.stories[0]]
    pairs = zip(batch.stories, pictured, strict=True)
    wanted = [dataclasses.replace(dressed(story, other), position=other.position) for story, other in pairs]
    pictures, tracks = batch.drawn(pictured)[:, :1], dataclasses.replace(batch, stories=wanted).seen("track")

    def animated(silent: bool) -> np.ndarray:
        sources = [batch.source("picture", pictures), batch.source("track", tracks)]
        return batch.edited(wanted, sources, first_BHWC=pictures[:, 0], silent=silent)

    made, prompted = animated(silent=True), batch.read(animated(silent=False), wanted)
    seen = [pictures, tracks.repeat(2, axis=2).repeat(2, axis=3)]
    figures = {f"prompted_{name}": prompted[name] for name in ("joint", "identity", "track_error")}
    return Outcome(np.concatenate(seen, axis=1), made, {**batch.read(made, wanted), **figures})


def _variation(batch: Batch) -> Outcome:
    """Some tokens are drawn again; the joint attributes and the PSNR for each share of them."""
    tokens, figures, shown = batch.tokens, {}, batch.truth
    for strength in STRENGTHS:
        rngs = [np.random.default_rng(int(seed)) for seed in batch.seeds_B]
        known_BTHW = np.stack([scattered(tokens.shape[1:4], strength, rng) for rng in rngs])
        made = batch.edited(batch.stories, around=Around(tokens, known_BTHW))
        shown = made if strength == 0.5 else shown
        figures[f"joint_at_{strength:g}"] = batch.read(made, batch.stories)["joint"]
        figures[f"psnr_at_{strength:g}"] = psnrs(batch.truth, made)
    return Outcome(batch.truth, shown, figures)


class Measure(NamedTuple):
    """How a task is measured, and the tasks that weights must be trained for."""

    measure: Callable[[Batch], Outcome]
    needs: tuple[str, ...]


# Interpolation has an evaluation of its own, for any data.
MEASURES: dict[str, Measure] = {
    "text_to_video": Measure(_text_to_video, ("text_to_video",)),
    "via_image": Measure(_via_image, ("text_to_video", "image_to_video")),
    "image_to_video": Measure(_image_to_video, ("image_to_video",)),
    "zero_shot": Measure(_zero_shot, ("text_to_video",)),
    "continuation": Measure(_continuation, ("continuation",)),
    "infilling": Measure(_infilling, ("infilling",)),
    "restyle": Measure(_restyle, ("restyle",)),
    "reshape": Measure(_reshape, ("reshape",)),
    "colourise": Measure(_colourise, ("colourise",)),
    "inpaint": Measure(_inpaint, ("inpaint",)),
    "outpaint": Measure(_outpaint, ("outpaint",)),
    "upscale": Measure(_upscale, ("upscale",)),
    "animate": Measure(_animate, ("animate",)),
    "variation": Measure(_variation, ("variation",)),
}
ALL = "all"


def check_task(name: str) -> None:
    """UserError for what is no key of MEASURES, nor "all"."""
    if name in TASKS and name not in MEASURES:
        instead = "; tokvid evaluate interpolation does" if name == "interpolation" else ""
        raise UserError(f"nothing measures {name} on Moving Shapes alone (MEASURES in {__name__}){instead}")
    if name != ALL and name not in MEASURES:
        raise UserError(did_you_mean(name, [*MEASURES, ALL], "task"))


def evaluate_tasks(
    models: Models,
    name: str,
    samples: int,
    seed: int,
    settings: Callable[[str], Settings] = usual,
    fps: float | None = None,
    show: Callable[..., object] = lambda rows, **how: None,
) -> dict[str, Any]:
    """Measures one of MEASURES, or "all" that the weights were trained for, on `samples` clips of two seconds.

    Figures are means over the clips: attributes that are read right, distances in pixels, PSNR in dB. `settings` gives
    those of a task. `show` gets some clips, what was given above what was made, as arguments for `contact_sheet`.
    UserError where the weights weren't trained for the task.
    """
    check_task(name)
    fps = float(fps or max(models.transformer.about["fps"]))
    check(models, samples, [fps])
    names = [name] if name != ALL else [each for each, row in MEASURES.items() if {*row.needs} <= {*models.tasks}]
    if not names:
        raise UserError("these weights were trained for none of the tasks; train some with layouts.tasks")
    for task in MEASURES[name].needs if name != ALL else ():
        check_trained(models, task)
    chosen = {each: settings(MEASURES[each].needs[0]) for each in names}
    frames = frames_at(models, fps)
    stories = stories_of(samples, stream_of(seed, EARLIER), frames / fps)
    drawn = (
        ((each, batch), batch.size) for each in names for batch in padded(stories, min(BATCH, samples), seed, EARLIER)
    )
    with progress("evaluate shapes", samples * len(names), "videos", quiet=not first()) as advance:
        lists = measured(drawn, lambda batch: _measure(models, *batch, fps, chosen[batch[0]]), advance)
    figures: dict[str, Any] = {each: {} for each in names}
    shown: list[tuple[np.ndarray, str]] = []
    for (each, figure), values in lists.items():
        if figure == ROWS:
            shown += values[: 2 if name == ALL else 2 * SHOWN]
        else:
            figures[each][figure] = mean(values)
    show([video for video, _ in shown], captions=[text for _, text in shown], columns=COLUMNS)
    about = {"samples": samples, "seed": seed, "fps": fps, "frames": frames}
    used = {each: models.for_task(MEASURES[each].needs[0]).mark for each in names}
    asked = {each: {**dataclasses.asdict(values), "weights": used[each]} for each, values in chosen.items()}
    return {**figures, **about, "settings": asked, "weights": models.mark}


def _measure(
    models: Models, name: str, batch: Padded[ShapesStory], fps: float, settings: Settings
) -> dict[tuple[str, str], list[Any]]:
    """The task's figures of a batch, and under ROWS some clips for a sheet."""
    models = models.for_task(MEASURES[name].needs[0])
    outcome = MEASURES[name].measure(Batch(models, fps, frames_at(models, fps), batch.seeds_B, settings, batch.items))
    lists: dict[tuple[str, str], list[Any]] = {(name, ROWS): []}
    for figure, values in outcome.figures.items():
        lists[name, figure] = [float(value) for value in values[: batch.size] if math.isfinite(value)]
    for given, made in itertools.islice(zip(outcome.source, outcome.made, strict=True), SHOWN):
        lists[name, ROWS] += [(given, f"{name}: given"), (made, "made")]
    return lists


def _anywhere(figures: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The figures of videos in which the object's place is not given."""
    return {name: values for name, values in figures.items() if name != "track_error"}


def _from_condition(batch: Batch, name: str, wanted: Sequence[ShapesStory]) -> Outcome:
    """Videos of these stories from the condition `name` of the true ones."""
    seen = batch.seen(name)
    made = agreeing(name, batch.edited(wanted, [batch.source(name, seen)]), seen)
    return Outcome(seen, made, batch.read(made, wanted))
