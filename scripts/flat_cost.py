"""Cost per frame and memory of a long story relative to a short one. Both ratios should be about 1.

python scripts/flat_cost.py --weights shapes

Generates a 10-second and a 60-second story, each in its own process, after compilation. Prints the long story's time
per frame in its last 10 seconds ÷ its first 10, then its peak memory ÷ that of the short one.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokvid.weights import find

PART = 10  # seconds of video that are compared
PROMPTS = ("a large blue circle moves slowly to the right", "the large blue circle is not moving")  # in turn


def tell(weights: Path, seconds: float) -> dict[str, float]:
    """Milliseconds per frame at the beginning and at the end of a story, and the peak memory of this process in MB."""
    from tokvid.sampling.film import film
    from tokvid.sampling.models import load_models
    from tokvid.sampling.story import Segment, Story

    def story(length: float) -> Story:
        return Story(tuple(Segment(PROMPTS[i % 2], 5.0) for i in range(round(length / 5))))

    models, times = load_models(weights), [0.0]
    with tempfile.TemporaryDirectory() as folder:
        film(models, story(PART), [Path(folder) / "warm.mp4"])  # compiles all that the story will need
        times[0] = time.perf_counter()
        film(models, story(seconds), [Path(folder) / "story.mp4"], watch=lambda _: times.append(time.perf_counter()))
    part = round(PART * story(seconds).fps)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return {
        "frames": len(times) - 1,
        "first": 1000 * (times[part] - times[0]) / part,
        "last": 1000 * (times[-1] - times[-1 - part]) / part,
        "megabytes": kilobytes / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=find, default="shapes")
    parser.add_argument("--seconds", type=int, default=60, help="of the long story (default 60)")
    parser.add_argument("--tell", type=float, help=argparse.SUPPRESS)  # seconds: in a process of its own
    options = parser.parse_args()
    if options.tell:
        print(json.dumps(tell(options.weights, options.tell)))
        return
    found = []
    for seconds in (PART, options.seconds):
        command = [sys.executable, __file__, "--weights", str(options.weights), "--tell", str(seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        found.append(json.loads(done.stdout))
        print(
            "{0} s: {frames} frames, {first:.2f} ms a frame in the first {1} s, {last:.2f} in the last, "
            "{megabytes:.0f} MB at most".format(seconds, PART, **found[-1])
        )
    short, long = found
    print(f"time per frame, last {PART} s / first {PART} s: {long['last'] / long['first']:.3f}")
    print(f"peak memory, {options.seconds} s / {PART} s: {long['megabytes'] / short['megabytes']:.3f}")


if __name__ == "__main__":
    main()
