"""Moving Shapes at 32×32, for stories and interpolation: the weights measured in docs/hierarchy.md.

On two CPU cores: 18 minutes for the tokenizer, 3 for the tokens, 55 for the transformer, 40 for the decoder.

    tokvid train tokenizer configs/shapes.py --workdir runs/shapes
    tokvid tokenize configs/shapes.py --workdir runs/shapes
    tokvid train transformer configs/shapes.py --workdir runs/shapes

In clips of 7 frames, the decoder always sees a video's first frame. So it is fine-tuned on longer clips, and finally
against flicker, with the encoder frozen: tokens and transformer stay valid.

    DECODER="--data.frames 17 --train_tokenizer.freeze tokenizer.embed tokenizer.encoder tokenizer.to_latent"
    tokvid train tokenizer configs/shapes.py --workdir runs/longer --train_tokenizer.start runs/shapes $DECODER \\
        --train_tokenizer.steps 1800 --train_tokenizer.batch 4 --train_tokenizer.learning_rate 2e-3
    tokvid train tokenizer configs/shapes.py --workdir runs/calmer --train_tokenizer.start runs/longer $DECODER \\
        --train_tokenizer.steps 1500 --train_tokenizer.batch 4 --train_tokenizer.learning_rate 2e-3 \\
        --tokenizer.temporal_weight 1
    tokvid train tokenizer configs/shapes.py --workdir runs/finer --train_tokenizer.start runs/calmer $DECODER \\
        --train_tokenizer.steps 5000 --train_tokenizer.learning_rate 3e-3 --tokenizer.temporal_weight 1
    cp runs/finer/tokenizer/config.json runs/finer/tokenizer/weights.safetensors runs/shapes/tokenizer/
    tokvid evaluate shapes --weights runs/shapes --samples 512 --json runs/shapes/evaluation.json

Fine-tuned for an hour and a half, the transformer also interpolates, infills, and draws rows or whole latent frames at
once. The share of rows, which are hardest, grows during fine-tuning.

    mkdir -p runs/levels runs/rows && cp -r runs/shapes/tokenizer runs/levels/
    LEVELS="--layouts.tasks.text_to_video 0.22 --layouts.tasks.image_to_video 0.05 --layouts.tasks.continuation 0.25
        --layouts.tasks.infilling 0.08 --layouts.tasks.interpolation 0.4 --layouts.rows 0 0 1 8"
    tokvid tokenize configs/shapes.py --workdir runs/levels $LEVELS
    cp -r runs/levels/tokenizer runs/levels/tokens runs/levels/text.model runs/rows/
    tokvid train transformer configs/shapes.py --workdir runs/levels $LEVELS --train_transformer.start runs/shapes \\
        --train_transformer.steps 3000 --train_transformer.learning_rate 3e-3
    ROWS="--layouts.tasks.text_to_video 0.3 --layouts.tasks.image_to_video 0.04 --layouts.tasks.continuation 0.25
        --layouts.tasks.infilling 0.05 --layouts.tasks.interpolation 0.36 --layouts.rows 0 1 1 8"
    tokvid train transformer configs/shapes.py --workdir runs/rows $ROWS --train_transformer.start runs/levels \\
        --train_transformer.steps 2200 --train_transformer.learning_rate 3e-3 --train_transformer.warmup 100 \\
        --train_transformer.seed 7
    tokvid evaluate shapes --weights runs/rows --samples 512 --rows 1 --json runs/rows/evaluation.json
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

size = (32, 32)

recipe = Recipe(
    data=DataConfig(source="shapes", size=size, frames=7, fps=(2.0, 4.0, 8.0), threads=1),
    tokenizer=TokenizerConfig(
        patch=4,
        width=96,
        heads=3,
        mlp=256,
        encoder=("space", "time"),
        decoder=("space", "time") * 2,
        time_window=4,
        quantizer="fsq",
        levels=(8, 5, 5, 5),
    ),
    train_tokenizer=TrainConfig(steps=5000, batch=8, optimizer="muon", learning_rate=4e-3, weight_decay=0.01),
    tokens=TokensConfig(videos=16_000, latent_frames=16),
    transformer=TransformerConfig(
        text_vocabulary=512,
        text_length=15,  # 272 slots in all: a multiple of 16, which CPUs are a fifth faster at than at 277
        latent_frames=4,
        width=128,
        layers=5,
        heads=4,
        kv_heads=4,
        mlp=384,
    ),
    layouts=LayoutConfig(tasks={"text_to_video": 0.5, "image_to_video": 0.1, "continuation": 0.4}),
    train_transformer=TrainConfig(
        steps=4400,
        batch=16,
        optimizer="muon",
        learning_rate=5e-3,
        warmup=100,
        ema=0.999,
        sample_every=2000,
    ),
)
