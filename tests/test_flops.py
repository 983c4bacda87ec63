"""FLOPs counted from configs are those of the compiled programs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokvid.config import TokenizerConfig, TransformerConfig
from tokvid.flops import tokenizer_flops, transformer_flops
from tokvid.plan.work import work
from tokvid.tokenizer.cvivit import CViViT
from tokvid.tokenizer.quantizers import QUANTIZERS, channels, codes_of
from tokvid.transformer.head import Near
from tokvid.transformer.layout import lay_out, slot_count, tokens_before
from tokvid.transformer.model import Transformer
from tokvid.types import token_batch


def compiled(model, method, *arguments):
    """FLOPs of `method(model, *arguments)` as it is compiled."""
    graph, params = nnx.split(model)
    program = jax.jit(lambda params, *given: method(nnx.merge(graph, params), *given)).lower(params, *arguments)
    return work(program.compile().as_text(), 1).flops


@pytest.mark.parametrize("quantizer, later_codes", [*((name, (0,)) for name in QUANTIZERS), ("fsq", (1, 0))])
@pytest.mark.parametrize("frames", [1, 9])
def test_tokenizer(quantizer, later_codes, frames):
    """With narrow layers, in which the quantizer's channels and the pixels weigh, for clips and images."""
    layers, fold = ("space", "time"), 2 if any(later_codes) else 1
    config = TokenizerConfig(
        size=(16, 32), width=32, heads=2, mlp=32, encoder=layers, decoder=layers, temporal_patch=4, quantizer=quantizer,
        levels=(3, 3), codes=16, code_width=24, fold=fold, later_codes=later_codes,
    )  # fmt: skip
    model, latent = CViViT(config, rngs=nnx.Rngs(0)), 1 + (frames - 1) // 4
    assert (model.quantizer.width, model.quantizer.vocabulary) == (channels(config), codes_of(config).vocabulary)
    video, ids = jnp.zeros((1, frames, 16, 32, 3)), jnp.zeros((1, latent, 2 // fold, 4 // fold, fold**2), jnp.int32)
    encoding = compiled(model, lambda model, video: model.encode_step(video)[0].latents, video)
    decoding = compiled(model, lambda model, ids: model.decode(ids), ids)
    compared = latent * 8 * 2 * 16 * 24 if quantizer == "vq" else 0  # with the codes
    for part, found in (("encoder", encoding - compared), ("decoder", decoding)):
        assert found == pytest.approx(tokenizer_flops(config, part, latent, latent, channels(config)), rel=0.005), part


@pytest.mark.parametrize("subcodes, generated", [(1, 0), (3, 0), (3, 2)])
def test_transformer(subcodes, generated):
    """One narrow layer, in which places, rates, steps and the head weigh."""
    config = TransformerConfig(
        vocabulary=32, text_vocabulary=300, text_length=9, latent_frames=2, grid=(3, 5), width=16, layers=1, heads=2,
        kv_heads=2, mlp=8, subcodes=subcodes, head_width=24, generated=generated,
    )  # fmt: skip
    batch = token_batch(
        np.zeros((1, 2, 3, 5, subcodes), np.int32), *np.zeros((2, 1), np.float32), np.zeros((1, 9), np.int32)
    )

    def scores(model, batch):
        sequence = lay_out(config, batch)
        target = sequence.target[:, -30:]
        previous = tokens_before(target, sequence.previous[:, -30:])
        return model.head.scores(model(sequence)[:, -30:], target, Near(previous, sequence.slower[:, -30:]))

    assert (slots := slot_count(config)) == 40  # as many as are computed: a multiple of 8
    found = compiled(Transformer(config, rngs=nnx.Rngs(0)), scores, batch)
    assert found == pytest.approx(transformer_flops(config, slots, slots, math.prod(config.latent)), rel=0.01)
