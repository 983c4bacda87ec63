"""Videos larger than the trained size: windows of that size, placed side by side on a canvas of tokens.

Each place is generated over the whole length of the video, beside what is on the canvas already.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from tokvid.errors import UserError
from tokvid.sampling.codec import StreamDecoder, decode_clips, encode_clips
from tokvid.sampling.edits import check_trained
from tokvid.sampling.given import pasted, reduced
from tokvid.sampling.levels import Levels, tokens_of
from tokvid.sampling.models import Models
from tokvid.sampling.prompts import Prompt, with_noise_of
from tokvid.sampling.story import Story, first_frames, levels_of, prompts_of
from tokvid.sampling.window import Around, Source
from tokvid.tasks.conditions import with_means
from tokvid.tokenizer.cvivit import token_side

WIDEST = 4.0  # of a canvas: the longer side over the shorter one
PLACE, DOUBLING = 1_000, 1_000_000  # between the numbers whose noise places and doublings have; those of levels are few
LARGEST = 64  # times the size of an upscaled video
Place = tuple[int, int]  # the first row and column of a window on the canvas


def paint(
    models: Models,
    prompts: Sequence[Prompt],
    levels: Levels,
    canvas: Around,
    places: Sequence[Place],
    sources: Callable[[int, int], Sequence[Source]] = lambda top, left: (),
) -> Int[np.ndarray, "b t h w q"]:
    """The tokens of canvases of a batch of videos: what is unknown is generated, window by window at the `places`, in
    order. `sources` gives the conditions of a place.
    """
    tokens_BTHWQ, known_BTHW = canvas.tokens_BTHWQ.copy(), canvas.known_BTHW.copy()
    _, rows, columns = models.transformer.config.latent
    none_BTHWQ = models.no_tokens(len(tokens_BTHWQ))
    for number, (top, left) in enumerate(places):
        at = np.s_[:, :, top : top + rows, left : left + columns]
        if known_BTHW[at].all():
            continue
        around, beside = Around(tokens_BTHWQ[at], known_BTHW[at]), sources(top, left)
        own = with_noise_of(PLACE * number, prompts)
        parts = tokens_of(models, own, levels, none_BTHWQ, sources=beside, around=around)
        tokens_BTHWQ[at], known_BTHW[at] = np.concatenate(list(parts), axis=1), True
    return tokens_BTHWQ


def canvas_sizes(models: Models, ratio: float, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """For a canvas `ratio` times as wide as high: the pixels (height, width) at which to read a video of
    `height` x `width`, and those of the canvas.

    Across the side to be extended, both are the models'; along it, the canvas is at least as large. UserError where
    the video has the canvas's form already.
    """
    if not 1 / WIDEST <= ratio <= WIDEST:
        raise UserError(f"a canvas should be 1:{WIDEST:g} to {WIDEST:g}:1, got {ratio:g}:1")
    side, wider = token_side(models.tokenizer.config), ratio > width / height
    across, window = models.size if wider else models.size[::-1]
    shown, whole = (across * form for form in ((width / height, ratio) if wider else (height / width, 1 / ratio)))
    inner, outer = max(1, round(shown / side)) * side, round(whole / side) * side
    if outer <= inner:
        raise UserError(
            f"the video of {width}x{height} pixels is as wide as that canvas already, to {side} pixels; "
            "give a wider or a higher --canvas"
        )
    outer = max(outer, window)
    return ((across, inner), (across, outer)) if wider else ((inner, across), (outer, across))


def outpaint(
    models: Models, story: Story, frames: Iterator[UInt8[np.ndarray, "h w 3"]], sizes: tuple[Place, Place]
) -> tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]:
    """A video in the middle of a canvas, with new sides; `sizes` are those of `canvas_sizes`.

    The video's is the first of these, or a multiple, as is the canvas then.
    """
    check_trained(models, "outpaint")
    side, inner_THWC = token_side(models.tokenizer.config), np.stack(list(frames))
    inner_THWQ = encode_clips(models.tokenizer, np.stack([reduced(each, sizes[0]) for each in inner_THWC])[None])[0]
    shape = (sizes[1][0] // side, sizes[1][1] // side)
    canvas, places = widened(inner_THWQ[None], shape, models.transformer.config.latent[1:])
    painted_BTHWQ = paint(models, prompts_of(story, models), levels_of(story, models, len(inner_THWC)), canvas, places)
    larger = side * (inner_THWC.shape[1] // sizes[0][0])
    inside_HW = canvas.known_BTHW[0, 0].repeat(larger, axis=0).repeat(larger, axis=1)
    given_THWC = np.zeros((len(inner_THWC), *inside_HW.shape, 3), np.uint8)
    given_THWC[:, inside_HW] = inner_THWC.reshape(len(inner_THWC), -1, 3)
    inside_THW = np.broadcast_to(inside_HW, given_THWC.shape[:3])
    return len(given_THWC), pasted(_decoded(models, painted_BTHWQ[0], len(given_THWC)), given_THWC, inside_THW)


def widened(
    inner_BTHWQ: Int[np.ndarray, "b t h w q"], shape: tuple[int, int], window: tuple[int, int]
) -> tuple[Around, list[Place]]:
    """Videos in the middle of canvases of `shape` tokens, wider or higher than they are; and the places of windows of
    `window` tokens that fill these, outward."""
    B, T, rows, columns, Q = inner_BTHWQ.shape
    top, left = (shape[0] - rows) // 2, (shape[1] - columns) // 2
    tokens_BTHWQ = np.zeros((B, T, *shape, Q), np.int32)
    known_BTHW = np.zeros(tokens_BTHWQ.shape[:-1], bool)
    inside = np.s_[:, :, top : top + rows, left : left + columns]
    tokens_BTHWQ[inside], known_BTHW[inside] = inner_BTHWQ, True
    if shape[1] > columns:
        places = [(0, start) for start in outward(shape[1], window[1], left, left + columns)]
    else:
        places = [(start, 0) for start in outward(shape[0], window[0], top, top + rows)]
    return Around(tokens_BTHWQ, known_BTHW), places


def outward(length: int, window: int, first: int, end: int) -> list[int]:
    """The starts of windows that fill a side of `length` from the known part `first` to `end` on, both ways.

    A window has at most half of its tokens new.
    """
    starts = []
    while end < length:
        start = min(max(first, end + window // 2 - window), length - window)
        starts.append(start)
        first, end = min(first, start), start + window
    while first > 0:
        start = max(min(end - window, first - window // 2), 0)
        starts.append(start)
        first = start
    return starts


def tiled(length: int, window: int) -> list[int]:
    """The starts of windows that cover a side of `length`, each sharing a half with the one before."""
    return [*range(0, length - window, window // 2), length - window]


def check_times(times: int) -> None:
    """UserError for what isn't a power of 2, from 2 to LARGEST."""
    if not 2 <= times <= LARGEST or times & (times - 1):
        raise UserError(f"videos become 2, 4, 8, … times as large, not {times}; {LARGEST} is the most")


