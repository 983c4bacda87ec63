"""Fine-tuning of the transformer by a reward of its own videos: GRPO (Shao et al. 2024, section 4.1) on tokens.

For each prompt, and whatever else its task is given, a group of windows is generated and judged. They are drawn without
guidance, from the model's own distribution, but later latent frames at the temperature that the weights name for them:
what goes wrong at another only is not worth mending. The gradient is that of the distribution they are drawn from.
Every second one may be drawn with guidance (`reward.guidance`), which is right more often: the others learn from it
(as from a better policy in Yan et al. 2025, "Learning to reason under off-policy guidance"; without the ratio of
probabilities, so this part is biased towards what guidance draws).
They begin a video each, so that they can be decoded without what came before. A sample's advantage is its reward
relative to its group's, so that no value network is needed, in units of the batch's spread: in units of each group's
own, groups that differ by next to nothing would count as much as the others (Liu et al. 2025, "Understanding
R1-Zero-like training", section 3). Each batch gets one update, so there is no ratio of policies to clip. Of each group,
the samples with the lowest and the highest rewards are trained on: they say most, and generating is cheaper than
training. The divergence from the start, and the cross-entropy of real windows beside (as in Ouyang et al. 2022), keep
the model near real videos.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from tokvid import weights
from tokvid.config import LayoutConfig, Recipe, Sampling
from tokvid.distributed import from_all, to_all
from tokvid.errors import UserError
from tokvid.flops import TRAINING
from tokvid.io.settings import to_dict
from tokvid.sharding import BATCH, on_mesh, shardings
from tokvid.tasks.tasks import TASKS, conditions_of, trained_tasks
from tokvid.train.state import Metrics, TrainState, new_model
from tokvid.train.token_cache import TokenCache
from tokvid.train.transformer_step import TransformerTraining, merged, scored
from tokvid.train.windows import token_batches
from tokvid.transformer import lora_files
from tokvid.transformer.head import temperatures
from tokvid.transformer.layout import clip_slots, in_order, lay_out
from tokvid.transformer.lora import LoRA
from tokvid.transformer.model import Transformer
from tokvid.types import TokenBatch, stride_of

LEAST_SPREAD = 1e-4  # of a group's rewards: smaller ones are rounding errors


class Rollouts(Protocol):
    """Generates and judges windows. It comes from outside, as `train` doesn't import `sampling`."""

    def draw(
        self,
        graph: nnx.GraphDef,
        params: nnx.State,
        windows: TokenBatch,
        seeds_B: jax.Array,
        sampling: Sampling,
        guidance_B: np.ndarray,
    ) -> Int[Array, "b t h w q"]:
        """The windows' tokens: known ones, and the others generated anew. Traced by JAX."""
        ...

    def judge(
        self, tokens_BTHWQ: np.ndarray, real_BTHWQ: np.ndarray, fps_B: np.ndarray, text_BL: np.ndarray
    ) -> Float[np.ndarray, " b"]:
        """The reward of each window, by its tokens, the real one's, its rate and text; finite, else UserError."""
        ...


class Judged(NamedTuple):
    """A batch for the loss: generated windows, their advantages, whether each is the model's own (1, else 0), rewards
    and log-likelihoods (B, L) under the start's parameters; and the real windows of the same prompts, fewer."""

    windows: TokenBatch
    advantage_B: Any
    own_B: Any
    reward_B: Any
    start_BL: Any
    real: TokenBatch


def rewarded_layouts(recipe: Recipe) -> LayoutConfig:
    """The layouts of rewarded windows. UserError where the recipe can't be trained by a reward."""
    reward, config, (_, height, width) = recipe.reward, recipe.train_transformer, recipe.transformer.latent
    begin = [name for name, task in TASKS.items() if task.given.first is not None and task.given.first[0] < 2]
    if not reward.tasks:
        raise UserError(f"reward.tasks is empty; name some of {', '.join(begin)}")
    if other := [name for name in reward.tasks if name not in begin]:
        raise UserError(f"reward.tasks can be {', '.join(begin)}, got {other[0]!r}")
    tasks = dict.fromkeys(reward.tasks, 1.0)
    if untold := conditions_of(tasks).keys() - conditions_of(recipe.layouts.tasks).keys():
        raise UserError(
            f"reward.tasks needs tokens of the condition {min(untold)}; give one of its tasks a share in "
            "layouts.tasks, and tokenize again"
        )
    if not config.start:
        raise UserError("a reward fine-tunes trained weights: name their folder with --train_transformer.start")
    if config.batch % reward.kept:
        raise UserError(
            f"batch {config.batch} should be a multiple of reward.kept, the {reward.kept} videos of a prompt"
        )
    if stride_of(reward.rows, recipe.transformer.latent) == height * width:
        raise UserError("reward.rows can't be all rows, whose decoding in rounds has no likelihood; use fewer, or 0")
    if reward.rows and (masked := [name for name in reward.tasks if TASKS[name].given.mask is not None]):
        raise UserError(f"windows of {masked[0]} are partly known and drawn token by token; leave out reward.rows")
    return LayoutConfig(tasks=tasks, text_dropout=0.0, at_start=1.0, rows=(reward.rows,))


