"""docs/api.md is what `make docs` writes, and leaves nothing public out."""

import re

import pytest

import isotrace
import write_api


def test_it_is_up_to_date():
    assert write_api.PAGE.read_text(encoding="utf-8") == write_api.render(), "run `make docs`"


def test_everything_public_is_in_it_and_documented():
    sections = re.findall(r"^## (\w+)$", write_api.render(), flags=re.MULTILINE)
    assert sections == [*(name for name in isotrace.__all__ if name != "__version__"), "Classes"]
    undocumented = [name for name in sections[:-1] if not write_api.documented(getattr(isotrace, name))]
    assert not undocumented


@pytest.mark.parametrize("name", [name for name in isotrace.__all__ if name != "__version__"])
def test_no_address_of_memory_and_no_place_of_a_module_gets_in(name):
    text = write_api.signature(name, getattr(isotrace, name))
    assert " at 0x" not in text
    assert "isotrace." not in text
    assert text.count("(") == text.count(")")
