"""The same molecule written otherwise: which heads answer to the spelling, and does the usual one's activation help?

A masked atom in the canonical spelling, in a random order, and with other ring digits; and in another molecule that
hides the same token. Heads and MLPs by their direct attribution to the token's logit (minus the mean logit).

    contrast     mean |change| of direct attribution with the order, the digits and the molecule; a component for which
                 the order matters more than the molecule is one of the format
    injection    the stream of the canonical run set into the reordered one, atom by atom but for the masked one: the
                 share of the logit's difference that comes back; with atoms matched at random too, which tells whether
                 it needs its place (a head that finds what it reads by content does not)
    modulation   the head without which the logit falls most (on the other half of the molecules), its output scaled

Published for language models (METHODS_BASES §10): necessity falls 70–99 % under a cipher, injection restores 48 %.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.discovery.methods import Problem, method_of
from isotrace.domains.domain import DOMAINS
from isotrace.domains.molecule.spelling import spellings, write
from isotrace.interventions import Components, Heads, MLPs, Residuals, zero_values
from isotrace.stats.bootstrap import bootstrap_weights, interval, mean_interval
from isotrace.stats.share import share
from isotrace.studies.effects.inputs import SUBJECT, TOKENS
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import Batch, Subject, load_subject

MOLECULES = {True: 60, False: 300}
DRAWS = 1_000
DOSES = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
SMALL = 0.1
"""Pairs of spellings whose logits differ by less have nothing to restore."""


@dataclass(frozen=True)
class Written:
    """One spelling with an atom masked at `position`; `place[a]`: the token of atom a of the molecule. `answer`: the
    id hidden."""

    batch: Batch
    position: int
    place: dict[int, int]
    answer: int

    def metric(self, subject: Subject) -> Any:
        def value(_: Batch, final: Tensor) -> Tensor:
            logits = subject.head(final[:, self.position])
            return logits[:, self.answer] - logits.mean(-1)

        return value


@dataclass(frozen=True)
class Case:
    canonical: Written
    order: Written
    digits: Written | None


def renamed(smiles: str) -> str | None:
    """The same with every ring digit four higher; None where it has none, or not enough digits."""
    parts = re.split(r"(\[[^\]]*\]|%\d\d)", smiles)
    digits = [int(d) for part in parts[::2] for d in re.findall(r"\d", part)]
    if not digits or max(digits) > 5 or "%" in smiles:
        return None
    return "".join(re.sub(r"\d", lambda m: str(int(m[0]) + 4), p) if i % 2 == 0 else p for i, p in enumerate(parts))


def written(subject: Subject, smiles: str, original: Sequence[int], atom: int) -> Written:
    """Raises InputError where the subject cannot read it, or the atom has several tokens."""
    batch = subject.tokenize([smiles])
    reading = DOMAINS["molecule"].read(smiles, subject.tokens(batch.ids[0]), batch.offsets[0])
    tokens: dict[int, list[int]] = defaultdict(list)
    for at, elements in enumerate(reading.elements):
        for element in elements:
            tokens[original[element]].append(at)
    if len(tokens[atom]) != 1:
        raise InputError(f"atom {atom} of {smiles} is no single token: choose another.")
    position = tokens[atom][0]
    hidden, _ = subject.prepare_prediction(batch, position)
    return Written(hidden, position, {a: t[0] for a, t in tokens.items()}, int(batch.ids[0, position]))


def case_of(subject: Subject, smiles: str, rng: np.random.Generator) -> Case | None:
    """None where no atom drawn is the same token in all spellings, or the molecule is written in one way only."""
    mol = Chem.MolFromSmiles(smiles)
    first = write(mol)
    others = [s for s in spellings(mol, 3, int(rng.integers(2**31))) if s.smiles != first.smiles]
    if not others:
        return None
    digits = renamed(first.smiles)
    for atom in rng.permutation(mol.GetNumAtoms())[:5].tolist():
        try:
            one, two = (written(subject, s.smiles, s.original, atom) for s in (first, others[0]))
            three = written(subject, digits, first.original, atom) if digits else None
        except InputError:
            continue
        if one.answer == two.answer and one.batch.ids.shape[1] <= TOKENS[1]:
            return Case(one, two, three)
    return None


@study("cipher_contrast", "molm: the same molecule in other spellings, heads by what they answer to")
def run(setting: Setting) -> Outcome:
    subject, rng = load_subject(SUBJECT), np.random.default_rng(setting.seed)
    table = bundled_table("bbb")
    texts = table.filter(table["split_scaffold"] == "test")["smiles"].to_list()
    cases: list[Case] = []
    for place in setting.progress(rng.permutation(len(texts)).tolist(), "spellings"):
        if len(cases) < MOLECULES[setting.quick] and (case := case_of(subject, texts[place], rng)):
            cases.append(case)
    tables = {
        "contrast": contrast_rows(subject, cases, setting.seed),
        "injection": injection_rows(subject, cases, setting.seed),
        "modulation": modulation_rows(subject, cases, setting.seed),
    }
    return Outcome(tables, notes(tables))


def attributed(subject: Subject, components: Components, given: Written) -> np.ndarray:
    """Direct attribution of every component, summed over positions `[components]`."""
    zero = zero_values(subject, components)
    problem = Problem(subject, components, given.batch, given.metric(subject), zero)
    scores = method_of("direct_logit_attribution")(problem)
    return torch.cat(scores.over_positions(), 1)[0].detach().double().cpu().numpy()


def contrast_rows(subject: Subject, cases: Sequence[Case], seed: int) -> list[dict[str, Any]]:
    """A row for every head and MLP. `ratio`: change with the order over change with the molecule, intervals over
    molecules; `format`: the ratio's interval is above 1."""
    rows = []
    turn = {answer: [i for i, c in enumerate(cases) if c.canonical.answer == answer]
            for answer in {c.canonical.answer for c in cases}}  # fmt: skip
    other = {i: group[(at + 1) % len(group)] for group in turn.values() for at, i in enumerate(group) if len(group) > 1}
    weights = bootstrap_weights(len(other), DRAWS, seed)
    for components in (Heads(), MLPs()):
        own, order = (np.stack([attributed(subject, components, w) for w in each])
                      for each in ([c.canonical for c in cases], [c.order for c in cases]))  # fmt: skip
        digits = {i: attributed(subject, components, c.digits) for i, c in enumerate(cases) if c.digits}
        by_digits = np.abs(np.stack([digits[i] - own[i] for i in digits])) if digits else None
        pairs = sorted(other)
        by_order, by_molecule = np.abs(order - own)[pairs], np.abs(own[[other[i] for i in pairs]] - own[pairs])
        names = [(layer, c) for layer, (n, _) in enumerate(components.sizes(subject)) for c in range(n)]
        for at, (layer, component) in enumerate(names):
            noise = 1e-6 * float(np.abs(own[:, at]).max())
            ratio = share(by_order[:, at].mean(), by_molecule[:, at].mean(), noise)
            ci = interval(share(weights @ by_order[:, at], weights @ by_molecule[:, at], noise))
            rows.append({
                "kind": components.name, "layer": layer, "component": component, "molecules": len(pairs),
                "attribution": float(np.abs(own[:, at]).mean()), "order": float(by_order[:, at].mean()),
                "digits": None if by_digits is None else float(by_digits[:, at].mean()),
                "molecule": float(by_molecule[:, at].mean()), "ratio": ratio, "ratio_ci": ci, "format": ci[0] > 1,
            })  # fmt: skip
    return rows


