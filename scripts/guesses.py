"""What guessed tokens gain: python scripts/guesses.py --weights robots --slots 1 4

Makes a clip with each number of slots in a step, after compilation; with 1, nothing is guessed. Prints the steps of its
windows, and their seconds without what turns tokens into frames: the least of `--rounds`.
"""

import argparse
import json
import time
from typing import Any

import jax

import tokvid
from tokvid.sampling import decode, window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="shapes")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prompt", default="a large red circle moves slowly to the left")
    parser.add_argument("--image", help="first frame")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    world = tokvid.load(options.weights, quiet=True)
    seconds, steps, generate, run = [0.0], [0], decode.generate, decode._Drawer._run

    def timed(*windows: Any, **settings: Any) -> Any:
        began = time.perf_counter()
        tokens = jax.block_until_ready(generate(*windows, **settings))
        seconds[0] += time.perf_counter() - began
        return tokens

    def counted(self: Any, *window: Any) -> Any:
        jax.debug.callback(lambda: steps.__setitem__(0, steps[0] + 1))
        return run(self, *window)

    def make() -> float:
        seconds[0] = steps[0] = 0
        world.generate(options.prompt, image=options.image, seconds=options.seconds, fps=options.fps)
        jax.effects_barrier()
        return seconds[0]

    def programs(slots: int) -> None:
        decode.AHEAD, decode.AHEAD_ELSEWHERE = {}, slots
        generate.clear_cache()

    window.generate = timed
    for slots in options.slots:
        decode._Drawer._run = counted
        programs(slots)
        make()
        taken, decode._Drawer._run = steps[0], run
        programs(slots)
        make()
        least = min(make() for _ in range(options.rounds))
        print(json.dumps({"slots": slots, "steps": taken, "seconds": round(least, 3)}), flush=True)


if __name__ == "__main__":
    main()
