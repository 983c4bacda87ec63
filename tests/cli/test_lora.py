"""Fine-tuning: a LoRA trained on weights, used and merged; all parameters trained; what doesn't belong together."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from tokvid import load, weights
from tokvid.cli.inspection import what_is
from tokvid.config import DataConfig, Recipe, TrainConfig
from tokvid.errors import UserError
from tokvid.sampling.models import load_models
from tokvid.sharding import make_mesh
from tokvid.train.recipe import fitted
from tokvid.train.state import abstract_state
from tokvid.train.transformer_step import TransformerTraining
from tokvid.transformer import lora_files

RECIPE = """from tokvid.config import *
recipe = Recipe(
    data=DataConfig(size=(16, 16), videos=20, frames=5, fps=(4.0,), threads=0),
    tokens=TokensConfig(videos=16, latent_frames=4, held_out=0),
    train_transformer=TrainConfig(
        start="start", steps=3, batch=4, warmup=1, learning_rate=3e-2, ema=0.5, log_every=1, sample_every=0
    ),
)"""
FILE = "transformer/lora.safetensors"


@pytest.fixture(scope="module")
def trained(tiny_weights, tmp_path_factory):
    """A folder with weights to start from, and the workdir of a LoRA."""
    from tokvid.cli.main import main

    folder = tmp_path_factory.mktemp("lora")
    shutil.copytree(tiny_weights, folder / "start")
    (folder / "recipe.py").write_text(RECIPE.replace('"start"', repr(str(folder / "start"))))
    common = [str(folder / "recipe.py"), "--workdir", str(folder / "run")]
    main(["tokenize", *common])
    main(["train", "transformer", *common, "--train_transformer.lora", "2"])
    return folder


def test_it_is_a_small_file_and_changes_the_matrices_of_attention_and_mlp(trained, tiny_weights):
    file = trained / "run" / FILE
    assert not (trained / "run/transformer/weights.safetensors").exists()
    assert file.stat().st_size < (tiny_weights / "transformer/weights.safetensors").stat().st_size / 3
    before, after = (
        weights.load(trained / "start/transformer", "transformer", loras) for loras in ((), [lora_files.Scaled(file)])
    )
    changed = {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(before.params), jax.tree.leaves(after.params), strict=True
        )
        if not np.array_equal(old, new)
    }
    attention = {f"blocks.attention.{name}" for name in ("query", "key", "value", "out")}
    assert changed == attention | {f"blocks.mlp.{name}" for name in ("gate", "up", "down")}
    facts = what_is(trained / "run")["transformer/"]
    assert facts["kind"] == "LoRA" and facts["base"] == before.about["fingerprint"] and facts["rank"] == 2
    twice = weights.load(trained / "start/transformer", "transformer", [lora_files.Scaled(file, 0.5)] * 2)
    for once, added in zip(jax.tree.leaves(after.params), jax.tree.leaves(twice.params), strict=True):
        np.testing.assert_allclose(added, once, atol=1e-3)


def test_merged_weights_give_what_the_lora_gives(tokvid, trained, tmp_path):
    """To the byte: both round the same sums once to float16."""
    start, lora = ("--weights", trained / "start"), ("--lora", f"{trained / 'run' / FILE}:0.7")
    assert tokvid("merge", *start, *lora, "--out", "merged")[0] == 0
    clip = ("--prompt", "a red circle", "--seconds", 0.5, "--fps", 4)
    for name, arguments in (("used", (*start, *lora)), ("merged", ("--weights", "merged")), ("without", start)):
        code, _, err = tokvid("generate", *clip, "--out", f"{name}.gif", *arguments)
        assert code == 0, err
    used, merged, without = ((tmp_path / f"{name}.gif").read_bytes() for name in ("used", "merged", "without"))
    assert used == merged != without
    world = load(trained / "start", loras=[(trained / "run" / FILE, 0.7)], quiet=True)
    world.generate("a red circle", seconds=0.5, fps=4).save(tmp_path / "python.gif")
    assert (tmp_path / "python.gif").read_bytes() == used
    about = json.loads((tmp_path / "merged/transformer/config.json").read_text())
    loaded = weights.load(
        trained / "start/transformer", "transformer", [lora_files.Scaled(trained / "run" / FILE, 0.7)]
    )
    assert about["fingerprint"] == loaded.about["fingerprint"] and about["loras"][0][1] == 0.7
    assert tokvid("merge", "--weights", "merged", *lora, "--out", "twice")[0] == 0  # of the same base


def test_loras_are_averaged_factor_by_factor(tokvid, refused, trained, tmp_path):
    lora = trained / "run" / FILE
    about, factors = lora_files.read_lora(lora)
    facts = {name: value for name, value in about.items() if name not in ("format", "base", "sha256")}
    doubled = ((name.split("."), 2 * factor) for name, factor in factors.items())
    lora_files.save_lora(tmp_path / "doubled.safetensors", doubled, about["base"], **facts)
    merge = ("merge", "--lora", lora, "--average-lora")
    assert tokvid(*merge, "doubled.safetensors:0.25", "--out", "mean.safetensors")[0] == 0
    found, mean = lora_files.read_lora(tmp_path / "mean.safetensors")
    assert {**found, "sha256": ""} == {**about, "sha256": ""} and mean.keys() == factors.keys()
    for name, factor in factors.items():
        np.testing.assert_allclose(mean[name], 1.25 * factor.astype(np.float32), rtol=2e-3, atol=1e-6)
    assert "between 0 and 1, got 1" in refused(*merge, f"{lora}:1", "--out", "b.safetensors")
    assert "--average-lora takes one --lora" in refused("merge", "--average-lora", lora, "--out", "b.safetensors")
    fewer = ((name.split("."), factor) for name, factor in list(factors.items())[2:])
    lora_files.save_lora(tmp_path / "fewer.safetensors", fewer, about["base"], **facts)
    assert "are of other weights or ranks" in refused(*merge, "fewer.safetensors", "--out", "b.safetensors")
    assert "its name should end in .safetensors" in refused(*merge, lora, "--out", "b")
    assert "there can be one only" in refused(*merge, lora, "--average-lora", lora, "--out", "b.safetensors")
    before = lora.read_bytes()
    assert "cannot write to" in refused(*merge, "doubled.safetensors", "--out", lora)
    assert not (tmp_path / "b.safetensors").exists() and lora.read_bytes() == before


def test_averaged_weights_lie_between(tokvid, refused, trained, tmp_path):
    """A quarter of the way to weights with a LoRA merged; their own average with themselves changes nothing."""
    start, lora = trained / "start", trained / "run" / FILE
    assert tokvid("merge", "--weights", start, "--lora", lora, "--out", "merged")[0] == 0
    code, out, err = tokvid("merge", "--weights", start, "--average", "merged:0.25", "--out", "between")
    assert code == 0 and "1 averaged" in out, err
    first, last, between = (
        weights.load(folder / "transformer", "transformer")
        for folder in (start, tmp_path / "merged", tmp_path / "between")
    )
    for a, b, c in zip(*(jax.tree.leaves(each.params) for each in (first, last, between)), strict=True):
        np.testing.assert_allclose(c, 0.75 * a + 0.25 * b, atol=1e-3)
    assert between.about["averaged"] == [[last.about["fingerprint"], 0.25]]
    assert what_is(tmp_path / "between")["transformer/"]["averaged"] == between.about["averaged"]
    _, _, said = tokvid("merge", "--weights", "merged", "--lora", lora, "--out", "twice")
    assert f"{lora} is part of these weights already, and counts twice now" in said
    assert "was trained on weights" in refused("merge", "--weights", "between", "--lora", lora, "--out", "more")
    assert tokvid("merge", "--weights", "between", "--average", "between", "--out", "same")[0] == 0
    same, text = tmp_path / "same/transformer/weights.safetensors", tmp_path / "between/text.model"
    assert same.read_bytes() == (tmp_path / "between/transformer/weights.safetensors").read_bytes()
    assert text.read_bytes() == (start / "text.model").read_bytes()


def test_weights_are_not_merged_into_themselves(tokvid, refused, trained, tmp_path):
    """The same command again would merge what is merged already, and those that were there would be lost."""
    for name in ("start", "other"):
        shutil.copytree(trained / "start", tmp_path / name)
    (tmp_path / "link").symlink_to("start", target_is_directory=True)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*/*.*")}
    merge = ("merge", "--weights", "start", "--out")
    for words in (
        ("start", "--lora", trained / "run" / FILE),
        ("link", "--average", "other"),
        ("other", "--average", "other"),
    ):
        assert f"the output {words[0]} would replace weights that are read" in refused(*merge, *words)
    assert before and {path: path.read_bytes() for path in tmp_path.glob("*/*/*.*")} == before


def test_what_cannot_be_averaged_is_refused(refused, trained, tmp_path):
    merge = ("merge", "--weights", trained / "start", "--out", "out", "--average")
    assert "between 0 and 1" in refused(*merge, f"{trained / 'start'}:1")
    assert "between 0 and 1" in refused(*merge, f"{trained / 'start'}:nan")
    assert "have another" in refused(*merge, "shapes")
    assert "no transformer weights" in refused(*merge, tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


def test_training_all_parameters_starts_from_weights_too(tokvid, trained, tmp_path):
    for name in ("tokens", "tokenizer"):
        shutil.copytree(trained / "run" / name, tmp_path / "all" / name)
    shutil.copy(trained / "run/text.model", tmp_path / "all")
    calm = ("--transformer.later_temperature", 0.5)
    code, _, err = tokvid("train", "transformer", trained / "recipe.py", "--workdir", "all", *calm)
    assert code == 0, err
    start, end = (
        weights.load(folder / "transformer", "transformer") for folder in (trained / "start", tmp_path / "all")
    )
    assert dataclasses.replace(start.config, later_temperature=0.5) == end.config  # the recipe leaves the rest out
    assert all(
        not np.array_equal(old, new)
        for old, new in zip(jax.tree.leaves(start.params), jax.tree.leaves(end.params), strict=True)
        if old.ndim > 2
    )


def test_a_training_beside_loras_of_other_weights_is_refused_before_it_begins(tokvid, trained, tmp_path):
    """At its end, its weights could not be saved."""
    for name in ("tokens", "tokenizer"):
        shutil.copytree(trained / "run" / name, tmp_path / "all" / name)
    shutil.copy(trained / "run/text.model", tmp_path / "all")
    (tmp_path / "all/transformer/loras").mkdir(parents=True)
    shutil.copy(trained / "run" / FILE, tmp_path / "all/transformer/loras/a.safetensors")
    code, _, err = tokvid("train", "transformer", trained / "recipe.py", "--workdir", "all")
    assert code == 2 and "a.safetensors is a LoRA of other weights than this training's; move it away" in err
    assert not (tmp_path / "all/transformer/metrics.jsonl").exists()


def test_the_training_of_a_lora_goes_on(tokvid, trained, tmp_path):
    """On other clips, say: its rank is read from its file, and the first step is that of the weights with it."""
    file = trained / "run" / FILE
    run = shutil.copytree(trained / "run", tmp_path / "run", ignore=shutil.ignore_patterns("transformer"))
    common = ("train", "transformer", trained / "recipe.py", "--workdir", run, "--train_transformer.steps", 1)
    going_on = ("--train_transformer.start_lora", file, "--train_transformer.learning_rate", 1e-9)
    assert tokvid(*common, *going_on)[0] == 0
    (_, before), (_, after) = lora_files.read_lora(file), lora_files.read_lora(run / FILE)
    assert before.keys() == after.keys()
    for name, factor in before.items():
        np.testing.assert_allclose(after[name], factor, atol=1e-4)


def test_a_lora_to_go_on_with_is_checked(tokvid, trained, tiny_weights, tmp_path):
    file, about = trained / "run" / FILE, lora_files.read_lora(trained / "run" / FILE)[0]
    common = ("train", "transformer", trained / "recipe.py", "--workdir", tmp_path / "run")
    field = "--train_transformer.start_lora"

    def refused(*arguments):
        code, _, errors = tokvid(*common, *arguments)
        assert code and errors.strip().count("\n") == 0, errors
        return errors

    assert "has rank 2, train_transformer.lora is 3" in refused(field, file, "--train_transformer.lora", 3)
    assert "there is no file" in refused(field, "nothing.safetensors")
    assert "needs the weights that it updates" in refused(field, file, "--train_transformer.start=")
    said = refused(field, file, "--train_transformer.start", "shapes")
    assert f"was trained on weights {about['base']}, shapes has" in said
    facts = {name: value for name, value in about.items() if name not in ("format", "base", "rank")}
    lora_files.save_lora(tmp_path / "odd.safetensors", [(("a",), {...: np.zeros(2)})], about["base"], **facts)
    assert "odd.safetensors doesn't say its rank" in refused(field, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=r"train_tokenizer.start_lora: only the transformer has LoRAs"):
        fitted(Recipe(train_tokenizer=TrainConfig(start_lora="a")))


def test_frozen_parameters_have_no_moments(trained):
    config = TrainConfig(start=str(trained / "start"), lora=2)
    recipe = fitted(Recipe(data=DataConfig(size=(16, 16)), train_transformer=config))
    like, _ = abstract_state(TransformerTraining(recipe), config, make_mesh((-1, 1, 1, 1)))
    count = sum(leaf.size for leaf in jax.tree.leaves(like.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(like.opt_state) if leaf.ndim) == 2 * count
    assert count < sum(leaf.size for leaf in jax.tree.leaves(like.buffers)) / 4


def test_what_doesnt_belong_together_is_refused(refused, trained, tmp_path):
    clip, lora = ("generate", "--prompt", "a", "--weights"), trained / "run" / FILE
    assert "was trained on weights" in refused(*clip, "shapes", "--lora", lora)
    assert f"--lora {lora}" in refused(*clip, trained / "run")
    assert "there is no file" in refused(*clip, trained / "start", "--lora", "nothing:2")
    (tmp_path / "there").touch()
    assert "what follows there: should be a number, got 'x'" in refused(*clip, trained / "start", "--lora", "there:x")
    for factor in ("nan", "1e39", "-inf"):
        said = f"the scale of there should be at most 1000, got {float(factor):g}"
        assert said in refused(*clip, "shapes", "--lora", f"there:{factor}")
    assert "no LoRA" in refused(*clip, trained / "start", "--lora", trained / "start/transformer/weights.safetensors")
    assert "nothing to merge" in refused("merge", "--weights", trained / "start", "--out", "merged")
    assert "is not for evaluate reconstruction" in refused("evaluate", "reconstruction", "--lora", lora)
    assert "needs weights" in refused(
        "train", "transformer", trained / "recipe.py", "--workdir", "x", "--train_transformer.start", "",
        "--train_transformer.lora", 2,
    )  # fmt: skip
    data = bytearray(lora.read_bytes())
    (tmp_path / "cut.safetensors").write_bytes(data[:-9])
    assert "cannot be read as a LoRA" in refused(*clip, trained / "start", "--lora", "cut.safetensors")
    with pytest.raises(UserError, match="only the transformer"):
        fitted(Recipe(train_tokenizer=TrainConfig(lora=1)))


@pytest.mark.parametrize("name", ["blocks.mlp.gate.a", "blocks.mlp.gate.b", "blocks.mlp.left.a"])
def test_a_factor_that_doesnt_fit_is_named(trained, tmp_path, name):
    facts, factors = lora_files.read_lora(trained / "run" / FILE)
    del facts["sha256"]
    factors[name] = np.ascontiguousarray(factors["blocks.mlp.gate.a"][..., :1])
    file = tmp_path / "odd.safetensors"
    file.write_bytes(safetensors.numpy.save(factors, {lora_files.LORA: json.dumps(facts)}))
    with pytest.raises(UserError, match=r"odd\.safetensors.* blocks\.mlp"):
        weights.load(trained / "start/transformer", "transformer", [lora_files.Scaled(file)])


def test_a_small_file_doesnt_ask_for_a_large_update(trained, tmp_path, monkeypatch):
    facts, factors = lora_files.read_lora(trained / "run" / FILE)
    del facts["sha256"]
    (name, *_) = [each.removesuffix(".a") for each in factors if each.endswith(".down.a")]
    (layers, _, _), (*_, rank, _) = factors[f"{name}.a"].shape, factors[f"{name}.b"].shape
    factors[f"{name}.a"] = np.zeros((layers, 40_000, rank), np.float16)
    factors[f"{name}.b"] = np.zeros((layers, rank, 40_000), np.float16)
    file = tmp_path / "odd.safetensors"
    file.write_bytes(safetensors.numpy.save(factors, {lora_files.LORA: json.dumps(facts)}))
    monkeypatch.setattr(lora_files, "product", lambda *of: pytest.fail("it was computed"))
    with pytest.raises(UserError, match=r"odd\.safetensors updates .* which these weights lack"):
        lora_files._add({}, name, factors, 1.0, file)


def test_a_changed_lora_is_refused_and_one_of_an_earlier_version_is_read(trained, tmp_path):
    facts, factors = lora_files.read_lora(trained / "run" / FILE)
    file = tmp_path / "a.safetensors"

    def read(facts, factors):
        file.write_bytes(safetensors.numpy.save(factors, {lora_files.LORA: json.dumps(facts)}))
        return lora_files.read_lora(file)

    other = factors | {"blocks.mlp.gate.a": factors["blocks.mlp.gate.a"] * 2}
    for changed in ((facts, other), (facts | {"rank": 3}, factors)):
        with pytest.raises(UserError, match=r"a\.safetensors is damaged, or was changed"):
            read(*changed)
    before = {name: value for name, value in facts.items() if name != "sha256"}
    assert read(before, other)[0] == before
    other["blocks.mlp.gate.a"][0, 0] = np.inf
    with pytest.raises(UserError, match=r"a\.safetensors is damaged"):
        read(before, other)


def test_a_task_has_a_lora_of_its_own(tokvid, trained, trained_for, movie, tmp_path):
    """The command whose task it is for uses it, as if it were named; others don't."""
    folder = trained_for(["text_to_video", "infilling"])
    about, factors = lora_files.read_lora(trained / "run" / FILE)
    plain, named = (shutil.copytree(folder, tmp_path / name) for name in ("plain", "named"))
    own = folder / "transformer" / lora_files.LORAS / "loops.safetensors"
    own.parent.mkdir()
    of_infilling = {"layouts": {"tasks": {"infilling": 1.0}}}
    facts = {name: value for name, value in about.items() if name not in ("format", "base")} | of_infilling
    leaves = [(tuple(name.split(".")), {...: factor}) for name, factor in factors.items()]
    lora_files.save_lora(own, leaves, about["base"], **facts)
    ways = {"with": (folder,), "without": (plain,), "named": (named, "--lora", own)}
    clip = ("--prompt", "a red circle", "--fps", 4)
    for name, arguments in ways.items():
        code, _, err = tokvid("loop", "in.mp4", *clip, "--out", f"{name}.gif", "--weights", *arguments)
        assert code == 0, err
        code, _, err = tokvid("generate", *clip, "--seconds", 1, "--out", f"{name}_clip.gif", "--weights", *arguments)
        assert code == 0, err
    loops, clips = ([(tmp_path / f"{name}{what}.gif").read_bytes() for name in ways] for what in ("", "_clip"))
    assert loops[0] == loops[2] != loops[1] and clips[0] == clips[1] != clips[2]
    assert what_is(folder)["transformer/"]["LoRAs of tasks"] == {"infilling": "loops.safetensors"}
    lora_files.save_lora(own, leaves, "0" * 16, **facts)
    assert "was trained on weights 0000" in tokvid("loop", "in.mp4", "--weights", folder)[2]


