"""Both models at minimal size, to try out the whole pipeline in three minutes. Expect coloured blobs.

tokvid train tokenizer configs/tiny.py --workdir runs/tiny
tokvid tokenize configs/tiny.py --workdir runs/tiny
tokvid train transformer configs/tiny.py --workdir runs/tiny
tokvid story --weights runs/tiny --out tiny.mp4 --prompt "a large red circle moves quickly up"

It also checks a pod's software in a minute (tokvid plan configs/tiny.py --topology v6e:2x2). Meshes
(`--train_transformer.mesh` data fsdp tensor context):

    v5p:2x2x1    4 1 1 1
    v6e:2x2      2 2 1 1
    H100         -1 1 1 1
"""

from tokvid.config import DataConfig, Recipe, TokenizerConfig, TokensConfig, TrainConfig, TransformerConfig

size = (16, 16)

recipe = Recipe(
    data=DataConfig(source="shapes", size=size, frames=7, fps=(8.0,), threads=1),
    tokenizer=TokenizerConfig(
        patch=4,
        width=48,
        heads=2,
        mlp=128,
        encoder=("space", "time"),
        decoder=("space", "time"),
        quantizer="fsq",
        levels=(8, 5, 5),
    ),
    train_tokenizer=TrainConfig(steps=600, batch=8, optimizer="muon", learning_rate=4e-3, warmup=50, ema=0.98),
    tokens=TokensConfig(videos=2000, latent_frames=8, text_samples=500),
    transformer=TransformerConfig(
        text_vocabulary=400,
        text_length=28,
        latent_frames=4,
        width=64,
        layers=2,
        heads=2,
        kv_heads=2,
        mlp=192,
    ),
    train_transformer=TrainConfig(steps=1000, batch=16, optimizer="muon", learning_rate=5e-3, warmup=50, ema=0.98),
)
