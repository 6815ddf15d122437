"""Record what the published packages' own code computes, for `tests/subjects/test_pypi.py`.

    python scripts/make_pypi_reference.py REACTIONS.csv --out tests/data/pypi_reference.json

Run it in an environment of its own, where isotrace is not needed:

    pip install --no-deps rxnfp==0.1.0 rxnmapper==0.4.3 antiberty==0.1.3 sapiens==1.0.2
    pip install torch "transformers<4.41" "setuptools<70" rdkit tqdm polars pandas rxn-chem-utils
    pip install --no-deps hydra-core omegaconf antlr4-python3-runtime sacrebleu portalocker

and the Python files of fairseq 0.10.2 (its last wheel is for Python 3.8; its compiled parts are not needed).
REACTIONS.csv(.gz) has the columns `split`, `reactants` and `product` (USPTO-50k after Liu et al. 2017).

Where a package has no code for the masked-language-model head of its own checkpoint (rxnfp, rxnmapper), the head is
that of the old transformers, loaded from the package's folder; `computed_by` of every record says what ran.
"""

import argparse
import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

REACTIONS = (
    "CC(=O)Cl.OCc1ccccc1>>CC(=O)OCc1ccccc1",
    "C1CCOC1.[Na+].[OH-].COC(=O)[C@@H](N)Cc1c[nH]c2ccccc12>>N[C@@H](Cc1c[nH]c2ccccc12)C(=O)O",
    "Nc1cccc2cnccc12.O=C(O)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1"
    ">>O=C(Nc1cccc2cnccc12)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1",
)
TRASTUZUMAB_VH = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRY"
    "ADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
)
TRASTUZUMAB_VL = (
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK"
)
SHOWN = 8  # entries of every vector that are recorded
N_REACTIONS = 20


