"""How much faster clips are made side by side: python scripts/many.py --weights shapes --batches 1 8

Makes `--clips` clips of `--seconds` in batches of each size, after compilation, in turns. Prints the seconds per clip:
the least of `--rounds`, of wall time and of the processor's, which other programs on the machine disturb less.
"""

import argparse
import json
import time

import tokvid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="shapes")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    world = tokvid.load(options.weights, quiet=True)

    def make(batch: int, seed: int) -> tuple[float, float]:
        began, used = time.perf_counter(), time.process_time()
        clips = world.many(
            ["a large red circle moves slowly to the left"],
            count=options.clips,
            seconds=options.seconds,
            batch=batch,
            seed=seed,
            sampling={"rows": options.rows},
        )
        assert len(list(clips)) == options.clips
        return (time.perf_counter() - began) / options.clips, (time.process_time() - used) / options.clips

    for batch in options.batches:
        make(batch, 0)  # compiles
    rounds = [[make(batch, seed) for batch in options.batches] for seed in range(1, 1 + options.rounds)]
    for batch, taken in zip(options.batches, zip(*rounds, strict=True), strict=True):
        wall, used = (min(each) for each in zip(*taken, strict=True))
        figures = {"batch": batch, "seconds_per_clip": round(wall, 3), "processor_seconds_per_clip": round(used, 3)}
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