class RewardTraining(TransformerTraining):
    """`Training` of the transformer by `recipe.reward`, from the weights in `train_transformer.start`."""

    def __init__(self, recipe: Recipe, cache: TokenCache, rollouts: Rollouts, show: Any = None):
        super().__init__(recipe, cache, show)
        self.reward, self.rollouts, config = recipe.reward, rollouts, recipe.train_transformer
        self.together = recipe.reward.kept
        self._rewarded = dataclasses.replace(cache, layouts=rewarded_layouts(recipe))
        # At 0, drawing has no likelihood; 1 stands for it.
        self.sampling = Sampling(1.0, self.config.later_temperature or 1.0, rows=recipe.reward.rows)
        self._guidance = np.resize([1.0, self.reward.guidance], self.reward.group)  # of each video of a group
        loras = [lora_files.Scaled(config.start_lora)] if config.start_lora else []
        self.start = weights.load(weights.find(config.start) / "transformer", "transformer", loras)
        self._functions: tuple[Any, ...] = ()

    def loss(self, model: Transformer | LoRA, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The policy gradient's loss for `Judged` batches; for held-out windows, their cross-entropy."""
        if not isinstance(batch, Judged):
            return super().loss(model, batch, key)
        sequence, clip = lay_out(self.config, batch.windows), clip_slots(batch.windows)
        scores, weight_BL = scored(model, sequence, clip, temperature_BL=self._temperatures(batch.windows))
        count = jnp.maximum(weight_BL.sum(), 1.0)
        gain = jnp.sum(weight_BL * batch.advantage_B[:, None] * scores.log_likelihood) / count
        # Unbiased and never negative (Schulman's k3), for the model's own windows; for others it would be neither.
        own_BL = weight_BL * batch.own_B[:, None]
        less_BL = jnp.where(own_BL > 0, batch.start_BL - scores.log_likelihood, 0)
        divergence = jnp.sum(jnp.exp(less_BL) - less_BL - 1) / jnp.maximum(own_BL.sum(), 1.0)
        real, metrics = super().loss(model, batch.real, key)
        value = self.reward.kl * divergence + self.reward.real * real - gain
        share = jnp.mean(batch.advantage_B != 0)
        return value, metrics | {"kl": divergence, "reward": jnp.mean(batch.reward_B), "judged_apart": share}

    def _temperatures(self, windows: TokenBatch) -> Float[Array, "b l"]:
        """The temperatures at which the windows' slots were drawn, by the number of their latent frames."""
        _, _, height, width, _ = windows.tokens.shape
        number_BL = in_order(windows.known) // (height * width) + jnp.asarray(windows.start)[:, None]
        return temperatures(number_BL, self.sampling, self.config)

    def weight(self, batch: Any) -> jax.Array:
        return super().weight(batch.windows if isinstance(batch, Judged) else batch)

    def flops(self) -> float:
        # Beside the update, which also reads a real window for each prompt, the start reads the trained samples, and
        # generating costs a forward pass each.
        kept = self.reward.kept
        generating = self.reward.group / kept * (1 + (self.reward.guidance != 1))
        return super().flops() * (1 + 1 / kept + (1 + generating) / TRAINING)

    def batches(self, shard: tuple[int, int] = (0, 1)) -> Any:
        config, threads = self.recipe.train_transformer, self.recipe.data.threads
        count = config.batch // self.reward.kept // shard[1]
        self._place = _Place(token_batches(self._rewarded, count, config.seed, threads=threads, shard=shard))
        return self._place

    def prepare(self, batch: TokenBatch, state: TrainState, mesh: Mesh) -> Judged:
        """Generates a group for each window, judges it, and keeps those that say most."""
        draw, keep, start = self._functions = self._functions or self._compiled(mesh)
        prompts, group, kept = len(batch.start), self.reward.group, self.reward.kept
        seed = [self.recipe.train_transformer.seed, int(state.step)]
        seeds_B = np.random.SeedSequence(seed).generate_state(prompts * group)
        groups, tokens_BTHWQ = draw(state.params, state.buffers, batch, seeds_B)
        reward_PG = self._judged(tokens_BTHWQ, groups).reshape(prompts, group)
        order_PG = np.argsort(reward_PG, axis=1, kind="stable")
        kept_PK = np.concatenate([order_PG[:, : kept // 2], order_PG[:, kept // 2 - kept :]], axis=1)
        reward_PK = np.take_along_axis(reward_PG, kept_PK, axis=1)
        advantage_PK = reward_PK - reward_PK.mean(axis=1, keepdims=True)
        advantage_PK = np.where(reward_PK.std(axis=1, keepdims=True) < LEAST_SPREAD, 0, advantage_PK)
        advantage_PK /= max(advantage_PK.std(), LEAST_SPREAD)
        own_G = self._guidance == 1
        own_PK, reward_P = own_G[kept_PK].astype(np.float32), reward_PG[:, own_G].mean(axis=1)
        chosen_B = (np.arange(prompts)[:, None] * group + kept_PK).ravel()
        windows, start_BL, advantage_B, own_B, reward_B = keep(
            start, groups, tokens_BTHWQ, chosen_B, advantage_PK.ravel(), own_PK.ravel(), reward_P.repeat(kept)
        )
        return Judged(windows, advantage_B, own_B, reward_B, start_BL, batch)

    def _judged(self, tokens_BTHWQ: jax.Array, windows: TokenBatch) -> np.ndarray:
        """The rewards, the same in all processes, each of which judges a part. UserError in all where one fails."""
        whole = to_all((tokens_BTHWQ, windows.tokens, windows.fps, windows.text))
        mine = (np.array_split(each, jax.process_count())[jax.process_index()] for each in whole)
        reward_B, error = None, None
        try:
            reward_B = self.rollouts.judge(*mine)
        except UserError as failed:
            error = failed
        parts = from_all(reward_B)
        if any(part is None for part in parts):
            self._place.back()
            raise error or UserError("the reward failed in another process; see its message")
        return np.concatenate(parts)

    def _compiled(self, mesh: Mesh) -> tuple[Any, Any, nnx.State]:
        """The functions that generate and that keep, and the start's parameters on the mesh."""
        graph = nnx.split(nnx.eval_shape(lambda: new_model(self, self.recipe.train_transformer)), nnx.Param, ...)[0]
        start_graph = nnx.split(nnx.eval_shape(lambda: Transformer(self.config, rngs=nnx.Rngs(0))))[0]
        group, guidance_G = self.reward.group, self._guidance
        batch = NamedSharding(mesh, BATCH)

        def draw(
            params: nnx.State, buffers: nnx.State, batch: TokenBatch, seeds_B: jax.Array
        ) -> tuple[TokenBatch, jax.Array]:
            groups = jax.tree.map(lambda leaf: jnp.repeat(leaf, group, axis=0), batch)
            with on_mesh(mesh):
                model = nnx.split(merged(nnx.merge(graph, params, buffers)))
                guidance_B = np.tile(guidance_G, len(batch.start))
                return groups, self.rollouts.draw(*model, groups, seeds_B, self.sampling, guidance_B)

        def keep(
            params: nnx.State, groups: TokenBatch, tokens: jax.Array, chosen_B: jax.Array, *others_B: jax.Array
        ) -> tuple[Any, ...]:
            windows = jax.tree.map(lambda leaf: leaf[chosen_B], groups._replace(tokens=tokens))
            with on_mesh(mesh):
                sequence, clip = lay_out(self.config, windows), clip_slots(windows)
                start, temperature_BL = nnx.merge(start_graph, params), self._temperatures(windows)
                scores, _ = scored(start, sequence, clip, temperature_BL=temperature_BL)
            return windows, scores.log_likelihood, *others_B

        start = jax.device_put(self.start.params, shardings(self.start.params, mesh))
        return jax.jit(draw, out_shardings=batch), jax.jit(keep, out_shardings=batch), start

    @property
    def facts(self) -> dict[str, Any]:
        """What weights know beside the rewarded tasks, they know from the start, as a LoRA does from its own."""
        config = self.recipe.train_transformer
        if not config.lora:
            names = ("tokenizer", "text_model", "fps", "size", "layouts", "coarse_factor")
            return {name: self.start.about[name] for name in names if name in self.start.about}
        facts = self._rewarded.facts
        if config.start_lora:
            tasks = facts["layouts"]["tasks"] | trained_tasks(lora_files.read_lora(config.start_lora)[0])
            facts["layouts"] |= {"tasks": tasks}
        return facts

    def describe(self) -> Mapping[str, Any]:
        return {**super().describe(), "reward": to_dict(self.reward), "start": self.start.about["fingerprint"]}


class _Place:
    """An iterator that can go back by one batch."""

    def __init__(self, batches: Any):
        self._batches = batches
        self.set_state, self.get_state, self.close = batches.set_state, batches.get_state, batches.close

    def __iter__(self) -> "_Place":
        return self

    def __next__(self) -> TokenBatch:
        self._before = self.get_state()
        return next(self._batches)

    def back(self) -> None:
        """The next batch is the last one again."""
        self.set_state(self._before)
