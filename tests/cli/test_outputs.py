"""An output that cannot be written is refused before the work begins."""

import os

import pytest

from tokvid.cli import main as cli

WRITTEN = {
    ("demo",): ["--out folder"],
    ("story", "--prompt", "a"): ["--out mp4", "--out gif", "--sheet png"],
    ("generate", "--prompt", "a"): ["--out mp4", "--sheet png"],
    ("generate", "--prompts", "clips"): ["--folder folder"],
    ("animate", "in.png", "--zero-shot"): ["--out mp4", "--sheet png"],
    ("merge", "--lora", "lora.safetensors"): ["--out folder"],
    ("studio",): ["--folder folder"],
    ("extend", "in.mp4"): ["--out mp4", "--sheet png"],
    ("edit", "in.mp4", "--task", "interpolation"): ["--out mp4", "--sheet png"],
    ("interpolate", "in.mp4"): ["--out mp4", "--sheet png"],
    ("loop", "in.mp4"): ["--out mp4", "--sheet png"],
    ("highlights", "in.mp4"): ["--out folder"],
    ("data", "curate", "raw"): ["--out folder"],
    ("reconstruct", "in.mp4"): ["--out mp4", "--out png"],
    ("train", "tokenizer", "recipe.py"): ["--workdir folder"],
    ("tokenize", "recipe.py"): ["--workdir folder"],
    ("plan", "recipe.py", "--topology", "v5p:2x2x1"): ["--json json", "--hlo folder"],
    ("evaluate", "shapes"): ["--json json", "--markdown md"],
    ("evaluate", "reconstruction"): ["--json json", "--markdown md", "--sheet png"],
    ("evaluate", "interpolation"): ["--json json", "--markdown md", "--sheet png"],
    ("data", "shapes"): ["--out folder"],
    ("data", "mnist", "digits.npz"): ["--out folder"],
    ("data", "folder", "clips"): ["--out folder"],
    ("data", "import", "table.parquet"): ["--out folder"],
    ("export", "model"): ["--out safetensors"],
    ("import", "model.safetensors"): ["--out folder"],
}


CASES = [(words, *written.split()) for words, options in WRITTEN.items() for written in options]


def test_every_output_is_in_the_table():
    """Of each command, all arguments that are checked as outputs, and all that are called as outputs are."""

    def options(parser, words=()):
        for action in parser._actions:
            if action.choices and action.dest in ("command", "kind"):
                for name, inner in action.choices.items():
                    yield from options(inner, (*words, name))
            elif "Outputs." in getattr(action.type, "__qualname__", "") or (
                action.dest in ("out", "sheet", "json", "markdown", "hlo", "workdir") and action.nargs != 0
            ):
                yield words, action.option_strings[0]

    table = {(words[: 1 + (words[0] == "data")], option) for words, option, _ in CASES}
    assert set(options(cli.parser())) == table


@pytest.mark.parametrize("words, option, kind", CASES, ids=lambda value: "-".join(value).replace("--", ""))
def test_an_output_that_cannot_be_is_refused_before_the_work(refused, tmp_path, words, option, kind):
    """Nothing that these commands are to read can be read: they would say so if they had begun."""
    for name in ("in.mp4", "in.png"):
        (tmp_path / name).write_text("no video")
    (tmp_path / "file").write_text("keep")
    (tmp_path / "folder.d").mkdir()
    (tmp_path / "folder.d" / "kept").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    suffix = "" if kind == "folder" else f".{kind}"
    places = {
        f"/proc/none/x{suffix}": "cannot write /proc/none/x",
        f"file/x{suffix}": "cannot write file/x",
        f"file/x/y{suffix}": "cannot write file/x/y",
        f"loop/x{suffix}": "cannot write loop/x",
        f"{'x' * 300}{suffix}": "File name too long",
        f"new/{'x' * 300}/y{suffix}": "File name too long",
        f"gs://bucket/x{suffix}": "is a URL; write to a file system",
    }
    if kind == "folder":
        places |= {"file": "it exists and is no folder", "pipe": "it exists and is no folder"}
    else:
        for name in ("folder.d", "pipe"):
            (tmp_path / name).rename(tmp_path / f"{name}{suffix}")
        places |= {f"folder.d{suffix}": "it is a folder", f"pipe{suffix}": "no ordinary file"}
    if kind in ("mp4", "gif", "png"):
        places["x.jpg"] = places["x"] = places["mp4"] = "its name should end in ."
    needed = () if words[0] in ("train", "tokenize", "plan", "data", "export", "import") else ("--weights", "nowhere")
    for place, said in places.items():
        line = refused(*words, *needed, option, place)
        assert f"argument {option}: " in line and said in line, line


def test_no_two_outputs_share_a_place(refused, tmp_path):
    (tmp_path / "same").symlink_to(".")
    for one, other in (("e.txt", "e.txt"), ("e.txt", "./x/../e.txt"), ("same/e.txt", "e.txt")):
        line = refused("evaluate", "shapes", "--json", one, "--markdown", other)
        assert f"argument --markdown: {other} is named for another output, too" in line
    (tmp_path / "a").write_text("no video")
    assert "another output" in refused("reconstruct", "a", "--out", "a.png", "--out", "a.png")
