# ruff: noqa: E501  (rows of tables read better unbroken)
"""Write the cards of the bundled assets and the README's table from the numbers measured beside them.

    python scripts/write_cards.py

Reads card.json and probe_report.json (molm), the shelf of molm-clt, demo/summary/traces.json if a demo was run; writes README.md in both asset folders and the block between the markers in the main README.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).parents[1]
MOLM, CLT = ROOT / "src/isotrace/assets/molm", ROOT / "src/isotrace/assets/molm-clt"
DATA = """\
| data | origin | licence |
|---|---|---|
| MOSES train and test samples | Polykovskiy et al. 2020, package molsets 0.3.1 | MIT |
| MoleculeNet (BACE, BBBP, ESOL, FreeSolv, HIV, lipophilicity, QM8, SIDER, Tox21) | Wu et al. 2018, as in IBM/materials | Apache-2.0 |
| B3DB | Meng et al. 2021, package qc-b3db 1.1.1 | CC0-1.0 |
| USPTO-50k reactants and products | Liu et al. 2017 split, from D. Lowe's extraction | Apache-2.0 |
"""


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def measured() -> dict:
    """The fidelity of molm-clt and what its card says besides."""
    evaluation = load(CLT / "about/fidelity/fidelity.json")["content"]
    return evaluation | evaluation["dictionaries"][0] | load(CLT / "about/card/card.json")["content"]


def ci(entry: dict, digits: int = 3) -> str:
    low, high = entry["ci"]
    return f"{entry['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def signed(entry: dict) -> str:
    low, high = entry["ci"]
    return f"{entry['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"


SOURCES = ("subject", "untrained", "tokens", "forest", "constant")


def molm() -> str:
    card, probes = load(MOLM / "card.json"), load(MOLM / "probe_report.json")
    trained, untrained = card["trained"], card["untrained"]
    lines = [
        "# molm: the bundled subject",
        "",
        f"A SMILES masked language model in the ESM2 architecture (`EsmForMaskedLM`: pre-norm, rotary positions), "
        f"{card['parameters'] / 1e6:.2f} M parameters, float16 weights. Trained by `scripts/build_molm.py` for "
        f"{card['training']['steps']:,} steps, {card['training']['tokens'] / 1e6:.1f} M tokens of randomised SMILES. "
        "Measured by `scripts/card_molm.py` and `scripts/build_probes.py`; all intervals are 95 %.",
        "",
        f"## Masked tokens of {card['held_out_molecules']:,} molecules it never saw (15 % masked)",
        "",
        "| tokens | n | cross-entropy (nats) | unigram | top-1 |",
        "|---|---|---|---|---|",
    ]
    for name, row in trained.items():
        lines.append(
            f"| {name} | {row['n']:,.0f} | {row['cross_entropy']:.3f} | {row['unigram']:.3f} | {row['top1']:.3f} |"
        )
    lines += [
        f"| all, untrained copy | {untrained['n']:,.0f} | {untrained['cross_entropy']:.3f} | {untrained['unigram']:.3f} "
        f"| {untrained['top1']:.3f} |",
        "",
        "## Valid molecules after masking 15 % and sampling at temperature 1",
        "",
        "| sampling | n | valid | string changed |",
        "|---|---|---|---|",
    ]
    for key, name in (
        ("validity_nucleus", "one token after another, the most certain first, 0.9 nucleus"),
        ("validity_moses", "the same, MOSES test molecules only"),
        ("validity_confident", "one token after another, the most certain first"),
        ("validity_random", "one token after another, random order"),
        ("validity_at_once", "all at once, independently"),
        ("validity_untrained", "untrained copy, the most certain first, 0.9 nucleus"),
    ):
        row = card[key]
        lines.append(
            f"| {name} | {row['n']:,} | {row['valid']:.3f} [{row['valid_ci'][0]:.3f}, {row['valid_ci'][1]:.3f}] "
            f"| {row['changed']:.2f} |"
        )
    lines += ["", "## Probes, scaffold split", ""]
    lines += [
        "Linear readouts of hidden states, read as `on_valid` of probe_report.json chose; brackets are intervals over "
        "draws of scaffolds. `isotrace probe` fits such probes of any column.",
        "",
        "| probe | reads | metric (test) | molm | untrained copy | token counts | ECFP4 + forest | constant |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in probes.items():
        for metric in row["metrics"]:
            found = [row["performance"][k].get(metric) for k in SOURCES]
            reads = f"{'all layers' if len(row['layers']) > 1 else 'final state'}, {row['pool']}"
            cells = " | ".join(ci(one) if one else "" for one in found)
            lines.append(f"| {name} (n = {row['n']['test']}) | {reads} | {metric} | {cells} |")
    lines += ["", *(f"- `probe:{name}`: {row['verdict']}" for name, row in probes.items())]
    lines += ["", "## Data", "", DATA]
    return "\n".join(lines)


def clt() -> str:
    found, names, record = measured(), load(CLT / "about/names/names.json")["content"], load(CLT / "dictionary.json")
    named = pl.read_parquet(CLT / "about/names/features.parquet").filter(pl.col("label") != "unexplained")
    by_layer = named.group_by("layer").len().sort("layer")["len"].to_list()
    config, training = record["config"], record["training"]["config"]
    lines = [
        "# molm-clt: the bundled cross-layer transcoder",
        "",
        f"All {len(config['layers'])} MLPs of `bundled:molm`, {config['n_features']:,} features per layer, TopK with "
        f"k = {config['k']} per token and layer, special tokens included, float16 weights. Trained by "
        f"`scripts/build_clt.py`: {training['tokens'] / 1e6:.1f} M tokens on reconstruction, then "
        f"{training['finetune_tokens'] / 1e6:.1f} M tokens inside the free-running subject.",
        "",
        f"## Fidelity on {found['n_sequences']:,} held-out molecules ({found['n_masked']:,} masked tokens)",
        "",
        "| every MLP replaced | loss recovered | top-1 agreement | KL | cross-entropy |",
        "|---|---|---|---|---|",
    ]
    for mode, name in (("free_running", "**free-running**"), ("teacher_forced", "teacher-forced")):
        row = found[mode]
        value = ci({"value": row["loss_recovered"], "ci": row["ci"]}, 4)
        lines.append(
            f"| {name} | {value} | {row['top1_agreement']:.3f} | {row['kl']:.4f} | {row['cross_entropy']:.3f} |"
        )
    lines += [
        "",
        f"Subject: cross-entropy {found['clean']['cross_entropy']:.3f}, top-1 {found['clean']['top1']:.3f}; every MLP at "
        f"its mean: {found['ablated']['cross_entropy']:.3f}, {found['ablated']['top1']:.3f}.",
        "",
        "| probe read from the stream | metric | subject | every MLP replaced, free-running |",
        "|---|---|---|---|",
    ]
    for name, row in found["probes_free_running"].items():
        lines += [f"| {name} | {m} | {ci(row['subject'][m])} | {ci(row['replaced'][m])} |" for m in row["subject"]]
    fve = ", ".join(f"{v:.3f}" for v in found["fve"])
    lines += [
        "",
        "## Beside features that nobody trained",
        "",
        "As many active per token and layer, on the three quarters of the molecules that the controls were not fitted "
        "on, free-running. `pca` reads the output that it reconstructs; `neurons` are the subject's own "
        "([docs](../../../../docs/evaluate.md#controls)).",
        "",
        "| features | loss recovered | difference to the first | top-1 agreement | KL | mean FVE |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["beside_controls"].items():
        free = row["free_running"]
        difference = "" if row["paired"] is None else signed(row["paired"]["free_running"]["loss_recovered"])
        lines.append(
            f"| {name} | {ci({'value': free['loss_recovered'], 'ci': free['ci']}, 4)} | {difference} "
            f"| {free['top1_agreement']:.3f} | {free['kl']:.4f} | {np.mean(row['fve']):.3f} |"
        )
    lines += [
        "",
        f"FVE per layer {fve}. L0 {found['l0']:.1f} per token and layer. Dead on this set {found['dead_fraction']:.2%}; "
        f"dead in the training statistics {found['dead_in_training_statistics']:.2%}. Decoder norm of a feature (over "
        f"all its targets): median {found['decoder_norms']['median']:.2f}, 5–95 % {found['decoder_norms']['q05']:.2f}–"
        f"{found['decoder_norms']['q95']:.2f}.",
        "",
        "## Names",
        "",
        f"{names['n_labelled']:,} of {names['n_features']:,} features have a name on {names['n_sequences']:,} held-out "
        f"molecules ({named['label'].n_unique()} concepts; by layer {', '.join(map(str, by_layer))}): held-out F1 ≥ 0.5, "
        "q < 0.05 and a 95 % interval above the permutation null. The others are called unexplained.",
        "",
        "## Data",
        "",
        "Example molecules in `about/names/examples.parquet` come from the held-out parts of:",
        "",
        DATA,
    ]
    return "\n".join(lines)


def probe_row(name: str, row: dict) -> tuple[str, str, str]:
    """Of the README: the first metric of a probe, and beside it what knows less or nothing."""
    metric, unit = row["metrics"][0], "" if row["task"] == "classification" else f" {row['unit']}"
    said = {"untrained": "untrained copy", "tokens": "token counts", "forest": "ECFP4 + forest"}
    beside = ", ".join(f"{words} {ci(row['performance'][k][metric])}" for k, words in said.items())
    return (
        f"`probe:{name}`, {metric.upper()}, scaffold test",
        f"{ci(row['performance']['subject'][metric])}{unit}",
        beside,
    )


def readme() -> str:
    card, probes, found = load(MOLM / "card.json"), load(MOLM / "probe_report.json"), measured()
    free, forced = found["free_running"], found["teacher_forced"]
    replaced, controls = found["probes_free_running"]["logd"], found["beside_controls"]
    valid = card["validity_nucleus"]
    rows = [
        ("molm: masked cross-entropy, held-out", f"{card['trained']['all']['cross_entropy']:.3f}",
         f"unigram {card['trained']['all']['unigram']:.3f}, untrained {card['untrained']['cross_entropy']:.3f}"),
        ("molm: masked top-1, held-out", f"{card['trained']['all']['top1']:.3f}", f"untrained {card['untrained']['top1']:.3f}"),
        ("molm: valid after masking 15 % and sampling (0.9 nucleus)", f"{valid['valid']:.3f}",
         f"MOSES test only {card['validity_moses']['valid']:.3f}, no nucleus {card['validity_confident']['valid']:.3f}, random order {card['validity_random']['valid']:.3f}, all at once {card['validity_at_once']['valid']:.3f}, untrained {card['validity_untrained']['valid']:.3f}"),
        *(probe_row(name, probes[name]) for name in ("logd", "esol", "bbb")),
        ("CLT: loss recovered, free-running", ci({"value": free["loss_recovered"], "ci": free["ci"]}, 4),
         f"teacher-forced {forced['loss_recovered']:.4f}"),
        ("the same, on the molecules of the controls", f"{controls['molm-clt']['free_running']['loss_recovered']:.4f}",
         ", ".join(f"{name} {row['free_running']['loss_recovered']:.4f}" for name, row in controls.items() if name != "molm-clt")),
        ("CLT: top-1 agreement with the subject, free-running", f"{controls['molm-clt']['free_running']['top1_agreement']:.3f}",
         ", ".join(f"{name} {row['free_running']['top1_agreement']:.3f}" for name, row in controls.items() if name != "molm-clt")),
        ("CLT: RMSE of `probe:logd` with every MLP replaced", f"{ci(replaced['replaced']['rmse'])} log units", f"subject {replaced['subject']['rmse']['value']:.3f}"),
    ]  # fmt: skip
    results = ROOT / "demo/summary/traces.json"
    if results.is_file():
        traces = json.loads(results.read_text())["traces"]
        for kind in ("probe", "mask"):
            chosen = [t["circuit"] for t in traces if t["target"]["kind"] == kind]
            median = lambda f, c=chosen: float(np.median([f(x) for x in c]))  # noqa: E731
            unit = next(t["target"]["unit"] for t in traces if t["target"]["kind"] == kind)
            n = len(chosen)
            reproduced = sum(c["reproduces"] for c in chosen)
            nearer = sum(c["error"] < c["neurons"]["error"] for c in chosen)
            rows.append(
                (
                    f"demo, {kind} targets: distance of the circuit alone to the model, median of {n}",
                    f"{median(lambda c: c['error']):.2f} {unit}",
                    f"every feature ablated {median(lambda c: abs(c['full'] - c['empty'])):.2f}, matched random circuits "
                    f"{median(lambda c: c['control']['error_mean']):.2f}, as many neurons "
                    f"{median(lambda c: c['neurons']['error']):.2f}; circuit is "
                    f"{median(lambda c: c['fraction_of_features']):.1%} of the active features; it reproduces {reproduced} "
                    f"of {n} predictions and is nearer than neurons in {nearer}",
                )
            )
            rows.append(
                (
                    f"demo, {kind} targets: change of the target without the circuit, median of {n}",
                    f"{median(lambda c: abs(c['full'] - c['removed'])):.2f} {unit}",
                    "without matched random circuits "
                    f"{median(lambda c: abs(c['full'] - c['control']['removed_mean'])):.2f}",
                )
            )
        for kind in ("probe", "mask"):
            chosen = [t["verification"] for t in traces if t["target"]["kind"] == kind]
            keys = ("free_running", "rest", "graph")
            real, rest, graph = (np.median([v[f"pearson_{k}"] for v in chosen]) for k in keys)
            what = f"demo, {kind} targets: predicted against measured single-node effects, median r of {len(chosen)}"
            beside = f"slopes alone, without the nodes measured beforehand, {rest:.2f}; frozen graph {graph:.2f}"
            rows.append((what, f"{real:.2f}", beside))
    table = ["| what | measured | beside it |", "|---|---|---|"]
    return "\n".join(table + [f"| {a} | {b} | {c} |" for a, b, c in rows])


def main() -> None:
    (MOLM / "README.md").write_text(molm())
    (CLT / "README.md").write_text(clt())
    path, start, end = ROOT / "README.md", "<!-- numbers -->\n", "\n<!-- end of numbers -->"
    text = path.read_text()
    path.write_text(text[: text.index(start) + len(start)] + readme() + text[text.index(end) :])


if __name__ == "__main__":
    main()