def record(source: str, computed_by: str, text: str, ids: Tensor, hidden: list[Tensor], **rest: Any) -> dict[str, Any]:
    """One input: `hidden` are the states `[tokens, d]` after the embedding and after every layer, `rest` `[tokens, n]`.

    Three tokens (first, middle, last) and the first entries of their vectors are kept.
    """
    chosen = [0, len(ids) // 2, len(ids) - 1]
    middle = len(hidden) // 2
    tensors = {f"layer_{middle}": hidden[middle], "final": hidden[-1]}
    tensors |= {name: value for name, value in rest.items() if isinstance(value, Tensor)}
    return {
        "source": source,
        "computed_by": computed_by,
        "text": text,
        "ids": ids.tolist(),
        "tokens": chosen,
        **{name: shortened(value[chosen] if value.ndim == 2 else value) for name, value in tensors.items()},
        **{name: value for name, value in rest.items() if not isinstance(value, Tensor)},
    }


def shortened(tensor: Tensor) -> list:
    """The first entries of the last axis, with the nine digits that tell one float32 from the next."""
    if tensor.ndim == 1:
        return [float(f"{value:.9g}") for value in tensor[:SHOWN].tolist()]
    return [shortened(row) for row in tensor]


@torch.no_grad()
def recovered(logits_of, ids: Tensor, mask: int) -> int:
    """How many tokens between the first and the last are the most probable ones when they alone are masked."""
    inner = torch.arange(1, len(ids) - 1)
    rows = ids.repeat(len(inner), 1)
    rows[torch.arange(len(inner)), inner] = mask
    found = logits_of(rows)[torch.arange(len(inner)), inner].argmax(-1)
    return int((found == ids[inner]).sum())


@torch.no_grad()
def rxnfp() -> list[dict[str, Any]]:
    from rxnfp.transformer_fingerprints import get_default_model_and_tokenizer
    from transformers import BertForMaskedLM, BertForSequenceClassification

    found = []
    for name, whole_class in (
        ("bert_pretrained", BertForMaskedLM),
        ("bert_ft", None),
        ("bert_ft_10k_25s", BertForSequenceClassification),
    ):
        base, tokenizer = get_default_model_and_tokenizer(name, force_no_cuda=True)
        by = "rxnfp's model and tokenizer"
        head = None
        if whole_class is not None:
            head = whole_class.from_pretrained(base.name_or_path, num_labels=50).eval()
            by += f", {whole_class.__name__} of transformers for the head"
        for text in REACTIONS:
            given = tokenizer(text, return_tensors="pt")
            ids, rest = given["input_ids"][0], {}
            if whole_class is BertForMaskedLM:
                rest["logits"] = head(**given).logits[0]
                rest["recovered"] = recovered(lambda rows: head(input_ids=rows).logits, ids, tokenizer.mask_token_id)  # noqa: B023
            elif head is not None:
                rest["logits"] = head(**given).logits[0]
            hidden = [h[0] for h in base(**given, output_hidden_states=True).hidden_states]
            found.append(record(f"pypi:rxnfp/{name}", by, text, ids, hidden, **rest))
    return found


@torch.no_grad()
def rxnmapper() -> list[dict[str, Any]]:
    from rxnmapper import RXNMapper
    from transformers import AlbertForMaskedLM

    mapper = RXNMapper()
    tokenizer, name = mapper.tokenizer, "albert_heads_8_uspto_all_1310k"
    head = AlbertForMaskedLM.from_pretrained(mapper.model_path).eval()
    by = "rxnmapper's model and tokenizer, AlbertForMaskedLM of transformers for the head"
    found = []
    for text in REACTIONS:
        given = tokenizer(text, return_tensors="pt")
        ids = given["input_ids"][0]
        hidden = [h[0] for h in mapper.model.cpu()(**given, output_hidden_states=True).hidden_states]
        count = recovered(lambda rows: head(input_ids=rows).logits, ids, tokenizer.mask_token_id)
        logits = head(**given).logits[0]
        found.append(record(f"pypi:rxnmapper/{name}", by, text, ids, hidden, logits=logits, recovered=count))
    return found


@torch.no_grad()
def antiberty() -> list[dict[str, Any]]:
    from antiberty import AntiBERTyRunner

    runner = AntiBERTyRunner()
    runner.device, model, tokenizer = torch.device("cpu"), runner.model.cpu(), runner.tokenizer
    found = []
    for text in (TRASTUZUMAB_VH, TRASTUZUMAB_VL):
        given = tokenizer(" ".join(text), return_tensors="pt")
        ids = given["input_ids"][0]
        hidden = [*runner.embed([text], hidden_layer=None)[0]]
        logits = model(**given).prediction_logits[0]
        count = recovered(lambda rows: model(input_ids=rows).prediction_logits, ids, tokenizer.mask_token_id)
        by = "antiberty's runner and model"
        found.append(
            record("pypi:antiberty/AntiBERTy_md_smooth", by, text, ids, hidden, logits=logits, recovered=count)
        )
    return found


@torch.no_grad()
def sapiens() -> list[dict[str, Any]]:
    make_fairseq_importable()
    from sapiens import predict

    found = []
    for chain, text in (("vh", TRASTUZUMAB_VH), ("vl", TRASTUZUMAB_VL)):
        _, extra = predict.predict_scores(text, chain[1].upper(), return_all_hiddens=True)
        model = predict.load_cached_model(predict.get_model_path("v1"), f"checkpoint_{chain}.pt")
        ids = model._source_seq_tokens(text, add_bos=True)
        logits_of = lambda rows: model.interface.model(rows, features_only=False)[0]  # noqa: B023, E731
        mask = model.interface.task.source_dictionary.index("<mask>")
        found.append(
            record(
                f"pypi:sapiens/{chain}",
                "sapiens and fairseq",
                text,
                ids,
                [state[:, 0] for state in extra["inner_states"]],
                logits=logits_of(ids[None])[0],
                recovered=recovered(logits_of, ids, mask),
                best=predict.predict_best_score(text, chain[1].upper()),
            )
        )
    return found


def make_fairseq_importable() -> None:
    """fairseq 0.10 was written for older Pythons: names NumPy dropped, and dataclasses as defaults of fields."""
    ordinary = dataclasses.dataclass

    def hashable(cls=None, /, **given):
        if cls is not None and cls.__module__.startswith("fairseq"):
            given = {"unsafe_hash": True} | given
        return ordinary(cls, **given)

    dataclasses.dataclass = hashable
    vars(np).update(float=float, int=int)
    torch.serialization.add_safe_globals([argparse.Namespace])


def tokenizations(path: Path) -> list[dict[str, Any]]:
    """Reactions spread over the test side of `path`, as rxnfp and rxnmapper tokenise them (both alike)."""
    from rxnfp.transformer_fingerprints import get_default_model_and_tokenizer
    from rxnmapper import RXNMapper

    frame = pl.read_csv(path, columns=["split", "reactants", "product"]).filter(pl.col("split") == "test")
    frame = frame.gather_every(len(frame) // N_REACTIONS).head(N_REACTIONS)
    first, second = get_default_model_and_tokenizer(force_no_cuda=True)[1], RXNMapper().tokenizer
    found = []
    for _, reactants, product in frame.iter_rows():
        text = f"{reactants}>>{product}"
        ids = first(text)["input_ids"]
        assert ids == second(text)["input_ids"]
        found.append({"text": text, "ids": ids})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reactions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    packages = ("rxnfp", "rxnmapper", "antiberty", "sapiens", "transformers", "torch")
    content = {
        "versions": {name: importlib.metadata.version(name) for name in packages} | {"fairseq": "0.10.2"},
        "reactions": tokenizations(given.reactions),
        "records": [*rxnfp(), *rxnmapper(), *antiberty(), *sapiens()],
    }
    given.out.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
