"""How well `tokvid data curate` finds faults: plants them in copies of a folder's clips, and counts what is found.

    python scripts/planted_faults.py CLIPS --videos 60

Each raw video is two or three of the clips, joined by hard cuts; half of the videos have a fault in one shot. Prints
precision and recall of cuts and of each fault. Faults that the clips had before count as false.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tokvid.input_pipeline.clips import probe, stream_frames
from tokvid.input_pipeline.curation import DUPLICATE, all_shots
from tokvid.io.media import write_video

WORDS = ["the", "quick", "brown", "fox", "jumps", "SUBSCRIBE", "now", "for", "more", "great", "videos", "50%", "off"]
KINDS = ("black", "still", "blurred", "letterboxed", "over_texted", DUPLICATE)
OUTCOMES = {(True, True): "found", (True, False): "missed", (False, True): "false", (False, False): "neither"}
FRAMES = 45  # of a shot, at most
STYLES = [("white", "black", ""), ("yellow", "black", ""), ("black", "", "white")]  # letters, outline, box


def planted(kind: str, video_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of a shot with a fault."""
    if kind == "black":
        noise = rng.integers(0, 10, video_THWC.shape)
        return noise.astype(np.uint8)
    if kind == "still":
        noise = rng.normal(0, 1.0, video_THWC.shape)
        return np.clip(video_THWC[:1] + noise, 0, 255).astype(np.uint8)
    if kind == "blurred":
        blur = ImageFilter.GaussianBlur(video_THWC.shape[2] * rng.uniform(0.006, 0.012))
        return np.stack([np.asarray(Image.fromarray(image_HWC).filter(blur)) for image_HWC in video_THWC])
    if kind == "letterboxed":
        boxed_THWC = video_THWC.copy()
        share, axis = rng.uniform(0.06, 0.2), int(rng.integers(1, 3))
        width = int(share * video_THWC.shape[axis])
        moved = np.moveaxis(boxed_THWC, axis, 0)
        moved[:width] = moved[-width:] = rng.integers(0, 12)
        return boxed_THWC
    if kind == "over_texted":
        return written(video_THWC, rng)
    noise = rng.normal(0, 2, video_THWC.shape)  # a duplicate
    return np.clip(video_THWC * rng.uniform(0.99, 1.01) + noise, 0, 255).astype(np.uint8)


def written(video_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Three or four lines of text over a shot, as titles and subtitles look: outlined, or on a box."""
    height, width = video_THWC.shape[1:3]
    size = int(height * rng.uniform(0.07, 0.14))
    font, top = ImageFont.load_default(size), rng.uniform(0.05, 0.3) * height
    fill, outline, box = STYLES[int(rng.integers(3))]
    lines = [" ".join(rng.choice(WORDS, 7)) for _ in range(int(rng.integers(3, 5)))]
    frames = []
    for image_HWC in video_THWC:
        image = Image.fromarray(image_HWC)
        for number, line in enumerate(lines):
            draw, place = ImageDraw.Draw(image), (width * 0.05, top + 1.25 * size * number)
            if box:
                draw.rectangle(draw.textbbox(place, line, font=font), fill=box)
            draw.text(place, line, font=font, fill=fill, stroke_width=1 if outline else 0, stroke_fill=outline or None)
        frames.append(np.asarray(image))
    return np.stack(frames)


def main() -> None:
    """Plants, finds, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder to leave the raw videos in")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    paths = [options.clips] if options.clips.is_file() else sorted(options.clips.rglob("*.mp4"))
    paths = [paths[index] for index in rng.permutation(len(paths))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        truth = plant(folder, paths, options.videos, rng)
        shots = {(shot.file, shot.first): shot for shot in all_shots(folder)}
    counts: Counter[tuple[str, str]] = Counter()
    for place, wanted in truth.items():
        counts["cuts", "found" if place in shots else "missed"] += 1
        has = set(shots[place].faults) if place in shots else set()
        for kind in KINDS:
            counts[kind, OUTCOMES[kind == wanted, kind in has]] += 1
            if (kind == wanted) != (kind in has):
                found = ", ".join(sorted(has))
                print(f"{place[0]} from frame {place[1]}: planted {wanted or 'nothing'}, found {found or 'nothing'}")
    counts["cuts", "false"] += sum(place not in truth for place in shots)
    for kind in ("cuts", *KINDS):
        right, missed, false = (counts[kind, name] for name in ("found", "missed", "false"))
        precision, recall = right / max(1, right + false), right / max(1, right + missed)
        print(f"{kind:12} precision {precision:.3f}, recall {recall:.3f} of {right + missed}")


def plant(folder: Path, paths: list[Path], videos: int, rng: np.random.Generator) -> dict[tuple[str, int], str]:
    """Writes raw videos; returns the fault of each of their shots, by file and first frame, "" for none."""
    truth: dict[tuple[str, int], str] = {}
    remaining = iter(paths)
    originals: list[np.ndarray] = []  # the first shot of each video
    for number in range(videos):
        name, parts, at = f"{number:04d}.mp4", [], 0
        faulty = int(rng.integers(2)) if number % 2 else -1
        for index in range(int(rng.integers(2, 4))):
            clip_THWC, rate = read(next(remaining))
            kind = KINDS[(number // 2) % len(KINDS)] if index == faulty else ""
            if kind:
                clip_THWC = planted(kind, originals[0] if kind == DUPLICATE else clip_THWC, rng)
            elif index == 0 and number % 2 == 0:
                originals = [clip_THWC]
            truth[name, at] = kind
            at += len(clip_THWC)
            parts.append(clip_THWC)
        write_video(folder / name, np.concatenate(parts), rate)
    return truth


def read(path: Path) -> tuple[np.ndarray, float]:
    """The first frames of a clip, at 15 frames a second or its own rate."""
    rate = min(15.0, probe(path).fps)
    frames = []
    for image_HWC in stream_frames(path, fps=rate):
        frames.append(image_HWC)
        if len(frames) == FRAMES:
            break
    return np.stack(frames), rate


if __name__ == "__main__":
    main()
