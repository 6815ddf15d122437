"""Record what the published packages' own code computes, for `tests/subjects/test_pypi.py`.

    python scripts/make_pypi_reference.py REACTIONS.csv --out tests/data/pypi_reference.json
    python scripts/make_pypi_reference.py SMILES --only annalog iglm --out tests/data/pypi_reference.json

Run it in an environment of its own, where isotrace is not needed:

    pip install --no-deps rxnfp==0.1.0 rxnmapper==0.4.3 antiberty==0.1.3 sapiens==1.0.2
    pip install torch "transformers<4.41" "setuptools<70" rdkit tqdm polars pandas rxn-chem-utils
    pip install --no-deps hydra-core omegaconf antlr4-python3-runtime sacrebleu portalocker

and the Python files of fairseq 0.10.2 (its last wheel is for Python 3.8; its compiled parts are not needed).
REACTIONS.csv(.gz) has the columns `split`, `reactants` and `product` (USPTO-50k after Liu et al. 2017).

With `--only`, what these packages compute replaces what OUT holds of them; in place of reactions it takes SMILES, one a
line (tests/data/heldout.smi). annalog 1.0.6 and iglm 0.1.0 run with any torch and transformers (`pip install
--no-deps`, or unpacked wheels on PYTHONPATH); iglm is under a non-commercial licence. Of ANNalog, pairs are recorded: a
molecule that its words can write and, as target, the next one; all log-probabilities summed, the logits at three
places, and its own beam of width one.

Where a package has no code for the masked-language-model head of its own checkpoint (rxnfp, rxnmapper), the head is
that of the old transformers, loaded from the package's folder; `computed_by` of every record says what ran.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import sys
from itertools import pairwise
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
N_REACTIONS = N_PAIRS = 20


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


@torch.no_grad()
def iglm() -> list[dict[str, Any]]:
    from importlib.resources import files
    from unittest.mock import MagicMock

    from iglm import IgLM  # pyright: ignore[reportMissingImports]

    # newer versions of transformers do not read its word list: a word is its line
    words = (files("iglm") / "trained_models" / "vocab.txt").read_text().split("\n")
    tokenizer = MagicMock(unk_token_id=1, sep_token="[SEP]", sep_token_id=3, cls_token="[CLS]")
    tokenizer.convert_tokens_to_ids = lambda given: [words.index(word) for word in given]
    found = []
    for name, model_name in (("", "IgLM"), ("small_", "IgLM-S")):
        runner = IgLM(model_name)
        for chain, tag, text in (("vh", "[HEAVY]", TRASTUZUMAB_VH), ("vl", "[LIGHT]", TRASTUZUMAB_VL)):
            runner.tokenizer = tokenizer
            ids = torch.tensor(tokenizer.convert_tokens_to_ids([tag, "[HUMAN]", *text, "[SEP]"]))
            out = runner.model(ids[None], output_hidden_states=True)
            said = runner.log_likelihood(text, tag, "[HUMAN]")
            found.append(
                record(
                    f"pypi:iglm/{name}{chain}",
                    "iglm's model and words",
                    text,
                    ids,
                    [state[0] for state in out.hidden_states],
                    logits=out.logits[0],
                    log_likelihood=said,
                )
            )
    return found


@torch.no_grad()
def annalog(path: Path) -> list[dict[str, Any]]:
    from importlib.resources import files
    from unittest.mock import MagicMock

    sys.modules["partialsmiles"] = MagicMock()  # filters what is written, which is not asked for
    from annalog import SMILESGenerator, SMILESModelHandler  # pyright: ignore[reportMissingImports]

    folder = files("annalog") / "ckpt_and_vocab"
    vocabulary, name = str(folder / "stereo_experiment_vocab_ttf.pkl"), "Lev_extended"
    handler = SMILESModelHandler(vocabulary, vocabulary, str(folder / f"{name}.pt"), device="cpu")
    generator, field, known = SMILESGenerator(handler), handler.SRC, {*handler.SRC.vocab.itos}
    lines = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    texts = [text for text in lines if {*field.preprocess(text)} <= known and len(text) < handler.max_length - 1]
    texts, found = texts[: N_PAIRS + 1], []
    for source, target in pairwise(texts):
        given, written = (field.process([field.preprocess(text)]) for text in (source, target))
        logits = handler.model(given, written)[0][0]
        chosen = [0, len(logits) // 2, len(logits) - 1]
        ((greedy, _),) = generator.generate_smiles(source, generation_number=1, generation_method="beam")
        found.append({
            "source": f"pypi:annalog/{name}",
            "computed_by": "annalog's model, vocabulary and beam",
            "pair": [source, target],
            "ids": [given[0].tolist(), written[0].tolist()],
            "tokens": chosen,
            "logits": [[float(f"{value:.9g}") for value in row] for row in logits[chosen].tolist()],
            "log_likelihood": -generator.score_smiles(source, target)[0],
            "greedy": greedy,
        })  # fmt: skip
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
    parser.add_argument("--only", nargs="+", choices=("annalog", "iglm"), default=())
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if given.only:
        replace_records(given.out, given.only, given.reactions)
        return
    packages = ("rxnfp", "rxnmapper", "antiberty", "sapiens", "transformers", "torch")
    content = {
        "versions": {name: importlib.metadata.version(name) for name in packages} | {"fairseq": "0.10.2"},
        "reactions": tokenizations(given.reactions),
        "records": [*rxnfp(), *rxnmapper(), *antiberty(), *sapiens()],
    }
    write(given.out, content)


def replace_records(path: Path, packages: list[str], molecules: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    versions = {"annalog": "1.0.6", "iglm": "0.1.0"}
    content["versions"] |= {name: versions[name] for name in packages}
    for key, made in (("records", {"iglm": iglm}), ("pairs", {"annalog": lambda: annalog(molecules)})):
        kept = [r for r in content.get(key, []) if r["source"].partition(":")[2].partition("/")[0] not in packages]
        content[key] = [*kept, *(row for name in packages if name in made for row in made[name]())]
    write(path, content)


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
