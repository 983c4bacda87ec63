"""Both models from scratch in twelve minutes on two CPU cores: right colours, roughly right motion.

    tokvid train tokenizer configs/quickstart.py --workdir runs/quickstart
    tokvid tokenize configs/quickstart.py --workdir runs/quickstart
    tokvid train transformer configs/quickstart.py --workdir runs/quickstart
    tokvid story --weights runs/quickstart --out quickstart.mp4 \\
        --prompt "a large red circle moves quickly to the right" --prompt "a large red circle moves quickly up"
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

size = (24, 24)

recipe = Recipe(
    data=DataConfig(source="shapes", size=size, frames=7, fps=(8.0,), threads=1),
    tokenizer=TokenizerConfig(
        patch=4,
        width=96,
        heads=3,
        mlp=256,
        encoder=("space", "time"),
        decoder=("space", "time") * 2,
        time_window=2,  # two layers then see 3 latent frames: less than a clip's 4, so that streams are nothing new
        quantizer="fsq",
        levels=(8, 5, 5, 5),
    ),
    train_tokenizer=TrainConfig(
        steps=1500, batch=8, optimizer="muon", learning_rate=4e-3, weight_decay=0.01, ema=0.995
    ),
    tokens=TokensConfig(videos=6000, latent_frames=16),
    transformer=TransformerConfig(
        text_vocabulary=512,
        text_length=15,
        latent_frames=4,
        width=128,
        layers=4,
        heads=4,
        kv_heads=4,
        mlp=384,
    ),
    layouts=LayoutConfig(tasks={"text_to_video": 0.5, "image_to_video": 0.1, "continuation": 0.4}),
    train_transformer=TrainConfig(steps=1500, batch=16, optimizer="muon", learning_rate=5e-3, warmup=100, ema=0.995),
)
