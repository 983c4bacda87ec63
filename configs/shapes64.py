"""Moving Shapes at 64×64, for all tasks of docs/tasks.md: the weights shipped in `data/`.

On two CPU cores with AVX512-BF16: 40 minutes for the tokenizer, 8 for the tokens, 75 and 100 for the transformer, whose
second part has a larger share of text → video; then 26 for the tokens of more videos, and 52 for a third part on these;
20 for the tokens of others, and 48 and 20 for two more parts, each averaged with the weights that it started from; at
last 155 for the tokenizer's decoder alone, which leaves the tokens, and so the transformer, as they are.

    tokvid train tokenizer configs/shapes64.py --workdir runs/shapes64
    tokvid tokenize configs/shapes64.py --workdir runs/shapes64
    tokvid train transformer configs/shapes64.py --workdir runs/shapes64 --train_transformer.steps 5200
    mkdir runs/second && cp -r runs/shapes64/tokenizer runs/shapes64/tokens* runs/shapes64/text.model runs/second/
    tokvid train transformer configs/shapes64.py --workdir runs/second --train_transformer.start runs/shapes64 \\
        --train_transformer.steps 7000 --train_transformer.learning_rate 3e-3 \\
        --layouts.tasks.text_to_video 0.5 --layouts.tasks.continuation 0.2
    mkdir runs/third && cp -r runs/shapes64/tokenizer runs/shapes64/text.model runs/third/
    tokvid tokenize configs/shapes64.py --workdir runs/third --tokens.videos 10000
    tokvid train transformer configs/shapes64.py --workdir runs/third --train_transformer.start runs/second \\
        --tokens.videos 10000 --train_transformer.steps 4200 --train_transformer.learning_rate 3e-3 \\
        --train_transformer.decay 0.4 --layouts.tasks.text_to_video 0.42 --layouts.tasks.image_to_video 0.04 \\
        --layouts.tasks.continuation 0.18 --layouts.tasks.infilling 0.03 --layouts.tasks.restyle 0.05 \\
        --layouts.tasks.reshape 0.02 --layouts.tasks.colourise 0.03 --layouts.tasks.inpaint 0.12 \\
        --layouts.tasks.outpaint 0.04 --layouts.tasks.upscale 0.03 --layouts.tasks.animate 0.12 \\
        --layouts.tasks.variation 0.02 --layouts.tasks.interpolation 0.15
    MORE="--tokens.videos 10000 --data.seed 11 --train_transformer.sample_every 0 --layouts.tasks.image_to_video 0.04
        --layouts.tasks.continuation 0.18 --layouts.tasks.infilling 0.02 --layouts.tasks.restyle 0.04
        --layouts.tasks.reshape 0.02 --layouts.tasks.colourise 0.02 --layouts.tasks.inpaint 0.12
        --layouts.tasks.outpaint 0.03 --layouts.tasks.upscale 0.02 --layouts.tasks.variation 0.02
        --layouts.tasks.interpolation 0.15"
    tokvid tokenize configs/shapes64.py --workdir runs/fourth --train_transformer.start runs/third $MORE
    tokvid train transformer configs/shapes64.py --workdir runs/fourth --train_transformer.start runs/third $MORE \\
        --train_transformer.steps 4500 --train_transformer.learning_rate 3e-3 --train_transformer.decay 0.4 \\
        --layouts.tasks.text_to_video 0.38 --layouts.tasks.animate 0.2
    tokvid merge --weights runs/fourth --average runs/third --out runs/both
    mkdir runs/fifth && cp -r runs/fourth/tokenizer runs/fourth/tokens* runs/fourth/text.model runs/fifth/
    tokvid train transformer configs/shapes64.py --workdir runs/fifth --train_transformer.start runs/both $MORE \\
        --train_transformer.steps 2000 --train_transformer.learning_rate 2e-3 --train_transformer.decay 0.9 \\
        --train_transformer.warmup 50 --layouts.tasks.text_to_video 0.33 --layouts.tasks.animate 0.25
    tokvid merge --weights runs/fifth --average runs/both --out runs/shapes
    DECODER="--train_tokenizer.freeze tokenizer.embed tokenizer.encoder tokenizer.to_latent
        --train_tokenizer.warmup 50 --train_tokenizer.sample_every 0"
    tokvid train tokenizer configs/shapes64.py --workdir runs/decoder1 --train_tokenizer.start runs/shapes $DECODER \\
        --train_tokenizer.steps 9000 --train_tokenizer.learning_rate 2e-3 --train_tokenizer.decay 0.7
    tokvid train tokenizer configs/shapes64.py --workdir runs/decoder2 --train_tokenizer.start runs/decoder1 $DECODER \\
        --train_tokenizer.steps 5000 --train_tokenizer.learning_rate 2e-3 --train_tokenizer.decay 0.7 \\
        --tokenizer.temporal_weight 3
    tokvid train tokenizer configs/shapes64.py --workdir runs/decoder3 --train_tokenizer.start runs/decoder2 $DECODER \\
        --train_tokenizer.steps 1800 --train_tokenizer.learning_rate 1.5e-3 --train_tokenizer.decay 0.8 \\
        --tokenizer.temporal_weight 6
    tokvid train tokenizer configs/shapes64.py --workdir runs/decoder4 --train_tokenizer.start runs/decoder3 $DECODER \\
        --train_tokenizer.steps 7000 --train_tokenizer.learning_rate 2e-3 --train_tokenizer.decay 0.7 \\
        --tokenizer.temporal_weight 6 --data.seed 21
    cp runs/decoder4/tokenizer/config.json runs/decoder4/tokenizer/weights.safetensors runs/shapes/tokenizer/
    tokvid evaluate shapes --weights runs/shapes --samples 512 --json runs/shapes/evaluation.json

A patch of 4×4 pixels and 2 frames has a code of 11 bits, and four patches share a token, so a latent frame has 64
tokens. A quarter of the tokenizer's clips are shown as the tasks' conditions, which it would otherwise never see. After
the second part, the loss was 0.78 nats on training tokens and 1.36 on held-out ones; more videos helped more than more
steps would have: after the third, it was 1.02 and 1.23; after the fourth, on other videos and tasks, 1.10 on held-out
ones, and after the fifth 1.09. The decoder's first part was ended at step 7,685; it was planned as 3,000 steps, and its
second as 3,000, so their learning rates rose once. Averages have more of the prompts right than what they are made of.
The shipped weights are older than `Task.text_dropout`.
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
    data=DataConfig(source="shapes", size=size, frames=9, fps=(2.0, 4.0, 8.0), conditions=0.25, threads=1),
    tokenizer=TokenizerConfig(
        patch=4,
        fold=2,
        width=128,
        heads=4,
        mlp=352,
        encoder=("space", "time"),
        decoder=("space", "time") * 2,
        time_window=2,  # two layers then see 3 latent frames: fewer than a clip's 5, so that streams are nothing new
        quantizer="fsq",
        levels=(8, 8, 6, 5),
        temporal_weight=0.5,
    ),
    train_tokenizer=TrainConfig(
        steps=2400,
        batch=4,
        optimizer="muon",
        learning_rate=4e-3,
        schedule="stable",
        decay=0.3,
        weight_decay=0.01,
        ema=0.998,
        log_every=50,
        save_every=200,
        sample_every=1000,
    ),
    tokens=TokensConfig(videos=3000, latent_frames=9),
    transformer=TransformerConfig(
        text_vocabulary=512,
        text_length=15,
        latent_frames=4,
        width=160,
        layers=5,
        heads=5,
        kv_heads=5,
        mlp=448,
        head_width=128,
        head_layers=2,
        later_temperature=0.25,
    ),
    layouts=LayoutConfig(
        tasks={
            "text_to_video": 0.24,
            "image_to_video": 0.05,
            "continuation": 0.15,
            "infilling": 0.04,
            "restyle": 0.07,
            "reshape": 0.03,
            "colourise": 0.06,
            "inpaint": 0.08,
            "outpaint": 0.06,
            "upscale": 0.06,
            "animate": 0.08,
            "variation": 0.03,
            "interpolation": 0.05,
        }
    ),
    train_transformer=TrainConfig(
        steps=3000,
        batch=8,
        optimizer="muon",
        learning_rate=4e-3,
        schedule="stable",
        decay=0.3,
        warmup=100,
        ema=0.998,
        log_every=50,
        save_every=200,
        sample_every=2000,
    ),
)
