"""Prepares clips of DROID (Khazatsky et al. 2024) for `tokvid data folder`, with whole recording days held out.

python scripts/droid.py DROID --out runs/robots/clips
tokvid data folder runs/robots/clips --out runs/robots/data --size 80 80 --fps 8

DROID is a folder of captions.jsonl and the clips it lists, LAB_YYYY-MM-DD_….mp4. Clips of one day show the same room
and often the same objects, so holding out single clips would measure memorisation. The clips of every ninth day go to
the end of captions.jsonl instead, where `data.held_out` holds them out.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

EVERY = 9  # of the days, in order, one in so many is held out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("droid", type=Path, help="a folder with captions.jsonl and the clips")
    parser.add_argument("--out", type=Path, required=True, help="a new folder, for captions.jsonl and the clips")
    options = parser.parse_args()
    lines = (options.droid / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    clips = [json.loads(line) for line in lines]
    days = sorted({day_of(clip) for clip in clips})
    held_out_days = set(days[EVERY // 2 :: EVERY])
    clips.sort(key=lambda clip: (day_of(clip) in held_out_days, clip["file"]))
    options.out.mkdir(parents=True)
    with (options.out / "captions.jsonl").open("w", encoding="utf-8") as file:
        for clip in clips:
            name = Path(clip["file"]).name
            shutil.copyfile(options.droid / clip["file"], options.out / name)
            file.write(json.dumps({"file": name, "caption": clip["caption"]}, ensure_ascii=False) + "\n")
    held_out = sum(day_of(clip) in held_out_days for clip in clips)
    print(f"{len(clips)} clips of {len(days)} days; --data.held_out {held_out} keeps {len(held_out_days)} days out")


def day_of(clip: dict) -> str:
    """YYYY-MM-DD from the name of the clip's file."""
    return Path(clip["file"]).name.split("_")[1]


if __name__ == "__main__":
    sys.exit(main())
