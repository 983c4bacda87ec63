"""Phenaki's C-ViViT (Villegas et al. 2022, section 2.1): 11 frames of 128×128, all space layers before all time layers.

Reproduced from the paper, not trained. Set `data.path` to your own clips, packed at 128×128:

    tokvid data folder YOUR_CLIPS --out runs/phenaki/data --size 128 128 --fps 8
    tokvid train tokenizer configs/phenaki.py --workdir runs/phenaki
    tokvid tokenize configs/phenaki.py --workdir runs/phenaki
    tokvid train transformer configs/phenaki.py --workdir runs/phenaki

Differences from the paper: gated MLPs (with the same number of parameters), tokvid's causal transformer as the second
stage, and no perceptual loss unless `train_tokenizer.perceptual` names a weights file.
"""

from tokvid.config import (
    AdversaryConfig,
    DataConfig,
    Recipe,
    TokenizerConfig,
    TokensConfig,
    TrainConfig,
    TransformerConfig,
)

size = (128, 128)

recipe = Recipe(
    data=DataConfig(
        source="records", path="runs/phenaki/data", held_out=100, size=size, frames=11, fps=(8.0,), images=1, threads=8
    ),
    tokenizer=TokenizerConfig(
        patch=8,
        temporal_patch=2,
        width=512,
        heads=8,
        mlp=1408,
        encoder=("space",) * 4 + ("time",) * 4,
        decoder=("time",) * 4 + ("space",) * 4,
        time_window=6,  # all of a clip; longer videos are better off with 2, as in base.py
        quantizer="vq",
        codes=8192,
        code_width=32,
        commitment_weight=0.25,
        l1_weight=0.0,
        l2_weight=1.0,
        dtype="bfloat16",
        remat="dots",
    ),
    adversary=AdversaryConfig(weight=0.1, judges=("frame",), game="hinge", width=64, layers=4, start=20_000),
    train_tokenizer=TrainConfig(
        steps=1_000_000,
        batch=128,
        learning_rate=3e-4,
        adversary_learning_rate=1e-4,
        warmup=10_000,
        weight_decay=1e-4,
        ema=0.9999,
        save_every=5000,
        sample_every=5000,
    ),
    tokens=TokensConfig(videos=1_000_000, latent_frames=16),
    transformer=TransformerConfig(
        text_vocabulary=16_000,
        text_length=64,
        latent_frames=6,
        width=1024,
        layers=24,
        heads=16,
        kv_heads=16,
        mlp=2816,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
    ),
    train_transformer=TrainConfig(
        steps=500_000, batch=256, learning_rate=2e-4, warmup=5000, ema=0.9999, save_every=2000, sample_every=5000
    ),
)
