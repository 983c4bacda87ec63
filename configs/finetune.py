"""Clips of a new world, learned by the shipped weights of robot arms: a LoRA, or all parameters.

    tokvid tokenize configs/finetune.py --workdir runs/mine --data.path my_clips
    tokvid train transformer configs/finetune.py --workdir runs/mine --data.path my_clips --train_transformer.lora 16
    tokvid generate --weights robots --lora runs/mine/transformer/lora.safetensors --prompt "…" --fps 4

`my_clips` is a folder of clips with captions.jsonl. Without `train_transformer.lora`, all parameters are trained, and
`--weights runs/mine` has the result. docs/finetuning.md compares both.
"""

from tokvid.config import DataConfig, LayoutConfig, Recipe, TokensConfig, TrainConfig

recipe = Recipe(
    data=DataConfig(source="folder", path="my_clips", size=(64, 64), frames=9, fps=(2.0, 4.0, 8.0), threads=1),
    tokens=TokensConfig(videos=400, latent_frames=9),
    layouts=LayoutConfig(
        tasks={"text_to_video": 0.3, "image_to_video": 0.35, "continuation": 0.35},
    ),
    train_transformer=TrainConfig(
        start="robots",  # the tokenizer, the text model and all of their configs come from there, too
        steps=300,
        batch=8,
        learning_rate=2e-3,
        warmup=20,
        ema=0.98,
        log_every=20,
        save_every=100,
        sample_every=0,
        val_every=50,
    ),
)
