"""Measures edits of real clips, whose truth is known: `tokvid evaluate edits`.

To add one: a function from `RealClips` to an `Edit`, and a row of `MEASURES`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tokvid.config import DataConfig
from tokvid.distributed import first
from tokvid.errors import UserError, did_you_mean
from tokvid.evaluate.batches import (
    BATCH,
    EVALUATION_SEED,
    EvaluationSet,
    Settings,
    mean,
    measured,
    padded_as_read,
    through,
    usual,
)
from tokvid.evaluate.clips import Clips, agreeing, all_hidden, all_pasted, bicubic, blackened, psnrs
from tokvid.evaluate.reconstruction import some_clips, split_of
from tokvid.io.progress import progress
from tokvid.sampling.canvas import doubled, widened
from tokvid.sampling.codec import encode_clips, frames_of, latent_frames_for
from tokvid.sampling.edits import check_trained
from tokvid.sampling.given import followed
from tokvid.sampling.models import Models
from tokvid.sampling.window import Around
from tokvid.tasks.conditions import CONDITIONS, with_means
from tokvid.tasks.tasks import outside_a_box

SHOWN, COLUMNS, ROWS = 2, 6, "rows"  # clips of a task on a sheet, frames of each, and where they are kept
KINDS, MOTION = ("psnr", "simple_psnr", "ceiling_psnr"), "motion"  # figures of each clip
ALL = "all"


@dataclasses.dataclass(frozen=True)
class RealClips(Clips):
    """Clips of a dataset, uint8 (B, T, H, W, 3), and their captions."""

    video_BTHWC: np.ndarray
    texts: list[str]

    @property
    def truth(self) -> np.ndarray:
        """The clips."""
        return self.video_BTHWC


class Edit(NamedTuple):
    """What a task was given and made; and what is compared with it, all videos (B, T, H, W, 3).

    `simple`: the simplest way to do the same; `ceiling`: the true clip through the tokenizer; `where_BTHW`: the pixels
    that are compared, None for all.
    """

    seen: np.ndarray
    made: np.ndarray
    simple: np.ndarray
    ceiling: np.ndarray
    where_BTHW: np.ndarray | None = None


def _from_condition(clips: RealClips, name: str, simple: np.ndarray, first_BHWC: np.ndarray | None = None) -> Edit:
    seen = clips.seen(name)
    made = clips.sampled(clips.texts, [clips.source(name, seen)], first_BHWC=first_BHWC)
    if first_BHWC is not None and CONDITIONS[name].agree is not None:
        (made,) = followed(iter([made]), iter(np.moveaxis(seen, 1, 0)), first_BHWC, clips.models.size)
    again, _ = through(clips.models.tokenizer, clips.truth)
    return Edit(seen, agreeing(name, made, seen), simple, agreeing(name, again, seen))


def _restyle(clips: RealClips) -> Edit:
    """From the outlines, with the true caption; the simplest picture is the clip's mean colour."""
    return _from_condition(clips, "edges", np.broadcast_to(_mean_color(clips.truth), clips.truth.shape))


def _colourise(clips: RealClips) -> Edit:
    """From the luma; the simplest colours are none."""
    return _from_condition(clips, "grey", clips.seen("grey"))


def _restyle_from_first(clips: RealClips) -> Edit:
    """From the outlines and the true first frame, which is simply repeated; compared after it."""
    first = clips.truth[:, :1]
    edit = _from_condition(clips, "edges", first.repeat(clips.frames, axis=1), first[:, 0])
    return edit._replace(where_BTHW=_after_first(clips))


def _colourise_from_first(clips: RealClips) -> Edit:
    """From the luma and the true first frame, whose colours simply stay where they are; compared after it."""
    first = clips.truth[:, :1]
    simple = agreeing("grey", first.repeat(clips.frames, axis=1), clips.seen("grey"))
    return _from_condition(clips, "grey", simple, first[:, 0])._replace(where_BTHW=_after_first(clips))


def _after_first(clips: RealClips) -> np.ndarray:
    after_T = np.arange(clips.frames) > 0
    return np.broadcast_to(after_T[:, None, None], clips.truth.shape[:-1])


