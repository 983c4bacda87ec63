"""Robot arms at 64×64, from clips of DROID (Khazatsky et al. 2024): the weights shipped in `data/robots/`.

    python scripts/droid.py DROID --out runs/robots/clips
    tokvid data folder runs/robots/clips --out runs/robots/data --size 80 80 --fps 8
    tokvid train tokenizer configs/robots.py --workdir runs/robots
    tokvid tokenize configs/robots.py --workdir runs/robots
    tokvid train transformer configs/robots.py --workdir runs/robots
    tokvid evaluate reconstruction --weights runs/robots --samples 96 --json runs/robots/reconstruction.json
    tokvid evaluate generation --weights runs/robots --samples 32 --seconds 3 --fps 4 --guidance 1.5

On two CPU cores with AVX512-BF16: 75 minutes for the tokenizer, 10 for the tokens, an hour for the transformer. The
shipped tokenizer had been trained for 3300 steps with a first frame of its own before, and the shipped transformer went
on with its own tokens, with edits of videos, and with `recall` (data/robots/README.md).

`held_out` is the number that scripts/droid.py prints: the clips of whole recording days. A patch of 4×4 pixels and 2
frames has 18 bits, and four patches share a token of 8 sub-codes, so a latent frame has 64 tokens.
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
        source="records",
        path="runs/robots/data",
        held_out=96,
        size=size,
        frames=9,
        fps=(2.0, 4.0, 8.0),
        flip=0.5,
        zoom=1.25,  # the stored frames have as many more pixels
        light=0.2,
        threads=1,
    ),
    tokenizer=TokenizerConfig(
        patch=4,
        fold=2,
        width=192,
        heads=6,
        mlp=512,
        encoder=("space", "time"),
        decoder=("space", "time") * 2,
        time_window=2,  # two layers then see 3 latent frames: fewer than a clip's 5, so that streams are nothing new
        # Most of each frame stands still, and keeps its codes: docs/tokenizer.md, "Codes that stay".
        first_frame="still",
        hysteresis=0.25,
        stillness_weight=0.005,
        quantizer="fsq",
        groups=2,
        levels=(8, 8, 8),
    ),
    train_tokenizer=TrainConfig(
        steps=4400,
        batch=4,
        optimizer="muon",
        learning_rate=3e-3,
        schedule="stable",
        decay=0.25,
        weight_decay=0.01,
        ema=0.998,
        log_every=50,
        save_every=200,
        sample_every=1000,
    ),
    tokens=TokensConfig(videos=8000, latent_frames=9),
    transformer=TransformerConfig(
        text_vocabulary=2048,
        text_length=24,
        latent_frames=4,
        width=256,
        layers=6,
        heads=8,
        kv_heads=8,
        mlp=640,
        head_width=192,
        head_layers=2,
        copies=True,
    ),
    layouts=LayoutConfig(
        tasks={"text_to_video": 0.12, "image_to_video": 0.43, "continuation": 0.3, "interpolation": 0.15}
    ),
    train_transformer=TrainConfig(
        steps=2200,
        batch=8,
        optimizer="muon",
        learning_rate=3e-3,
        weight_decay=0.1,
        schedule="stable",
        decay=0.4,
        warmup=100,
        ema=0.998,
        log_every=50,
        save_every=200,
        sample_every=1000,
    ),
)
