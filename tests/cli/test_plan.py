"""What a training would need: plan."""

import json


def test_a_plan_is_told_whatever_becomes_of_its_files(tokvid, tmp_path, monkeypatch):
    """Programs' texts are kept until the figures are printed: compiling them took minutes."""
    from tokvid.plan import report

    def plan(recipe, where, mesh, *, keep, **how):
        (tmp_path / "texts").write_text("in the way now")
        keep("training", "HloModule training")
        return {"fits": True}

    monkeypatch.setattr(report, "plan", plan)
    monkeypatch.setattr(report, "lines", lambda config, result: ["a pod", "fits"])
    (tmp_path / "recipe.py").write_text("from tokvid.config import Recipe\nrecipe = Recipe()\n")
    words = ("plan", "recipe.py", "--topology", "v5p:2x2x1", "--json", "p.json", "--hlo", "texts")
    code, out, err = tokvid(*words)
    assert (code, out) == (2, "a pod\nfits\n") and "cannot write texts/training.hlo" in err
    assert json.loads((tmp_path / "p.json").read_text()) == {"config": "recipe.py", "fits": True}
