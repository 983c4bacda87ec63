"""The best-measured tokenizer design, scaled up for accelerators: 17 frames of 128×128, 8192 codes.

VQ, alternating layers, Muon, a decoder larger than the encoder (measurements in docs/tokenizer.md). Not yet trained at
this size: the choices come from experiments on two CPU cores at 64×64. On many chips, Muon costs more than the model
(docs/pods.md).

    tokvid data folder YOUR_CLIPS --out runs/base/data --size 128 128 --fps 8
    tokvid train tokenizer configs/base.py --workdir runs/base
    tokvid tokenize configs/base.py --workdir runs/base
    tokvid train transformer configs/base.py --workdir runs/base
"""

from tokvid.config import (
    AdversaryConfig,
    DataConfig,
    LayoutConfig,
    Recipe,
    TokenizerConfig,
    TokensConfig,
    TrainConfig,
    TransformerConfig,
)

size = (128, 128)

recipe = Recipe(
    data=DataConfig(
        source="records",
        path="runs/base/data",
        held_out=100,
        size=size,
        frames=17,
        fps=(2.0, 4.0, 8.0),
        images=2,
        flip=0.5,
        zoom=1.25,
        threads=8,
    ),
    tokenizer=TokenizerConfig(
        patch=8,
        temporal_patch=2,
        width=512,
        heads=8,
        mlp=1408,
        encoder=("space", "time") * 3,
        decoder=("space", "time") * 5,
        time_window=2,  # both halves see less than a clip's 9 latent frames, so that streams are nothing new
        quantizer="vq",
        codes=8192,
        temporal_weight=0.5,
        dtype="bfloat16",
        remat="dots",
    ),
    adversary=AdversaryConfig(weight=0.1, width=64, layers=4, start=10_000),
    train_tokenizer=TrainConfig(
        steps=200_000,
        batch=128,
        optimizer="muon",
        learning_rate=2e-3,
        adversary_learning_rate=1e-4,
        warmup=2000,
        weight_decay=0.01,
        ema=0.9995,
        save_every=2000,
        sample_every=5000,
    ),
    tokens=TokensConfig(videos=1_000_000, latent_frames=16),
    transformer=TransformerConfig(
        text_vocabulary=16_000,
        text_length=64,
        latent_frames=5,
        width=1024,
        layers=24,
        heads=16,
        kv_heads=16,
        mlp=2816,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
    ),
    layouts=LayoutConfig(tasks={"text_to_video": 0.4, "image_to_video": 0.2, "continuation": 0.4}),
    train_transformer=TrainConfig(
        steps=200_000, batch=256, optimizer="muon", learning_rate=2e-3, warmup=2000, ema=0.9995, save_every=2000
    ),
)
