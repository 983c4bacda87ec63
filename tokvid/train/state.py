"""The training state, a plain pytree, and the training step of both models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from tokvid import weights
from tokvid.config import TrainConfig
from tokvid.errors import UserError
from tokvid.nn.frozen import check_beginnings, freeze
from tokvid.sharding import BATCH, on_mesh, shardings
from tokvid.train.optimizer import learning_rate, make_optimizer, updates_made
from tokvid.transformer import lora_files

Metrics = dict[str, jax.Array]
BUFFERS = nnx.Not(nnx.Param)


class TrainState(NamedTuple):
    """Everything that a step changes. `skipped` counts consecutive non-finite steps, which change nothing.

    `buffers` are the model's variables without gradients: those that its forward pass updates, such as a codebook, and
    frozen parameters.
    """

    step: jax.Array
    params: nnx.State
    buffers: nnx.State
    opt_state: Any
    ema: nnx.State
    skipped: jax.Array


class Training(Protocol):
    """A model to train, as the loop sees it: its construction, its loss and its data."""

    name: str
    together: int  # samples of a batch that no split over devices or micro-batches parts

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module: ...

    def loss(self, model: Any, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """A scalar to minimise and named scalars to log. May update the model's buffers.

        Without a key, it is the loss of held-out data: nothing is random, and nothing is updated.
        """
        ...

    def weight(self, batch: Any) -> jax.Array:
        """Weight of a micro-batch's loss.

        UserError if no weighting gives the loss of the whole batch.
        """
        ...

    def flops(self) -> float:
        """FLOPs of a training step per clip of its batch, counted from the config."""
        ...

    def batches(self, shard: tuple[int, int] = (0, 1)) -> Any:
        """An endless iterator of NumPy batches with `get_state`, `set_state` (JSON values) and `close`.

        `shard` (i, n) selects the i-th of n equal parts of every batch; order and state don't depend on n.
        """
        ...

    def prepare(self, batch: Any, state: TrainState, mesh: Mesh) -> Any:
        """The batch for `loss`, of global arrays. A training on the model's own samples draws them here.

        Where it can't go on, it takes `batches` back to before this one and raises a UserError; the loop then saves.
        """
        ...

    def validation(self, shard: tuple[int, int] = (0, 1)) -> Any:
        """Like `batches`, on held-out data, always the same; None if there is none."""
        ...

    def alarm(self, metrics: Mapping[str, float]) -> str:
        """A warning about the mean metrics after warm-up (a collapse, for example), or ""."""
        ...

    def samples(self, model: Any, directory: Any, step: int) -> None:
        """Writes samples of the model (with averaged weights) for visual inspection; a `sheet` of them last."""
        ...

    def finish(self, variables: nnx.State, directory: Any, step: int) -> None:
        """Writes the averaged weights for sampling."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """The facts that must match a checkpoint on resuming, as JSON values."""
        ...


def sheet(directory: Path, step: int) -> Path:
    """The picture of samples of a step: where it is, they all are."""
    return directory / f"{step:07d}.png"


def abstract_state(training: Training, config: TrainConfig, mesh: Mesh) -> tuple[TrainState, nnx.GraphDef]:
    """The state's shapes, types and shardings, without computing it, and the model's graph definition."""
    graph, *_ = nnx.split(nnx.eval_shape(lambda: new_model(training, config)), nnx.Param, ...)
    like = jax.eval_shape(_init(training, config))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like, shardings(like, mesh)
    ), graph


def init_state(training: Training, config: TrainConfig, like: TrainState) -> TrainState:
    """The state of step 0, created with the shardings of `like` (from `abstract_state`)."""
    return jax.jit(_init(training, config), out_shardings=_places(like))()


def _init(training: Training, config: TrainConfig) -> Callable[[], TrainState]:
    def init() -> TrainState:
        model = new_model(training, config)
        params, buffers = nnx.state(model, nnx.Param), nnx.state(model, BUFFERS)
        zero, opt_state = jnp.zeros((), jnp.int32), make_optimizer(config).init(params)
        return TrainState(zero, params, buffers, opt_state, jax.tree.map(jnp.copy, params), zero)

    return init


def new_model(training: Training, config: TrainConfig) -> nnx.Module:
    """A new model, with what is never trained frozen."""
    model = training.make_model(nnx.Rngs(config.seed))
    if config.freeze and not config.freeze_steps:
        freeze(model, config.freeze)
    return model


def start_from(state: TrainState, folder: Path, kind: str, without: tuple[str, ...] = ()) -> TrainState:
    """The state with the weights in `folder`/`kind` filled in; leaves they lack (an adversary) stay as they are.

    Those whose names begin as in `without` are left out. UserError if shapes differ, or if the weights have another
    leaf that this model lacks.
    """
    params = jax.tree_util.tree_leaves_with_path(weights.load(folder / kind, kind).params)
    check_beginnings(without, [_name(path) for path, _ in params])
    loaded = {_name(path): leaf for path, leaf in params if not _name(path).startswith(without)}
    state, used = _filled(state, loaded, f"{kind}.", folder / kind)
    if missing := sorted(loaded.keys() - used):
        raise UserError(
            f"{folder / kind} has {missing[0]}, which the recipe's {kind} lacks; make their configs agree, or leave it "
            f"out (train_{kind}.start_without)"
        )
    return state


def with_lora(state: TrainState, path: str) -> TrainState:
    """The state of a LoRA's training with the updates in a file filled in. UserError if they are of other matrices."""
    _, factors = lora_files.read_lora(path)
    state, used = _filled(state, factors, "updates.", path)
    if missing := sorted(factors.keys() - used):
        raise UserError(f"{path} updates {missing[0]}, which the recipe's transformer lacks")
    return state