def upscale(
    models: Models, story: Story, video_THWC: UInt8[np.ndarray, "t h w 3"], times: int
) -> UInt8[np.ndarray, "frames rows columns 3"]:
    """A video of half the models' size at `times` its size: 2, or a power of it by doing that again.

    Beyond the models' size, windows share halves with those above and before them (as the tiles of DemoFusion).
    """
    check_trained(models, "upscale")
    check_times(times)
    prompts, levels = prompts_of(story, models), levels_of(story, models, len(video_THWC))
    video_BTHWC = video_THWC[None]
    while times > 1:
        video_BTHWC, times = doubled(models, prompts, levels, video_BTHWC), times // 2
    return video_BTHWC[0]


def doubled(
    models: Models, prompts: Sequence[Prompt], levels: Levels, video_BTHWC: UInt8[np.ndarray, "b t h w 3"]
) -> UInt8[np.ndarray, "b t rows columns 3"]:
    """A batch of videos at twice their size."""
    config, side = models.transformer.config, token_side(models.tokenizer.config)
    _, rows, columns = config.latent
    shape = [2 * size // side for size in video_BTHWC.shape[2:4]]

    def sources(top: int, left: int) -> list[Source]:
        first_row, first_column = top * side // 2, left * side // 2
        part_BTHWC = video_BTHWC[:, :, first_row:, first_column:][:, :, : rows * side // 2, : columns * side // 2]
        return [Source("low", levels.rates[0], iter([encode_clips(models.tokenizer, part_BTHWC)]))]

    blank_BTHWQ = np.zeros((len(video_BTHWC), levels.latent_frames, *shape, config.subcodes), np.int32)
    places = [(top, left) for top in tiled(shape[0], rows) for left in tiled(shape[1], columns)]
    canvas = Around(blank_BTHWQ, np.zeros(blank_BTHWQ.shape[:-1], bool))
    doublings = video_BTHWC.shape[2] * 2 // models.size[0] - 1  # those before, of which each has noise of its own
    painted_BTHWQ = paint(models, with_noise_of(DOUBLING * doublings, prompts), levels, canvas, places, sources)
    made_BTHWC = decode_clips(models.tokenizer, painted_BTHWQ)[:, : video_BTHWC.shape[1]]
    return np.stack([with_means(made, small) for made, small in zip(made_BTHWC, video_BTHWC, strict=True)])


def _decoded(
    models: Models, tokens_THWQ: Int[np.ndarray, "t h w q"], count: int
) -> Iterator[UInt8[np.ndarray, "frames rows columns 3"]]:
    """The first `count` frames of a canvas, a few at a time."""
    decoder = StreamDecoder(models.tokenizer, 1, *tokens_THWQ.shape[1:3])
    return first_frames(count, (decoder.feed(latent_THWQ[None, None]) for latent_THWQ in tokens_THWQ))
