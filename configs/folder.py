"""Your own clips at 64×64, half an hour on two CPU cores: set `path`, and adapt the steps to the time you have.

tokvid data folder YOUR_CLIPS --out runs/clips/data --size 64 64 --fps 8
tokvid train tokenizer configs/folder.py --workdir runs/clips
tokvid tokenize configs/folder.py --workdir runs/clips
tokvid train transformer configs/folder.py --workdir runs/clips
tokvid evaluate reconstruction --weights runs/clips --samples 40 --json runs/clips/reconstruction.json
"""

from tokvid.config import (
    DataConfig,
    LayoutConfig,
    Recipe,
    TokenizerConfig,
    TokensConfig,
    TrainConfig,
    TransformerConfig,
)

size = (64, 64)

recipe = Recipe(
    data=DataConfig(
        source="records", path="runs/clips/data", held_out=40, size=size, frames=7, fps=(2.0, 4.0), threads=1
    ),
    tokenizer=TokenizerConfig(
        patch=8,
        width=192,
        heads=6,
        mlp=512,
        encoder=("space", "time"),
        decoder=("space", "time") * 2,
        time_window=2,  # two layers then see 3 latent frames: less than a clip's 4, so that streams are nothing new
        quantizer="fsq",
        levels=(8, 8, 8, 8),
    ),
    train_tokenizer=TrainConfig(
        steps=1500, batch=4, optimizer="muon", learning_rate=3e-3, weight_decay=0.01, ema=0.995
    ),
    tokens=TokensConfig(videos=2500, latent_frames=7),
    transformer=TransformerConfig(
        text_vocabulary=2048,
        text_length=24,
        latent_frames=4,
        width=192,
        layers=5,
        heads=6,
        kv_heads=6,
        mlp=512,
    ),
    layouts=LayoutConfig(tasks={"text_to_video": 0.4, "image_to_video": 0.2, "continuation": 0.4}),
    train_transformer=TrainConfig(steps=500, batch=16, optimizer="muon", learning_rate=3e-3, warmup=100, ema=0.995),
)