def _filled(state: TrainState, loaded: Mapping[str, Any], owner: str, where: str | Path) -> tuple[TrainState, set[str]]:
    """The state with leaves filled in by name, without the `owner` that it may begin with; and the names found."""
    used = set()

    def fill(path, leaf):
        name = _name(path).removeprefix(owner)
        if name not in loaded:
            return leaf
        used.add(name)
        if loaded[name].shape != leaf.shape:
            raise UserError(f"{where}: {name} has shape {loaded[name].shape}, the recipe wants {leaf.shape}")
        return jax.device_put(jnp.array(loaded[name], leaf.dtype), leaf.sharding)  # a copy: the step donates each leaf

    parts = {
        part: jax.tree_util.tree_map_with_path(fill, getattr(state, part)) for part in ("params", "buffers", "ema")
    }
    return state._replace(**parts), used


def held_leaves(params: nnx.State, config: TrainConfig) -> Any:
    """Per leaf, whether it is frozen for the first `freeze_steps`. UserError for a beginning that no name has."""
    beginnings = config.freeze if config.freeze_steps else ()
    check_beginnings(beginnings, [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)])
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path).startswith(beginnings), params)


def _name(path: Any) -> str:
    return ".".join(str(key.key) for key in path if hasattr(key, "key"))


def _places(like: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, like)


