"""Your own clips at 64×64: configs/robots.py with fewer steps, about forty minutes on two CPU cores.

tokvid data folder YOUR_CLIPS --out runs/clips/data --size 80 80 --fps 8
tokvid train tokenizer configs/folder.py --workdir runs/clips
tokvid tokenize configs/folder.py --workdir runs/clips
tokvid train transformer configs/folder.py --workdir runs/clips
tokvid evaluate reconstruction --weights runs/clips --samples 40 --json runs/clips/reconstruction.json

Change `path`, and the steps to the time you have. Stored frames have a quarter more pixels a side than clips, for zoom.
"""

import dataclasses
from pathlib import Path

from tokvid.config import load_recipe

robots = load_recipe(Path(__file__).with_name("robots.py"), [])

recipe = dataclasses.replace(
    robots,
    data=dataclasses.replace(robots.data, path="runs/clips/data", held_out=40),
    train_tokenizer=dataclasses.replace(robots.train_tokenizer, steps=1500),
    tokens=dataclasses.replace(robots.tokens, videos=4000),
    train_transformer=dataclasses.replace(robots.train_transformer, steps=500),
)
