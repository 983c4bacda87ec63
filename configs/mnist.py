"""Captioned Moving MNIST at 64×64: a handwritten digit that moves along one axis.

    tokvid train tokenizer configs/mnist.py --workdir runs/mnist --data.path mnist_train.npz
    tokvid tokenize configs/mnist.py --workdir runs/mnist --data.path mnist_train.npz
    tokvid train transformer configs/mnist.py --workdir runs/mnist --data.path mnist_train.npz
    tokvid evaluate mnist --weights runs/mnist --samples 512 --json runs/mnist/evaluation.json

`data.path`: MNIST's idx files, or an .npz of images and labels. Captions tell how the digit moves at first, so a
window of the transformer is a whole video. Four patches of 8×8 pixels and 2 frames, of 18 bits each, share a token, so
a latent frame has 16.
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
    data=DataConfig(source="mnist", path="mnist_train.npz", size=size, frames=9, fps=(8.0,), threads=1),
    tokenizer=TokenizerConfig(
        size=size,
        patch=8,
        fold=2,
        width=160,
        heads=5,
        mlp=448,
        encoder=("space", "time"),
        decoder=("space", "time") * 2,
        time_window=2,
        quantizer="fsq",
        groups=2,
        levels=(8, 8, 8),
    ),
    train_tokenizer=TrainConfig(
        steps=3000,
        batch=8,
        optimizer="muon",
        learning_rate=4e-3,
        schedule="stable",
        decay=0.4,
        weight_decay=0.01,
        ema=0.998,
        log_every=50,
        save_every=500,
        sample_every=1000,
    ),
    tokens=TokensConfig(videos=10_000, latent_frames=10),
    transformer=TransformerConfig(
        text_vocabulary=320,
        text_length=16,
        latent_frames=10,
        width=224,
        layers=6,
        heads=7,
        kv_heads=7,
        mlp=640,
        head_width=128,
        head_layers=2,
    ),
    layouts=LayoutConfig(tasks={"text_to_video": 0.85, "image_to_video": 0.1, "continuation": 0.05}),
    train_transformer=TrainConfig(
        steps=3000,
        batch=16,
        optimizer="muon",
        learning_rate=4e-3,
        schedule="stable",
        decay=0.4,
        warmup=100,
        ema=0.998,
        log_every=50,
        save_every=500,
        sample_every=2000,
    ),
)