@torch.no_grad()
def injection_rows(subject: Subject, cases: Sequence[Case], seed: int) -> list[dict[str, Any]]:
    """Share of |logit(canonical) − logit(order)| restored by the stream behind each layer, ratio of sums over molecules
    with an interval over them; `shuffled`: the same with the atoms matched at random."""
    rng = np.random.default_rng(seed)
    stream, gaps, found = Residuals(), [], []
    for case in cases:
        clean, final = stream.record(subject, case.canonical.batch)
        value = float(case.canonical.metric(subject)(case.canonical.batch, final))
        plain = float(case.order.metric(subject)(case.order.batch, stream.record(subject, case.order.batch)[1]))
        if abs(value - plain) < SMALL:
            continue
        masked = {a for a, at in case.order.place.items() if at == case.order.position}
        atoms = sorted(set(case.order.place) - masked)
        matches = (atoms, rng.permutation(atoms).tolist())
        back = [[_injected(subject, case, clean, layer, atoms, sources) - plain for sources in matches]
                for layer in range(subject.n_layers)]  # fmt: skip
        gaps.append(abs(value - plain))
        found.append(np.array(back) * np.sign(value - plain))
    if not found:
        return []
    gap, moved = np.array(gaps), np.stack(found)  # [molecules, layers, 2]
    weights = bootstrap_weights(len(gap), DRAWS, seed)
    rows = []
    for layer in range(subject.n_layers):
        row: dict[str, Any] = {"layer": layer, "molecules": len(gap), "left_out": len(cases) - len(gap)}
        for at, name in enumerate(("restored", "shuffled")):
            row[name] = float(moved[:, layer, at].sum() / gap.sum())
            row[f"{name}_ci"] = interval(weights @ moved[:, layer, at] / (weights @ gap))
        rows.append(row)
    return rows


