"""Tables of docs/atlases from what `isotrace evaluate` and `isotrace annotate` wrote."""

import json
from pathlib import Path
from typing import Any

import polars as pl

NAMES = {
    "dictionary": "dictionary",
    "neurons": "the subject's neurons",
    "untrained": "dictionary of the untrained subject",
    "random": "random directions",
    "token_identity": "token identity",
}
KNOWN = {
    "molm": [
        *(f"ring digit {n}" for n in (1, 2, 3, 4)), "ring opening", "ring closing", "bracket atom", "branch opening",
        "branch closing", "double bond symbol", "triple bond symbol", "dot", "chiral centre", "aromatic atom",
        *(f"element {e}" for e in ("N", "O", "F", "S", "Cl", "Br")),
    ],
    "rxnfp": [
        "reactant", "product", "arrow", "first reactant", "later reactant", "reacting centre",
        "reacting centre before", "reacting centre after", "beside the reacting centre", "bond broken", "bond formed",
        "leaving group", "atom with a partner", "hydrogen lost", "hydrogen gained",
    ],
    "antiberty": [
        "CDR", "framework", *(f"CDR{n}" for n in (1, 2, 3)), *(f"FR{n}" for n in (1, 2, 3, 4)),
        *(f"CDR3 {c}" for c in ("heavy", "kappa", "lambda")), "1st-CYS 23", "conserved Trp 41", "2nd-CYS 104",
        "paratope=1",
    ],
}  # fmt: skip
TITLES = {"molm": "molm", "rxnfp": "rxnfp bert_pretrained", "antiberty": "AntiBERTy"}


def write(name: str, work: Path, docs: Path) -> None:
    """docs/atlases/NAME.md."""
    annotation = json.loads((work / "annotation/annotation.json").read_text())
    pairs = pl.read_parquet(work / "annotation/associations.parquet")
    features = pl.read_parquet(work / "annotation/features.parquet")
    config = annotation["config"]
    parts = [
        f"# Features of {TITLES[name]}\n",
        f"Written by `python scripts/build_atlases.py {name} DATA --work build/{name}`; see [the atlases](index.md) "
        f"for data, settings and how to read the tables.\n",
        f"{annotation['n_sequences']:,} sequences, {annotation['n_tokens']:,} tokens, half of the groups to choose by "
        f"and half to score on; {annotation['n_token_concepts']} concepts of tokens and "
        f"{annotation['n_concepts'] - annotation['n_token_concepts']} of sequences tested, "
        f"{annotation['n_concepts_untested']} too rare or constant; {config['n_permutations']} shuffles, "
        f"{annotation['n_rejected']} sequences rejected, {annotation['seconds'] / 60:.0f} minutes.\n",
        "## Concepts that have a feature\n",
        counts(annotation),
        *(f"\n> {warning}" for warning in annotation["warnings"]),
        "\n## Where the answer is known\n",
        "Held-out F1 per token of the best feature, chosen on the other side.\n",
        known(pairs, KNOWN[name]),
        *sequence_level(pairs),
        "\n## Features with a name\n",
        f"{annotation['n_labelled']:,} of {annotation['n_features']:,}.\n",
        groups(features, pairs),
        "\n" + structure(features),
    ]
    if (work / "evaluation/evaluation.json").is_file():
        parts += [
            "\n## Fidelity of the dictionary\n",
            fidelity(json.loads((work / "evaluation/evaluation.json").read_text())),
        ]
    docs.mkdir(parents=True, exist_ok=True)
    (docs / f"{name}.md").write_text("\n".join(parts).rstrip() + "\n")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def counts(annotation: dict[str, Any]) -> str:
    rows = []
    for key, found in annotation["sources"].items():
        if "concepts_f1_50" not in found:
            rows.append([NAMES[key], found["reason"], "", ""])
            continue
        cells = [
            f"{found[f'concepts_{n}']} [{', '.join(map(str, found[f'concepts_{n}_ci']))}]" for n in ("f1_50", "f1_80")
        ]
        rows.append([NAMES[key], *cells, f"{found['n_alive']:,} of {found['n_features']:,}"])
    return table(["", "F1 ≥ 0.5, q < 0.05 [95 % CI]", "F1 ≥ 0.8, q < 0.05 [95 % CI]", "features that ever fire"], rows)


