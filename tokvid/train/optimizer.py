"""Muon, AdamW or Adafactor with warm-up and decay, clipped; weight decay on matrices only, by Muon on its own ones."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from tokvid.config import TrainConfig
from tokvid.errors import UserError, did_you_mean
from tokvid.nn.blocks import MATRICES

OPTIMIZERS = ("adamw", "muon", "adafactor")
UPDATE_SIZE = 0.2  # RMS of Muon's and Adafactor's updates, close to AdamW's, so that learning rates carry over
VECTORS = ("scale", "bias")  # names of parameters that are no matrices
LEAST_FACTORED = 64  # rows and columns, enough to factor single heads, but not stacked norms of fewer layers
SLOWEST_IN_BFLOAT16 = 0.98  # maximum beta: with 8 bits, changes below 1/256 per step are rounded away


def learning_rate(config: TrainConfig, peak: float | None = None) -> optax.Schedule:
    """Step → learning rate: linear warm-up, then `schedule` down to `final_learning_rate` times the peak."""
    peak = config.learning_rate if peak is None else peak
    steps, warmup = max(config.steps, 2), min(config.warmup, max(1, config.steps // 2))
    end = config.final_learning_rate * peak
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, end)
    if not 0 <= config.decay <= 1:
        raise UserError(
            f"decay should be 0 to 1, the share of the steps that the learning rate falls, got {config.decay}"
        )
    decay = max(1, min(steps - warmup, round(config.decay * steps)))
    parts = [
        optax.linear_schedule(0.0, peak, warmup),
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, end, decay),
    ]
    return optax.join_schedules(parts, [warmup, steps - decay])


def updates_made(opt_state: Any) -> jax.Array:
    """The number of updates so far, by which learning rates go: a skipped step makes none."""

    def is_schedule(each: Any) -> bool:
        return isinstance(each, optax.ScaleByScheduleState)

    return next(each.count for each in jax.tree.leaves(opt_state, is_leaf=is_schedule) if is_schedule(each))


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The optimizer of both models, and of the adversary if there is one. UserError for an unknown name."""
    if config.optimizer not in OPTIMIZERS:
        raise UserError(did_you_mean(config.optimizer, OPTIMIZERS, "optimizer"))
    b1, b2 = config.betas
    if config.optimizer == "adafactor":
        optimizer = _adafactor(config)
    elif config.optimizer == "muon":  # matrices of the blocks; AdamW for all else
        optimizer = muon(
            learning_rate(config),
            weight_decay=config.weight_decay,
            adam_b1=b1,
            adam_b2=b2,
            consistent_rms=UPDATE_SIZE,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        optimizer = _adamw(config, learning_rate(config), config.betas)
    if config.moments == "bfloat16":
        if config.optimizer != "adafactor" and max(b1, b2) > SLOWEST_IN_BFLOAT16:
            raise UserError(f"betas {config.betas} are too slow for moments in bfloat16; {SLOWEST_IN_BFLOAT16} at most")
        optimizer = _kept_as(optimizer, jnp.bfloat16)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if not config.adversary_learning_rate:
        return optimizer
    # Short memory, because the adversary's opponent changes.
    adversary = _adamw(config, learning_rate(config, config.adversary_learning_rate), (0.5, 0.9))
    both = {"model": optimizer, "adversary": optax.chain(optax.clip_by_global_norm(config.clip_norm), adversary)}
    return optax.partition(both, _sides)


def _adamw(config: TrainConfig, rate: optax.Schedule, betas: tuple[float, float]) -> optax.GradientTransformation:
    return optax.adamw(
        rate,
        b1=betas[0],
        b2=betas[1],
        weight_decay=config.weight_decay,
        mask=_are_matrices,
    )


def _adafactor(config: TrainConfig) -> optax.GradientTransformation:
    """Second moments as a row and a column of each matrix (Shazeer and Stern 2018), at AdamW's learning rates."""
    factored = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=LEAST_FACTORED),
        optax.clip_by_block_rms(1.0),
        optax.scale(UPDATE_SIZE),
    )
    stepped = optax.chain(
        optax.add_decayed_weights(config.weight_decay, _are_matrices),
        optax.scale_by_learning_rate(learning_rate(config)),
    )

    # A list of plain arrays is factored: otherwise rows and columns would be sharded by the parameter's axis names.
    def init(params: Any) -> Any:
        return (*factored.init(jax.tree.leaves(params)), *stepped.init(params))

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, rows = factored.update(jax.tree.leaves(gradients), state[:3], jax.tree.leaves(params))
        updates, counts = stepped.update(jax.tree.unflatten(jax.tree.structure(gradients), updates), state[3:], params)
        return updates, (*rows, *counts)

    return optax.GradientTransformation(init, update)


def _kept_as(optimizer: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """The same optimizer, computing in float32, with its arrays stored in `dtype` between steps."""

    def cast(state: Any, wanted: Any) -> Any:
        def one(leaf: jax.Array) -> jax.Array:
            return leaf.astype(wanted) if leaf.ndim and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        return jax.tree.map(one, state)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(optimizer.init(params), dtype), update)


def _are_matrices(params: Any) -> Any:
    """Per leaf, whether it is one; stacked layers give norms a second axis."""

    def is_matrix(path: Any, leaf: Any) -> bool:
        return leaf.ndim > 1 and not any(getattr(key, "key", None) in VECTORS for key in path)

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _sides(params: Any) -> Any:
    """Per leaf, "adversary" if it is below that name, else "model"."""

    def side(path, _):
        return "adversary" if any(getattr(key, "key", None) == "adversary" for key in path) else "model"

    return jax.tree_util.tree_map_with_path(side, params)


def _matrices(params: Any) -> Any:
    """Per leaf, the axes that Muon treats as a matrix's inputs and outputs; None if it isn't a block's matrix."""

    def axes(path, leaf):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if names[-1] not in MATRICES:
            return None
        inputs, outputs = MATRICES[names[-1]]
        first = leaf.ndim - inputs - outputs  # axes before it: stacked layers
        return MuonDimensionNumbers(tuple(range(first, first + inputs)), tuple(range(first + inputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)
