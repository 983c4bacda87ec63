"""Peak memory of the tokenizer on a long video relative to a short one. The ratio should be about 1.

python scripts/flat_memory.py --weights data

Draws Moving Shapes of 1,000 and 10,000 frames, runs `tokvid reconstruct` on each in its own process, and prints the
peak memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# Runs what follows, then says on stderr what this process needed at most, in KB.
MEASURED = """
import resource, sys
from tokvid.cli.main import main
main(sys.argv[1:])
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
print(kilobytes, file=sys.stderr)
"""


def draw(path: Path, frames: int, size: tuple[int, int]) -> None:
    """Videos of the procedural world, one after the other."""
    from tokvid.io.media import VideoWriter
    from tokvid.shapes.drawing import ShapesDataset

    videos, each = ShapesDataset(1000, seed=0), 40
    with VideoWriter(path, 8.0) as writer:
        for number in range(frames // each):
            for frame in videos[number].read(0.0, 8.0, each, size):
                writer.write(frame)


def peak(video: Path, weights: Path, size: tuple[int, int]) -> float:
    """MB at most of one `tokvid reconstruct`; its figures are printed."""
    out, shape = video.with_name(f"out-{video.name}"), [str(side) for side in size]
    command = ["reconstruct", str(video), "--out", str(out), "--weights", str(weights), "--size", *shape, "--json"]
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    figures = json.loads(done.stdout)
    megabytes = int(done.stderr.split()[-1]) / 1024
    print(f"{figures['frames']:6} frames: {megabytes:.0f} MB at most, PSNR {figures['psnr']:.1f} dB", flush=True)
    return megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("data"))
    parser.add_argument("--frames", type=int, nargs=2, default=(1000, 10_000), metavar=("SHORT", "LONG"))
    parser.add_argument("--size", type=int, nargs=2, default=(32, 32), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in options.frames:
            draw(Path(folder) / f"{frames}.mp4", frames, options.size)
            peaks.append(peak(Path(folder) / f"{frames}.mp4", options.weights, options.size))
    print(f"peak memory, {options.frames[1]} frames / {options.frames[0]}: {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
