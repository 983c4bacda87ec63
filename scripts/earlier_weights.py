"""Generates a clip with the weights of every commit that shipped some: what was trained once can be used for ever.

python scripts/earlier_weights.py        # in a clone with its history

Prints what is seen in each clip; of the robots', only that something is. The exit code is 1 if weights are
refused, but for those of OLDEST, or their clip shows nothing.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import tokvid
from tokvid.errors import UserError
from tokvid.io.progress import progress
from tokvid.shapes.reading import read_attributes

FILE = "transformer/weights.safetensors"
PROMPT = "a large red circle moves quickly to the right"
OLDEST = ("94cdfda", "b6bbc8f")  # commits whose transformers lack a layer of today's: they are refused
LEAST = 5.0  # grey levels of standard deviation, of a clip that shows something


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], check=True, capture_output=True).stdout


def main() -> None:
    commits = git("log", "--format=%h", "--", f"data/**/{FILE}", f"data/{FILE}").decode().split()
    failed, seen = 0, set()
    with progress("earlier weights", len(commits), "commits") as advance:
        for commit in commits:
            names = [name for name in git("ls-tree", "-r", "--name-only", commit, "data").decode().split("\n") if name]
            folders = [Path(name).parents[1] for name in names if name.endswith(FILE)]
            with tempfile.TemporaryDirectory() as temporary:
                archive = git("archive", commit, "data")
                subprocess.run(["tar", "-x", "-C", temporary], input=archive, check=True)
                for folder in folders:
                    mark = git("rev-parse", f"{commit}:{folder / FILE}", f"{commit}:{folder}/tokenizer")
                    if mark not in seen:
                        failed += not tried(Path(temporary) / folder, f"{commit} {folder}")
                    seen.add(mark)
            advance(1, failures=failed)
    sys.exit(bool(failed))


def tried(folder: Path, name: str) -> bool:
    """Whether a clip was made that shows something."""
    try:
        video = tokvid.load(folder, quiet=True).generate(PROMPT, seconds=2, fps=8, seed=1)
    except UserError as error:
        print(f"{name}: refused: {error}", flush=True)
        return name.startswith(OLDEST)
    deviation = float(video.frames.std())
    reading = read_attributes(video.frames, video.fps)
    what = f"{reading.size} {reading.color} {reading.shape}" if reading else "no object"
    print(f"{name}: {video.frames.shape}, deviation {deviation:.0f}; {what}", flush=True)
    return deviation > LEAST


if __name__ == "__main__":
    main()
