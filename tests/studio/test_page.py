"""The page's files: two complete languages, and nothing from anywhere else."""

import re
from pathlib import Path

import tokvid

PAGE = Path(tokvid.__file__).parent / "studio" / "page"
FILES = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}
LANGUAGES = re.findall(r"^  (en|zh): \{\n(.*?)^  \},$", FILES["strings.js"], re.MULTILINE | re.DOTALL)
TEXTS = {language: dict(re.findall(r'^    (\w+): "(.*)",$', block, re.MULTILINE)) for language, block in LANGUAGES}
CODE = "\n".join(text for name, text in FILES.items() if name != "strings.js")


def test_both_languages_have_all_texts():
    assert len(TEXTS["en"]) > 90 and list(TEXTS["en"]) == list(TEXTS["zh"])
    for key, text in TEXTS["en"].items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", TEXTS["zh"][key])), key


def test_texts_that_are_used_are_those_that_are_there():
    used = set(re.findall(r'\bt\("(\w+)"', CODE)) | set(re.findall(r'data-(?:t|label)="(\w+)"', CODE))
    built = re.findall(r"`([a-z]+_)\$\{", CODE)  # `status_${name}`
    assert used <= set(TEXTS["en"]), used - set(TEXTS["en"])
    rest = {key for key in set(TEXTS["en"]) - used if not key.startswith(tuple(built)) and f'"{key}"' not in CODE}
    assert not rest, rest


def test_the_page_loads_nothing_from_elsewhere():
    for name, text in FILES.items():
        links = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not links and "innerHTML" not in text and " style=" not in text, name
        for module in re.findall(r' from "\./(.+?)"', text):
            assert module in FILES, (name, module)
