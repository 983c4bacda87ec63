"""Models that belong together are loaded, others are refused."""

import shutil

import pytest

from tokvid import weights
from tokvid.errors import UserError
from tokvid.sampling.models import load_models


def test_models_that_do_not_belong_together_are_refused(tiny_weights, tiny_models, tmp_path):
    assert tiny_models.size == (16, 16) and len(tiny_models.mark.split("-")) == 3
    with pytest.raises(UserError, match="no weights folder"):
        load_models(tmp_path / "nowhere")
    shutil.copytree(tiny_weights, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "text.model").read_bytes()
    (tmp_path / "text.model").write_bytes(text[:-200])
    with pytest.raises(UserError, match=r"text\.model"):
        load_models(tmp_path)
    transformer = tiny_models.transformer
    other = weights.facts(transformer.about) | {"tokenizer": "f" * 16}
    weights.save(tmp_path / "transformer", "transformer", transformer.config, transformer.params, **other)
    with pytest.raises(UserError, match="was trained on tokenizer ffffffffffffffff, but the tokenizer here is"):
        load_models(tmp_path)
