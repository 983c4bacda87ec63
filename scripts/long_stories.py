"""Long stories made in two ways: level by level, and at one level. (A third: scripts/compare/reencoding.py.)

python scripts/long_stories.py --weights shapes --seconds 120 600 --json long.json

A cycle of six prompts about one object, ten seconds each. Printed for each way and length: the share of two-second
windows with all attributes right, overall and in the first and last quarter; the drift of hue (degrees) and size (world
units) from the first prompt to the last, with the distance between real videos through the tokenizer; the seam ratio;
seconds per frame in the first and the last quarter, and their ratio; the peak memory of the process, in MB.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokvid.io.files import Outputs, write_json
from tokvid.weights import find

PART = 10.0  # seconds of a prompt
WINDOW = 2.0  # seconds that are read at once
FPS = 8.0
SCHEMES = ("hierarchical", "one-level")
# One object whose motion changes: direction and speed.
TURNS = (
    ("right", "slow"),
    ("up", "quick"),
    ("still", "none"),
    ("left", "slow"),
    ("down", "quick"),
    ("right", "quick"),
)


def measure(weights: Path, scheme: str, seconds: float, rows: int, way: Callable | None = None) -> dict[str, Any]:
    """One story, and what is read from it. `way(models, story)` gives its frames in place of a scheme."""
    import numpy as np

    from tokvid.config import Sampling
    from tokvid.metrics.video import seam_ratio
    from tokvid.sampling.codec import StreamDecoder, StreamEncoder
    from tokvid.sampling.models import load_models
    from tokvid.sampling.story import Segment, Story, joins, tell
    from tokvid.shapes.drawing import ShapesSegment, ShapesStory, caption, render
    from tokvid.shapes.reading import read_attributes, score
    from tokvid.shapes.words import COLORS, SIZES, ShapeAttributes

    models = load_models(weights)
    wanted = [ShapeAttributes("large", "red", "circle", *turn) for turn in TURNS]
    count = round(seconds / PART)
    asked = [wanted[i % len(wanted)] for i in range(count)]
    prompts = [caption(each, 0, "en") for each in asked]

    def story(parts: list[str]) -> Story:
        how: Any = scheme if way is None else "one-level"
        return Story(tuple(Segment(p, PART) for p in parts), FPS, scheme=how, sampling=Sampling(rows=rows))

    def off(hue: float) -> float:
        """How far from the colour that was asked for, -180 to 180 degrees: unlike hues, these have a median."""
        wanted_hue = COLORS[asked[0].color]
        assert wanted_hue is not None
        return (hue - wanted_hue + 180) % 360 - 180

    frames: list[np.ndarray] = []
    for _ in (way or tell)(models, story(prompts[:2])):
        pass  # compiles all that the story will need
    took = [time.perf_counter()]
    for video_THWC in (way or tell)(models, story(prompts)):
        frames += list(video_THWC)
        took += [time.perf_counter()] * len(video_THWC)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1) / 1024
    per, part = round(WINDOW * FPS), round(PART * FPS)
    video = np.stack(frames)
    right, hues, sizes, ratios = [], [], [], []
    for number, each in enumerate(asked):
        here = video[number * part : (number + 1) * part]
        for first in range(per // 2, part - per + 1, per):  # half a second to follow a new prompt
            reading = read_attributes(here[first : first + per], FPS)
            right.append(score(reading, each)["joint"])
            hues.append(np.nan if reading is None or reading.hue is None else off(reading.hue))
            sizes.append(np.nan if reading is None else reading.radius)
    for first, end in ((i, min(i + 480, len(video))) for i in range(0, len(video), 480)):
        inside = [join - first for join in joins(story(prompts), models) if first < join < end]
        ratios.append(seam_ratio(video[first:end], inside))

    def read_truth(seed: int) -> tuple[float, float]:
        """Hue and radius of a true video through the tokenizer."""
        segment = ShapesSegment(0.0, PART, asked[0], prompts[0])
        real = ShapesStory(SIZES["large"], 0.0, 30, (8.0 * seed, 5.0 * seed), (segment,))
        truth = render(real, fps=FPS, frames=1 + 2 * (part // 2), size=models.size[0])[None]
        ids = StreamEncoder(models.tokenizer, 1, models.size).feed(truth)
        again = StreamDecoder(models.tokenizer, 1, *ids.shape[2:4]).feed(ids)[0]
        reading = read_attributes(again, FPS)
        assert reading is not None and reading.hue is not None
        return off(reading.hue), reading.radius

    truths = [read_truth(seed) for seed in range(8)]
    quarter, windows = len(frames) // 4, len(right) // 4
    first, last = (took[quarter] - took[0]) / quarter, (took[-1] - took[-1 - quarter]) / quarter
    return {
        "frames": len(frames),
        "right": float(np.mean(right)),
        "right_first_quarter": float(np.mean(right[:windows])),
        "right_last_quarter": float(np.mean(right[-windows:])),
        "hue_drift": abs(float(np.nanmedian(hues[:4])) - float(np.nanmedian(hues[-4:]))),
        "hue_jitter_of_truth": max(abs(a - b) for a, _ in truths for b, _ in truths),
        "size_drift": abs(float(np.nanmedian(sizes[:4])) - float(np.nanmedian(sizes[-4:]))),
        "size_jitter_of_truth": max(abs(a - b) for _, a in truths for _, b in truths),
        "seam_ratio": float(np.nanmedian(ratios)),
        "seconds_per_frame_first_quarter": first,
        "seconds_per_frame_last_quarter": last,
        "time_last_over_first": last / first,
        "megabytes": memory,
    }


def main(ways: Mapping[str, Callable] = MappingProxyType({}), description: str | None = __doc__) -> None:
    """Measures the schemes, or the `ways` of another script that runs this function."""
    schemes, outputs = tuple(ways) or SCHEMES, Outputs()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=find, default="shapes")
    parser.add_argument("--seconds", type=float, nargs="+", default=[120.0, 600.0])
    parser.add_argument("--schemes", nargs="+", choices=schemes, default=schemes)
    parser.add_argument("--rows", type=int, default=0, help="drawn at once (0: token by token)")
    parser.add_argument("--json", type=outputs.file())
    parser.add_argument("--tell", help=argparse.SUPPRESS)  # a scheme: in a process of its own
    options = parser.parse_args()
    if options.tell:
        way = ways.get(options.tell)
        print(json.dumps(measure(options.weights, options.tell, options.seconds[0], options.rows, way)))
        return
    found: dict[str, Any] = {}
    for scheme in options.schemes:
        for seconds in options.seconds:
            command = [sys.executable, sys.argv[0], "--weights", str(options.weights), "--rows", str(options.rows)]
            command += ["--tell", scheme, "--seconds", str(seconds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                sys.exit(done.returncode)
            figures = found[f"{scheme}, {seconds:g} s"] = json.loads(done.stdout)
            print(f"{scheme}, {seconds:g} s: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
            if options.json:
                write_json(options.json, found)


if __name__ == "__main__":
    main()
