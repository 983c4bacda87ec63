"""The text model: any string in, the same ids every time."""

import json
import logging
import time
import unicodedata

import numpy as np
import pytest

from tokvid.api.stories import warn_of_spelled
from tokvid.errors import UserError
from tokvid.input_pipeline.text import PADDING, SMALLEST_VOCABULARY, TextModel, train_text_model
from tokvid.shapes.drawing import captions_corpus

CAPTIONS = [
    text
    for color in ("red", "green", "blue")
    for way in ("left", "right", "up")
    for text in (f"a small {color} circle moves slowly {way}", "一个小的红色圆形向左移动")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_text_model(CAPTIONS, tmp_path_factory.mktemp("text") / "text.model", 400)


@pytest.fixture(scope="module")
def shapes_text(tmp_path_factory):
    return train_text_model(captions_corpus(4000, 0), tmp_path_factory.mktemp("shapes") / "text.model", 512)


def test_training_is_deterministic_and_saved(model, tmp_path):
    again = train_text_model(iter(CAPTIONS), tmp_path / "text.model", 400)
    loaded = TextModel.load(tmp_path / "text.model")
    assert again.fingerprint == loaded.fingerprint == model.fingerprint and len(model.fingerprint) == 16
    assert loaded.vocabulary == model.vocabulary <= 400
    assert list(tmp_path.iterdir()) == [tmp_path / "text.model"]


@pytest.mark.parametrize("text", [CAPTIONS[0], CAPTIONS[1], "🎈 ok?", "日本語 и русский", "naïve\ttab"])
def test_any_text_comes_back(model, text):
    ids_L = model.encode(text, 64)
    assert ids_L.dtype == np.int32 and ids_L.shape == (64,) and ids_L.max() < model.vocabulary
    assert 0 not in ids_L, "nothing is unknown: bytes cover what no piece does"
    assert model.decode(ids_L) == " ".join(text.split())


def test_words_of_a_small_grammar_are_whole(model):
    assert np.sum(model.encode(CAPTIONS[0], 32) != PADDING) == len(CAPTIONS[0].split())


def test_words_that_the_captions_lack_are_named(model, shapes_text):
    assert not [word for text in captions_corpus(300, 1) for word in shapes_text.spelled(text)]
    assert shapes_text.spelled("a pink Circle moves, a pink dog") == ["pink", "Circle", ",", "dog"]
    assert shapes_text.spelled("一只红色圆形🎈") == ["只", "🎈"]
    assert shapes_text.spelled("") == []
    assert model.spelled("a zebra") == []  # it has no room for words
    words = shapes_text.words(60)
    assert {"circle", "small", "red"} <= {*words} and not {"mov", "squ"} & {*words}
    assert shapes_text.words(3) == words[:3]


def test_a_warning_names_them_once(shapes_text, caplog):
    warn_of_spelled(shapes_text, ["a red circle moves up", "A zebra", "the zebra"])
    warn_of_spelled(shapes_text, ["zebra " + "🎈😀🐈🐕🐘🦓🦒🐟🐦"])
    warn_of_spelled(shapes_text, ["a red circle moves up", ""])
    first, second = (record.getMessage() for record in caplog.records)
    assert "hardly know 'A', 'zebra': rare" in first and "try lower case; tokvid inspect lists words" in first
    assert "'🦒', …: rare" in second and "lower case" not in second


def test_nothing_is_no_text(model):
    for nothing in ("", " \n\t "):
        assert (model.encode(nothing, 8) == PADDING).all()
    assert model.decode(model.encode("", 8)) == ""


def test_unicode_forms_are_one(model):
    np.testing.assert_array_equal(model.encode("ｒｅｄ  cafe\u0301", 16), model.encode("red caf\u00e9", 16))


def test_long_text_is_cut_with_a_warning_and_fast(model, caplog):
    long = "red circle " * 1_000_000
    began = time.thread_time()  # a machine that is busy is none that is slow
    with caplog.at_level(logging.WARNING):
        ids_L = model.encode(long, 32)
    assert time.thread_time() - began < 1
    assert PADDING not in ids_L
    read = " ".join(["red circle"] * 16)
    assert f"only the beginning is read: '{read[:40]} … {read[-40:]}'" in caplog.text
    np.testing.assert_array_equal(ids_L, model.encode("red circle " * 16, 32))
    assert len(caplog.text) < 1000
    with caplog.at_level(logging.WARNING):
        model.encode(long, 32)
        model.encode("red circle " * 200_000, 32)
    assert len(caplog.records) == 2  # once for each text


def test_what_is_read_of_a_long_text_ends_with_a_whole_character(model, caplog):
    for length in range(4, 12):
        model.encode("星" * 20, length)  # three bytes each, which this model doesn't know
    assert len(caplog.records) == 3 and "\ufffd" not in caplog.text


@pytest.mark.parametrize(("text", "said"), [("a \ud800 b", "not valid UTF-8 at character 2"), (b"a", "text")])
def test_what_is_no_text_is_refused(model, text, said):
    with pytest.raises(UserError, match=said):
        model.encode(text, 8)


def test_decode_refuses_ids_of_another_vocabulary(model):
    with pytest.raises(UserError, match=str(model.vocabulary - 1)):
        model.decode([1, model.vocabulary])


def test_small_corpora_lower_the_vocabulary(tmp_path, caplog):
    for corpus in (["a"], ["a", "", "b c"], ["红"]):
        model = train_text_model(corpus, tmp_path / "text.model", 512)
        assert SMALLEST_VOCABULARY - 32 <= model.vocabulary < 512 and "not 512" in caplog.text
        assert model.decode(model.encode("anything", 16)) == "anything"


def test_more_characters_than_ids(tmp_path):
    many = ["".join(chr(0x4E00 + i) for i in range(j, j + 20)) for j in range(0, 2000, 20)]
    model = train_text_model(many, tmp_path / "text.model", 300)
    assert model.vocabulary <= 300 and model.decode(model.encode(many[-1], 80)) == many[-1]


@pytest.mark.parametrize("captions", [[], ["", "  "]])
def test_no_text_to_train_from(tmp_path, captions):
    with pytest.raises(UserError, match="no text"):
        train_text_model(captions, tmp_path / "text.model")


def test_vocabulary_must_hold_the_bytes(tmp_path):
    with pytest.raises(UserError, match=f"100 .*{SMALLEST_VOCABULARY}"):
        train_text_model(CAPTIONS, tmp_path / "text.model", 100)


def test_damaged_files(tmp_path, model):
    path = tmp_path / "text.model"
    with pytest.raises(UserError, match="cannot read"):
        TextModel.load(path)
    train_text_model(CAPTIONS, path, 400)
    whole = path.read_bytes()
    for damaged in (b"", b"not a model", whole[:500]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"text\.model"):
            TextModel.load(path)


def test_encoder_remembers(model):
    encode = model.encoder(16)
    assert encode("red") is encode("red") and not encode("red").flags.writeable
    np.testing.assert_array_equal(encode("red"), model.encode("red", 16))


def test_against_sentencepiece(dev_data):
    folder = dev_data / "reference" / "sentencepiece"
    expected = json.loads((folder / "test_model_expected.json").read_text(encoding="utf-8"))
    model = TextModel.load(folder / expected["model"])
    assert model.vocabulary == expected["vocab"]
    for case in expected["cases"]:
        ids_L = model.encode(case["text"], len(case["ids"]) + 3)
        assert list(ids_L) == case["ids"] + [PADDING] * 3, case["text"]
        assert model.decode(ids_L) == case["decoded"]


def test_controls_that_are_spaces_part_words(tmp_path):
    train_text_model(["a large red circle moves left", "a star"] * 50, tmp_path / "text.model", 300)
    model = TextModel.load(tmp_path / "text.model")
    for space in "\x0b\x1c\x1f\x85\u2028\u3000":
        np.testing.assert_array_equal(model.encode(f"red{space}circle", 12), model.encode("red circle", 12))


def test_a_word_with_accents_is_one_however_it_is_written(tmp_path):
    captions = [f"un {noun} rouge, un {noun} bleu, un {noun} vert, un grand {noun}" for noun in ("café", "été", "rond")]
    train_text_model(captions * 40, tmp_path / "text.model", 600)
    model = TextModel.load(tmp_path / "text.model")
    model.vocabulary = 600  # with room for words
    for text in ("café été", unicodedata.normalize("NFD", "café été")):
        assert model.spelled(text) == []
    assert model.spelled("über") == ["über"]
