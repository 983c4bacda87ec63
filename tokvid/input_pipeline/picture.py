"""Pictures as arrays: video frames fitted to a size, and still images, upright and on white."""

import contextlib
from typing import Any, Literal

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from tokvid.errors import UserError, did_you_mean, reason
from tokvid.input_pipeline.encoded import IMAGES, MAX_PIXELS, Encoded, image_kind, name_of, opened

Fit = Literal["crop", "letterbox"]

# FFmpeg's fast paths are 1.4 grey levels too dark on real clips; these flags agree with exact averaging to 0.3.
ACCURATE = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP

UNTOLD = 2  # FFmpeg's number of a frame's colour matrix that the file doesn't tell


def _matrix(frame: Any) -> Colorspace | None:
    """The colour matrix of large video that doesn't tell it: BT.709, as players assume; None for all other frames."""
    large = frame.width >= 1280 or frame.height > 576
    return Colorspace.ITU709 if large and frame.colorspace == UNTOLD and not frame.format.is_rgb else None


def _opaque(frame: Any) -> Any:
    """A frame without transparency, on white."""
    if not frame.format.has_palette and not any(each.is_alpha for each in frame.format.components):
        return frame
    rgba = frame.reformat(format="rgba", src_colorspace=_matrix(frame), interpolation=Interpolation.BILINEAR | ACCURATE)
    return on_white(PIL.Image.fromarray(rgba.to_ndarray()))


Turn = tuple[bool, bool, bool]  # swap rows and columns, then flip rows, then flip columns


def _turn(frame: Any) -> Turn:
    """The display matrix of a frame. Read of one frame of a video: PyAV then holds that frame in a cycle, and all of
    them would wait in memory for Python's collector."""
    try:
        matrix = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32)[:9].reshape(3, 3)
    except (KeyError, ValueError):
        return False, False, False
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):  # other angles are rounded to quarter turns
        return False, d < 0, a < 0
    return True, b < 0, c < 0


def shown_size(frame: Any, aspect: Any, turn: Turn | None = None) -> tuple[int, int]:
    """Height and width of a frame in square pixels, after rotation (`turn`, or the frame's own)."""
    ratio = float(aspect) if aspect and 1 / 4 <= aspect <= 4 else 1.0
    height, width = frame.height, max(1, round(frame.width * ratio))
    return (width, height) if (turn or _turn(frame))[0] else (height, width)


class Fitter:
    """Turns decoded frames into uint8 (H, W, 3) of one size; keeps FFmpeg's scaler between frames."""

    def __init__(self, size: tuple[int, int] | None, fit: Fit, aspect: Any = None):
        if fit not in ("crop", "letterbox"):
            raise UserError(did_you_mean(fit, ("crop", "letterbox"), "fit"))
        if size is not None and not (min(size) >= 1 and size[0] * size[1] <= MAX_PIXELS):
            raise UserError(f"size {size[0]}x{size[1]} should be at least 1x1 and at most {MAX_PIXELS} pixels")
        self.size, self.fit, self.aspect = size, fit, aspect
        self.scaler = VideoReformatter()
        self.turn: Turn | None = None  # of the first frame, and so of all

    def __call__(self, frame: Any) -> np.ndarray:
        """The frame upright, scaled down by area averages or up bilinearly, with a centre crop or black bars."""
        self.turn = self.turn or _turn(frame)
        swap, flip_rows, flip_columns = self.turn
        shown_h, shown_w = shown_size(frame, self.aspect, self.turn)
        if self.size is None:
            self.size = (shown_h, shown_w)  # the first frame's, for the whole stream
        h, w = self.size
        scale = (max if self.fit == "crop" else min)(h / shown_h, w / shown_w)
        new_h, new_w = max(1, round(shown_h * scale)), max(1, round(shown_w * scale))
        if new_h * new_w > MAX_PIXELS:
            raise UserError(f"a frame of {shown_w}x{shown_h} pixels cannot be cropped to {w}x{h}; use fit letterbox")
        filter_ = Interpolation.AREA if scale < 1 else Interpolation.BILINEAR
        to_w, to_h = (new_h, new_w) if swap else (new_w, new_h)
        frame = _opaque(frame)
        image_HWC = self.scaler.reformat(
            frame,
            width=to_w,
            height=to_h,
            format="rgb24",
            src_colorspace=_matrix(frame),
            interpolation=filter_ | ACCURATE,
            threads=1,
        ).to_ndarray()
        if swap:
            image_HWC = image_HWC.swapaxes(0, 1)
        image_HWC = image_HWC[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        if self.fit == "crop":
            top, left = (new_h - h) // 2, (new_w - w) // 2
            return np.ascontiguousarray(image_HWC[top : top + h, left : left + w])
        out_HWC = np.zeros((h, w, 3), np.uint8)
        top, left = (h - new_h) // 2, (w - new_w) // 2
        out_HWC[top : top + new_h, left : left + new_w] = image_HWC
        return out_HWC


def fitted(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture, uint8 (H, W, 3), cropped and scaled to a size as the frames of a video of its size are."""
    return Fitter(size, "crop")(av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24"))


def is_still(source: Encoded) -> bool:
    """Whether it is an image and not animated; UserError when it cannot be read."""
    kind = image_kind(source)
    if kind in ("PNG", "WEBP"):
        # Errors are raised where it is read as a still image.
        with contextlib.suppress(Exception), PIL.Image.open(opened(source), formats=(kind,)) as image:
            return not getattr(image, "is_animated", False)
    return kind is not None


def on_white(image: Any) -> Any:
    """A Pillow image, upright and without transparency, as a frame for Fitter."""
    raw = str(image.tile[0][3]) if getattr(image, "tile", None) else ""  # the pixel format in the file
    upright = _eight_bits(PIL.ImageOps.exif_transpose(image), raw)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", upright.size, "white"), upright)
    return av.VideoFrame.from_ndarray(np.asarray(upright.convert("RGB")), format="rgb24")


# Pillow gives the transparent grey or colour of a PNG in the file's own numbers; these factors convert it to the 8 bits
# of its pixels.
TRANSPARENT = {"1": 255, "L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}


def _eight_bits(image: PIL.Image.Image, raw: str) -> PIL.Image.Image:
    """An image in 8 bits a channel. Pillow converts all but 16-bit grey, which it would clip to 255."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        grey_HW = np.asarray(image).astype(np.uint32)
        opaque_HW = 255 * (grey_HW != key).astype(np.uint8)
        grey_HW = ((255 * grey_HW + 32767) // 65535).astype(np.uint8)
        return PIL.Image.merge("LA", [PIL.Image.fromarray(grey_HW), PIL.Image.fromarray(opaque_HW)])
    if key is not None and (scale := TRANSPARENT.get(raw)):
        key = tuple(int(value * scale) for value in key) if isinstance(key, tuple) else int(key * scale)
        image.info["transparency"] = key
    return image


def open_image(source: Encoded) -> Any:
    """A still image, upright and without transparency (on white), as a frame for Fitter."""
    try:
        with PIL.Image.open(opened(source), formats=(*IMAGES.values(), "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{name_of(source)} has {image.width}x{image.height} pixels, allowed are {MAX_PIXELS}; "
                    "scale it down"
                )
            return on_white(image)
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise UserError(
            f"{name_of(source)} is not a readable image ({reason(error)}); copy it again or remove it"
        ) from error
