"""The page on interventions runs as it is written."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "interventions.md").read_text(encoding="utf-8")


def test_the_example_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], names)
    subject = names["subject"]
    assert names["again"] == names["plan"]
    assert len(names["table"]) == sum(int(subject.tokenize([t]).mask.sum()) for t in ("CCCO", "c1ccccc1"))
    assert float(names["table"]["change"].min()) > 0
    # what a trace inside the context explains is the edited prediction, and its frozen model adds up to it
    traced = names["traced"].to_dict()
    value = traced["target"]["value"]
    assert traced["graph"]["max_completeness_error"] < 1e-4
    few = {"max_features": 60, "nodes": 8, "controls": 2, "spellings": 0}
    clean = names["isotrace"].trace(subject, names["dictionary"], "CCO", "probe:bbb", **few).to_dict()
    assert abs(value - clean["target"]["value"]) > 1e-3
