"""A LoRA for the tasks that the shipped weights of Moving Shapes do worst; the other tasks stay as they are.

On two CPU cores, 4 minutes for the tokens, and half an hour for the LoRA:

    tokvid tokenize configs/tasks.py --workdir runs/tasks
    tokvid train transformer configs/tasks.py --workdir runs/tasks --train_transformer.lora 32
    tokvid evaluate shapes --lora runs/tasks/transformer/lora.safetensors --samples 128 --task animate

In `data/transformer/loras/`, it is used whenever `animate` or `inpaint` is asked for (docs/finetuning.md).
"""

from tokvid.config import DataConfig, LayoutConfig, Recipe, TokensConfig, TrainConfig

recipe = Recipe(
    data=DataConfig(source="shapes", size=(64, 64), frames=9, fps=(2.0, 4.0, 8.0), threads=1, seed=12),
    tokens=TokensConfig(videos=6000, latent_frames=9),
    layouts=LayoutConfig(tasks={"animate": 0.8, "inpaint": 0.2}),
    train_transformer=TrainConfig(
        start="shapes",
        steps=3000,
        batch=8,
        learning_rate=2e-3,
        warmup=50,
        ema=0.998,
        log_every=50,
        save_every=200,
        sample_every=0,
        val_every=250,
    ),
)
