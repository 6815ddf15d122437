"""What an annotation warns of."""

import polars as pl
import pytest

from isotrace.annotation.summary import too_few_permutations, warnings_of


def associations(p, q):
    return pl.DataFrame({"source": "dictionary", "p": p, "q": q}, schema_overrides={"p": pl.Float64, "q": pl.Float64})


@pytest.mark.parametrize(
    ("n", "p", "q", "said"),
    [
        (20, [1 / 21, 0.5], [2 / 21, 0.5], "q is 0.095 at best"),
        (20, [1 / 21, 0.5], [0.049, 0.5], None),  # a label is possible
        (20, [0.3, 0.5], [0.6, 0.6], None),  # not for want of permutations
        (20, [], [], None),
    ],
)
def test_too_few_permutations_for_any_label(n, p, q, said):
    found = too_few_permutations(n, associations(p, q))
    assert (said is None and not found) or (said in found[0] and "--permutations 40 or more" in found[0])


@pytest.mark.parametrize(("ours", "how"), [(28, "no more"), (39, "no more"), (41, "more, but within"), (50, None)])
def test_the_dictionary_beside_the_untrained_subject(ours, how):
    other = {"concepts_f1_50": 39, "concepts_f1_50_ci": [30, 45]}
    sources = {"dictionary": {"concepts_f1_50": ours}, "untrained": other}
    found = warnings_of({"sources": sources, "n_permutations": 500}, associations([], []))
    assert (how is None and not found) or how in found[0]
