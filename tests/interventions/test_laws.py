"""The laws of interventions, for every kind of components on every family (float64)."""

import threading

import pytest
import torch

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.features import Features
from isotrace.interventions import (
    Add,
    Apply,
    Attentions,
    Clamp,
    Embeddings,
    Heads,
    Intervention,
    MLPInputs,
    MLPs,
    Neurons,
    Nodes,
    Not,
    Plan,
    Residuals,
    Rows,
    Scale,
    Select,
    Set,
    Subspaces,
    To,
    Units,
)  # fmt: skip

pytestmark = pytest.mark.every_family
TEXTS = ["CCO", "c1cc[nH]c1"]


def components(subject):
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(subject.d_model, 2, generator=generator)).Q.double()
    dictionary = tiny.random_dictionary(subject, window=2).double()
    sae = tiny.random_dictionary(subject, "sae", layers=(0, 2)).double()
    return {
        "heads": Heads(),
        "neurons": Neurons(),
        "some neurons": Neurons((1,)),
        "mlps": MLPs(),
        "mlp inputs": MLPInputs(),
        "attentions": Attentions(),
        "residuals": Residuals(),
        "embeddings": Embeddings(),
        "subspace": Subspaces({"layers.0.mlp_out": basis, "layers.1.resid_post": basis}),
        "features": Features(dictionary),
        "features alone": Features(dictionary, errors="drop"),
        "sae": Features(sae),
    }


KINDS = ("heads", "neurons", "some neurons", "mlps", "mlp inputs", "attentions", "residuals", "embeddings", "subspace",
         "features", "features alone", "sae")  # fmt: skip


@pytest.fixture
def batch(subject64):
    return subject64.tokenize(TEXTS)


def final(subject, batch, *plans):
    """Final hidden state of real tokens under plans, one context inside the other."""
    if not plans:
        return subject.hidden(batch.ids, batch.mask)[batch.mask]
    with subject.edited(plans[0]):
        return final(subject, batch, *plans[1:])


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_empty_plan_is_the_identity_to_the_bit(subject64, batch):
    clean = final(subject64, batch)
    assert torch.equal(final(subject64, batch, Plan()), clean)
    nowhere = Plan((Intervention(MLPs(), Set(0.0), Select(layers=())),))
    assert torch.equal(final(subject64, batch, nowhere), clean)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_laws_of_one_kind(subject64, batch, kind):
    found = components(subject64)[kind]
    sizes = found.sizes(subject64)
    own = To(found.record(subject64, batch)[0])
    generator = torch.Generator().manual_seed(0)
    reference = To(tuple(torch.randn(size, generator=generator) for size in sizes), "mean")
    even, odd = Select(index=tuple(range(0, sizes[0][0], 2))), Select(index=(0,))
    plan = lambda what, where=Select(): Plan((Intervention(found, what, where),))  # noqa: E731, B008
    neutral = final(subject64, batch, plan(Scale(1.0)))
    clean = final(subject64, batch)
    if not getattr(found, "replaces", False):
        close(neutral, clean)
    # what is read and set again changes nothing, nor does setting twice what was set once
    close(final(subject64, batch, plan(own)), neutral)
    once = final(subject64, batch, plan(reference, even))
    assert tiny.relative(once, neutral) > 1e-6
    close(final(subject64, batch, plan(reference, even) | plan(reference, even)), once)
    close(final(subject64, batch, plan(reference, even), plan(reference, even)), once)
    # a plan is its parts, one context inside the other
    add, scale = plan(Add(0.3), odd), plan(Scale(-0.7), even)
    close(final(subject64, batch, add | scale), final(subject64, batch, add, scale))
    # what is apart commutes; the complement of the complement is the set
    if sizes[0][0] > 1 and all(n == sizes[0][0] for n, _ in sizes):
        others = Select(index=tuple(range(1, sizes[0][0], 2)))
        one, two = plan(reference, even), plan(Add(0.5), others)
        close(final(subject64, batch, one | two), final(subject64, batch, two | one))
    close(final(subject64, batch, plan(reference, ~~even)), once)
    both = plan(reference, even) | plan(reference, ~even)
    close(final(subject64, batch, both), final(subject64, batch, plan(reference)))
    assert torch.equal(final(subject64, batch), clean), "nothing is left behind"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["heads", "neurons", "features", "sae"])
