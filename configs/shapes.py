"""Moving Shapes at 32×32: the weights shipped in `data/`.

    tokvid train tokenizer configs/shapes.py --workdir runs/shapes
    tokvid tokenize configs/shapes.py --workdir runs/shapes
    tokvid train transformer configs/shapes.py --workdir runs/shapes
    tokvid evaluate shapes --weights runs/shapes --samples 512 --json runs/shapes/evaluation.json
"""

from tokvid.config import DataConfig, Recipe, TokenizerConfig, TrainConfig

size = (32, 32)

recipe = Recipe(
    data=DataConfig(source="shapes", size=size, frames=7, fps=(2.0, 4.0, 8.0)),
    tokenizer=TokenizerConfig(
        size=size,
        patch=8,
        width=128,
        heads=4,
        mlp=384,
        encoder=("space", "time"),
        decoder=("space", "time") * 2,
        levels=(8, 8, 6, 5),
    ),
    train_tokenizer=TrainConfig(steps=8000, batch=16, learning_rate=2e-3, weight_decay=0.01, sample_every=1000),
)
