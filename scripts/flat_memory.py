"""Peak memory on a long video relative to a short one. The ratio should be about 1.

python scripts/flat_memory.py --weights shapes                       # the tokenizer
python scripts/flat_memory.py --weights shapes --story 600 3600      # stories of ten minutes, and of an hour

Draws Moving Shapes of 1,000 and 10,000 frames and runs `tokvid reconstruct` on each in its own process, or `tokvid
story` with a prompt a minute; prints the peak memory.
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


def peak(command: list[str]) -> tuple[str, float]:
    """What a command prints, and its MB at most."""
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout, int(done.stderr.split()[-1]) / 1024


def reconstructed(folder: Path, frames: int, weights: str, size: tuple[int, int]) -> float:
    """MB at most of one `tokvid reconstruct`; its figures are printed."""
    draw(video := folder / f"{frames}.mp4", frames, size)
    out, shape = folder / f"out-{frames}.mp4", [str(side) for side in size]
    command = ["reconstruct", str(video), "--out", str(out), "--weights", weights, "--size", *shape, "--json"]
    said, megabytes = peak(command)
    figures = json.loads(said)
    print(f"{figures['frames']:6} frames: {megabytes:.0f} MB at most, PSNR {figures['psnr']:.1f} dB", flush=True)
    return megabytes


def told(folder: Path, seconds: int, weights: str, fps: float) -> float:
    """MB at most of one `tokvid story`. Ends the script where files are left over."""
    file, out = folder / "story.yaml", folder / f"{seconds}.mp4"
    colors = ("red", "blue", "green", "yellow")
    parts = [{"prompt": f"a {colors[i % 4]} circle moves up", "seconds": 60} for i in range(max(1, seconds // 60))]
    file.write_text(json.dumps({"fps": fps, "seed": 1, "segments": parts}))
    _, megabytes = peak(["story", str(file), "--weights", weights, "--out", str(out)])
    print(f"{seconds:6} seconds: {megabytes:.0f} MB at most", flush=True)
    out.unlink()
    file.unlink()
    if left := [path.name for path in folder.iterdir()]:
        sys.exit(f"left over: {left}")
    return megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="shapes")
    parser.add_argument("--frames", type=int, nargs=2, default=(1000, 10_000), metavar=("SHORT", "LONG"))
    parser.add_argument("--size", type=int, nargs=2, default=(32, 32), metavar=("HEIGHT", "WIDTH"))
    lengths = "lengths of stories to measure instead, in seconds"
    parser.add_argument("--story", type=int, nargs=2, metavar=("SHORT", "LONG"), help=lengths)
    parser.add_argument("--fps", type=float, default=4.0, help="of the stories")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, weights = Path(name), options.weights
        if options.story:
            peaks = [told(folder, seconds, weights, options.fps) for seconds in options.story]
        else:
            peaks = [reconstructed(folder, frames, weights, tuple(options.size)) for frames in options.frames]
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