def test_a_lora_for_a_task_takes_the_place_of_the_weights_own_one(tokvid, trained, trained_for, tmp_path):
    """It was trained without that. So do merged weights, which keep the others; averages keep none."""
    folder = trained_for(["text_to_video", "infilling", "animate"])
    about, factors = lora_files.read_lora(trained / "run" / FILE)
    facts = {name: value for name, value in about.items() if name not in ("format", "base", "layouts")}

    def save(path, scale, *tasks):
        path.parent.mkdir(exist_ok=True)
        leaves = [(tuple(name.split(".")), {...: factor * scale}) for name, factor in factors.items()]
        lora_files.save_lora(path, leaves, about["base"], **facts, layouts={"tasks": dict.fromkeys(tasks, 1.0)})
        return path

    own = folder / "transformer" / lora_files.LORAS
    both = save(own / "both.safetensors", 1.0, "infilling", "animate")
    plain = load_models(folder)
    marks = {task: plain.for_task(task).mark for task in ("text_to_video", "infilling", "animate")}
    assert marks["infilling"] == marks["animate"] != marks["text_to_video"] == plain.mark
    special = save(own / "animate.safetensors", 0.5, "animate")
    assert load_models(folder).for_task("infilling").mark == marks["infilling"]
    halved = load_models(folder).for_task("animate").mark
    assert halved not in marks.values() and lora_files.task_loras(folder / "transformer")["animate"] == special
    mine = save(tmp_path / "mine.safetensors", 2.0, "infilling")
    with_mine = load_models(folder, [lora_files.Scaled(mine)])
    assert with_mine.for_task("infilling").mark == with_mine.mark != marks["infilling"]
    assert with_mine.for_task("animate").mark not in (with_mine.mark, halved)
    merge = ("merge", "--weights", folder, "--lora")
    assert tokvid(*merge, mine, "--out", "merged")[0] == 0
    merged = load_models(tmp_path / "merged")
    assert merged.for_task("infilling").mark == merged.mark == with_mine.mark
    assert merged.for_task("animate").mark != merged.mark
    assert set(lora_files.task_loras(tmp_path / "merged/transformer").values()) == {
        tmp_path / "merged/transformer" / lora_files.LORAS / file.name for file in (both, special)
    }
    assert tokvid(*merge, mine, "--average", f"{tmp_path / 'merged'}:0.5", "--out", "averaged")[0] == 0
    assert not lora_files.task_loras(tmp_path / "averaged/transformer")
    assert load_models(tmp_path / "averaged").tuned == {}
    assert tokvid(*merge, f"{mine}:0.5", "--out", "merged")[0] == 0  # of the same base
    before = {file: file.read_bytes() for file in (tmp_path / "merged").rglob("*") if file.is_file()}
    code, _, err = tokvid(*merge, mine, "--average", tmp_path / "averaged", "--out", "merged")
    assert code and "animate.safetensors is a LoRA of other weights than these; move it away, or choose" in err
    assert before == {file: file.read_bytes() for file in (tmp_path / "merged").rglob("*") if file.is_file()}