def test_rows_of_a_batch_are_apart(subject64, kind):
    found, text = components(subject64)[kind], "CC(=O)N"
    single = subject64.tokenize([text])
    copies = subject64.tokenize([text] * 3)
    wheres = [Nodes(((0, 1, 0), (1, -1, 1))), Select(layers=()), Select(positions=(2,))]
    together = final(subject64, copies, Plan((Intervention(found, Set(0.5), Rows(tuple(wheres))),)))
    alone = [final(subject64, single, Plan((Intervention(found, Set(0.5), where),))) for where in wheres]
    close(together, torch.cat(alone))
    with pytest.raises(InputError, match="whole copies"):
        final(subject64, single, Plan((Intervention(found, Set(0.5), Rows(tuple(wheres))),)))


@torch.no_grad()
def test_threads_do_not_see_each_other(subject64):
    """Every thread under a plan of its own gets what it gets alone, while others run."""
    texts = ["CCO", "CC(=O)N", "c1cc[nH]c1", "OCCN"]
    plans = [Plan((Intervention(MLPs(), Add(0.1 * i), Select((1,))),)) for i in range(4)]
    jobs = [(subject64.tokenize([texts[i]]), plans[i]) for i in range(4)]
    alone = [final(subject64, batch, plan) for batch, plan in jobs]
    found: dict[int, list] = {i: [] for i in range(4)}

    def work(i):
        with torch.no_grad():
            found[i] = [final(subject64, jobs[i][0], jobs[i][1]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, alone[i]) for i in range(4) for one in found[i])
    assert all(len(rows) == 10 for rows in found.values())


@torch.no_grad()
def test_an_exception_leaves_nothing_behind(subject64, batch):
    clean = final(subject64, batch)

    def fail(layer, values):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        final(subject64, batch, Plan((Intervention(Neurons(), Apply(fail)),)))
    assert torch.equal(final(subject64, batch), clean)


@torch.no_grad()
def test_what_is_recorded_inside_is_what_flows_there(subject64, batch):
    plan = Plan((Intervention(Heads(), Set(0.0), Select((0,), (1,))),))
    with subject64.edited(plan):
        values = Heads().record(subject64, batch)[0]
    assert not values[0][:, :, 1].any()
    clean = Heads().record(subject64, batch)[0]
    torch.testing.assert_close(values[0][:, :, 0], clean[0][:, :, 0])
    run = subject64.run(batch, plan=plan, capture=["layers.0.head_out"])
    torch.testing.assert_close(run.captured["layers.0.head_out"].unflatten(-1, Heads().sizes(subject64)[0]), values[0])


def test_numbers_that_are_not_there(rotary):
    batch = rotary.tokenize(["CCO"])
    for where in (Select(index=(99,)), Select(positions=(99,)), Nodes(((0, 99, 0),)), Select(index=(-1,))):
        with pytest.raises(InputError, match="there is no"):
            rotary.run(batch, plan=Plan((Intervention(Neurons(), Set(0.0), where),)))
    with pytest.raises(InputError, match="without a bound"):
        Clamp()
    with pytest.raises(InputError, match="low ≤ high"):
        Clamp(2.0, 1.0)


def test_atoms_are_the_tokens_that_write_them(tmp_path):
    subject = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("esm-rotary"), tmp_path / "molecules"))
    batch = subject.tokenize(["CCO", "OCC"])
    plan = Plan((Intervention(Residuals(), Set(0.0), Units((2,))),))
    if subject.files.domain is None:
        with pytest.raises(InputError, match="names no domain"):
            subject.run(batch, plan=plan)
        object.__setattr__(subject.files, "domain", "molecule")
    run = subject.run(batch, plan=plan, capture=["layers.1.resid_post"])
    silent = run.captured["layers.1.resid_post"].abs().sum(-1) == 0
    assert silent.tolist() == [[False, False, False, True, False]] * 2
    with pytest.raises(InputError, match="there is no atom 3"):
        subject.run(batch, plan=Plan((Intervention(Residuals(), Set(0.0), Units((3,))),)))
    with pytest.raises(InputError, match="known of a batch only"), subject.edited(plan):
        subject.hidden(batch.ids, batch.mask)


def test_complement(rotary):
    values = torch.zeros(1, 5, 4, 1)
    where = Nodes(((0, 1, 2), (0, -1, 0)))
    mask, inverse = where.mask(0, values), (~where).mask(0, values)
    assert torch.equal(mask, ~inverse)
    assert mask.sum() == 6
    assert where.mask(1, values) is None
    assert bool((~where).mask(1, values).all())
    assert isinstance(~where, Not)
    assert ~~where == where


