"""Writes videos (.mp4, .gif), images and contact sheets. Outputs appear as a whole or not at all."""

import contextlib
import fractions
import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)

from tokvid.errors import UserError
from tokvid.io.files import IMAGE_SUFFIXES, SHEET_SUFFIXES, VIDEO_SUFFIXES, atomic, check_output, check_suffix

LONGEST_DELAY = 65535  # of a GIF frame, in hundredths of a second
SAMPLED_FRAMES = 64  # of a GIF, from which a palette of all of its frames is chosen
MOST_SQUARED = 16.0  # mean squared difference, 36 dB, that this palette may make to a frame
UNSEEN = 5  # levels of a channel by which a pixel of a GIF may differ from what is shown and stay
# Frames a second: .mp4 rates are fractions with denominators up to 1001; viewers slow down GIFs with shorter delays.
RATES = {".mp4": (1 / 1001, 1000), ".gif": (100 / LONGEST_DELAY, 50)}
GAP = 4  # pixels between the parts of a contact sheet
CELL = 128  # a contact sheet's frames are scaled up to at least about this many pixels

ACCURATE = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP

# Fonts of many scripts, where the system has one; Pillow's own has Latin letters only.
FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
)


@functools.cache
def _x264() -> dict[str, str]:
    """The encoder's options. With AVX-512, the same frames make other files at sizes that are no multiples of 16.

    It is the macroblock tree that differs, but without it, files are larger by a third.
    """
    options = {"crf": "16", "preset": "medium"}
    with contextlib.suppress(OSError):  # where there is no such file, Linux is not what runs
        if "avx512" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
            options["x264-params"] = "asm=avx2"
    return options


def _frame(image_HWC: np.ndarray) -> np.ndarray:
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or 0 in image_HWC.shape:
        raise ValueError(f"a frame should be uint8 (H, W, 3), got {image_HWC.dtype} {image_HWC.shape}")
    return np.ascontiguousarray(image_HWC)


