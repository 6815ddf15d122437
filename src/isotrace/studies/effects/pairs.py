"""Pairs: do a few swapped features turn what is said of one molecule into what is said of its matched partner?

Matched pairs of the packaged tables at random, most of which the probes have been fitted on: what is explained is the
subject with its probe, not the property. Distances to T(B) in the target's unit, of T(A) with nodes swapped.
"""

from typing import Any

import numpy as np
from rdkit import Chem

from isotrace.attribution.pairs.pair import PairConfig, Paired, chosen, pair
from isotrace.base.errors import InputError
from isotrace.dictionaries.saving import load_dictionary
from isotrace.domains.molecule.alignment import common_atoms, in_order, written_like
from isotrace.stats.bootstrap import mean_interval
from isotrace.studies.atoms.pairs import matched_pairs
from isotrace.studies.effects.inputs import DICTIONARY, SUBJECT, kept, neuron_means
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import load_subject

LABELS = {"probe:esol": ("esol", "measured_log_solubility_mol_per_l"), "probe:logd": ("lipophilicity", "logD")}
"""Target → its table and the measured column."""
PAIRS = {True: 3, False: 24}
ATOMS = 10, 30
SHARES = PairConfig().sizes
SWAPPED = ("nothing", "random", "every", "circuit", "neurons", "neurons_chosen")


@study("pairs", "molm: matched pairs, the difference carried by swapped features, random nodes and neurons")
def run(setting: Setting) -> Outcome:
    subject = load_subject(SUBJECT)
    dictionary = load_dictionary(DICTIONARY, subject)
    means = neuron_means(subject)
    rows, left_out = [], []
    for target in LABELS:
        for a, b, measured in setting.progress(drawn(target, PAIRS[setting.quick], setting.seed), target):
            asked = subject, dictionary, a, b, target, PairConfig(seed=setting.seed)
            try:
                own = kept(
                    setting, target, f"{a} {b}",
                    lambda: told(pair(*asked, neuron_means=means), setting.seed),  # noqa: B023
                )  # fmt: skip
            except InputError as error:
                left_out.append(f"{target}: {a} and {b} are left out: {error}")
                continue
            about = {"target": target, "a": a, "b": b, "measured_difference": measured}
            rows.append(about | own)
    table = [row for target in LABELS for row in summarised(target, rows, setting.seed)]
    sizes = [by_size(target, i, rows, setting.seed) for target in LABELS for i in range(len(SHARES))]
    flat = [{name: value for name, value in row.items() if name != "by_size"} for row in rows]
    return Outcome({"pairs": table, "sizes": sizes, "molecules": flat}, (*notes(rows), *left_out))


def drawn(target: str, n: int, seed: int) -> list[tuple[str, str, float]]:
    """(A, B, measured difference) of `n` matched pairs of the table, B written in the order of A: to the subject a
    molecule in another order is another input."""
    name, column = LABELS[target]
    values = {}
    for text, value in bundled_table(name).select("smiles", column).iter_rows():
        mol = Chem.MolFromSmiles(text)
        if mol is not None and ATOMS[0] <= mol.GetNumAtoms() <= ATOMS[1] and "." not in text:
            values.setdefault(Chem.MolToSmiles(mol), float(value))
    texts = [*values]
    mols = [Chem.MolFromSmiles(text) for text in texts]
    found = []
    for one in matched_pairs(mols, n, seed):
        a, b = (texts[half.row] for half in (one.first, one.second))
        paired, _ = common_atoms(*(mols[half.row] for half in (one.first, one.second)))
        moved = len(paired) - len(in_order(paired[i] for i in sorted(paired)))
        written = written_like(mols[one.second.row], paired, moved) if moved else None
        found.append((a, written or b, values[a] - values[b]))
    return found


def told(found: Paired, seed: int) -> dict[str, Any]:
    """Numbers of one pair. `moved`: by how much T(A) falls where all on its changed atoms is swapped, beside as many
    matched nodes from anywhere; null where no feature differs there."""
    swapped, neurons, other = found.swapped, found.neurons, found.b.value
    assert neurons is not None  # their means are given
    tolerance = found.config.tolerance * abs(found.a.value - other)
    features, beside = np.abs(found.values - other), np.abs(neurons - other)
    lane = found.lanes[0][0]
    spread = None
    if found.spellings is not None:
        spread = float(np.sqrt(sum(values.var(ddof=1) for values in found.spellings)))
    return {
        "difference": found.a.value - other, "difference_sd": spread, "carries": swapped.reason is None,
        "n": len(found.circuit), "nothing": abs(swapped.own - other), "every": abs(swapped.every - other),
        "random": float(swapped.control_errors.mean()), "circuit": swapped.error,
        "neurons": float(beside[found.sizes.index(len(found.circuit))]),
        "neurons_chosen": float(beside[chosen(beside, tolerance)]),
        "by_size": [*zip(features.tolist(), beside.tolist(), strict=True)],
        "moved": lane.moved if lane.nodes else None,
        "moved_random": float(lane.controls.mean()) if len(lane.controls) else None,
    }  # fmt: skip


def summarised(target: str, rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Distances to T(B), and by how much the circuit is nearer, with intervals over pairs."""
    own = [row for row in rows if row["target"] == target]
    circuit = np.array([row["circuit"] for row in own])
    found = []
    for name in SWAPPED:
        values = np.array([row[name] for row in own])
        gain = values - circuit
        found.append({
            "target": target, "swapped": name, "pairs": len(own), "median": float(np.median(values)),
            "mean": float(values.mean()), "mean_ci": mean_interval(values, seed),
            "circuit_nearer_by": float(gain.mean()), "circuit_nearer_by_ci": mean_interval(gain, seed),
        })  # fmt: skip
    return found


def by_size(target: str, i: int, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Of one size for all pairs, which was chosen on none of them."""
    both = np.array([row["by_size"][min(i, len(row["by_size"]) - 1)] for row in rows if row["target"] == target])
    gain = both[:, 1] - both[:, 0]
    medians = np.median(both, 0)
    return {
        "target": target, "share": SHARES[i], "features": float(medians[0]), "neurons": float(medians[1]),
        "features_nearer_by": float(gain.mean()), "features_nearer_by_ci": mean_interval(gain, seed),
    }  # fmt: skip


def notes(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    found = ["The size of a circuit is chosen by its distance to T(B), which flatters it; see the table of sizes."]
    for target in LABELS:
        own = [row for row in rows if row["target"] == target]
        predicted, measured = (np.array([row[name] for row in own]) for name in ("difference", "measured_difference"))
        right, differ = int((predicted * measured > 0).sum()), int((measured != 0).sum())
        noisy = sum(row["difference_sd"] is not None and row["difference_sd"] >= abs(row["difference"]) for row in own)
        moved = [(row["moved"], row["moved_random"]) for row in own if row["moved"] is not None]
        medians = np.median(np.abs(np.array(moved, dtype=float)), 0)
        carried = sum(row["carries"] for row in own)
        found.append(
            f"{target}: {right} of {differ} predicted differences have the sign of the measured ones; the circuit "
            f"carries {carried} of {len(own)}; {noisy} are smaller than what other spellings move them by; features on "
            f"the changed atoms of A move the target by {medians[0]:.2f} (median), as many matched nodes elsewhere by "
            f"{medians[1]:.2f}."
        )
    return tuple(found)
