"""The feature atlas: every feature of a dictionary on one page that opens offline."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from isotrace.base.errors import InputError
from isotrace.base.runs import to_jsonable
from isotrace.report.atlas.atlas_payload import PICTURES_PER_BLOCK, AtlasTables, blocks
from isotrace.report.page import in_script, render_page, template_text

__all__ = ["AtlasTables", "atlas_page"]

# In the order of the page. A source not named here stands after them under its own name.
SOURCES = {
    "dictionary": "this dictionary",
    "neurons": "subject's neurons",
    "untrained": "untrained subject",
    "random": "random directions",
    "token_identity": "token identity alone",
}
_WHOLE = {"neurons": "coordinates of the vector", "token_identity": "counts of tokens alone"}
"""What two of them are where features are of whole sequences."""
_SCRIPTS = ("dom.js", "picture.js", "atlas_data.js", "atlas_plots.js", "atlas_table.js", "atlas_card.js", "atlas.js")
_SUMMARY = (
    "subject", "dictionary", "n_features", "n_concepts", "n_token_concepts", "n_tokens", "n_sequences", "n_selection",
    "n_permutations", "n_rejected", "seconds", "warnings",
)  # fmt: skip
_UNKNOWN = dict.fromkeys(
    ("n_features", "n_alive", "n_labelled", "concepts_f1_50", "concepts_f1_50_ci", "concepts_f1_80",
     "concepts_f1_80_ci", "reason")
)  # fmt: skip
_AT_ONCE = ("features", "concepts")


def atlas_page(
    tables: AtlasTables,
    *,
    title: str,
    summary: Mapping[str, Any],
    pictures: Sequence[Mapping[str, Any] | None],
    structure: str | None = None,
) -> str:
    """HTML of the atlas.

    summary: as in annotation.json: subject, dictionary, n_features, n_concepts, n_token_concepts (those tested, of
        all kinds and of tokens), n_tokens, n_sequences, n_selection, n_permutations, n_rejected, seconds, warnings,
        and `sources`: per source what is known of n_features, n_alive, n_labelled, concepts_f1_50 and concepts_f1_80
        with `_ci` [low, high], and reason where it was not computed.
    pictures: `Domain.picture` of row i of `tables.sequences`; None where no example needs it.
    structure: relative link to the page of features on a protein structure, if there is one.
    Raises InputError when tables contradict each other (an example of an absent feature, a position beyond the
    tokens of its picture) and for a summary without a part.
    """
    summary = to_jsonable(summary)
    found = summary.get("sources", {})
    missing = [name for name in _SUMMARY if name not in summary] + ["sources.dictionary"] * ("dictionary" not in found)
    if missing:
        raise InputError(f"the summary of the annotation lacks {', '.join(missing)}: write it by `isotrace annotate`.")
    names = [name for name in SOURCES if name in found] + [name for name in found if name not in SOURCES]
    packed, rows = blocks(tables, names, pictures), summary.get("rows", "tokens")  # older ones do not say
    called = SOURCES | (_WHOLE if rows == "sequences" else {})
    data = {
        "sources": [{"key": name, "name": called.get(name, name)} | _UNKNOWN | found[name] for name in names],
        "coverage": to_jsonable(tables.coverage.to_dicts()),
        "n_token_concepts": summary["n_token_concepts"],
        "rows": rows,
        "pictures_per_block": PICTURES_PER_BLOCK,
    }
    page = {
        "title": title,
        "summary": summary,
        "rows": rows,
        "structure": structure,
        "sources": data["sources"],
        "atlas_css": Markup(template_text("atlas.css")),
        "at_once": {name: packed[name] for name in _AT_ONCE},
        "later": {name: block for name, block in packed.items() if name not in _AT_ONCE},
    }
    return render_page("atlas.html.j2", page, script="".join(map(template_text, _SCRIPTS)), data=in_script(data))
