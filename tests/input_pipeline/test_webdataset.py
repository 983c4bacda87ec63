"""WebDataset shards: read in place, in order, and hostile archives say what is wrong with them."""

import dataclasses
import gzip
import io
import json
import random
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import PIL.Image
import pytest

from tokvid.cli.main import main
from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.input_pipeline import webdataset
from tokvid.input_pipeline.clips import read_clip
from tokvid.input_pipeline.loader import clip_batches
from tokvid.input_pipeline.sources import fingerprint, open_source
from tokvid.input_pipeline.webdataset import WebDataset

RECIPE = """
from tokvid.config import *

layers = ("time",)
recipe = Recipe(
    data=DataConfig(size=(16, 16), frames=5, fps=(4.0,), threads=1),
    tokenizer=TokenizerConfig(
        size=(16, 16), width=16, heads=2, mlp=16, encoder=layers, decoder=layers, quantizer="fsq", levels=(4, 4)
    ),
    train_tokenizer=TrainConfig(steps=2, batch=2, log_every=1, sample_every=0),
)
"""


def still(level=0) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def video(level=0, container="mp4") -> bytes:
    """Two seconds at 8 fps, brighter by 4 each frame."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(16):
            image_HWC = np.full((32, 32, 3), level + 4 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image_HWC, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def pack(path, members, **options):
    """Writes (name, bytes) or (name, bytes, fields of the TarInfo) as an archive; gives its path."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content, *fields in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in (fields[0] if fields else {}).items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))
    return path


def pair(key, level=0, caption="grey"):
    return [(f"{key}.png", still(level)), (f"{key}.txt", caption.encode())]


def pairs(count):
    return [member for number in range(count) for member in pair(f"k{number}", number)]


def test_shards_are_a_source(tmp_path):
    """In the order of shards' names and then of members, whatever the container, and nothing is unpacked."""
    first, second = video(10), video(90, "matroska")
    pack(
        tmp_path / "s" / "b.tar", [("./z.MKV", second), ("./z.json", b'{"fps": 8, "Caption": " up "}'), ("z.cls", b"1")]
    )
    members = [("sub", b"", {"type": tarfile.DIRTYPE}), ("sub/y.mp4", first), ("sub/y.txt", "\ufeffé\n".encode())]
    pack(tmp_path / "s" / "a.tar", [*members, ("sub/._y.mp4", b"mac"), *pair("a", 7, ""), ("a.json", b"{}")])
    source = WebDataset(tmp_path / "s")
    assert [item.key for item in source] == ["a.tar/sub/y.mp4", "a.tar/a.png", "b.tar/z.MKV"]
    assert [item.captions[0].text for item in source] == ["é", "", "up"] and not source.unreadable
    assert [item.seconds for item in source] == [2.0, 0.0, 2.0]
    for item, content in ((source[0], first), (source[2], second)):
        clip = item.read(0.5, 4.0, 3, (16, 16))
        np.testing.assert_array_equal(clip, read_clip(content, start=0.5, fps=4, frames=3, size=(16, 16)))
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.tar", "b.tar", "s"]


