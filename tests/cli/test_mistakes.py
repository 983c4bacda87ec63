"""Whatever a user gets wrong ends in one clear line."""

import os
import resource

import pytest

NUMBERS = {
    "--seconds": ("nan", "inf", "-1", "0", "1e9", "x", ""),
    "--fps": ("nan", "inf", "-1", "0", "1e9"),
    "--seed": ("-1", "4294967296", "1" * 30, "1.5", "9" * 5000),
    "--guidance": ("nan", "inf", "-1", "101"),
    "--temperature": ("nan", "-1", "1e-9"),
    "--later-temperature": ("nan", "-1", "1e-9"),
    "--top-k": ("-1", "0.5"),
    "--top-p": ("nan", "0", "2"),
    "--choice-temperature": ("nan", "-1", "101"),
    "--scale": ("-1", "65", "x"),
}


@pytest.mark.parametrize("option, value", [(name, value) for name, values in NUMBERS.items() for value in values])
def test_numbers_that_cannot_be(refused, tiny_weights, option, value):
    line = refused("generate", "--prompt", "a", f"{option}={value}", "--weights", tiny_weights)
    assert option.removeprefix("--").replace("-", "_") in line.replace("-", "_")


@pytest.mark.parametrize(
    "words, said",
    [
        ("", "COMMAND"),
        ("paint", "invalid choice: 'paint'"),
        ("genrate --prompt a", "invalid choice: 'genrate' (did you mean 'generate'?); see tokvid --help"),
        ("story", "give either a story file or one --prompt"),
        ("story a.yaml --prompt b", "give either a story file or one --prompt for each segment, not both"),
        ("story --prompt a --prompt=", "a --prompt is empty; write what its segment shows"),
        ("story a.yaml --seconds 3", "--seconds is for --prompt"),
        ("story a.srt", "cannot read script a.srt"),
        ("story a.yaml", "cannot read story a.yaml"),
        ("story recipe.py", "a story file ends in .yaml or .yml, a script in .txt, .srt, .fountain"),
        ("story --prompt a --weights nowhere", "no weights folder nowhere"),
        ("generate --prompt a --weights .", "no tokenizer weights in tokenizer"),
        ("generate --prompt a --image in.png --video in.mp4", "not allowed with"),
        ("generate --prompt a --image nowhere.png", "nowhere.png is not there"),
        ("generate --prompt a --image recipe.py", "recipe.py"),
        ("generate --prompt a --video recipe.py", "recipe.py"),
        ("generate --prompt a --out a.avi", "should end in .mp4 or .gif"),
        ("generate --prompt a --out .", "should end in .mp4 or .gif"),
        ("generate --prompt a --out=", "argument --out: it is empty; give a path"),
        ("generate --prompt a --image=", "argument --image: it is empty; give a path"),
        ("generate --prompt a --out /proc/none/a.mp4", "cannot write /proc/none/a.mp4"),
        ("generate --prompt a --out recipe.py/a.mp4", "cannot write"),
        ("generate --prompt a --sheet a.jpg", "should end in .png"),
        ("generate --prompt a --fps 60 --out a.gif", "allowed for .gif"),
        ("generate --prompts nowhere.txt", "cannot read prompts nowhere.txt: No such file or directory; check"),
        ("generate --prompts own.jsonl", "prompts own.jsonl, line 2: not valid JSON"),
        ("generate --prompts own.jsonl --prompt a", "not allowed with"),
        ("generate --prompts own.jsonl --folder in.mp4", "it exists and is no folder"),
        ("generate --prompts own.jsonl --image in.png", "--image is for one clip"),
        ("generate --prompts own.jsonl --out a.mp4", "--out is for one clip; name the --folder of many"),
        ("generate --prompt a --prompt b", "there can be one only; `tokvid story` takes several"),
        ("loop in.mp4 --prompt a --prompt a", "there can be one only"),
        ("generate --prompt a --count 0", "count should be 1 or more, got 0"),
        ("generate --prompt a --count 2 --batch 0", "batch should be 1 or more, got 0"),
        ("generate --prompt a --batch 2", "--batch is for many clips; give --prompts or --count"),
        ("generate --prompt a --process 0", "--process is for many clips"),
        ("generate", "one of the arguments --prompt --prompts is required"),
        ("story --prompt a --out a.png", "give a video's name, .mp4 or .gif, and --sheet a.png"),
        ("extend nowhere.mp4", "nowhere.mp4 is not there"),
        ("extend in.mp4 --out ./in.mp4 --weights none", "in.mp4, which is read"),
        ("reconstruct in.mp4 --out a.mp4 --out in.mp4 --weights none", "in.mp4, which is read"),
        ("generate --prompt a --image in.png --sheet in.png --weights none", "in.png, which is read"),
        ("extend nowhere.mp4 --weights none", "nowhere.mp4 is not there"),  # before weights are loaded
        ("story --prompt a --image . --weights none", ". is not a file"),
        ("generate --prompt a --out gs://bucket/a.mp4", "argument --out: gs://bucket/a.mp4 is a URL; write to a file"),
        ("story memory://nowhere/story.yaml", "there is nothing at memory://nowhere/story.yaml"),
        ("loop in.mp4", "train with the task infilling"),
        ("interpolate in.mp4", "not trained to interpolate"),
        ("interpolate in.mp4 --draws few", "argument --draws: should be a whole number, got 'few'"),
        ("evaluate generation --draws 2", "--draws is not for evaluate generation"),
        ("interpolate in.mp4 --factor two", "argument --factor: should be a whole number, got 'two'"),
        ("story --prompt a --seconds 2s", "argument --seconds: should be a number, got '2s'"),
        ("story --prompt a --scheme best", "invalid choice: 'best'"),
        ("story --prompt a --scheme hierarchical", "not trained to interpolate"),
        ("generate --prompt a --rows 1", "these weights draw token by token (rows 0), got rows 1"),
        ("generate --prompt a --rounds 0", "rounds should be 1 to 1000"),
        ("generate --prompt a --last-guidance -1", "guidance should be 0 to 100"),
        ("generate --prompt a --nonsense", "unrecognized arguments: --nonsense"),
        ("story --promt a", "unrecognized arguments: --promt (did you mean '--prompt'?); see tokvid story --help"),
        (
            "generate --promt a",
            "--prompts is required; '--promt' is unknown (did you mean '--prompt'?); see tokvid generate",
        ),
        ("edit in.mp4 --task=x --tusk grey", "invalid choice: 'x'"),
        ("edit in.mp4 --tusk=grey", "required: --task; '--tusk' is unknown (did you mean '--task'?)"),
        ("generate --xyz a", "--prompts is required; see tokvid generate"),
        ("generate --prompt a --larger 2", "larger needs an image or a video whose detail is kept"),
        ("generate --prompt a --count 2 --larger 2", "--larger needs a picture or a video"),
        ("generate --prompt a --via-image --larger 2", "--larger needs a picture or a video"),
        ("extend in.mp4 --larger 0", "larger should be 1 to 16"),
        ("reconstruct nowhere.mp4 --out a.mp4", "nowhere.mp4 is not there"),
        ("reconstruct . --out a.mp4", "not a file"),
        ("reconstruct in.mp4 --out a.txt", "should end in"),
        ("reconstruct in.mp4 --out a.mp4 --size 20 16", "height 20 is no multiple of a token's 8 pixels: use 16 or 24"),
        ("reconstruct in.mp4 --out a.mp4 --size -8 16", "height -8 is no multiple"),
        ("reconstruct in.mp4 --out a.mp4 --size 0 16", "height 0 is no multiple"),
        ("reconstruct in.mp4 --out a.mp4 --size 80000 80000", "at most 8192 are allowed"),
        ("reconstruct in.mp4 --out a.mp4 --fps 0", "0"),
        ("reconstruct in.mp4 --out a.mp4 --fps nan", "nan"),
        ("reconstruct in.mp4 --out a.mp4 --later-codes 2", "these weights keep all sub-codes"),
        ("studio --port 70000", "--port should be 0 to 65535"),
        ("evaluate shapes --samples 3", "4 or more samples"),
        ("evaluate shapes --seed -1", "seed should be"),
        ("evaluate shapes --seed 4294967296", "seed should be"),
        ("evaluate shapes --guidance nan", "guidance should be"),
        ("evaluate reconstruction --samples 0", "samples should be 4 or more"),
        ("evaluate reconstruction --data nowhere", "nowhere"),
        ("evaluate reconstruction --size 20 16", "height 20 is no multiple of a token's 8 pixels: use 16 or 24"),
        ("evaluate reconstruction --size 16 0", "of 11 pixels or more"),
        ("evaluate reconstruction --size 16 32", "Moving Shapes are square"),
        ("evaluate all", "invalid choice: 'all'"),
        ("data shapes --out d --videos 0", "length must be >= 1"),
        ("data shapes --out d --seed -1", "seed >= 0"),
        ("data shapes --out d --size 16 32", "Moving Shapes are square"),
        ("data shapes --out d --size 0 0", "size should be 1 or more"),
        ("data shapes --out d --fps 0", "fps should be 0.001 to 1000"),
        ("data shapes --out d --fps nan", "fps should be 0.001 to 1000"),
        ("data shapes", "--out"),
        ("data shapes --out . --videos 1", "holds no records"),
        ("data shapes --out /proc/none --videos 1", "cannot write"),
        ("data mnist nowhere --out d", "nowhere"),
        ("data mnist recipe.py --out d", "recipe.py"),
        ("data folder nowhere --out d", "there is no folder nowhere"),
        ("data folder . --out d", "no captions.jsonl"),
        ("data folder . --max-unreadable 2", "max_unreadable"),
        ("data folder . --tfds", "--tfds needs --out"),
        ("data curate nowhere", "there is no folder nowhere"),
        ("data curate . --out c", "is within ."),
        ("data curate . --keep motoin>1", "did you mean 'motion'"),
        ("data curate . --max-unreadable 2", "max-unreadable"),
        ("data curate . --runner direct", "--runner needs --out"),
        ("data folder . --runner-option a=b --out d", "give --runner, too"),
        ("data folder . --tfds --runner direct --out d", "--runner doesn't go with --tfds"),
        ("data mnist x --tfds --size 8 8 --out d", "--size doesn't go with mnist --tfds"),
        # Options that would change nothing.
        ("data shapes --out d --fit crop", "unrecognized arguments: --fit"),
        ("data mnist x --out d --fit crop", "unrecognized arguments: --fit"),
        ("data mnist x --tfds --split test --out d", "--split doesn't go with --tfds"),
        ("data folder . --tfds --fit letterbox --out d", "--fit doesn't go with folder --tfds"),
        ("data folder . --tfds --fps 8 --out d", "--fps doesn't go with folder --tfds"),
        ("data folder . --fit letterbox", "--fit is for what is written; give --out"),
        ("data folder . --size 8 8", "--size is for what is written; give --out"),
        ("data folder . --fps 8", "--fps is for what is written; give --out"),
        ("evaluate shapes --factor 2", "--factor is not for evaluate shapes"),
        ("evaluate shapes --data .", "--data is not for evaluate shapes"),
        ("evaluate shapes --sheet a.png", "--sheet is not for evaluate shapes"),
        ("evaluate shapes --size 16 16", "--size is not for evaluate shapes"),
        ("evaluate shapes --features x", "--features is not for evaluate shapes"),
        ("evaluate shapes --rounds 3", "--rounds is for drawing all rows at once; give rows 2"),
        ("evaluate shapes --choice-temperature 3", "--choice-temperature is for drawing all rows at once"),
        ("evaluate reconstruction --guidance 3", "--guidance is not for evaluate reconstruction"),
        ("evaluate reconstruction --fps 8", "--fps is not for evaluate reconstruction"),
        ("evaluate reconstruction --temperature 0", "--temperature is not for evaluate reconstruction"),
        ("evaluate mnist --task animate", "--task of evaluate mnist can be via_image, got 'animate'"),
        ("evaluate edits --task animate", "task of evaluate edits"),
        ("evaluate edits --fps 4 8", "evaluate edits is measured at one rate"),
        ("evaluate edits --features x", "--features is not for evaluate edits"),
        ("evaluate interpolation --features x", "--features is not for evaluate interpolation"),
        ("evaluate interpolation --scheme one-level", "--scheme is not for evaluate interpolation"),
        ("interpolate in.mp4 --scheme one-level", "unrecognized arguments: --scheme"),
        ("loop in.mp4 --scheme one-level", "unrecognized arguments: --scheme"),
        ("extend in.mp4 --scheme hierarchical", "told at one level"),
        ("generate --prompt a --rounds 4", "--rounds is for drawing all rows at once; give rows 2"),
        ("generate --prompt a --temperature 0 --top-k 5", "--top-k is for drawing at random; raise the temperature"),
        ("evaluate shapes --temperature 0 --top-p 0.5", "--top-p is for drawing at random; raise the temperature"),
        ("evaluate interpolation --top-p 0.5", "--top-p is for drawing at random; raise the temperature"),
        ("evaluate shapes --task upscale --top-k 5", "--top-k is for drawing at random; raise the temperature"),
        ("generate --prompt a --guidance 1 --negative b", "--negative has no effect where guidance is 1"),
        ("generate --prompt a --image in.mp4", "in.mp4 is a video of 10 frames; give a picture"),
        ("story --prompt a --image in.mp4", "in.mp4 is a video of 10 frames; give a picture"),
        ("story own.yaml --seed 3", "--seed has no effect: each segment has its own seed"),
        ("story own.yaml --last-guidance 3", "--last-guidance has no effect"),
        ("reconstruct in.mp4 --out a.png", "in.mp4 has 10 frames, a.png holds one; write .mp4 or .gif"),
        ("reconstruct in.png --out a.png --fps 3", "--fps has no meaning for a picture"),
        ("plan recipe.py --topology v5e:2x2 --only training --rows 1", "--rows is for decoding"),
        ("inspect nowhere", "there is nothing at nowhere"),
        ("inspect /dev/null", "is no file or folder, but a pipe or a device"),
        ("inspect empty", "empty is no weights folder"),
        ("inspect recipe.py", "recipe.py"),
        ("demo --weights nowhere", "nowhere"),
        ("train tokenizer", "CONFIG.py, --workdir"),
        ("train painter recipe.py --workdir w", "invalid choice: 'painter'"),
        ("train transformer recipe.py --workdir w", "no token cache in w/tokens"),
        ("train transformer recipe.py --workdir w --reward.kl 1", "reward.kl has no effect without a reward; name one"),
        ("train transformer recipe.py --workdir w --reward.kl=1", "reward.kl has no effect without a reward; name one"),
        ("train transformer recipe.py --workdir w --reward.name=", "no token cache in w/tokens"),
        ("train transformer recipe.py --workdir w --data.path reward.d --data.source folder", "no token cache in w/to"),
        ("tokenize recipe.py --workdir w", "no tokenizer weights in w/tokenizer"),
    ],
)
def test_mistakes_end_in_one_line(refused, tiny_weights, movie, tmp_path, words, said):
    (tmp_path / "recipe.py").write_text("from tokvid.config import Recipe\nrecipe = Recipe()\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "own.jsonl").write_text('{"prompt": "a"}\n{prompt: a}\n')
    (tmp_path / "own.yaml").write_text("segments: [{prompt: a, seed: 1, guidance: 2, last_guidance: 3}]")
    words = words.split()
    with_weights = ("story", "generate", "extend", "loop", "interpolate", "reconstruct", "evaluate")
    if words and words[0] in with_weights and "--weights" not in words:
        words += ["--weights", tiny_weights]
    assert said.replace("-", "_") in refused(*words).replace("-", "_")


def test_arguments_that_are_not_utf8(tokvid, refused, tiny_weights, tmp_path):
    assert "TFDS can't write to 'a\\udcff'" in refused("data", "shapes", "--tfds", "--out", "a\udcff")
    assert "not valid UTF-8" in refused("generate", "--prompt", "a\udcff", "--weights", tiny_weights)
    assert "\\udcff" in refused("inspect", "a\udcff")
    assert "\\udcff" in refused("story", "a\udcff.yaml", "--weights", tiny_weights)
    words = ("--prompt", "a", "--seconds", 0.2, "--weights", tiny_weights, "--out", "a\udcff.mp4")
    assert tokvid("generate", *words)[:2] == (0, "a\\udcff.mp4: 2 frames at 8 fps\n")
    assert os.listdir(os.fsencode(tmp_path)) == [b"a\xff.mp4"]


def test_a_prompt_where_a_story_file_should_be(refused):
    assert "if that is a prompt, write --prompt before it" in refused("story", "a red circle")


def test_a_video_where_a_story_file_should_be(refused, movie):
    assert "in.mp4 is a video, no story; continue it with tokvid extend" in refused("story", "in.mp4")


def test_a_full_disk(tokvid, tiny_weights, movie, tmp_path):
    """As far as a limit on the size of files is one: one clear line, and no half of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        for words in (
            ("generate", "--prompt", "a", "--seconds", 1, "--weights", tiny_weights),
            ("generate", "--prompt", "a", "--seconds", 1, "--weights", tiny_weights, "--out", "a.gif"),
            ("reconstruct", "in.mp4", "--size", 64, 64, "--out", "b.mp4", "--weights", tiny_weights),
            ("data", "shapes", "--videos", 3, "--out", "d"),
        ):
            code, out, err = tokvid(*words)
            lines = [line for line in err.splitlines() if line.startswith("tokvid:")]
            assert (code, len(lines)) == (2, 1) and "cannot write" in lines[0], (words, err)
            assert "psnr " in out if words[0] == "reconstruct" else out == ""  # what was measured is told
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.gif.tokens", ".clip.mp4.tokens", "in.mp4", "in.png"]
