"""How much of a frame is covered by writing that was laid over it: titles, subtitles, watermarks. NumPy only."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, UInt8

from tokvid.metrics.footage import luma

ROWS, COLUMNS = 12, 32  # pixels of the blocks that are searched
STROKE = 40.0  # lumas by which a stroke differs from its surroundings, at least
THICKEST = 14  # pixels of a stroke, at most
CORE = 0.7  # of the strongest difference in a block, above which pixels are the middle of a stroke
INK = 0.08  # share of a block that such pixels cover, at least
STROKES = 16  # begun in a block, counted along its rows, at least
FILL = 14.0  # lumas by which the strokes of one text differ, at most,
ALIKE = 0.45  # in this share of a block's
LINE, SHORTEST = 0.5, 3  # share of the width, and blocks, that a line of text spans, at least,
GAP = 1  # with gaps of as many blocks, at most,
FULL = 0.6  # and this share of its blocks with writing, at least
WIDEST = 640  # pixels across, to which frames are reduced


def text_share(image_HWC: UInt8[np.ndarray, "h w 3"]) -> float:
    """The share of a frame that is covered by lines of writing, 0 to 1; of two sizes of letters, the larger share.

    A block with writing has many thin strokes of about one luma, all lighter or all darker than their surroundings. So
    have stripes, chair backs and keyboards, but hardly ever side by side across half of the frame.
    """
    fine_HW = _reduced(luma(image_HWC), -(-image_HWC.shape[1] // WIDEST))
    shares = []
    for luma_HW in (fine_HW, _reduced(fine_HW, 2)):
        if luma_HW.shape[0] >= ROWS and luma_HW.shape[1] >= COLUMNS:
            shares.append(_light_share(luma_HW) + _light_share(255 - luma_HW))
    return max(shares, default=0.0)


def _reduced(luma_HW: Float[np.ndarray, "h w"], factor: int) -> Float[np.ndarray, "h2 w2"]:
    rows, columns = (size - size % factor for size in luma_HW.shape)
    return luma_HW[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor).mean((1, 3))


def _light_share(luma_HW: Float[np.ndarray, "h w"]) -> float:
    """The share of a frame in lines of light writing."""
    text_RC, fill_RC = _light(luma_HW)
    spans = [span for row in zip(text_RC, fill_RC, strict=True) for span in _lines(*row)]
    return sum(spans) / text_RC.size


def _lines(text_C: Bool[np.ndarray, " c"], fill_C: Float[np.ndarray, " c"]) -> Iterator[int]:
    """The lengths in blocks of the lines of text in a row of blocks."""
    line: list[int] = []
    for column in [*np.flatnonzero(text_C).tolist(), None]:
        if column is not None and (
            not line or (column - line[-1] <= GAP + 1 and abs(fill_C[column] - np.median(fill_C[line])) < FILL)
        ):
            line.append(column)
            continue
        if line:
            span = line[-1] - line[0] + 1
            if span >= max(SHORTEST, LINE * len(text_C)) and len(line) >= FULL * span:
                yield span
        line = [] if column is None else [column]


def _light(luma_HW: Float[np.ndarray, "h w"]) -> tuple[Bool[np.ndarray, "r c"], Float[np.ndarray, "r c"]]:
    """The blocks with light writing, and the luma of the writing."""
    rows, columns = luma_HW.shape[0] // ROWS, luma_HW.shape[1] // COLUMNS
    part_HW = luma_HW[: rows * ROWS, : columns * COLUMNS]

    def blocks(image_HW: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "r c n"]:
        return image_HW.reshape(rows, ROWS, columns, COLUMNS).transpose(0, 2, 1, 3).reshape(rows, columns, -1)

    luma_RCN, raised_RCN = blocks(part_HW), blocks(part_HW - _without_thin(part_HW))
    stroke_RCN = raised_RCN > STROKE
    core_RCN = stroke_RCN & (raised_RCN >= CORE * raised_RCN.max(axis=-1, keepdims=True))
    count_RC = core_RCN.sum(axis=-1)
    ordered_RCN = np.sort(np.where(core_RCN, luma_RCN, np.inf), axis=-1)
    fill_RC = np.take_along_axis(ordered_RCN, count_RC[..., None] // 2, axis=-1)[..., 0]  # their median
    fill_RC = np.where(np.isfinite(fill_RC), fill_RC, 0)
    alike_RC = (core_RCN & (np.abs(luma_RCN - fill_RC[..., None]) < FILL)).sum(axis=-1)
    begun_RC = (np.diff(stroke_RCN.reshape(rows, columns, ROWS, COLUMNS).astype(np.int8), axis=-1) == 1).sum((2, 3))
    text_RC = (count_RC >= INK * luma_RCN.shape[-1]) & (begun_RC >= STROKES) & (alike_RC >= ALIKE * count_RC)
    return text_RC, fill_RC


def _without_thin(luma_HW: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Without anything lighter than its surroundings and at most THICKEST pixels wide: a morphological opening."""
    padded_HW = np.pad(luma_HW, ((0, 0), (THICKEST, THICKEST)), "edge")
    for extreme in (np.minimum, np.maximum):
        width = 1  # of the window so far: it doubles
        while width <= THICKEST:
            step = min(width, THICKEST + 1 - width)
            padded_HW = extreme(padded_HW[:, step:], padded_HW[:, :-step])
            width += step
    return padded_HW