def test_any_thread_reads_what_it_asks_for(tmp_path):
    pack(tmp_path / "a.tar", pairs(40))
    source = WebDataset(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        order = [number % 40 for number in range(0, 7 * 160, 7)]
        levels = list(pool.map(lambda index: source[index].read(0, 1, 1, (4, 4)).max(), order))
    assert levels == order


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar(tmp_path, form):
    """Names that need headers of their own, and every caption's field that is read."""
    long = "d" * 90 + "/" + "n" * 90
    shard = pack(tmp_path / "a.tar", pair(long), format=form)
    assert WebDataset(shard)[0].key == f"a.tar/{long}.png"
    for field in webdataset.CAPTION_FIELDS:
        pack(
            shard,
            [("a.png", still()), ("a.json", json.dumps({field: field, "caption": None} | {field: field}).encode())],
        )
        assert WebDataset(shard)[0].captions[0].text == field


def test_a_path_is_a_folder_a_shard_or_a_pattern(tmp_path):
    for number in range(8, 12):
        pack(tmp_path / "s" / f"x-{number:03d}.tar", pair(f"k{number}"))
    pack(tmp_path / "s" / "y [1]{a}.tar", pair("y"))
    for path, found in [
        ("", [8, 9, 10, 11, "y"]),
        ("x-009.tar", [9]),
        ("x-*.tar", [8, 9, 10, 11]),
        ("x-{008..010}.tar", [8, 9, 10]),
        ("x-0{11,0[89]}.tar", [8, 9, 11]),
        ("y [1]{a}.tar", ["y"]),
    ]:
        config = DataConfig(source="webdataset", path=str(tmp_path / "s" / path))
        keys = [re.sub(r".*/k?|\.png", "", item.key) for item in WebDataset(config.path)]
        assert keys == [str(each) for each in found], path
        assert len(fingerprint(config)) == 16
    for path, said in [
        ("x-{008..012}.tar", r"x-012\.tar is not there"),
        ("w*.tar", "no file matches"),
        ("x-{0..999999999}.tar", "stands for 1000000000 shards"),
        ("nowhere", "nowhere is not there"),
    ]:
        with pytest.raises(UserError, match=said):
            WebDataset(tmp_path / "s" / path)
    with pytest.raises(UserError, match=r"holds no \.tar shards"):
        WebDataset(tmp_path)


def test_the_last_are_held_out(tmp_path):
    pack(tmp_path / "a.tar", pairs(5))
    config = DataConfig(source="webdataset", path=str(tmp_path), held_out=2, size=(8, 8), frames=1, threads=2)
    assert [item.key[6:] for item in open_source(config, "held_out")] == ["k3.png", "k4.png"]
    assert len(open_source(config)) == 3
    batches = clip_batches(config, 2, 0)
    assert next(batches).video.shape == (2, 1, 8, 8, 3)
    batches.close()


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.png", b"", LINK), ("a.txt", b"x")], r"'a\.png' is a link or a device"),
        ([("a.png", still()), ("a.txt", b"", LINK)], r"'a\.txt' is a link or a device"),
        ([("a.png", b"", {"type": tarfile.LNKTYPE, "linkname": "k0.png"}), ("a.txt", b"x")], "is a link or a device"),
        ([("a.png", b"", {"type": tarfile.CHRTYPE}), ("a.txt", b"x")], "is a link or a device"),
        ([("a.png", b"", {"type": tarfile.FIFOTYPE}), ("a.txt", b"x")], "is a link or a device"),
        (pair("/tmp/a"), "leads out of the archive"),
        (pair("../a"), "leads out of the archive"),
        (pair("b/../a"), "leads out of the archive"),
        (pair("a\n"), "has control characters"),
        (pair("\udc80"), "is not valid UTF-8"),
        ([*pair("a"), *pair("a")], r"'a' has 2 videos, 'a\.png'"),
        ([*pair("a"), ("a.mp4", b"x")], r"'a' has 2 videos, 'a\.png, a\.mp4'"),
        ([*pair("a"), ("a.txt", b"y")], "'a' has 2 captions"),
        ([("a.png", still())], "'a' has no caption; pack KEY.txt or KEY.json"),
        ([("a.txt", b"x")], r"'a' has no video; pack KEY\.mp4"),
        ([("a.png", b""), ("a.txt", b"x")], r"a\.tar/a\.png is empty"),
        ([("a.mp4", b"no video"), ("a.txt", b"x")], r"a\.tar/a\.mp4 as a picture or video"),
        ([("a.png", still()), ("a.txt", b"\xff")], r"'a\.txt' holds no caption"),
        ([("a.png", still()), ("a.txt", bytes(2 << 20))], r"'a\.txt' has 2097152 bytes"),
        ([("a.png", still()), ("a.txt", b"x" * 100_001)], "over 100000 bytes"),
        ([("a.png", still()), ("a.json", b'{"title": "x"}')], "has no text in any field of caption"),
        ([("a.png", still()), ("a.json", b'{"caption": ["x"]}')], "has no text in any field of caption"),
        ([("a.png", still()), ("a.json", b"[")], r"'a\.json' holds no caption"),
        ([("a.png", still()), ("a.json", b"[" * 100_000)], r"'a\.json' holds no caption"),
        ([("a.png", still()), ("a.json", b'{"caption": "\\ud83d"}')], "is not valid UTF-8"),
    ],
)
def test_what_cannot_be_used_is_skipped_up_to_a_share(tmp_path, caplog, members, said):
    shard = pack(tmp_path / "a.tar", [*pairs(3), *members], format=tarfile.GNU_FORMAT)
    source = WebDataset(shard, max_unreadable=0.25)
    assert [item.key[6:] for item in source] == ["k0.png", "k1.png", "k2.png"]
    ((_, reason),) = source.unreadable
    assert re.search(said, reason) and "\n" not in reason and f"skipped: {reason}" in caplog.text
    with pytest.raises(UserError, match=r"1 of the 4 videos in .* at most 10% may \(max_unreadable\); the first: "):
        WebDataset(shard)
    assert list(tmp_path.iterdir()) == [shard]


