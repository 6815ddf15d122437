"""One declarative entry per architecture family: where its hookpoints are and how norms and head are built.

A new family is one `Family` plus passing `tests/subjects/test_conformance.py`; docs/bring-your-own-model.md shows how.
"""

from isotrace.subjects.families import albert, bart, bert, deberta_v2, esm, gpt2, llama, modernbert, roberta, t5
from isotrace.subjects.families.family import (
    FAMILIES,
    LAYER_NORM,
    RMS_NORM,
    Family,
    NormKind,
    Side,
    Stack,
    family_of,
    register,
)

__all__ = ["FAMILIES", "LAYER_NORM", "RMS_NORM", "Family", "NormKind", "Side", "Stack", "family_of", "register"]

for _family in (
    albert.ALBERT, bart.BART, bert.BERT, deberta_v2.DEBERTA_V2, esm.ESM, gpt2.GPT2, llama.LLAMA,
    modernbert.MODERNBERT, roberta.ROBERTA, t5.T5,
):  # fmt: skip
    register(_family)
