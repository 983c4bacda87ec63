"""Moving Shapes at 36×36: the weights shipped in `data/`.

    tokvid train tokenizer configs/shapes.py --workdir runs/shapes
    tokvid tokenize configs/shapes.py --workdir runs/shapes
    tokvid train transformer configs/shapes.py --workdir runs/shapes
    tokvid evaluate shapes --weights runs/shapes --samples 512 --json runs/shapes/evaluation.json
"""

from tokvid.config import DataConfig, Recipe, TokenizerConfig, TrainConfig

size = (36, 36)

recipe = Recipe(
    data=DataConfig(source="shapes", size=size, frames=7, fps=(2.0, 4.0, 8.0), threads=1),
    tokenizer=TokenizerConfig(
        size=size,
        patch=6,
        width=128,
        heads=4,
        mlp=256,
        encoder=("space", "time"),
        decoder=("space", "time") * 2,
        levels=(8, 5, 5, 5),
    ),
    train_tokenizer=TrainConfig(steps=6000, batch=8, learning_rate=1.5e-3, weight_decay=0.01, sample_every=1000),
)
