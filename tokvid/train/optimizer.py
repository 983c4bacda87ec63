"""AdamW with warm-up and cosine decay, clipped; weight decay on matrices only."""

import jax
import optax

from tokvid.config import TrainConfig


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Step → learning rate: linear warm-up, then a cosine down to `final_learning_rate` of the peak."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup, max(1, config.steps // 2)),
        decay_steps=max(config.steps, 2),
        end_value=config.final_learning_rate * config.learning_rate,
    )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The optimizer of both models."""
    b1, b2 = config.betas
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=b1,
            b2=b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )
