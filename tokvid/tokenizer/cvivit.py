"""C-ViViT (Phenaki, section 2.1): video to discrete tokens and back, causal in time, so that it streams.

The first frame has a patch projection of its own, so an image is a 1-frame video. Space layers mix the patches of one
latent frame; time layers mix one patch's history, causally and within a window, so a stream's cache stays bounded.
Frames larger than the training size are mixed in tiles of that size: positions are relative, so a tile looks like a
training frame, and attention's cost grows with the number of pixels, not with its square.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from tokvid.config import TokenizerConfig
from tokvid.errors import UserError, did_you_mean
from tokvid.nn.blocks import Block, BlockShape, Linear, RMSNorm, rematerialised
from tokvid.nn.position import rotation
from tokvid.nn.products import compute_dtype
from tokvid.nn.visibility import NEVER, Blocks
from tokvid.sharding import constrain
from tokvid.tokenizer.quantizers import Quantized, make_quantizer
from tokvid.types import LatentShape


class Cache(NamedTuple):
    """A stream's state: keys and values of the last latent frames for each time layer, their times, the next time.

    `latents`: the last frame's in an encoder with hysteresis, the first one's in a decoder that recalls it; otherwise
    without channels.
    """

    layers: tuple[Float[Array, "patches s n e"], ...]
    times: Int[Array, " s"]
    next: Int[Array, ""]
    latents: Float[Array, "b rows columns c"]


def latent_shape(config: TokenizerConfig, frames: int, height: int, width: int) -> LatentShape:
    """T' = 1 + (T-1)/temporal_patch, H' = H/(patch·fold), W' likewise. UserError where they aren't whole."""
    step, patch = config.temporal_patch, token_side(config)
    if frames < 1 or (frames - 1) % step:
        lower = max(1, frames - (frames - 1) % step)
        raise UserError(f"{frames} frames don't fit a temporal patch of {step}: use {lower} or {lower + step} frames")
    for name, pixels in (("height", height), ("width", width)):
        if pixels < patch or pixels % patch:
            lower = max(patch, pixels // patch * patch)
            nearest = f"use {lower} or {lower + patch}"
            raise UserError(f"{name} {pixels} is no multiple of a token's {patch} pixels: {nearest}")
    return LatentShape(1 + (frames - 1) // step, height // patch, width // patch)


def token_side(config: TokenizerConfig) -> int:
    """A token's height and width in pixels."""
    return config.patch * config.fold


class CViViT(nnx.Module):
    """The tokenizer: videos, float (B, T, H, W, 3) in [-1, 1], to tokens, int32 (B, T', H', W', Q), and back.

    Latents are (B, T', H/patch, W/patch, C); a token holds the codes of `fold` by `fold` latents.
    """

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs):
        for kind in config.encoder + config.decoder:
            if kind not in ("space", "time"):
                raise UserError(did_you_mean(kind, ("space", "time"), "layer kind"))
        self.config = config
        if config.fold < 1:
            raise UserError(f"fold should be 1 (a token for each patch) or more, got {config.fold}")
        self.quantizer = make_quantizer(config, rngs)
        pixels, width = 3 * config.patch**2, config.width
        if config.first_frame == "own":
            self.embed_first = Linear(pixels, width, (None, "embed"), rngs=rngs)
        self.embed_rest = Linear(pixels * config.temporal_patch, width, (None, "embed"), rngs=rngs)
        self.encoder = self._stack(config.encoder, rngs)
        self.encoder_norm = RMSNorm(width)
        self.to_latent = Linear(width, self.quantizer.width, ("embed", None), rngs=rngs)
        self.from_latent = Linear(self.quantizer.width, width, (None, "embed"), rngs=rngs)
        if any(config.later_codes):
            # A token's few codes tell of all its patches. Both start at 0, as if there were none.
            patches = config.fold**2
            inner, outer = patches * width, patches * self.quantizer.width
            self.to_token = Linear(inner, outer, ("embed", None), rngs=rngs, gain=0.0)
            self.from_token = Linear(outer, inner, (None, "embed"), rngs=rngs, gain=0.0)
        if config.recall_first:
            self.from_first = Linear(self.quantizer.width, width, (None, "embed"), rngs=rngs, gain=0.0)
        self.decoder = self._stack(config.decoder, rngs)
        self.decoder_norm = RMSNorm(width)
        self.paint_first = Linear(width, pixels, ("embed", None), rngs=rngs)
        self.paint_rest = Linear(width, pixels * config.temporal_patch, ("embed", None), rngs=rngs)

    def _stack(self, order: tuple[str, ...], rngs: nnx.Rngs) -> Sequence[Block]:
        c = self.config
        shape = BlockShape(c.width, c.heads, c.heads, c.mlp, len(order), c.dtype, c.attention, ("clips", None))
        return nnx.List([Block(shape, rngs=rngs) for _ in order])

    def encode(self, video_BTHWC: Float[Array, "b t h w 3"]) -> Quantized:
        """The whole video at once: latents, tokens (`ids`), the quantizer's losses."""
        latent_shape(self.config, *video_BTHWC.shape[1:4])
        return self.encode_step(video_BTHWC)[0]

    def decode(self, ids_BTHWQ: Int[Array, "b tl hl wl q"]) -> Float[Array, "b t h w 3"]:
        """All tokens of a video → its pixels, at once."""
        return self.decode_step(self.latents(ids_BTHWQ))[0]

    def latents(self, ids_BTHWQ: Int[Array, "b tl hl wl q"]) -> Float[Array, "b tl rows columns c"]:
        """The decoder's input: a latent for each patch."""
        return self.quantizer.decode_ids(_unfolded(ids_BTHWQ, self.config.fold))

    def latents_of_codes(self) -> Float[Array, "v c"]:
        """The channels of every code of a sub-code."""
        return self.quantizer.quantizer.decode_ids(jnp.arange(self.quantizer.vocabulary))

    def latents_of_parts(self, parts_BTHWQC: Float[Array, "b tl hl wl q c"]) -> Float[Array, "b tl rows columns c"]:
        """The decoder's input from the channels of each sub-code, which need not be those of a code."""
        parts = _unfolded(parts_BTHWQC, self.config.fold)
        return parts.reshape(*parts.shape[:4], -1)

    def reconstruct(
        self, video_BTHWC: Float[Array, "b t h w 3"], kept_BT: Int[Array, "b tl"] | None = None
    ) -> tuple[Float[Array, "b t h w 3"], Quantized]:
        """The video's reconstruction, differentiable, and the encoder's output.

        `kept_BT`: the number of sub-codes that each latent frame keeps, in place of the config's `later_codes`.
        """
        latent_shape(self.config, *video_BTHWC.shape[1:4])
        quantized = self.encode_step(video_BTHWC, kept_BT=kept_BT)[0]
        return self.decode_step(quantized.latents)[0], quantized

    def encode_step(
        self,
        video_BTHWC: Float[Array, "b t h w 3"],
        cache: Cache | None = None,
        first: bool = True,
        kept_BT: Int[Array, "b tl"] | None = None,
    ) -> tuple[Quantized, Cache | None]:
        """Encodes the next frames of a stream; with `first`, these begin with the video's first frame.

        T = 1 + n·temporal_patch with the first frame, n·temporal_patch without. `cache` is `empty_cache`'s, then the
        last step's; None for a whole video. Returns `encode`'s output for these frames, and the next cache.
        """
        pt, p = self.config.temporal_patch, self.config.patch
        still = first and self.config.first_frame == "still"
        if still:
            video_BTHWC = jnp.concatenate([jnp.repeat(video_BTHWC[:, :1], pt - 1, axis=1), video_BTHWC], axis=1)
        split = int(first and not still)
        parts = [self.embed_first(_patches(video_BTHWC[:, :1], 1, p))] if split else []
        if video_BTHWC.shape[1] > split:
            parts.append(self.embed_rest(_patches(video_BTHWC[:, split:], pt, p)))
        x_BTHWD = constrain(jnp.concatenate(parts, axis=1), "clips", *[None] * 4)
        x_BTHWD, cache = self._run(self.encoder, self.config.encoder, x_BTHWD, cache)
        before_BHWC = cache.latents if cache is not None and self.config.hysteresis and not first else None
        x_BTHWD = self.encoder_norm(x_BTHWD)
        latents_BTHWC = self.to_latent(x_BTHWD)
        if any(self.config.later_codes):
            latents_BTHWC += self._by_token(self.to_token, x_BTHWD)
        quantized = self.quantizer.quantize(latents_BTHWC, before_BHWC)
        if cache is not None and self.config.hysteresis:
            cache = cache._replace(latents=quantized.latents[:, -1])
        ids, inputs = (_folded(x, self.config.fold) for x in (quantized.ids, quantized.inputs))
        quantized = quantized._replace(ids=ids, inputs=inputs)
        if any(self.config.later_codes):
            if kept_BT is None:
                kept_BT = jnp.full(ids.shape[:2], self.config.later_codes[0])
                kept_BT = kept_BT.at[:, 0].set(0) if first else kept_BT
            quantized = self._with_codes(quantized, kept_BT)
        return quantized, cache

    def _by_token(self, linear: Linear, x_BTHWD: jax.Array) -> jax.Array:
        """A layer that sees all patches of a token at once."""
        return _unfolded(linear(_folded(x_BTHWD, self.config.fold)), self.config.fold)

    def _with_codes(self, quantized: Quantized, kept_BT: jax.Array) -> Quantized:
        """With only the first sub-codes of each token, 0 for all of them; the others say nothing.

        That is what a code whose latents are all 0 says. So what the first frame has shown is told once, and only what
        is new costs bits.
        """
        Q = quantized.ids.shape[-1]
        kept_BTQ = (jnp.arange(Q) < kept_BT[..., None]) | (kept_BT[..., None] == 0)
        kept_BTHWQ = jnp.broadcast_to(kept_BTQ[:, :, None, None], quantized.ids.shape)
        kept_BTHWG = _unfolded(kept_BTHWQ, self.config.fold)
        kept_BTHWC = jnp.repeat(kept_BTHWG, self.quantizer.width // self.config.groups, axis=-1)
        return quantized._replace(
            ids=jnp.where(kept_BTHWQ, quantized.ids, self.quantizer.quantizer.zero),
            latents=jnp.where(kept_BTHWC, quantized.latents, 0),
        )

    def decode_step(
        self, latents_BTHWC: Float[Array, "b tl rows columns c"], cache: Cache | None = None, first: bool = True
    ) -> tuple[Float[Array, "b t h w 3"], Cache | None]:
        """The next latent frames of a stream → their pixels and the next cache; arguments as for `encode_step`."""
        pt, p = self.config.temporal_patch, self.config.patch
        x_BTHWD = self.from_latent(latents_BTHWC)
        if any(self.config.later_codes):
            x_BTHWD += self._by_token(self.from_token, latents_BTHWC)
        first_BHWC = None
        if self.config.recall_first:
            first_BHWC = latents_BTHWC[:, 0] if first or cache is None else cache.latents
            recalled_B1HWD = self.from_first(first_BHWC)[:, None]
            later_T = jnp.arange(latents_BTHWC.shape[1]) >= int(first)
            x_BTHWD += jnp.where(later_T[:, None, None, None], recalled_B1HWD, 0)
        x_BTHWD = constrain(x_BTHWD, "clips", *[None] * 4)
        x_BTHWD, cache = self._run(self.decoder, self.config.decoder, x_BTHWD, cache)
        if cache is not None and first_BHWC is not None:
            cache = cache._replace(latents=first_BHWC)
        x_BTHWD = self.decoder_norm(x_BTHWD)
        split = int(first)
        parts = [_pixels(self.paint_first(x_BTHWD[:, :1]), 1, p)] if split else []
        if x_BTHWD.shape[1] > split:
            parts.append(_pixels(self.paint_rest(x_BTHWD[:, split:]), pt, p))
        return jnp.concatenate(parts, axis=1), cache

    def empty_cache(self, part: str, batch: int, rows: int, columns: int) -> Cache:
        """The cache at the start of a stream of `rows` by `columns` tokens; its size is constant.

        `part` is "encoder" or "decoder".
        """
        c, order = self.config, getattr(self.config, part)
        dtype = compute_dtype(c.dtype)
        past = (batch * rows * columns * c.fold**2, c.time_window - 1, c.heads, c.width // c.heads)
        layers = [jnp.zeros(past, dtype) for kind in order if kind == "time" for _ in ("key", "value")]
        times = jnp.full((c.time_window - 1,), NEVER, jnp.int32)
        remembered = c.hysteresis if part == "encoder" else c.recall_first
        channels = self.quantizer.width if remembered else 0
        latents = jnp.zeros((batch, rows * c.fold, columns * c.fold, channels))
        return Cache(tuple(layers), times, jnp.zeros((), jnp.int32), latents)

    def _run(
        self, blocks: Sequence[Block], order: tuple[str, ...], x_BTHWD: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        B, T, H, W, D = x_BTHWD.shape
        c = self.config
        tile_size = (c.tile,) * 2 if c.tile else (c.size[0] // c.patch, c.size[1] // c.patch)
        tiles = Tiles(H, W, *tile_size)
        rows, columns = jnp.meshgrid(jnp.arange(tiles.rows.shape[1]), jnp.arange(tiles.columns.shape[1]), indexing="ij")
        head = self.config.width // self.config.heads
        place = rotation(jnp.stack([rows.ravel(), columns.ravel()], axis=-1)[None], head)
        time_1T = ((0 if cache is None else cache.next) + jnp.arange(T, dtype=jnp.int32))[None]
        time = rotation(time_1T[..., None], head)
        key_time_1S = time_1T if cache is None else jnp.concatenate([cache.times[None], time_1T], axis=1)
        past = Blocks(time_1T, key_time_1S, self.config.time_window)
        kept: list[jax.Array] = []

        def remember(key_BSKE, value_BSKE):
            """All keys and values within the window; the latest are kept for the next step."""
            if cache is None:
                return key_BSKE, value_BSKE
            old = cache.layers[len(kept) : len(kept) + 2]
            both = [jnp.concatenate(pair, axis=1) for pair in zip(old, (key_BSKE, value_BSKE), strict=True)]
            kept.extend(pair[:, T:] for pair in both)
            return both[0], both[1]

        for kind, block in zip(order, blocks, strict=True):
            if kind == "space":
                run = rematerialised(lambda x, block=block: block(x, place, None), self.config.remat)
                x_BTHWD = tiles.join(run(tiles.cut(x_BTHWD)), B, T)
            else:
                x_BLTD = x_BTHWD.reshape(B, T, H * W, D).swapaxes(1, 2).reshape(B * H * W, T, D)
                if cache is None:
                    run = rematerialised(lambda x, block=block: block(x, time, past), self.config.remat)
                    x_BLTD = run(x_BLTD)
                else:
                    x_BLTD = block(x_BLTD, time, past, remember)
                x_BTHWD = x_BLTD.reshape(B, H * W, T, D).swapaxes(1, 2).reshape(B, T, H, W, D)
        if cache is not None:
            cache = cache._replace(layers=tuple(kept), times=key_time_1S[0, T:], next=cache.next + T)
        return x_BTHWD, cache


class Tiles:
    """Tiles of one size that cover a grid, overlapping where needed; spatial attention mixes each tile on its own.

    `rows` is (tiles, rows of a tile), `columns` likewise. Where tiles overlap, each place is computed in all of them
    and taken from the one with the nearest middle.
    """

    def __init__(self, height: int, width: int, most_rows: int, most_columns: int):
        self.rows, self._rows_from = _cover(height, most_rows)
        self.columns, self._columns_from = _cover(width, most_columns)

    def cut(self, x_BTHWD: Float[Array, "b t h w d"]) -> Float[Array, "tiles l d"]:
        """The grids' tiles: (B·T·tiles, places of a tile, D)."""
        (n, h), (m, w) = self.rows.shape, self.columns.shape
        B, T, _, _, D = x_BTHWD.shape
        if n * m > 1:
            x = x_BTHWD[:, :, self.rows.ravel()][:, :, :, self.columns.ravel()].reshape(B, T, n, h, m, w, D)
            x_BTHWD = x.swapaxes(3, 4)
        return x_BTHWD.reshape(B * T * n * m, h * w, D)

    def join(self, x_XLD: Float[Array, "tiles l d"], B: int, T: int) -> Float[Array, "{B} {T} h w d"]:
        """The inverse of `cut`."""
        (n, h), (m, w) = self.rows.shape, self.columns.shape
        x = x_XLD.reshape(B, T, n, m, h, w, -1)
        if n * m == 1:
            return x.reshape(B, T, h, w, -1)
        x = x.swapaxes(3, 4).reshape(B, T, n * h, m * w, -1)
        return x[:, :, self._rows_from][:, :, :, self._columns_from]


def _cover(length: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spread stretches of at most `most` that cover `length`.

    Returns their places, (stretches, places of a stretch), and for each place its index in that array, flattened.
    """
    size, count = min(most, length), -(-length // most)
    starts_S = np.rint(np.linspace(0, length - size, count)).astype(int)
    nearest_L = np.argmin(np.abs(np.arange(length) - (starts_S[:, None] + (size - 1) / 2)), axis=0)
    return starts_S[:, None] + np.arange(size), nearest_L * size + np.arange(length) - starts_S[nearest_L]


def _folded(x_BTHWG: jax.Array, fold: int) -> jax.Array:
    """Codes, or values for each: patches (B, T, H·fold, W·fold, G, …) → tokens (B, T, H, W, fold·fold·G, …)."""
    (B, T, H, W, G), rest = x_BTHWG.shape[:5], x_BTHWG.shape[5:]
    x = x_BTHWG.reshape(B, T, H // fold, fold, W // fold, fold, G, *rest).swapaxes(3, 4)
    return x.reshape(B, T, H // fold, W // fold, fold * fold * G, *rest)


def _unfolded(ids_BTHWQ: jax.Array, fold: int) -> jax.Array:
    """The inverse of `_folded`; sub-codes may have channels, in further axes."""
    B, T, H, W, Q, *channels = ids_BTHWQ.shape
    ids = ids_BTHWQ.reshape(B, T, H, W, fold, fold, Q // fold**2, *channels).swapaxes(3, 4)
    return ids.reshape(B, T, H * fold, W * fold, Q // fold**2, *channels)


def _patches(video_BTHWC: jax.Array, pt: int, p: int) -> jax.Array:
    """(B, T·pt, H·p, W·p, 3) → (B, T, H, W, pt·p·p·3)."""
    B, T, H, W, C = video_BTHWC.shape
    x = video_BTHWC.reshape(B, T // pt, pt, H // p, p, W // p, p, C)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, T // pt, H // p, W // p, pt * p * p * C)


def _pixels(x_BTHWC: jax.Array, pt: int, p: int) -> jax.Array:
    """The inverse of `_patches`."""
    B, T, H, W, _ = x_BTHWC.shape
    x = x_BTHWC.reshape(B, T, H, W, pt, p, p, 3)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, T * pt, H * p, W * p, 3)