def test_plans_are_compared_saved_and_read(rotary, tmp_path):
    dictionary = tiny.random_dictionary(rotary)
    other = tiny.random_dictionary(rotary, window=1)
    batch = rotary.tokenize(["CCO"])
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(1))).Q
    plan = Plan.of(
        Intervention(Features(dictionary), Set(0.0), Not(Nodes(((0, 1, 3), (1, -1, 2))))),
        Intervention(MLPs(), Add(vector), Select((1,), None, (1, 2))),
        Intervention(Neurons((0, 2)), Clamp(high=0.1), Rows((Select(),))),
        Intervention(Heads(), To.other(rotary, Heads(), rotary.tokenize(["CCN"])), Select((0,), (1,))),
        Intervention(Subspaces({"layers.1.resid_post": basis}), Scale(0.5)),
    )
    again = Plan.load(plan.save(tmp_path / "plan"), [other, dictionary])
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.to_dict() == plan.to_dict()
    torch.testing.assert_close(rotary.run(batch, plan=again).logits, rotary.run(batch, plan=plan).logits)
    alone = Intervention(Features(dictionary, errors="drop"), Scale(1.0))
    assert (
        Plan.load(Plan.of(alone).save(tmp_path / "alone"), [dictionary])
        == Plan.of(alone)
        != Plan.of(plan.interventions[0])
    )
    with pytest.raises(InputError, match="other ones replace it"):
        rotary.run(batch, plan=Plan.of(alone, Intervention(Neurons(), Set(0.0))))
    assert plan != Plan.of(*plan.interventions[:-1])
    assert Plan.of(plan.interventions[0]) | Plan.of(*plan.interventions[1:]) == plan
    with pytest.raises(InputError, match="not given"):
        Plan.load(tmp_path / "plan", [other])
    with pytest.raises(InputError, match="holds no plan"):
        Plan.load(tmp_path)
    with pytest.raises(InputError, match="cannot be saved"):
        Plan((Intervention(MLPs(), Apply(lambda layer, values: values)),)).save(tmp_path / "function")
    record = plan.to_dict()
    record["interventions"][0]["what"]["kind"] = "Magic"
    with pytest.raises(InputError, match="knows no 'Magic'"):
        Plan.from_dict(record, [dictionary])


@torch.no_grad()
def test_what_is_written_under_a_plan(subject):
    """The plan acts at every step: a vocabulary whose output is moved towards one token writes that token."""
    masked = subject.objective == "masked"
    batch = subject.tokenize(["CCO", "CC"])
    if masked:
        batch = batch.with_ids(batch.ids.masked_fill(batch.ids == subject.token_id("C"), subject.mask_id))
    given = {"temperature": 1.0, "max_new": 4, "seed": 1}
    one, two = subject.generate(batch, **given), subject.generate(batch, **given)
    assert all(torch.equal(a, b) for a, b in zip(one.ids, two.ids, strict=True))
    greedy = subject.generate(batch, plan=Plan(), temperature=0, max_new=4)
    frozen = Plan((Intervention(Residuals(), Set(0.0), Select((subject.n_layers - 1,))),))
    moved = subject.generate(batch, plan=frozen, temperature=0, max_new=4)
    constant = {tuple(row.tolist()) for row in moved.ids} if not masked else None
    logits = subject.head(subject.run(batch, plan=frozen).final)[batch.mask]
    special = [i for i in subject.tokenizer.all_special_ids if masked or i != subject.tokenizer.eos_token_id]
    (token,) = set(logits.index_fill(-1, torch.tensor(special), -torch.inf).argmax(-1).tolist())
    if masked:
        filled = batch.ids == subject.mask_id
        found = torch.stack([torch.nn.functional.pad(r, (0, batch.ids.shape[1] - len(r))) for r in moved.ids])
        assert set(found[filled].tolist()) == {token}
        assert all(greedy.ended)
    else:
        assert all(set(row[-1:]) == {token} for row in constant)
        assert all(len(row) <= 4 + batch.ids.shape[1] for row in moved.ids)


def test_who_cannot_write(rotary):
    with pytest.raises(InputError, match="none is masked"):
        rotary.generate(rotary.tokenize(["CCO"]))
    with pytest.raises(InputError, match="cannot be sampled"):
        rotary.generate(rotary.tokenize(["CCO"]), temperature=-1)
    rotary.has_head = False
    try:
        with pytest.raises(SubjectError, match="writes nothing"):
            rotary.generate(rotary.tokenize(["CCO"]))
    finally:
        rotary.has_head = True
