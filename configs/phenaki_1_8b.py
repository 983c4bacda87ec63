"""Phenaki's transformer at its size (Villegas et al. 2022): 24 layers, 1.8 B parameters, on the tokens of phenaki.py.

11 frames of 128×128 are 6×16×16 = 1536 tokens. Not trained, but compiled for the pods below (docs/pods.md):

    tokvid plan configs/phenaki_1_8b.py --topology v5e:16x16
    tokvid plan configs/phenaki_1_8b.py --topology v6e:16x16

    tokvid data folder YOUR_CLIPS --out runs/phenaki/data --size 128 128 --fps 8
    tokvid train tokenizer configs/phenaki_1_8b.py --workdir runs/phenaki
    tokvid tokenize configs/phenaki_1_8b.py --workdir runs/phenaki
    tokvid train transformer configs/phenaki_1_8b.py --workdir runs/phenaki

Meshes (`--train_transformer.mesh` data fsdp tensor context):

    v5e:16x16    16 16 1 1    256 chips, parameters sharded over one axis of the torus
    v5p:4x4x8    8 16 1 1     128 chips
    v6e:16x16    16 16 1 1    256 chips
    H100         4 8 1 1      32 GPUs: parameters sharded within each node of 8, gradients summed between nodes
"""

import dataclasses
from pathlib import Path

from tokvid.config import load_recipe

phenaki = load_recipe(Path(__file__).with_name("phenaki.py"), [])

recipe = dataclasses.replace(
    phenaki,
    transformer=dataclasses.replace(phenaki.transformer, width=2048, heads=16, kv_heads=16, mlp=9216),
    train_transformer=dataclasses.replace(
        phenaki.train_transformer, steps=1_000_000, batch=1024, learning_rate=1e-4, warmup=10_000, mesh=(-1, 16, 1, 1)
    ),
)
