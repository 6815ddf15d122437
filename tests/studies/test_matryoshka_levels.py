"""The verdict says what the tables hold, and that there is nothing where there is nothing."""

import numpy as np

from isotrace.studies.features.matryoshka_levels import verdict


def test_the_verdict_tells_a_missing_pair_from_a_share_of_zero():
    levels = [{"dictionary": name, "labelled": share} for name in ("nested", "flat") for share in (0.5, None)]
    some = {"dictionary": "nested", "pairs": 4, "implied": 0.0, "null": 0.25, "p": 1.0, "parents": 2, "more": 0.125}
    nothing = {"dictionary": "flat", "pairs": 0, "implied": None, "null": None, "p": None, "parents": 0, "more": np.nan}
    assert verdict({"levels": levels, "relations": [some, nothing]}) == (
        "nested: labelled by level 0.50, –; implied of 4 pairs 0.00 (null 0.25, p 1.000); absorbed +0.12. "
        "flat: labelled by level 0.50, –; implied of 0 pairs –; no parent that could be absorbed."
    )