def _mean_color(video_BTHWC: np.ndarray) -> np.ndarray:
    return np.rint(video_BTHWC.mean(axis=(1, 2, 3), keepdims=True)).astype(np.uint8)


def _inpaint(clips: RealClips) -> Edit:
    """A box, a quarter to three quarters as high and wide as the picture, which may move; compared inside of it."""
    known = [outside_a_box(clips.tokens.shape[1:4], np.random.default_rng(int(seed))) for seed in clips.seeds_B]
    inside = clips.pixels(np.stack(known))
    tokens = encode_clips(clips.models.tokenizer, all_hidden(clips.truth, inside))
    return _of_known(clips, Around(tokens, np.stack(known)))


def _outpaint(clips: RealClips) -> Edit:
    """The sides of a clip of which the middle half is given; compared there."""
    columns = clips.models.transformer.config.latent[2]
    side, width = clips.models.size[1] // columns, max(1, columns // 2)
    left = (columns - width) // 2
    middle = np.ascontiguousarray(clips.truth[:, :, :, side * left : side * (left + width)])
    around, _ = widened(encode_clips(clips.models.tokenizer, middle), clips.tokens.shape[2:4], clips.tokens.shape[2:4])
    return _of_known(clips, around)


def _of_known(clips: RealClips, around: Around) -> Edit:
    """The tokens that aren't known, drawn; the simplest pixel is the nearest one that is known in the same frame."""
    inside = clips.pixels(around.known_BTHW)
    made = clips.sampled(clips.texts, around=around)
    again, _ = through(clips.models.tokenizer, clips.truth)
    return Edit(
        blackened(inside, clips.truth),
        all_pasted(made, clips.truth, inside),
        all_hidden(clips.truth, inside),
        all_pasted(again, clips.truth, inside),
        ~inside,
    )


def _upscale(clips: RealClips) -> Edit:
    """From half the size; the simplest way is bicubic interpolation."""
    low = clips.seen("low")
    made = doubled(clips.models, clips.prompts(clips.texts), clips.levels, low)
    again, _ = through(clips.models.tokenizer, clips.truth)
    return Edit(low, made, bicubic(low, 2), np.stack([with_means(*each) for each in zip(again, low, strict=True)]))


class Measure(NamedTuple):
    """How an edit is measured, and the task that weights must be trained for."""

    measure: Callable[[RealClips], Edit]
    task: str


MEASURES: dict[str, Measure] = {
    "restyle": Measure(_restyle, "restyle"),
    "restyle_from_first": Measure(_restyle_from_first, "restyle"),
    "colourise": Measure(_colourise, "colourise"),
    "colourise_from_first": Measure(_colourise_from_first, "colourise"),
    "inpaint": Measure(_inpaint, "inpaint"),
    "outpaint": Measure(_outpaint, "outpaint"),
    "upscale": Measure(_upscale, "upscale"),
}


def check_edit(name: str) -> None:
    """UserError for what is no key of MEASURES, nor "all"."""
    if name != ALL and name not in MEASURES:
        raise UserError(did_you_mean(name, [*MEASURES, ALL], "task of evaluate edits"))


