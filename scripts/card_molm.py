"""Measure the bundled subject on molecules it never saw, and write its card.

    python scripts/card_molm.py --work build/molm --out src/isotrace/assets/molm

Masked cross-entropy and top-1 beside a unigram model and an untrained copy, loss by token class, and the share of
molecules that are valid after 15 % of their tokens are masked and sampled again (temperature 1): one token after
another in random order, and all at once.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem, RDLogger

from isotrace.activations.harvest import Corpus, Plan, mask_some
from isotrace.domains.molecule import token_map
from isotrace.errors import InputError
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
def validity(subject: Subject, smiles: list[str], seed: int, *, at_once: bool) -> dict:
    """Mask RATE of the tokens of each molecule and sample them again; valid = RDKit parses and sanitises it."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    batch = subject.tokenize(smiles)
    masked, chosen = mask_some(subject, batch, RATE, generator)
    chosen &= batch.mask
    ids = masked.ids.clone()
    special = torch.tensor(subject.tokenizer.all_special_ids)
    orders = [rng.sample(row, len(row)) for row in (torch.nonzero(c)[:, 0].tolist() for c in chosen)]
    for step in range(1 if at_once else max(len(o) for o in orders)):
        final = subject.hidden(ids, batch.mask)
        for row, order in enumerate(orders):
            for position in order if at_once else order[step : step + 1]:
                logits = subject.head(final[row, position])
                logits[special] = -torch.inf
                ids[row, position] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[0]
    texts = ["".join(subject.tokens(r[m][1:-1])) for r, m in zip(ids, batch.mask, strict=True)]
    valid = [Chem.MolFromSmiles(t) is not None for t in texts]
    changed = [t != s for t, s in zip(texts, smiles, strict=True)]
    return {
        "n": len(texts),
        "valid": float(np.mean(valid)),
        "changed": float(np.mean(changed)),
        "valid_among_changed": float(np.mean([v for v, c in zip(valid, changed, strict=True) if c])),
        "examples": [t for t, c in zip(texts, changed, strict=True) if c][:5],
    }


def chunks(items: list[str], size: int) -> list[list[str]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def pooled_validity(subject: Subject, smiles: list[str], seed: int, *, at_once: bool) -> dict:
    ordered = sorted(smiles, key=len)
    parts = [validity(subject, part, seed + i, at_once=at_once) for i, part in enumerate(chunks(ordered, 64))]
    n = sum(p["n"] for p in parts)
    result = {k: sum(p[k] * p["n"] for p in parts) / n for k in ("valid", "changed")}
    draws = np.random.default_rng(seed).binomial(n, result["valid"], 2_000) / n
    return (
        {"n": n}
        | result
        | {"valid_ci": np.quantile(draws, [0.025, 0.975]).tolist(), "examples": parts[len(parts) // 2]["examples"]}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/molm"))
    parser.add_argument("--out", type=Path, default=Path("src/isotrace/assets/molm"))
    parser.add_argument("--n", type=int, default=1_500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    subject = load_subject(args.out, domain="molecule")
    rng = random.Random(args.seed)
    held = usable(subject, rng.sample((args.work / "heldout.txt").read_text().splitlines(), args.n))
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
        "validity_one_by_one": pooled_validity(subject, held, args.seed, at_once=False),
        "validity_all_at_once": pooled_validity(subject, held, args.seed, at_once=True),
        "validity_untrained": pooled_validity(copy, held[:300], args.seed, at_once=False),
        "validity_of_the_originals": float(np.mean([Chem.MolFromSmiles(s) is not None for s in held])),
        "training": {"steps": log[-1]["step"], "tokens": log[-1]["tokens"], "loss": log[-1]["loss"]},
        "parameters": sum(p.numel() for p in subject.model.parameters()),
    }
    (args.out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card))


if __name__ == "__main__":
    main()
