"""Functions with a known definition, rules that say them, and grades that are exact."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rdkit import Chem

from isotrace.annotation.benchmark.bench import Bench, bench, compare, exchanged
from isotrace.annotation.benchmark.functions import CELLS, Draft, Function
from isotrace.annotation.benchmark.grade import Label, difficulty, grade
from isotrace.annotation.benchmark.ground import Ground
from isotrace.annotation.benchmark.labelers import Builtin, best_concept, misled, token_identity
from isotrace.annotation.benchmark.language_model import language_model
from isotrace.annotation.benchmark.rules import evaluate, quoted
from isotrace.annotation.explain.chat import Chat
from isotrace.annotation.nulls.permutation import Tracks
from isotrace.base.errors import InputError
from isotrace.datasets.concept_table import ConceptTable
from isotrace.domains.domain import domain_of
from isotrace.domains.molecule.domain import MOLECULE
from isotrace.domains.molecule.tokenizer import build_tokenizer
from isotrace.studies.features.graded_labelers import QUANTITIES
from isotrace.studies.study import bundled_table

BACKSLASH = "\\"
SMALL = ["Oc1ccncc1C(=O)NC", "C1CC1CCN", "CC(C)(C)OC(=O)c1ccc(Cl)cc1", "F/C=C\\C"]


def ground_of(texts: list[str]) -> Ground:
    tokenizer = build_tokenizer(texts, min_count=1, max_length=200)
    readings = []
    for text in texts:
        found = tokenizer(text, return_offsets_mapping=True)
        tokens = tokenizer.convert_ids_to_tokens(found["input_ids"])
        readings.append(MOLECULE.read(text, tokens, found["offset_mapping"]))
    labels = [MOLECULE.label(reading) for reading in readings]
    table = ConceptTable.of(MOLECULE.concepts, [len(r.units) for r in readings], labels)
    return Ground(MOLECULE, tuple(readings), table, QUANTITIES)


@pytest.fixture(scope="module")
def small() -> Ground:
    return ground_of(SMALL)


@pytest.fixture(scope="module")
def made() -> Bench:
    texts = bundled_table("lipophilicity")["smiles"].to_list()[::12]
    return bench(ground_of([text for text in texts if len(text) < 70]), per_cell=2, seed=0)


def where(ground: Ground, test) -> np.ndarray:
    """bool `[tokens]`: atom tokens whose atom passes `test(mol, atom)`."""
    found = []
    for reading in ground.readings:
        found += [unit.kind == "atom" and test(reading.parsed, unit.atoms[0]) for unit in reading.units]
    return np.asarray(found)


def symbol(mol, atom: int) -> str:
    return mol.GetAtomWithIdx(atom).GetSymbol()


def test_rules_say_what_rdkit_says(small):
    far = lambda mol, a: Chem.GetDistanceMatrix(mol)[a]  # noqa: E731
    nitrogens = lambda mol: [i for i in range(mol.GetNumAtoms()) if symbol(mol, i) == "N"]  # noqa: E731
    n = 'carries("element N")'
    at_two = where(small, lambda mol, a: any(far(mol, a)[b] == 2 for b in nitrogens(mol)))
    assert at_two.sum() == 4
    assert ((evaluate(f"near({n}, 2)", small) > 0) == at_two).all()
    before = where(small, lambda mol, a: a + 1 < mol.GetNumAtoms() and symbol(mol, a + 1) == "N")
    assert ((evaluate(f"next({n})", small) > 0) == before).all()
    for rule, of_atom in (
        (f"count({n}, 3)", lambda far, others: sum(1 <= far[b] <= 3 for b in others)),
        (f"closeness({n})", lambda far, others: max((1 / (1 + far[b]) for b in others), default=0)),
    ):
        expected = [
            of_atom(far(reading.parsed, unit.atoms[0]), nitrogens(reading.parsed)) if unit.kind == "atom" else 0
            for reading in small.readings for unit in reading.units
        ]  # fmt: skip
        assert evaluate(rule, small) == pytest.approx(expected)
    # only the rings of the second and the third close at a CH, and none opens there
    partner = evaluate('partner(carries("hydrogen count 1"))', small) > 0
    digits = np.flatnonzero(partner)
    assert [small.texts[i] for i in digits] == ["1", "1"]
    assert small.table.sequence_of[digits].tolist() == [1, 2]
    assert (small.partner[digits] > digits).all()
    chlorine = evaluate('anywhere(carries("element Cl"))', small) > 0
    assert (chlorine == ((small.table.sequence_of == 2) & ~small.special)).all()
    charged = evaluate('quantity("Gasteiger charge", -1)', small)
    assert charged[small.texts == "O"].min() > charged[small.texts == "C"].max()
    assert (evaluate(f"token({quoted(BACKSLASH)})", small) > 0).tolist() == [text == BACKSLASH for text in small.texts]
    counts = evaluate(f"count({n}, 2)", small)
    assert evaluate(f"saturating(count({n}, 2), 3)", small) == pytest.approx(counts / (counts + 3))


@pytest.mark.parametrize(
    "code",
    [
        '__import__("os").getcwd()', 'open("x")', "(1).real", "[x for x in (1, 2)]", "lambda: 1", 'carries("nothing")',
        'near(carries("element N"), 99)', "near(1, 2)", "1", 'carries("element N") & 2', 'carries(name="x")',
        '"x" * 3', "chance(2, 0)", 'learned("net 0")', "~" * 2_000 + "element()", "element(", "quantity(\"mass\", 1)",
    ],
)  # fmt: skip
def test_nothing_but_rules_is_run(small, code):
    with pytest.raises(InputError):
        evaluate(code, small)


def test_chance_of_a_sequence_is_the_same_in_any_company(small):
    alone = small.take([1])
    tokens = small.table.token_rows(np.asarray([1]))
    rule = 'chance(0.4, 5) | carries("element N")'
    assert (evaluate(rule, small)[tokens] == evaluate(rule, alone)).all()
    assert (evaluate("strength(3)", small)[tokens] == evaluate("strength(3)", alone)).all()


def test_functions_fire_on_every_part_and_near_misses_are_others(made):
    assert [f.cell for f in made.functions] == [cell for cell in CELLS for _ in range(2)]
    assert len({f.draft.code for f in made.functions}) == len(made.functions)
    owner = made.part[made.ground.table.sequence_of]
    for function in made.functions:
        assert not function.values[made.ground.special].any()
        assert all((function.values[owner == part] > 0).sum() >= 20 for part in range(3))
        assert len(function.draft.misses) == (0 if function.cell == "none" else 2)
        for miss in function.candidates[1:]:
            assert not np.array_equal(miss, function.values)
    scaffolds = np.asarray(MOLECULE.groups([r.text for r in made.ground.readings]))
    assert not set(scaffolds[made.part == 2]) & set(scaffolds[made.part < 2])
    first, again, other = (bench(made.ground, per_cell=1, seed=seed, cells=("atomic",)) for seed in (0, 0, 1))
    assert first.functions[0].draft == again.functions[0].draft != other.functions[0].draft


def test_the_list_lacks_a_third_of_the_patterns(made):
    every = [c.name for c in made.ground.table.token_concepts if c.group in ("functional group", "structural alert")]
    listed = {c.name for c in made.listed.table.token_concepts}
    assert 0.55 < sum(name in listed for name in every) / len(every) < 0.78
    assert {c.name for c in made.ground.table.token_concepts} - listed <= set(every)


def test_the_truth_itself_gets_full_marks_and_nothing_gets_chance(made):
    whole = replace(made, listed=made.ground)
    functions = [f for f in made.functions if f.cell not in ("learned", "none")]
    for function in functions:
        best = grade(Label("", function.draft.code), function, whole.listed, made.graded_on)
        assert (best.choice, best.abstained, best.fault) == (1, 0, None)
        assert [best.auroc, best.spearman, best.within] == pytest.approx([1, 1, 1])
        owner = made.ground.table.sequence_of[function.values > 0]
        both = 0 < len(np.intersect1d(owner, made.graded_on)) < len(made.graded_on)
        assert best.sequences == pytest.approx(1 if both else np.nan, nan_ok=True)
        assert np.isnan(best.named) == (function.draft.clean is None)
        if function.cell in ("bias", "two_concepts"):
            assert best.named == 1
            assert grade(Label("", function.draft.clean), function, whole.listed, made.graded_on).named == 0
        nothing = grade(Label("no concept"), function, made.listed, made.graded_on)
        assert (nothing.auroc, nothing.within) == (0.5, 0.5)
        assert nothing.sequences == pytest.approx(0.5 if both else np.nan, nan_ok=True)
        assert (nothing.spearman, nothing.abstained) == (0, 1)
        assert nothing.choice == pytest.approx(1 / 3)
        if function.cell in ("silent", "noise"):
            assert grade(Label(function.draft.text, 'carries("sp2")'), function, made.listed, made.graded_on).named == 1
            assert grade(Label("sp2", 'carries("sp2")'), function, made.listed, made.graded_on).named == 0


def test_a_rule_that_names_what_is_not_in_the_list_counts_as_an_abstention(made):
    found = grade(Label("x", 'carries("nothing")'), made.functions[0], made.listed, made.graded_on)
    assert "no concept 'nothing'" in str(found.fault)
    assert (found.auroc, found.abstained) == (0.5, 1)
    with pytest.raises(InputError, match="one of each"):
        made.graded([])


def test_difficulty_is_how_wrong_the_best_concept_is(made):
    tokens = made.ground.table.token_rows(made.graded_on)
    tokens = tokens[~made.ground.special[tokens]]
    for function in made.functions[::7]:
        on = function.values[tokens] > 0
        carried = [made.listed.carries(c.name)[tokens] for c in made.listed.table.token_concepts]
        found = difficulty(function, made.listed, made.graded_on)
        wrong = [np.mean(c != on) for c in carried]
        assert found.wrong == pytest.approx(min(*wrong, on.mean()))
        assert found.apart == pytest.approx(min(1 - (c & on).sum() / (c | on).sum() for c in carried))


def test_the_builtin_names_concepts_and_the_controls_are_at_chance(made):
    labelers = {
        "built-in": Builtin(100, 50), "best": best_concept, "token": token_identity, "misled": misled(Builtin(100, 50)),
    }  # fmt: skip
    tables = compare(made, labelers, ("best",))
    row = {(r["labeler"], r["cell"]): r for r in tables["cells"]}
    own = [r for r in tables["functions"] if r["labeler"] == "built-in" and r["cell"] == "atomic" and r["apart"] == 0]
    assert len(own) >= 2
    assert [r["auroc"] for r in own] == pytest.approx([1] * len(own))
    random = [r for r in tables["functions"] if r["labeler"] == "built-in" and r["text"] == "tokens at random"]
    assert [r["abstained"] for r in random] == [1] * len(random) != []
    assert row["built-in", "all but none"]["abstained"] < 0.4
    assert row["misled", "all but none"]["abstained"] == 1
    assert (row["token", "all but none"]["within"], row["best", "none"]["abstained"]) == (0.5, 0)
    chance = row["best, shuffled", "all but none"]
    for name, value in (("auroc", 0.5), ("within", 0.5), ("spearman", 0.0), ("choice", 1 / 3)):
        assert chance[f"{name}_ci"][0] <= value <= chance[f"{name}_ci"][1]
    assert chance["auroc_ci"][1] < row["best", "all but none"]["auroc_ci"][0]
    assert {r["concepts"] for r in tables["listed"]} == {"in the list", "left out"}


def test_no_sequence_keeps_its_own_predictions(made):
    tracks = Tracks.of(made.ground.table.sequence_ptr, made.ground.special)
    source, owner = exchanged(tracks, 0), made.ground.table.sequence_of
    special = made.ground.special
    assert (source[special] == np.flatnonzero(special)).all()
    assert (owner[source] != owner)[~special].all()
    assert not special[source[~special]].any()


class Scripted(Chat):
    """Says that every unit fires on the letters Cl, and knows them when it sees them."""

    def __init__(self) -> None:
        pass

    def ask(self, messages) -> str:
        prompt = messages[-1]["content"]
        if "said to fire on this" not in prompt:
            return json.dumps({"explanation": "the letters Cl"})
        items = re.findall(r"^(\d+)\. (.*)$", prompt, flags=re.MULTILINE)
        return json.dumps({"fires": [int(i) for i, text in items if "Cl" in text]})


def test_a_language_model_is_graded_on_whole_sequences(made):
    functions = []
    for code in ('carries("element Cl")', "chance(0.02, 3)"):
        values = evaluate(code, made.ground).astype(np.float32)
        functions.append(Function("atomic", Draft(code, code, (), ()), values[None], None))
    chosen = replace(made, functions=tuple(functions))
    right, wrong = language_model(chosen, Scripted())(chosen.shown())
    assert (right.text, wrong.text) == ("the letters Cl", "the letters Cl")
    assert wrong.abstains
    assert right.fires is not None
    asked = ~np.isnan(right.fires)
    assert asked.sum() == 20
    found = chosen.graded([right, wrong])
    assert (found[0].sequences, found[0].abstained, found[1].abstained) == (1, 0, 1)
    assert np.isnan([found[0].auroc, found[0].choice]).all()


def test_a_residue_before_a_proline():
    protein, text = domain_of("protein"), "MKPPAGPWP"
    read = protein.read(text, list(text), [(i, i + 1) for i in range(len(text))])
    table = ConceptTable.of(protein.concepts, [len(text)] * 2, [protein.label(read)] * 2)
    before = evaluate('next(token("P"))', Ground(protein, (read, read), table, {})) > 0
    assert np.flatnonzero(before).tolist() == [1, 2, 5, 7, 10, 11, 14, 16]  # never across two chains