def make_step(
    training: Training, config: TrainConfig, mesh: Mesh, like: TrainState, graph: nnx.GraphDef
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The jitted training step; the state is donated. A non-finite gradient changes only the counters.

    UserError if the batch can't be split over the mesh's devices in `config.accumulate` micro-batches.
    """
    check_batch(config, mesh, training.together)
    optimizer, rate = make_optimizer(config), learning_rate(config)
    early = held_leaves(like.params, config)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        held = jax.tree.map(lambda still: still and state.step < config.freeze_steps, early)

        def loss(params: nnx.State, batch: Any, key: jax.Array) -> tuple[jax.Array, tuple[Metrics, nnx.State]]:
            params = jax.tree.map(lambda leaf, still: jnp.where(still, jax.lax.stop_gradient(leaf), leaf), params, held)
            model = nnx.merge(graph, params, state.buffers, copy=True)  # flax refuses to update variables from outside
            value, metrics = training.loss(model, batch, key)
            return value, (metrics, nnx.state(model, BUFFERS))

        differentiate = jax.value_and_grad(loss, has_aux=True)
        with on_mesh(mesh):  # for the model's computations only
            if config.accumulate == 1:
                (value, (metrics, buffers)), gradients = differentiate(state.params, batch, key)
            else:
                value, metrics, gradients = _accumulated(
                    training, differentiate, config.accumulate, like, state, batch, key
                )
                buffers = state.buffers
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)))
        used = rate(updates_made(state.opt_state))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updates = jax.tree.map(lambda leaf, still: jnp.where(still, 0, leaf), updates, held)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(config.ema, (1 + state.step) / (10 + state.step))  # short memory at first
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        finite = jnp.isfinite(norm) & jnp.isfinite(value)
        # `where`, because a multiplication by 0 would propagate NaN.
        params, buffers, opt_state, ema = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, buffers, opt_state, ema),
            (state.params, state.buffers, state.opt_state, state.ema),
        )
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics |= {"loss": value, "gradient_norm": norm, "learning_rate": used, "skipped": skipped}
        return TrainState(state.step + 1, params, buffers, opt_state, ema, skipped), metrics

    return jax.jit(
        step,
        in_shardings=(_places(like), NamedSharding(mesh, BATCH)),
        out_shardings=(_places(like), None),
        donate_argnums=0,
    )


def make_validation(
    training: Training, mesh: Mesh, like: TrainState, graph: nnx.GraphDef
) -> Callable[[TrainState, Any], Metrics]:
    """The jitted loss and metrics of the averaged weights on a batch."""

    def validate(state: TrainState, batch: Any) -> Metrics:
        with on_mesh(mesh):
            value, metrics = training.loss(nnx.merge(graph, state.ema, state.buffers, copy=True), batch, None)
        return metrics | {"loss": value}

    return jax.jit(validate, in_shardings=(_places(like), NamedSharding(mesh, BATCH)))


def check_batch(config: TrainConfig, mesh: Mesh, together: int = 1) -> None:
    """UserError unless every device gets an equal share of a batch and of each micro-batch (`Training.together`)."""
    devices, parts = mesh.shape["data"] * mesh.shape["fsdp"], config.accumulate
    least = devices * parts * together
    if config.batch % least:
        over = f"{devices} devices" + f" in {parts} parts" * (parts != 1)
        group = f", {together} of a prompt together" * (together != 1)
        raise UserError(f"batch {config.batch} can't be split over {over}{group}; use a multiple of {least}")


def _accumulated(
    training: Training,
    differentiate: Callable[..., Any],
    parts: int,
    like: TrainState,
    state: TrainState,
    batch: Any,
    key: jax.Array,
) -> tuple[jax.Array, Metrics, Any]:
    """The loss, metrics and gradients of a batch, as weighted means over its micro-batches."""
    # A micro-batch is every n-th sample, so every device already holds its share of each.
    split = jax.tree.map(lambda leaf: leaf.reshape(len(leaf) // parts, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)

    def weighed(number: jax.Array, part: Any) -> Any:
        (value, (metrics, _)), gradients = differentiate(state.params, part, jax.random.fold_in(key, number))
        return jax.tree.map(lambda leaf: training.weight(part) * leaf, (jnp.ones(()), value, metrics, gradients))

    def add(sums: Any, each: tuple[jax.Array, Any]) -> tuple[Any, None]:
        *sums, gradients = jax.tree.map(jnp.add, sums, weighed(*each))
        return (*sums, jax.lax.with_sharding_constraint(gradients, _places(like.params))), None

    numbered = jnp.arange(parts), split
    shapes = jax.eval_shape(weighed, *jax.tree.map(lambda leaf: leaf[0], numbered))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (total, *sums), _ = jax.lax.scan(add, zeros, numbered)
    value, metrics, gradients = jax.tree.map(lambda leaf: leaf / jnp.maximum(total, 1.0), sums)
    return value, metrics, gradients
