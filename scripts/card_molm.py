"""Measure the bundled subject on molecules it never saw, and write its card.

    python scripts/card_molm.py --work build/molm --moses DATA/moses_sample/test_10k.csv.gz

Masked cross-entropy and top-1 beside a unigram model and an untrained copy, loss by token class, and the share of
molecules that are valid after 15 % of their tokens are masked and sampled again (temperature 1): the most certain
token first (from the 0.9 nucleus and from all tokens), one after another in random order, and all at once.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rdkit import Chem, RDLogger

from isotrace.activations.harvest import Corpus, Plan, mask_some
from isotrace.base.errors import InputError
from isotrace.domains.molecule import token_map
from isotrace.subjects.subject import Subject, load_subject

RDLogger.DisableLog("rdApp.*")
RATE = 0.15


def classes(subject: Subject, smiles: list[str]) -> list[list[str]]:
    """Kind of every token (atom, bond, ring, branch, dot, special) of every molecule."""
    result = []
    for text in smiles:
        batch = subject.tokenize([text])
        units = token_map(text, subject.tokens(batch.ids[0]), batch.offsets[0])
        result.append([u.kind for u in units])
    return result


def usable(subject: Subject, smiles: list[str]) -> list[str]:
    kept = []
    for text in smiles:
        try:
            subject.tokenize([text])
            kept.append(text)
        except InputError:
            continue
    return kept


@torch.no_grad()
def masked_scores(subject: Subject, smiles: list[str], unigram: torch.Tensor, seed: int) -> dict:
    corpus, kinds = Corpus.of(subject, smiles), classes(subject, smiles)
    rows: dict[str, list[tuple[float, float, bool]]] = {}
    for number, members in enumerate(Plan(corpus.lengths, 4_096, seed).epoch(0)):
        batch, chosen = mask_some(subject, corpus.batch(members), RATE, torch.Generator().manual_seed(seed + number))
        truth = torch.from_numpy(np.stack([corpus.ids[m] for m in members]))
        logits = subject.head(subject.hidden(batch.ids, batch.mask)).log_softmax(-1)
        loss, hit = -logits.gather(-1, truth[..., None])[..., 0], logits.argmax(-1) == truth
        for i, j in torch.nonzero(chosen).tolist():
            base = -float(unigram[truth[i, j]].log())
            rows.setdefault(kinds[members[i]][j], []).append((float(loss[i, j]), base, bool(hit[i, j])))
    table = {k: np.asarray(v, dtype=float) for k, v in rows.items()}
    everything = np.concatenate(list(table.values()))

    def summary(a: np.ndarray) -> dict[str, float]:
        loss, base, hit = a.mean(0).tolist()
        return {"n": len(a), "cross_entropy": loss, "top1": hit, "unigram": base}

    return {"all": summary(everything)} | {k: summary(v) for k, v in sorted(table.items())}


@torch.no_grad()
def resample(subject: Subject, smiles: list[str], seed: int, order: str, top_p: float) -> list[str]:
    """Mask RATE of the tokens of each molecule and sample them again at temperature 1.

    top_p: sample from the fewest tokens that hold this probability (nucleus sampling); 1 = from all.
    order: "random", one token after another; "confident", always the token with the lowest entropy next;
    "at_once", all from the same pass.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, _ = mask_some(subject, subject.tokenize(smiles), RATE, generator)
    sampling = {"order": order, "top_p": top_p, "seed": seed}
    return [*subject.generate(batch, generator=generator, **sampling).sequences]


def validity(subject: Subject, smiles: list[str], seed: int, order: str, top_p: float) -> dict:
    """Share of resampled molecules that RDKit parses and sanitises."""
    ordered = sorted(smiles, key=len)
    texts = [
        t for i in range(0, len(ordered), 64) for t in resample(subject, ordered[i : i + 64], seed + i, order, top_p)
    ]
    valid = np.asarray([Chem.MolFromSmiles(t) is not None for t in texts])
    changed = np.asarray([t != s for t, s in zip(texts, ordered, strict=True)])
    draws = np.random.default_rng(seed).choice(valid, (2_000, len(valid))).mean(1)
    return {
        "n": len(texts),
        "valid": float(valid.mean()),
        "valid_ci": np.quantile(draws, [0.025, 0.975]).tolist(),
        "valid_among_changed": float(valid[changed].mean()) if changed.any() else float("nan"),
        "changed": float(changed.mean()),
        "examples": [t for t, c in zip(texts, changed, strict=True) if c][:: max(1, len(texts) // 6)][:5],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/molm"))
    parser.add_argument("--out", type=Path, default=Path("src/isotrace/assets/molm"))
    parser.add_argument("--moses", type=Path, required=True, help="test_10k.csv.gz of the MOSES sample")
    parser.add_argument("--n", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    subject = load_subject(args.out, domain="molecule")
    rng = random.Random(args.seed)
    held = usable(subject, rng.sample((args.work / "heldout.txt").read_text().splitlines(), args.n))
    moses = usable(subject, rng.sample(pl.read_csv(args.moses)["smiles"].to_list(), args.n))
    train = rng.sample((args.work / "corpus.txt").read_text().splitlines(), 5_000)
    counts = torch.ones(len(subject.tokenizer))
    for row in Corpus.of(subject, train).ids:
        counts.index_add_(0, torch.from_numpy(row[1:-1]), torch.ones(len(row) - 2))
    torch.manual_seed(args.seed)
    copy = Subject(type(subject.model)(subject.model.config), subject.tokenizer, subject.files)
    copy.model.set_attn_implementation("isotrace")
    log = [json.loads(line) for line in (args.work / "log.jsonl").read_text().splitlines()]
    card = {
        "held_out_molecules": len(held),
        "trained": masked_scores(subject, held, counts / counts.sum(), args.seed),
        "untrained": masked_scores(copy, held, counts / counts.sum(), args.seed)["all"],
        "validity_nucleus": validity(subject, held, args.seed, "confident", 0.9),
        "validity_moses": validity(subject, moses, args.seed, "confident", 0.9),
        "validity_confident": validity(subject, held, args.seed, "confident", 1.0),
        "validity_random": validity(subject, held, args.seed, "random", 1.0),
        "validity_at_once": validity(subject, held, args.seed, "at_once", 1.0),
        "validity_untrained": validity(copy, held[:300], args.seed, "confident", 0.9),
        "validity_of_the_originals": float(np.mean([Chem.MolFromSmiles(s) is not None for s in held])),
        "training": {"steps": log[-1]["step"], "tokens": log[-1]["tokens"], "loss": log[-1]["loss"]},
        "parameters": sum(p.numel() for p in subject.model.parameters()),
    }
    (args.out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card))


if __name__ == "__main__":
    main()