def test_videos_too_large_for_memory_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MOST_BYTES", 1000)
    pack(tmp_path / "a.tar", [("b.png", bytes(1001)), ("b.txt", b"x"), *pair("a")])
    assert "has 1001 bytes, allowed are 1000" in WebDataset(tmp_path, max_unreadable=0.5).unreadable[0][1]


def test_captions_that_are_all_empty(tmp_path):
    with pytest.raises(UserError, match=r"all captions in .* are empty"):
        WebDataset(pack(tmp_path / "a.tar", pair("a", caption=" ")))


def test_sparse_files(tmp_path):
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9000", "GNU.sparse.name": "a.png"}
    sparse = ("GNUSparseFile.0/a.png", b"1\n0\n512\n".ljust(512, b"\0") + bytes(512), {"pax_headers": pax})
    shard = pack(tmp_path / "a.tar", [sparse, ("a.txt", b"x"), *pair("b")], format=tarfile.PAX_FORMAT)
    assert "'a.png' is a sparse file" in WebDataset(shard, max_unreadable=0.5).unreadable[0][1]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "no .tar archive .empty file"),
        (lambda data: b"words" * 500, "no .tar archive"),
        (lambda data: bytes(10_240), "hold no videos"),
        (lambda data: data[:700], "cut off"),
        (lambda data: data[:2048], "no header and no end at byte 2048"),
        (lambda data: data[:2100], "no header and no end at byte 2048"),
        (lambda data: data[:2048] + b"?" + data[2049:], "no header and no end at byte 2048"),
        (lambda data: data + data, "continues after its end at byte 4096"),
        (lambda data: data + bytes(2 << 20), "continues after its end"),
        (gzip.compress, r"is compressed, .*: gzip -d a\.tar"),
        (lambda data: resized(data, -(10**6)), "damaged"),
        (lambda data: resized(data, 2**62), "damaged"),
        (lambda data: resized(data, 2**70), "damaged"),
        (lambda data: resized(data, 2**40, tarfile.GNUTYPE_LONGNAME), "a header says that it has"),
        (lambda data: resized(data, -(10**6), tarfile.XHDTYPE), "a header says that it has"),
        (lambda data: resized(data, 2**40, tarfile.XGLTYPE), "a header says that it has"),
        (lambda data: 3000 * (tar_header(0, tarfile.GNUTYPE_LONGNAME)) + data, "damaged"),
    ],
)
def test_damaged_and_hostile_archives_are_refused(tmp_path, damage, said):
    shard = pack(tmp_path / "a.tar", pairs(2))
    shard.write_bytes(damage(shard.read_bytes()))
    config = DataConfig(source="webdataset", path=str(tmp_path))
    for read in (open_source, fingerprint) if said != "hold no videos" else (open_source,):
        with pytest.raises(UserError, match=said) as caught:
            read(config)
        assert "a.tar" in str(caught.value) or said == "hold no videos"
        assert "\n" not in str(caught.value)