def evaluate_edits(
    models: Models,
    data: DataConfig,
    name: str,
    wanted: EvaluationSet,
    settings: Callable[[str], Settings] = usual,
    show: Callable[..., object] = lambda rows, **how: None,
) -> dict[str, Any]:
    """Edits held-out clips so that the truth is what should come out, and compares the two.

    Colourise gets a clip's luma, inpaint and outpaint what is outside of a box or of the sides, upscale half the size,
    restyle the outlines, some the first frame as well; all get the caption. For each, PSNR (dB) of what is new, of the
    simplest way to do the same (`simple_psnr`), and of the true clip through the tokenizer (`ceiling_psnr`), with what
    is given kept in all three; the same for the half of the clips that moves most. `settings` gives those of a task.
    `show` gets some clips, what was given, made and true, as arguments for `contact_sheet`. UserError where the weights
    weren't trained for the task, and for fewer than 4 clips.
    """
    check_edit(name)
    if name != ALL:
        check_trained(models, MEASURES[name].task)
    known = [name for name, row in MEASURES.items() if row.task in models.tasks]
    if not (names := known if name == ALL else [name]):
        raise UserError("these weights were trained for none of the tasks; train some with layouts.tasks")
    if wanted.samples < 4:
        raise UserError(f"samples should be 4 or more, got {wanted.samples}")
    chosen = {name: settings(MEASURES[name].task) for name in names}
    each = (
        ((name, clips, count), count)
        for name in names
        for clips, count in _drawn(models.for_task(MEASURES[name].task), data, wanted, chosen[name])
    )
    with progress("evaluate edits", wanted.samples * len(names), "videos", quiet=not first()) as advance:
        lists = measured(each, lambda given: _measure(*given), advance)
    if (count := len(lists[names[0], "psnr"])) < 4:
        raise UserError(f"only {count} videos have {wanted.seconds:g} s at {wanted.fps:g} fps; 4 are needed")
    shown = [row for name in names for row in lists[name, ROWS][: 3 * SHOWN]]
    show([video for video, _ in shown], captions=[text for _, text in shown], columns=COLUMNS)
    figures: dict[str, Any] = {
        name: _figures({kind: lists[name, kind] for kind in KINDS}, lists[name, MOTION]) for name in names
    }
    about = dataclasses.asdict(wanted) | {"samples": count}
    used = {name: models.for_task(MEASURES[name].task).mark for name in names}
    asked = {name: {**dataclasses.asdict(each), "weights": used[name]} for name, each in chosen.items()}
    return figures | about | {"settings": asked, "weights": models.mark}


def _figures(lists: dict[str, list[float]], motion: list[float]) -> dict[str, Any]:
    """Means over all clips, and over the half that moves most."""
    moving = np.argsort(motion)[len(motion) - len(motion) // 2 :]
    return {
        **{kind: mean(values) for kind, values in lists.items()},
        "moving": {kind: mean([values[index] for index in moving]) for kind, values in lists.items()},
    }


def _drawn(
    models: Models, data: DataConfig, wanted: EvaluationSet, settings: Settings
) -> Iterator[tuple[RealClips, int]]:
    """Batches of held-out clips, and how many of each count: all batches have one size, for one program."""
    patch, size = models.temporal_patch, min(BATCH, wanted.samples)
    frames = frames_of(latent_frames_for(wanted.frames, patch), patch)
    rng = np.random.default_rng([EVALUATION_SEED, wanted.seed])
    cut = dataclasses.replace(data, frames=frames, fps=(wanted.fps,))
    pairs = some_clips(cut, split_of(data), wanted.samples, rng)
    for batch in padded_as_read(pairs, size, wanted.seed):
        texts = [captions[0].text if captions else "" for _, captions in batch.items]
        video_BTHWC = np.stack([video_THWC for video_THWC, _ in batch.items])
        yield RealClips(models, wanted.fps, frames, batch.seeds_B, settings, video_BTHWC, texts), batch.size


def _measure(name: str, clips: RealClips, count: int) -> dict[tuple[str, str], list[Any]]:
    """The task's figures of some clips, the first `count` of them, and under ROWS some for a sheet."""
    edit = MEASURES[name].measure(clips)
    lists: dict[tuple[str, str], list[Any]] = {
        (name, kind): psnrs(clips.truth, video_BTHWC, edit.where_BTHW)[:count]
        for kind, video_BTHWC in zip(KINDS, (edit.made, edit.simple, edit.ceiling), strict=True)
    }
    change_BTHWC = np.abs(np.diff(clips.truth.astype(np.int16), axis=1))
    lists[name, MOTION] = change_BTHWC.mean(axis=(1, 2, 3, 4)).tolist()[:count]
    rows = zip(edit.seen, edit.made, clips.truth, strict=True)
    lists[name, ROWS] = [
        pair
        for seen, made, truth in itertools.islice(rows, min(SHOWN, count))
        for pair in ((seen, f"{name}: given"), (made, "made"), (truth, "truth"))
    ]
    return lists
