"""Settings of methods as `isotrace steer` takes them, through a whole trial: fitted, dosed, told and saved."""

import polars as pl
import pytest

import isotrace
from isotrace.base.errors import InputError
from isotrace.steering import AffineEdit, Edits, SetEdit

CHAINS = ("CCCC", "CCSC", "CSCC", "CCOC", "CCFC", "CFCC", "COCC", "CSSC")
TEXTS = [f"{head}{chain}{tail}" for chain in CHAINS for head in "NCOS" for tail in "CNOS"]
GIVEN = {"label": "ends in N", "layers": 1, "starts": 2, "development": 2, "designs": 4, "twins": 1, "dose": 0.02,
         "nulls": ("random",), "group": "part", "confounds": "free"}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return pl.DataFrame(
        {
            "smiles": TEXTS,
            "ends in N": [t[-1] in "NO" for t in TEXTS],
            "part": [f"g{i % 16}" for i in range(len(TEXTS))],
        }
    )


@pytest.mark.parametrize(
    ("method", "settings", "kind"),
    [
        ("difference_in_means", ("by=position",), None),
        ("difference_in_means", ("kind=set", "quantile=0.9"), SetEdit),
        ("linear_transport", ("support=0,1",), AffineEdit),
    ],
)
def test_they_reach_the_edit_that_is_saved(relu_subject, table, tmp_path, method, settings, kind):
    generator = "gibbs" if kind else "likelihood_ranked"  # which keeps the number of tokens
    given = GIVEN | {"method": method, "setting": settings, "generator": generator}
    found = isotrace.steer(relu_subject, table, out=tmp_path / "run", **given)
    assert found.summary["doses"][1]["kl"] == pytest.approx(0.02, rel=0.05)
    assert found.summary["doses"][1]["effect"] is not None
    (edit,) = Edits.load(tmp_path / "run" / "edits", relu_subject).edits
    if kind is None:
        assert edit.direction.shape[0] == len("NCCCCC") + 2
        assert found.summary["settings"]["by"] == "position"
    else:
        assert isinstance(edit, kind)
        assert {name.partition("=")[0] for name in settings} <= {*found.summary["settings"]}
    assert (getattr(edit, "low", None) is not None) == (kind is AffineEdit)


def test_designs_of_another_length_are_refused_by_position(relu_subject, table):
    with pytest.raises(InputError, match=r"a value for each of 8 tokens meets \d+ tokens"):
        isotrace.steer(relu_subject, table, **GIVEN, setting=("by=position",), generator="gibbs")