class VideoWriter:
    """Writes frames one by one to an .mp4 (H.264, flat memory) or a looping .gif, in a `with` statement.

    The file appears, or replaces an older one, when the block ends without an error. Frames are uint8 (H, W, 3) of one
    size. In an .mp4, the last row or column of an odd side is doubled, because its colours have half the resolution.

    Raises:
        UserError: another suffix, a rate out of range, no frames, a full disk, a read-only folder.
        ValueError: a frame of another shape or type than the first.
    """

    def __init__(self, path: str | Path, fps: float | fractions.Fraction):
        self.path = Path(path)
        check_suffix(path, *VIDEO_SUFFIXES)
        self.suffix = self.path.suffix.lower()
        lowest, highest = RATES[self.suffix]
        if not lowest <= fps <= highest:
            raise UserError(
                f"cannot write {path} at {fps} fps: allowed for {self.suffix} are {lowest:.3g} to {highest}"
            )
        self.fps = fractions.Fraction(fps).limit_denominator(1001)
        self.size: tuple[int, int] | None = None
        self.frames = 0
        self._gif: list[PIL.Image.Image] = []
        self._container: Any = None
        self._stream: Any = None
        self._scaler = VideoReformatter()

    def __enter__(self) -> "VideoWriter":
        check_output(self.path)
        with contextlib.ExitStack() as stack:
            self._temporary = stack.enter_context(atomic(self.path))
            stack.callback(self._close)
            self._stack = stack.pop_all()
        return self

    def _close(self) -> None:
        if self._container is not None:
            with contextlib.suppress(av.FFmpegError):  # after a failure, closing fails too
                self._container.close()
            self._container = None

    def write(self, image_HWC: np.ndarray) -> None:
        """Adds one frame, uint8 (H, W, 3)."""
        image_HWC = _frame(image_HWC)
        if self.size is None:
            self.size = (image_HWC.shape[0], image_HWC.shape[1])
        if image_HWC.shape[:2] != self.size:
            raise ValueError(f"frame {self.frames} is {image_HWC.shape[:2]}, the ones before were {self.size} (H, W)")
        if self.suffix == ".gif":
            image = PIL.Image.fromarray(image_HWC)
            image = image.quantize(256, PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE)
            equal = bool(self._gif) and _same(self._gif[-1], image)
            self._gif.append(self._gif[-1] if equal else image)
        else:
            self._encode(image_HWC)
        self.frames += 1

    def _encode(self, image_HWC: np.ndarray) -> None:
        height, width = image_HWC.shape[:2]
        if height % 2 or width % 2:
            image_HWC = np.pad(image_HWC, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        if self._container is None:
            self._container = av.open(str(self._temporary.absolute()), "w", options={"movflags": "+faststart"})
            stream = self._container.add_stream("libx264", rate=self.fps, options=_x264())
            stream.height, stream.width, stream.pix_fmt = *image_HWC.shape[:2], "yuv420p"
            context = stream.codec_context
            context.thread_count = 1  # no lookahead thread
            # Stated in the file, so that players need not guess.
            context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            self._stream = stream
        frame = self._scaler.reformat(
            av.VideoFrame.from_ndarray(image_HWC, format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.AREA | ACCURATE,
            threads=1,
        )
        frame.pts, frame.time_base = self.frames, 1 / self.fps
        self._container.mux(self._stream.encode(frame))

    def _finish(self) -> None:
        if not self.frames:
            raise UserError(f"cannot write {self.path}: there are no frames; write at least one")
        if self.suffix == ".mp4":
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None
            return
        # Delays are whole hundredths of a second; rounding the ends keeps the total right (30 fps: 30, 40, 30 ms).
        ends = [round(100 * (i + 1) / self.fps) for i in range(self.frames)]
        delays = [10 * (end - begin) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        images, delays = _lasting(self._gif, _held(self._gif), delays)
        images[0].save(self._temporary, "GIF", save_all=True, append_images=images[1:], duration=delays, loop=0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:  # on exit: closes the file, then moves it into place or removes it
            if error is not None:
                raise error
            self._finish()


def _held(images: list[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """Frames of a GIF with the same palette, where pixels hardly change none at all: a third or less of the size.

    Frames in colours of their own stay so where common colours would be too far from those of any frame.
    """
    shown = images[:: -(-len(images) // SAMPLED_FRAMES)]
    sampled = np.concatenate([np.asarray(image.convert("RGB"))[::2, ::2].reshape(1, -1, 3) for image in shown], axis=1)
    # 255, so that one is left to say that nothing changes; median cut would forget the colours of small objects.
    palette = PIL.Image.fromarray(sampled).quantize(255, PIL.Image.Quantize.FASTOCTREE).getpalette("RGB") or []
    common_KC = np.array(palette, np.float32).reshape(-1, 3)
    held: list[PIL.Image.Image] = []
    for before, image in zip([None, *images], images, strict=False):
        if before is image:
            held.append(held[-1])
            continue
        own_KC, codes_HW = np.array(image.getpalette("RGB"), np.float32).reshape(-1, 3), np.asarray(image)
        squared_KK = ((own_KC[:, None] - common_KC) ** 2).sum(axis=-1)
        if squared_KK.min(axis=1)[codes_HW].mean() > 3 * MOST_SQUARED:
            return images
        common_HW = squared_KK.argmin(axis=1).astype(np.uint8)[codes_HW]
        if held:
            before_HW = np.asarray(held[-1])
            near_HW = np.abs(own_KC[codes_HW] - common_KC[before_HW]).max(axis=-1) <= UNSEEN
            common_HW = np.where(near_HW, before_HW, common_HW)
        held.append(PIL.Image.fromarray(common_HW, "P"))
        held[-1].putpalette(palette)
    return held


def _same(image: PIL.Image.Image, other: PIL.Image.Image) -> bool:
    return image.convert("RGB").tobytes() == other.convert("RGB").tobytes()


def _lasting(
    images: list[PIL.Image.Image], held: list[PIL.Image.Image], delays: list[int]
) -> tuple[list[PIL.Image.Image], list[int]]:
    """The held frames of a GIF, of which equal images are joined, as Pillow does, but only up to LONGEST_DELAY.

    Otherwise a frame without changes follows, as it does an image that is not equal, but held. Delays are milliseconds.
    """
    clear = [PIL.Image.new("P", images[0].size, code) for code in (0, 1)]  # alternately, or Pillow would join them
    for code, image in enumerate(clear):
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.info["transparency"] = code
    shown, lasting = [held[0]], [delays[0]]
    for number, delay in enumerate(delays[1:], start=1):
        equal = images[number - 1] is images[number]
        if equal and lasting[-1] + delay <= 10 * LONGEST_DELAY:
            lasting[-1] += delay
            continue
        unchanged = equal or _same(held[number - 1], held[number])
        shown.append(clear[len(shown) % 2] if unchanged else held[number])
        lasting.append(delay)
    return shown, lasting


def write_video(path: str | Path, video_THWC: Iterable[np.ndarray], fps: float | fractions.Fraction) -> None:
    """Writes uint8 (T, H, W, 3), or an iterable of (H, W, 3), to an .mp4 or .gif; see VideoWriter."""
    with VideoWriter(path, fps) as writer:
        for image_HWC in video_THWC:
            writer.write(image_HWC)


def write_image(path: str | Path, image_HWC: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) to a .png or .jpg. UserError if it can't."""
    _save(path, PIL.Image.fromarray(_frame(image_HWC)))


def _save(path: str | Path, image: PIL.Image.Image, texts: dict[str, str] | None = None) -> None:
    check_output(path, *IMAGE_SUFFIXES)
    with atomic(path) as temporary:
        if Path(path).suffix.lower() == ".png":
            info = PIL.PngImagePlugin.PngInfo()
            for key, text in (texts or {}).items():
                info.add_itxt(key, text)
            image.save(temporary, "PNG", pnginfo=info)
        else:
            image.save(temporary, "JPEG", quality=95, subsampling=0)


def contact_sheet(
    path: str | Path,
    rows: Sequence[np.ndarray],
    *,
    captions: Sequence[str] | None = None,
    columns: int = 8,
) -> None:
    """Writes a .png with a row for each video uint8 (T, H, W, 3), its caption above it.

    A row shows at most `columns` frames, evenly spaced from the first to the last; small ones are enlarged by a whole
    factor. Letters without a font are written as \\uXXXX; the image's text field "captions" keeps all letters.

    Raises:
        UserError: no rows, another suffix, or a path that cannot be written.
        ValueError: a video of another shape or type, or not one caption for each.
    """
    check_suffix(path, *SHEET_SUFFIXES)
    if not len(rows):
        raise UserError(f"cannot write {path}: there are no videos; give at least one")
    if columns < 1 or (captions is not None and len(captions) != len(rows)):
        raise ValueError(f"{len(rows)} rows need as many captions and at least 1 column, got {captions}, {columns}")
    strips = [_strip(video_THWC, columns) for video_THWC in rows]
    width = max(GAP + strip.width for strip in strips)
    labels = [_label(text, width - 2 * GAP) for text in captions] if captions is not None else [None] * len(rows)
    height = GAP + sum(
        strip.height + GAP + (label.height + GAP if label else 0) for strip, label in zip(strips, labels, strict=True)
    )
    sheet = PIL.Image.new("RGB", (width, height), "white")
    top = GAP
    for strip, label in zip(strips, labels, strict=True):
        for part in (label, strip):
            if part is not None:
                sheet.paste(part, (GAP, top))
                top += part.height + GAP
    _save(path, sheet, {"captions": "\n".join(captions)} if captions is not None else None)


def _strip(video_THWC: np.ndarray, columns: int) -> PIL.Image.Image:
    """At most `columns` frames side by side, enlarged."""
    if video_THWC.ndim != 4 or not len(video_THWC):
        raise ValueError(f"a row should be uint8 (T, H, W, 3) with T at least 1, got {video_THWC.shape}")
    chosen = np.unique(np.linspace(0, len(video_THWC) - 1, min(columns, len(video_THWC))).round().astype(int))
    height, width = video_THWC.shape[1:3]
    scale = max(1, math.ceil(CELL / max(height, width)))
    strip = PIL.Image.new("RGB", (len(chosen) * (width * scale + GAP), height * scale), "white")
    for column, index in enumerate(chosen):
        image = PIL.Image.fromarray(_frame(video_THWC[index]))
        image = image.resize((width * scale, height * scale), PIL.Image.Resampling.NEAREST)
        strip.paste(image, (column * (width * scale + GAP), 0))
    return strip


def _label(text: str, width: int) -> PIL.Image.Image | None:
    """A caption on at most two lines of `width` pixels."""
    font, text = _font_for(" ".join(text.split()))
    lines = [""]
    for word in text:
        if font.getlength(lines[-1] + word) > width and lines[-1]:
            lines.append("")
        lines[-1] += word
    if len(lines) > 2:
        lines = [lines[0], lines[1][:-1] + "..."]
    image = PIL.Image.new("RGB", (width, 18 * len(lines)), "white")
    draw = PIL.ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        draw.text((0, 18 * row), line, fill="black", font=font)
    return image


@functools.cache
def _fonts() -> list[Any]:
    """Pillow's own font, then the FONTS of this machine."""
    fonts: list[Any] = [PIL.ImageFont.load_default(14)]
    for name in FONTS:
        with contextlib.suppress(OSError):
            fonts.append(PIL.ImageFont.truetype(name, 14))
    return fonts


def legible(text: str) -> bool:
    """Whether a font of this machine has all letters of it."""
    return _font_for(text)[1] == text


def _font_for(text: str) -> tuple[Any, str]:
    """The first font with all letters, and the text; without one, the first font, and missing letters as \\uXXXX."""

    def lacks(font: Any, letter: str) -> bool:
        def drawn(letter: str) -> tuple[tuple[int, int], bytes]:
            mask = font.getmask(letter)
            return mask.size, bytes(mask)

        return not letter.isspace() and drawn(letter) == drawn("\uffff")  # a font's glyph for missing letters

    for font in _fonts():
        if not any(lacks(font, letter) for letter in set(text)):
            return font, text
    font = _fonts()[0]
    escaped = {letter: letter.encode("unicode_escape").decode() for letter in set(text) if lacks(font, letter)}
    return font, "".join(escaped.get(letter, letter) for letter in text)
