"""base.py with its 340 M transformer, set up for pods and GPU nodes: AdamW, a large batch.

tokvid plan configs/base_350m.py --topology v6e:4x4
tokvid data folder YOUR_CLIPS --out runs/base/data --size 128 128 --fps 8
tokvid train tokenizer configs/base_350m.py --workdir runs/base
tokvid tokenize configs/base_350m.py --workdir runs/base
tokvid train transformer configs/base_350m.py --workdir runs/base

Meshes (`--train_transformer.mesh` data fsdp tensor context); a model this small is best replicated:

    v5p:2x2x4    16 1 1 1    16 chips
    v6e:4x4      16 1 1 1    16 chips
    H100         -1 1 1 1    one GPU (with --train_transformer.batch 32), or all available ones
"""

import dataclasses
from pathlib import Path

from tokvid.config import load_recipe

base = load_recipe(Path(__file__).with_name("base.py"), [])

recipe = dataclasses.replace(
    base,
    train_transformer=dataclasses.replace(
        base.train_transformer, optimizer="adamw", learning_rate=3e-4, batch=512, weight_decay=0.1
    ),
)
