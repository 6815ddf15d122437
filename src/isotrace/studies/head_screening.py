"""RXNMapper: which head maps atoms, told from the masked-token task alone.

1. heads      every head by interchange screening, mean-ablation patching (both exact) and attribution patching
2. criteria   where the head that the package names stands by each, on each task, beside a random ranking
3. agreement  of every head's attention with atom maps, beside shuffled maps
4. cascade    the leading heads removed one after the other: who stands by, who depends on whom
5. joint      all layers of the named head's index at once, for ALBERT's layers share their weights
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from isotrace.base.settings import expanded
from isotrace.discovery.methods import Problem
from isotrace.discovery.methods.interchange import MIN_PAIRS, Screening, equal_length_pairs, screen
from isotrace.interventions import Heads, Values, mean_values
from isotrace.stats.bootstrap import mean_interval, pearson_interval
from isotrace.studies.atom_mapping import (
    NAMED,
    SOURCE,
    TASKS,
    Masked,
    MetricKind,
    Task,
    agreement,
    agreement_rows,
    masked,
    patent_maps,
    read_cases,
    unmasked,
)
from isotrace.studies.head_removal import cascade_rows, joint_rows, without
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import Subject, load_subject

Row = dict[str, Any]
MAIN: Task = "one"
MODEL_MAPS, PATENT_MAPS = "RXNMapper's own output", "patents' atom maps"
EXACT = ("interchange", "activation_patching")


@dataclass(frozen=True)
class Sizes:
    """max_tokens: of a reaction. n_cases: reactions read, n_held of them for means alone. n_pairs: inputs of the main
    screening, of attribution patching and of joint removal. n_other: of exact patching on other tasks, and of the
    cascade. n_maps: reactions per set of atom maps. n_random: random sets of heads. depth: heads the cascade removes.
    """

    max_tokens: int
    n_cases: int
    n_held: int
    n_pairs: int
    n_other: int
    n_maps: int
    n_random: int
    depth: int


QUICK = Sizes(max_tokens=56, n_cases=400, n_held=60, n_pairs=MIN_PAIRS, n_other=30, n_maps=250, n_random=20, depth=5)
FULL = Sizes(max_tokens=128, n_cases=2_000, n_held=200, n_pairs=400, n_other=200, n_maps=2_000, n_random=50, depth=10)


@dataclass(frozen=True)
class Screened:
    task: Task
    metric: MetricKind
    criterion: str
    accuracy: float
    found: Screening


def _screenings(
    subject: Subject, task: Task, items: list[Masked], reference: Values, sizes: Sizes, setting: Setting
) -> list[Screened]:
    """The main task, by its logit, gets exact criteria on `n_pairs` inputs; everything else attribution patching on as
    many and exact patching on fewer."""
    first, results = items[: sizes.n_pairs], []
    right = float(without(subject, first, [], reference)[1].mean())
    kinds: tuple[MetricKind, ...] = ("logit", "log-probability") if task == MAIN else ("logit",)
    for kind in kinds:
        main = task == MAIN and kind == "logit"

        def add(criterion: str, method: str, given: Sequence[Any], make: Any, kind: MetricKind = kind) -> None:
            steps = setting.progress(given, f"task {task}, {kind}: {criterion}")
            found = screen((make(x) for x in steps), method, **({"by_position": False} if method in EXACT else {}))
            results.append(Screened(task, kind, criterion, right, found))

        def ablated(m: Masked, kind: MetricKind = kind) -> Problem:
            return Problem(subject, Heads(), m.batch, m.metric(subject, kind), reference)

        def exchanged(pair: tuple[int, int], kind: MetricKind = kind) -> Problem:
            one, other = (items[i] for i in pair)
            return Problem.interchange(subject, Heads(), one.batch, other.batch, one.metric(subject, kind))

        if main:
            pairs = equal_length_pairs([m.case.n_tokens for m in items], sizes.n_pairs, setting.seed)
            add("interchange", "interchange", pairs, exchanged)
        add("mean ablation", "activation_patching", first if main else first[: sizes.n_other], ablated)
        add("attribution patching", "attribution_patching", first, ablated)
    return results


def _criterion(screened: Screened, share: np.ndarray, seed: int) -> Row:
    """Where the named head stands, and how effect and agreement `share [layers, heads]` go together. `lead` is over
    the best of the others on these very inputs, which favours that one."""
    found = screened.found
    rows = found.rows(seed=seed)
    n = len(rows)
    named = next(row for row in rows if (row.layer, row.component) == NAMED)
    place = found.nodes[:, 0].numpy(), found.nodes[:, 2].numpy()
    column = next(j for j, node in enumerate(found.nodes.tolist()) if (node[0], node[2]) == NAMED)
    rival = int(np.where(np.arange(n) == column, -np.inf, found.effects.mean(0)).argmax())
    lead = found.effects[:, column] - found.effects[:, rival]
    index = [found.effects[:, place[1] == head].sum(1) for head in range(share.shape[1])]
    index_means = np.array([values.mean() for values in index])
    agree, effect = share[place], found.effects.mean(0)
    rest = place[1] != NAMED[1]
    return {
        "task": screened.task, "metric": screened.metric, "criterion": screened.criterion,
        "inputs": len(found.effects), "accuracy": screened.accuracy,
        "named_rank": named.rank, "named_rank_ci": named.rank_ci, "named_first_in_draws": named.first,
        "random_rank": (n + 1) / 2, "random_rank_ci": (0.025 * n, 0.975 * n),
        "chance_of_this_rank": named.rank / n,
        "named_effect": named.mean, "named_effect_ci": named.mean_ci,
        "named_p": named.p, "named_p_others": named.p_others,
        "named_share": float(effect[column] / np.maximum(effect, 0).sum()),
        "rival": f"{place[0][rival]}.{place[1][rival]}", "rival_effect": float(effect[rival]),
        "lead": float(lead.mean()), "lead_ci": mean_interval(lead, seed),
        "leading_heads": ", ".join(f"{r.layer}.{r.component}" for r in rows[:5]),
        "index_rank": int((index_means > index_means[NAMED[1]]).sum()) + 1,
        "index_effect": float(index_means[NAMED[1]]), "index_effect_ci": mean_interval(index[NAMED[1]], seed),
        "next_index_effect": float(np.delete(index_means, NAMED[1]).max()),
        **_spearman("agreement_spearman", agree, effect, seed),
        **_spearman("agreement_spearman_other_indices", agree[rest], effect[rest], seed),
    }  # fmt: skip


def _spearman(name: str, x: np.ndarray, y: np.ndarray, seed: int) -> Row:
    """With a bootstrap over heads, which are not independent here: their layers share weights."""
    value, low, high = pearson_interval(rankdata(x), rankdata(y), seed)
    return {name: value, f"{name}_ci": (low, high)}


def _heads(main: dict[str, Screening], share: np.ndarray, interval: np.ndarray, seed: int) -> list[Row]:
    """Every head: effect and rank by each criterion; agreement of its attention to precursors with the maps."""
    rows = {name: {(r.layer, r.component): r for r in found.rows(seed=seed)} for name, found in main.items()}
    result = []
    for key in rows["mean ablation"]:
        row: Row = {"layer": key[0], "head": key[1], "named": key == NAMED}
        for name, found in rows.items():
            short, at = name.replace(" ", "_"), found[key]
            row |= {short: at.mean, f"{short}_ci": at.mean_ci, f"{short}_rank": at.rank, f"{short}_p": at.p}
        result.append(row | {"agreement": float(share[key]), "agreement_ci": tuple(interval[:, *key].tolist())})
    return result


def _references(subject: Subject, setting: Setting, sizes: Sizes) -> dict[str, list[Masked]]:
    """Reactions of any length with the maps attention is compared with."""
    rows = {MODEL_MAPS: _bundled(setting)}
    if folder := os.environ.get("ISOTRACE_DATA"):
        patent = patent_maps(Path(expanded(folder)))
        rows[PATENT_MAPS] = [patent[i] for i in np.random.default_rng(setting.seed).permutation(len(patent))]
    longest, n = subject.max_tokens, sizes.n_maps
    return {
        name: [unmasked(case) for case in read_cases(subject, given, max_tokens=longest, n=n)[0]]
        for name, given in rows.items()
    }


def _bundled(setting: Setting) -> list[tuple[str, str]]:
    table = bundled_table("reactions").sample(fraction=1.0, shuffle=True, seed=setting.seed)
    return list(table.select("reaction", "rxnmapper_mapped_rxn").iter_rows())


def screened(sizes: Sizes, setting: Setting) -> Outcome:
    """The study at any size."""
    subject, seed = load_subject(SOURCE), setting.seed
    cases, dropped = read_cases(subject, _bundled(setting), max_tokens=sizes.max_tokens, n=sizes.n_cases)
    shares, agreements = {}, []
    for name, items in _references(subject, setting, sizes).items():
        found = agreement(subject, setting.progress(items, f"attention against {name}"), seed)
        shares[name] = found
        agreements += agreement_rows(name, found, seed)
    trusted = shares.get(PATENT_MAPS, shares[MODEL_MAPS])
    share, interval = trusted.share()[0, 0], trusted.interval(seed)[:, 0, 0]
    results: list[Screened] = []
    tables: dict[str, list[Row]] = {}
    for task in TASKS:
        rng = np.random.default_rng(seed)
        items = [item for case in cases if (item := masked(subject, case, task, rng)) is not None]
        held, items = items[: sizes.n_held], items[sizes.n_held :]
        reference = mean_values(subject, Heads(), [item.batch for item in held])
        results += _screenings(subject, task, items, reference, sizes, setting)
        if task == MAIN:
            first, main = items[: sizes.n_pairs], {r.criterion: r.found for r in results if r.metric == "logit"}
            hidden = agreement(subject, first, seed)
            agreements += agreement_rows(f"{MODEL_MAPS}, the atom itself masked", hidden, seed)
            tables |= {
                "heads": _heads(main, share, interval, seed),
                "cascade": cascade_rows(
                    subject, items[: sizes.n_other], reference, main["mean ablation"], sizes.depth, setting
                ),
                "joint": joint_rows(subject, first, reference, main["mean ablation"], sizes.n_random, setting),
            }
    tables |= {"criteria": [_criterion(found, share, seed) for found in results], "agreement": agreements}
    return Outcome(tables, (*_notes(tables, PATENT_MAPS in shares), _left_out(sizes, len(cases), dropped)))


def _left_out(sizes: Sizes, n_cases: int, dropped: int) -> str:
    return (
        f"The screening is of reactions of at most {sizes.max_tokens} tokens: {n_cases} read, {dropped} left out as "
        "longer or without a map. The model was trained on such reactions, so its accuracy is no estimate for new ones."
    )


def _notes(tables: dict[str, list[Row]], patent: bool) -> list[str]:
    named = f"{NAMED[0]}.{NAMED[1]}"
    notes = [
        f"Task {row['task']}, {row['metric']}, {row['criterion']}: head {named}, which the package names, is "
        f"{'first' if row['named_rank'] == 1 else 'NOT first but number ' + str(row['named_rank'])} of 96 (95 % "
        f"interval of its rank {row['named_rank_ci'][0]:.0f} to {row['named_rank_ci'][1]:.0f}); its lead over "
        f"{row['rival']} is {row['lead']:.3g} ({row['lead_ci'][0]:.3g} to {row['lead_ci'][1]:.3g})."
        for row in tables["criteria"]
    ]
    sets = {row["removed"]: row for row in tables["joint"]}
    index, other = sets["its index in all layers"], sets["another index in all layers"]
    notes.append(
        f"All layers share their weights. Head {NAMED[1]} removed in all of them costs {index['fall']:.3g} "
        f"(single falls add up to {index['sum_of_single_falls']:.3g}) and leaves {index['accuracy']:.0%} right; "
        f"another index costs {other['fall']:.3g} and leaves {other['accuracy']:.0%}."
    )
    trusted = PATENT_MAPS if patent else MODEL_MAPS
    follows = next(row for row in tables["agreement"] if row["reference"] == trusted)
    main = tables["criteria"][0]
    notes.append(
        f"The attention of {named} follows {trusted} for {follows['named']:.1%} of atoms, number "
        f"{follows['named_rank']} of 96 ({follows['best_other']}: {follows['best_other_share']:.1%}; best of other "
        f"indices: {follows['best_of_other_indices']:.1%}). Over heads, agreement and effect by {main['criterion']} "
        f"correlate by {main['agreement_spearman']:.2f} (Spearman): see the table heads for which follow the maps "
        "without effect."
    )
    notes.append(
        "The bundled maps are RXNMapper's own output: agreement with them says that a head is the one the package "
        "reads, not that it is right." + ("" if patent else " Set ISOTRACE_DATA for maps that are independent of it.")
    )
    return notes


@study("head_screening", "RXNMapper: which head maps atoms, from the masked-token task alone")
def head_screening(setting: Setting) -> Outcome:
    """With the environment variable ISOTRACE_DATA, also against the patents' own atom maps; see `patent_maps`."""
    return screened(QUICK if setting.quick else FULL, setting)
