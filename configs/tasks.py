"""A LoRA for the tasks that the shipped weights of Moving Shapes do worst; the other tasks stay as they are.

On two CPU cores, 4 minutes for the tokens, and an hour for the LoRA, which was first trained for half as many steps:

    tokvid tokenize configs/tasks.py --workdir runs/tasks
    tokvid train transformer configs/tasks.py --workdir runs/tasks --train_transformer.lora 32 \\
        --train_transformer.steps 3000
    tokvid train transformer configs/tasks.py --workdir runs/tasks --train_transformer.lora 32
    tokvid evaluate shapes --lora runs/tasks/transformer/lora.safetensors --samples 128 --task animate

In `data/transformer/loras/`, it is used whenever `animate` or `inpaint` is asked for (docs/finetuning.md). Their
held-out loss was 1.20 after 250 steps, 1.13 after 3,000 and 1.11 at the end. Of 128 clips, it has 0.76 of `animate` and
0.92 of `inpaint` right after 3,000 steps, 0.84 and 0.91 at the end; without it, 0.33 and 0.84 are.
"""

from tokvid.config import DataConfig, LayoutConfig, Recipe, TokensConfig, TrainConfig

recipe = Recipe(
    data=DataConfig(source="shapes", size=(64, 64), frames=9, fps=(2.0, 4.0, 8.0), threads=1, seed=12),
    tokens=TokensConfig(videos=6000, latent_frames=9),
    layouts=LayoutConfig(tasks={"animate": 0.8, "inpaint": 0.2}),
    train_transformer=TrainConfig(
        start="shapes",
        steps=6000,
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