def tar_header(size, kind=tarfile.REGTYPE):
    """A header whose size may be any number."""
    member = tarfile.TarInfo("k0.png")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def resized(data, size, kind=tarfile.REGTYPE):
    return tar_header(size, kind) + data[512:]


def test_compressed_shards_in_a_folder_are_refused_by_name(tmp_path):
    pack(tmp_path / "a.tar", pair("a"))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(UserError, match=r"b\.tar\.gz is compressed, .* plain \.tar: gzip -d b\.tar\.gz"):
        WebDataset(tmp_path)


def test_whatever_the_bytes_are(tmp_path):
    """Flipped, cut and doubled: a source, or one clear line."""
    data, draw = pack(tmp_path / "a.tar", pairs(3)).read_bytes(), random.Random(0)
    for number in range(150):
        damaged = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            place = 512 * draw.randrange(12) + draw.choice([draw.randrange(512), draw.randrange(124, 157)])
            damaged[place] = draw.randrange(256)
            if draw.random() < 0.7:  # a header that has its checksum right
                head = 512 * (place // 512)
                sums = tarfile.calc_chksums(bytes(damaged[head : head + 512]))[0]
                damaged[head + 148 : head + 156] = b"%06o\0 " % sums
        shard = tmp_path / f"{number}.tar"
        shard.write_bytes(damaged[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            WebDataset(shard, max_unreadable=1.0, mapped=map)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_caption_or_a_video_of_the_same_size_is_noticed(tmp_path):
    """Wherever it lies in a shard that is larger than what is read of it."""
    filler = [(f"{number}.bin", bytes([number]) * 50_000) for number in range(4)]
    seen = set()
    for caption, level in (("red", 1), ("tan", 1), ("red", 2)):
        pack(tmp_path / "a.tar", [*filler[:1], *pair("a", level, caption), *filler[1:]])
        seen.add(fingerprint(DataConfig(source="webdataset", path=str(tmp_path))))
    assert len(seen) == 3
    pack(tmp_path / "b.tar", pair("b"))
    assert fingerprint(DataConfig(source="webdataset", path=str(tmp_path))) not in seen


def test_images_beside_clips_of_shards(tmp_path):
    """The folder of images is no folder of shards."""
    pack(tmp_path / "s" / "a.tar", pairs(2))
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGB", (16, 16), "white").save(tmp_path / "images" / "a.png")
    config = DataConfig(source="webdataset", path=str(tmp_path / "s"), images=1, images_path=str(tmp_path / "images"))
    assert fingerprint(config) != fingerprint(dataclasses.replace(config, images=0))


@pytest.mark.slow
def test_training_from_shards_and_resuming(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text(RECIPE)
    for shard in range(2):
        members = [(f"{key}.mp4", video(40 * key)) for key in range(3)]
        pack(tmp_path / "s" / f"{shard}.tar", [*members, *((f"{key}.txt", b"brighter") for key in range(3))])
    command = ["train", "tokenizer", "recipe.py", "--workdir", "run", "--data.source", "webdataset", "--data.path"]
    main([*command, "s/{0..1}.tar"])
    lines = (tmp_path / "run" / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
    shard = tmp_path / "s" / "1.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(b"brighter", b"darkness", 1))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*command, "s/{0..1}.tar", "--train_tokenizer.steps", "3"])
    assert stopped.value.code == 2 and "was trained with data files=" in capsys.readouterr().err