def known(pairs: pl.DataFrame, concepts: list[str]) -> str:
    best = pairs.filter((pl.col("concept_rank") == 1) & (pl.col("kind") == "token"))
    rows = []
    for concept in concepts:
        own = best.filter((pl.col("concept") == concept) & (pl.col("source") == "dictionary"))
        if not own.height:
            rows.append([concept, "not tested", *[""] * 7])
            continue
        row = own.to_dicts()[0]
        others = []
        for source in ("neurons", "untrained", "random", "token_identity"):
            found = best.filter((pl.col("concept") == concept) & (pl.col("source") == source))
            others.append(f"{found['f1'][0]:.2f}" if found.height else "–")
        rows.append([
            concept, f"{row['layer']}.{row['feature']}",
            f"{row['f1']:.2f} [{row['f1_ci_low']:.2f}, {row['f1_ci_high']:.2f}]",
            f"{row['f1_any']:.2f}", f"{row['q']:.3f}", *others,
        ])  # fmt: skip
    return table(
        ["concept", "feature", "F1 [95 % CI]", "any-hit", "q", "neurons", "untrained", "random", "token"], rows
    )


def sequence_level(pairs: pl.DataFrame) -> list[str]:
    """AUROC of classes, the 12 best and, per source, how the best feature does."""
    best = pairs.filter((pl.col("concept_rank") == 1) & (pl.col("kind") == "class"))
    if not best.height:
        return []
    rows = []
    own = best.filter(pl.col("source") == "dictionary").sort("auroc", descending=True)
    for row in own.head(24).to_dicts():
        others = []
        for source in ("neurons", "untrained", "random", "token_identity"):
            found = best.filter((pl.col("concept") == row["concept"]) & (pl.col("source") == source))
            others.append(f"{found['auroc'][0]:.2f}" if found.height and found["auroc"][0] is not None else "–")
        rows.append([
            row["concept"], f"{row['layer']}.{row['feature']}",
            f"{row['auroc']:.2f} [{row['auroc_ci_low']:.2f}, {row['auroc_ci_high']:.2f}]",
            "–" if row["odds_ratio"] is None else f"{row['odds_ratio']:.1f}", f"{row['q']:.3f}", *others,
        ])  # fmt: skip
    head = ["class", "feature", "AUROC [95 % CI]", "odds ratio", "q", "neurons", "untrained", "random", "token"]
    text = "\nClasses of whole sequences: held-out AUROC of the best feature's largest activation (< 0.5: against).\n"
    return [text, table(head, rows)]


def groups(features: pl.DataFrame, pairs: pl.DataFrame) -> str:
    """Named features and distinct names per kind of concept."""
    kinds = pairs.select("concept", "group").unique("concept")
    named = features.filter(pl.col("label") != "unexplained").join(kinds, on="concept", how="left")
    counted = named.group_by("group").agg(n=pl.len(), names=pl.col("label").n_unique()).sort("n", descending=True)
    rows = [[row["group"], f"{row['n']:,}", str(row["names"])] for row in counted.to_dicts()]
    return table(["kind of concept", "features", "different names"], rows)


def structure(features: pl.DataFrame) -> str:
    """Moran's I and stability beside their nulls, medians over features."""
    alive, rows = features.filter(pl.col("density") > 0), []
    for label, value, null in (
        ("Moran's I", "moran_i", "moran_null"),
        ("spelling stability", "stability", "stability_null"),
    ):
        both = alive.drop_nulls([value, null])
        if both.height:
            low, middle, high = (both[value].quantile(q) for q in (0.25, 0.5, 0.75))
            rows.append(
                [label, f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{both[null].median():.2f}", f"{both.height:,}"]
            )
    return table(["", "median over features (quartiles)", "null, median", "features"], rows)


def fidelity(evaluation: dict[str, Any]) -> str:
    rows = []
    for one in (*evaluation["dictionaries"], *evaluation["controls"]):
        if one.get("reason"):
            rows.append([one["name"], one["reason"], *[""] * 4])
            continue
        free, forced = one["free_running"], one["teacher_forced"]
        name = "dictionary" if one is evaluation["dictionaries"][0] else f"control: {one['name']}"
        rows.append([
            name, f"{one['l0']:.1f}", f"{free['loss_recovered']:.3f} [{free['ci'][0]:.3f}, {free['ci'][1]:.3f}]",
            f"{forced['loss_recovered']:.3f}", f"{free['top1_agreement']:.3f}", f"{free['kl']:.3f}",
        ])  # fmt: skip
    return table(["", "L0", "loss recovered, free-running [95 % CI]", "teacher-forced", "top-1", "KL"], rows)
