"""CogVideo's size (Hong et al. 2022): 9 B parameters, 48 layers of width 3072 with 48 heads; 5 frames of 20×20 tokens.

Sequences of 64 text tokens, the rate and 5×400 video tokens; guidance scale 3; Adam (0.9, 0.95), 2e-4, weight decay
1e-4. CogVideo's second attention channel is not implemented; the MLPs have those parameters instead. Not trained, but
compiled for the pods below (results in docs/pods.md):

    tokvid plan configs/cogvideo_9b.py --topology v5p:4x4x8
    tokvid plan configs/cogvideo_9b.py --topology v6e:16x16 --mesh 16 16 1 1 --train_transformer.batch 1024

    tokvid data folder YOUR_CLIPS --out runs/cogvideo/data --size 160 160 --fps 8
    tokvid train tokenizer configs/cogvideo_9b.py --workdir runs/cogvideo
    tokvid tokenize configs/cogvideo_9b.py --workdir runs/cogvideo
    tokvid train transformer configs/cogvideo_9b.py --workdir runs/cogvideo

Meshes (`--train_transformer.mesh` data fsdp tensor context):

    v5p:4x4x8    4 32 1 1     128 chips, parameters sharded over two axes of the torus
    v6e:16x16    16 16 1 1    256 chips, parameters sharded over one axis; with --train_transformer.batch 1024
    H100         8 8 1 1      64 GPUs: parameters sharded within each node of 8, gradients summed between nodes
"""

import dataclasses
from pathlib import Path

from tokvid.config import LayoutConfig, TokensConfig, TrainConfig, TransformerConfig, load_recipe

base = load_recipe(Path(__file__).with_name("base.py"), [])
size = (160, 160)

recipe = dataclasses.replace(
    base,
    data=dataclasses.replace(
        base.data, path="runs/cogvideo/data", size=size, fps=(1.0, 2.0, 4.0, 8.0), fps_rule="lowest"
    ),
    tokenizer=dataclasses.replace(base.tokenizer, size=size),
    tokens=TokensConfig(videos=5_400_000, latent_frames=16),  # CogVideo's number of captioned videos
    transformer=TransformerConfig(
        text_vocabulary=16_000,
        text_length=64,
        latent_frames=5,
        width=3072,
        layers=48,
        heads=48,
        kv_heads=48,
        mlp=16_384,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
    ),
    layouts=LayoutConfig(tasks={"text_to_video": 0.6, "image_to_video": 0.1, "continuation": 0.3}),
    train_transformer=TrainConfig(
        steps=100_000,
        batch=512,
        learning_rate=2e-4,
        warmup=2000,
        betas=(0.9, 0.95),
        weight_decay=1e-4,
        ema=0.9999,
        save_every=1000,
        sample_every=5000,
        mesh=(-1, 32, 1, 1),
    ),
)
