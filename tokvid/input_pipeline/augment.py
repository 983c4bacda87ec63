"""Random augmentation of clips, limited to changes that keep their captions true."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from tokvid.config import DataConfig
from tokvid.errors import UserError

# Words, English and Chinese, that a mirrored clip contradicts: sides, turns, and anything to read.
SIDES = re.compile(
    r"\b((left|right)(most|wards?|-?hand(ed)?)?|(north|south)?(east|west)(ern|wards?|bound)?"
    r"|(counter|anti)?-?clockwise|letter(s|ing)?|words?|texts?|(hand-?)?writ\w+|read\w*|signs?|numbers?|digits?"
    r"|clocks?|watch face\w*|keyboards?)\b"
    r"|[左右东東西字写寫读讀钟鐘]|[顺順逆](时|時)(针|針)|数字|數字",
    re.IGNORECASE,
)
# Words that another light contradicts.
LIGHT = re.compile(
    r"\b(bright\w*|dark\w*|light\w*|dim\w*|night\w*|day(light|time)?|sun\w*|moon\w*|shadow\w*|gr[ae]y\w*|black\w*"
    r"|white\w*|pale\w*|fade\w*)\b|[亮暗黑白灰夜昼晝]|阴影|陰影|阳光|陽光",
    re.IGNORECASE,
)
LARGEST_ZOOM = 4.0


def check(config: DataConfig) -> None:
    """UserError for shares and factors out of range."""
    shares = 0 <= config.flip <= 1 and 0 <= config.conditions <= 1
    if not (shares and 0 <= config.light < 1 and 1 <= config.zoom <= LARGEST_ZOOM):
        raise UserError(
            f"data.flip {config.flip} and data.conditions {config.conditions} should be 0 to 1, "
            f"data.light {config.light} 0 to less than 1, data.zoom {config.zoom} 1 to {LARGEST_ZOOM:g}"
        )


def magnified(config: DataConfig, rng: np.random.Generator) -> tuple[int, int]:
    """The size at which to read a clip, before `augment` crops it."""
    factor = rng.uniform(1, config.zoom) if config.zoom > 1 else 1.0
    return round(config.size[0] * factor), round(config.size[1] * factor)


def augment(
    video_THWC: np.ndarray, captions: Sequence[str], config: DataConfig, rng: np.random.Generator
) -> np.ndarray:
    """Crops uint8 frames at random to `config.size`, may mirror them and change their light: all frames alike."""
    height, width = config.size
    captions = [unicodedata.normalize("NFKC", caption) for caption in captions]  # as the text model reads them
    rows, columns = video_THWC.shape[1] - height, video_THWC.shape[2] - width
    if rows or columns:
        top, left = rng.integers(rows + 1), rng.integers(columns + 1)
        video_THWC = video_THWC[:, top : top + height, left : left + width]
    if config.flip and rng.random() < config.flip and not any(SIDES.search(caption) for caption in captions):
        video_THWC = video_THWC[:, :, ::-1]
    if config.light and not any(LIGHT.search(caption) for caption in captions):
        brightness, contrast = rng.uniform(1 - config.light, 1 + config.light, size=2)
        level = brightness * (contrast * (np.arange(256) - 127.5) + 127.5)
        video_THWC = np.clip(np.rint(level), 0, 255).astype(np.uint8)[video_THWC]
    return np.ascontiguousarray(video_THWC)