def _injected(subject: Subject, case: Case, clean: Sequence[Tensor], layer: int, atoms: Any, sources: Any) -> float:
    to, of = [case.order.place[a] for a in atoms], [case.canonical.place[a] for a in sources]

    def edit(at: int, values: Tensor) -> Tensor:
        if at != layer:
            return values
        values = values.clone()
        values[:, to] = clean[layer][:, of]
        return values

    with Residuals().edited(subject, edit):
        final = subject.hidden(case.order.batch.ids, case.order.batch.mask)
    return float(case.order.metric(subject)(case.order.batch, final))


@torch.no_grad()
def modulation_rows(subject: Subject, cases: Sequence[Case], seed: int) -> list[dict[str, Any]]:
    """Mean change of the logit in the second half of `cases` with a head's output scaled: the one whose removal costs
    most in the first half, and a random one."""
    half = len(cases) // 2
    heads = [(layer, h) for layer in range(subject.n_layers) for h in range(subject.n_heads(layer))]
    falls = [-_scaled(subject, cases[:half], head, 0.0).mean() for head in heads]
    gate, random = heads[int(np.argmax(falls))], heads[int(np.random.default_rng(seed).integers(len(heads)))]
    rows = []
    for name, head in (("gate", gate), ("random", random)):
        for dose in DOSES:
            change = _scaled(subject, cases[half:], head, dose)
            rows.append({"head": name, "layer": head[0], "component": head[1], "dose": dose, "molecules": len(change),
                         "change": float(change.mean()), "change_ci": mean_interval(change, seed)})  # fmt: skip
    return rows


def _scaled(subject: Subject, cases: Sequence[Case], head: tuple[int, int], dose: float) -> np.ndarray:
    def edit(layer: int, values: Tensor) -> Tensor:
        if layer != head[0]:
            return values
        values = values.clone()
        values[:, :, head[1]] *= dose
        return values

    changes = []
    for case in cases:
        given, metric = case.canonical, case.canonical.metric(subject)
        before = metric(given.batch, subject.hidden(given.batch.ids, given.batch.mask))
        with Heads().edited(subject, edit):
            after = metric(given.batch, subject.hidden(given.batch.ids, given.batch.mask))
        changes.append(float(after - before))
    return np.array(changes)


def notes(tables: dict[str, list[dict[str, Any]]]) -> tuple[str, ...]:
    heads = [row for row in tables["contrast"] if row["kind"] == "head"]
    of = [f"{row['layer']}.{row['component']}" for row in heads if row["format"]]
    ratios = [row["ratio"] for row in heads]
    found = [
        f"{len(of)} of {len(heads)} heads change more with the order of the atoms than with the molecule"
        f"{': ' + ', '.join(of) if of else ''}; ratio {np.nanmin(ratios):.2f} to {np.nanmax(ratios):.2f}, median "
        f"{np.nanmedian(ratios):.2f}.",
    ]
    for row in tables["injection"]:
        found.append(
            f"Stream behind layer {row['layer']}: {row['restored']:.2f} [{row['restored_ci'][0]:.2f}, "
            f"{row['restored_ci'][1]:.2f}] restored, {row['shuffled']:.2f} with atoms matched at random."
        )
    return tuple(found)
