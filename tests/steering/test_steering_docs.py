"""The first example of the page on steering runs as it is written."""

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "steering.md").read_text(encoding="utf-8")


@pytest.mark.nightly
def test_the_example_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    section = PAGE[PAGE.index("## What an edit is") :]
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], names)
    assert names["again"].plan() == names["plan"]
    assert names["dosed"].dose.kl == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(names["logits"], names["subject"].run(names["batch"]).logits)
