"""What every kind of edit makes of hidden states, where it acts, and what it refuses."""

from dataclasses import replace

import pytest
import torch

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.features import Features
from isotrace.interventions import (
    Attentions,
    Intervention,
    Neurons,
    Normed,
    Plan,
    Residuals,
    Scale,
    Set,
    Tokens,
)
from isotrace.interventions.where import Stacks
from isotrace.steering import EDITS, AddEdit, Edits, FeatureEdit, InputEdit, RemoveEdit, covariance
from tiny_edits import one_of

TEXTS = ["CCO", "c1cc[nH]c1"]


def states(subject, batch, plan, site="layers.0.resid_post"):
    return subject.run(batch, plan=plan, capture=[site]).captured[site]


def inside(subject, batch):
    """Real tokens that are not special."""
    return batch.mask & ~subject.special(batch.ids)


@pytest.fixture
def batch(rotary):
    return rotary.tokenize(TEXTS)


@pytest.mark.parametrize("kind", ["add", "remove", "set", "affine"])
def test_formulas(rotary, batch, kind):
    edit, h, alpha = one_of(kind, rotary), states(rotary, batch, None), 0.7
    if kind in ("add", "remove", "set"):
        v = edit.direction[0]
        along = (h @ v)[..., None]
    expected = {
        "add": lambda: h + alpha * 2.0 * v,
        "remove": lambda: h - alpha * along * v,
        "set": lambda: h + alpha * (2.0 - along) * v,
        "affine": lambda: (1 + alpha * (edit.scale - 1)) * h + alpha * edit.shift,
    }[kind]()
    found, here = states(rotary, batch, edit.plan(alpha)), inside(rotary, batch)
    torch.testing.assert_close(found[here], expected[here])
    assert torch.equal(found[~here], h[~here]), "special tokens and padding are not touched"
    whole = states(rotary, batch, replace(edit, where=Tokens(special=("<cls>", "<eos>"))).plan(alpha))
    torch.testing.assert_close(whole[batch.mask], expected[batch.mask])


def test_a_removed_direction_is_gone_and_a_set_one_is_there(rotary, batch):
    here = inside(rotary, batch)
    removed = one_of("remove", rotary)
    assert (states(rotary, batch, removed.plan(1.0))[here] @ removed.direction[0]).abs().max() < 1e-5
    put = one_of("set", rotary)
    along = states(rotary, batch, put.plan(1.0))[here] @ put.direction[0]
    torch.testing.assert_close(along, torch.full_like(along, 2.0))


def test_a_subspace_is_shrunk(rotary, batch):
    """h (I − α V diag(s) Vᵀ), dense."""
    v = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(4))).Q
    edit = RemoveEdit(components=Residuals(), layer=0, direction=v.T[:, None], shares=(1.0, 0.5, -2.0))
    dense = torch.eye(16) - 0.3 * v @ torch.diag(torch.tensor([1.0, 0.5, -2.0])) @ v.T
    h, here = states(rotary, batch, None), inside(rotary, batch)
    torch.testing.assert_close(states(rotary, batch, edit.plan(0.3))[here], (h @ dense)[here])
    twin = edit.twin(torch.Generator().manual_seed(0)).direction.flatten(1)
    torch.testing.assert_close(twin @ twin.T, torch.eye(3), rtol=0, atol=1e-5)
    assert (twin @ v).abs().max() < 0.95
    with pytest.raises(InputError, match="not orthonormal"):
        RemoveEdit(components=Residuals(), layer=0, direction=torch.ones(2, 1, 16))
    with pytest.raises(InputError, match="3 directions and 2 shares"):
        RemoveEdit(components=Residuals(), layer=0, direction=v.T[:, None], shares=(1.0, 0.5))


def test_gain_and_input(rotary, batch):
    gain, here = one_of("gain", rotary), inside(rotary, batch)
    clean = states(rotary, batch, None, "layers.0.neuron")
    found = states(rotary, batch, gain.plan(0.5), "layers.0.neuron")
    torch.testing.assert_close(found[here], (clean * (1 + 0.5 * gain.beta[:, 0]))[here])
    sites = [f"layers.{layer}.attn_out" for layer in range(3)]
    edit = InputEdit(components=Attentions(), layer=2, sources={0: 0.5, 1: -2.0}, size=(1, 16))
    z = rotary.run(batch, capture=sites).captured
    injected = 0.3 * (0.5 * z[sites[0]] - 2 * z[sites[1]])
    torch.testing.assert_close(states(rotary, batch, edit.plan(0.3), sites[2])[here], (z[sites[2]] + injected)[here])
    twin = edit.twin(torch.Generator().manual_seed(0))
    moved = states(rotary, batch, twin.plan(0.3), sites[2]) - z[sites[2]]
    torch.testing.assert_close(moved[here].norm(dim=-1), injected[here].norm(dim=-1))
    with rotary.edited(edit.plan(0.3).on(rotary, batch)):  # several passes within one context
        first = rotary.hidden(batch.ids, batch.mask)
        assert torch.equal(rotary.hidden(batch.ids, batch.mask), first)


def test_features_are_changed_in_delta_form(rotary, batch):
    """With a′ = a nothing happens, however bad the dictionary; where its output stands alone, much does."""
    dictionary, clean = tiny.random_dictionary(rotary, window=2), rotary.run(batch).logits
    same = {"layer": 0, "units": (1, 3), "values": torch.zeros(2), "mode": "scale", "pool": tuple(range(12))}
    kept = FeatureEdit(components=Features(dictionary), **same).plan(1.0)
    torch.testing.assert_close(rotary.run(batch, plan=kept).logits, clean, rtol=0, atol=1e-6)
    dropped = FeatureEdit(components=Features(dictionary, errors="drop"), **same).plan(1.0)
    assert tiny.relative(rotary.run(batch, plan=dropped).logits, clean) > 0.05
    # clamped at α c, a feature writes (α c − a) W_dec to its own layer and, of a cross-layer one, to the next
    clamp = FeatureEdit(components=Features(dictionary), **same | {"mode": "clamp", "values": torch.tensor([3.0, 4.0])})
    x = states(rotary, batch, None, "layers.0.mlp_in")
    a = dictionary.encode(0, x).dense(12)[..., [1, 3]]
    delta, here = torch.tensor([1.5, 2.0]) - a, inside(rotary, batch)
    y = states(rotary, batch, None, "layers.0.mlp_out")
    found = states(rotary, batch, clamp.plan(0.5), "layers.0.mlp_out")
    torch.testing.assert_close(found[here], (y + delta @ dictionary.decoder(0, 0)[[1, 3]])[here])
    # the stream of the next block is clean if nothing but the MLP of layer 0 was taken back
    back = Plan.of(clamp.plan(0.5), Intervention(Residuals(), Set(states(rotary, batch, None)[:, :, None])))
    later = states(rotary, batch, back, "layers.1.mlp_out") - states(rotary, batch, None, "layers.1.mlp_out")
    torch.testing.assert_close(later[here], (delta @ dictionary.decoder(0, 1)[[1, 3]])[here], rtol=1e-4, atol=1e-5)


def test_a_direction_for_every_position(rotary):
    """Planted at one position, it moves that and no other; sequences of another length are refused."""
    batch, direction = rotary.tokenize(["CCO", "CCN"]), torch.zeros(5, 1, 16)
    direction[2, 0] = torch.arange(16.0)
    edit = AddEdit(components=Residuals(), layer=0, direction=direction, scale=None)
    moved = states(rotary, batch, edit.plan(0.5)) - states(rotary, batch, None)
    assert torch.nonzero(moved.abs().sum((0, 2)) > 0)[:, 0].tolist() == [2]
    sizes = 0.5 * 5**0.5 * states(rotary, batch, None)[:, 2].norm(dim=-1)
    torch.testing.assert_close(moved[:, 2].norm(dim=-1), sizes)
    with pytest.raises(InputError, match="each of 5 tokens meets 4 tokens"):
        rotary.run(rotary.tokenize(["CC"]), plan=edit.plan(0.5))


def test_norms(rotary, batch):
    edit, here = one_of("add", rotary), inside(rotary, batch)
    h = states(rotary, batch, None)[here].norm(dim=-1)
    keep = states(rotary, batch, replace(edit, norm="keep").plan(3.0))[here]
    torch.testing.assert_close(keep.norm(dim=-1), h)
    free = states(rotary, batch, edit.plan(3.0))[here]
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(keep, free, dim=-1), torch.ones(len(h)))
    limit = float(h.median())
    capped = states(rotary, batch, replace(edit, norm="cap", limit=limit).plan(3.0))[here].norm(dim=-1)
    torch.testing.assert_close(capped, torch.minimum(free.norm(dim=-1), h.clamp(min=limit)))
    loose = replace(edit, norm="cap", limit=1e6).plan(3.0)
    torch.testing.assert_close(states(rotary, batch, loose)[here], free)


def test_tokens(rotary, batch):
    """<cls> C C O <eos> and <cls> c 1 c c [nH] c 1 <eos>; the first C and the nitrogen are masked."""
    ids = batch.ids.clone()
    ids[0, 1] = ids[1, 5] = rotary.mask_id
    sites = torch.zeros_like(batch.mask)
    sites[0, 2] = sites[1, 3] = sites[1, 6] = True
    batch = replace(batch.with_ids(ids), sites=sites)
    places = lambda which, **given: [  # noqa: E731
        torch.nonzero(row)[:, 0].tolist() for row in Tokens(which, **given).on(rotary, batch).tokens
    ]
    assert places("real") == [[1, 2, 3], [1, 2, 3, 4, 5, 6, 7]]
    assert places("real", special=("<eos>",)) == [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert places("masked") == [[1], [5]]
    assert places("mutable") == [[2], [3, 6]]
    assert places("generated") == [[2, 3], [3, 4, 5, 6, 7]]
    assert places("last") == [[3], [7]]
    assert places("last", special=("<eos>",)) == [[4], [8]]
    clean = states(rotary, batch, None)
    for which, moved in (("masked", [[1], [5]]), ("last", [[3], [7]])):
        found = states(rotary, batch, replace(one_of("add", rotary), where=Tokens(which)).plan(0.5))
        changed = (found != clean).any(-1)
        assert [torch.nonzero(row)[:, 0].tolist() for row in changed] == moved


def test_what_tokens_refuse(rotary, batch):
    plan = replace(one_of("add", rotary), where=Tokens("mutable")).plan(1.0)
    with pytest.raises(InputError, match=r"does not say which tokens are mutable: give Batch\.sites"):
        rotary.run(batch, plan=plan)
    with pytest.raises(InputError, match="names no tokens"):
        Tokens("some")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="no token of"):
        Tokens("real", ("<start>",)).on(rotary, batch)
    resolved = one_of("add", rotary).plan(1.0).on(rotary, batch)
    shorter = rotary.tokenize(["CC"])
    with pytest.raises(InputError, match="resolve the plan on that"), rotary.edited(resolved):
        rotary.hidden(shorter.ids, shorter.mask)
    with pytest.raises(InputError, match="known of a batch only"), rotary.edited(one_of("add", rotary).plan(1.0)):
        rotary.hidden(batch.ids, batch.mask)


def test_masked_tokens_of_a_subject_that_fills_none(tmp_path):
    causal = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("gpt2"), tmp_path / "gpt2"))
    with pytest.raises(SubjectError, match="no mask token"):
        Tokens("masked").on(causal, causal.tokenize(["CCO"]))


def test_what_edits_refuse(rotary):
    vector = torch.ones(16)
    at = {"components": Residuals(), "layer": 1}
    for given, message in (
        ({"direction": torch.zeros(16), "scale": 1.0}, "points nowhere"),
        ({"direction": vector * torch.nan, "scale": 1.0}, "NaN or infinity"),
        ({"direction": vector, "scale": 0.0}, "is no norm"),
        ({"direction": vector, "scale": 1.0, "norm": "cap"}, "needs the limit"),
        ({"direction": vector, "scale": 1.0, "norm": "half"}, "no way to treat norms"),
    ):
        with pytest.raises(InputError, match=message):
            AddEdit(**at, **given)
    with pytest.raises(InputError, match=r"direction is \[1, 5\], layer 1 of residuals \[1, 16\]"):
        AddEdit(**at, direction=torch.ones(5), scale=1.0).check(rotary)
    with pytest.raises(InputError, match="there is no layer 9"):
        RemoveEdit(components=Residuals(), layer=9, direction=vector).check(rotary)
    with pytest.raises(InputError, match="sources from 0 to 0"):
        InputEdit(**at, sources={1: 1.0}, size=(1, 16))
    units = {"components": Neurons(), "layer": 0, "units": (0, 1)}
    with pytest.raises(InputError, match="one for every unit"):
        FeatureEdit(**units, values=torch.ones(3), pool=tuple(range(9)))
    with pytest.raises(InputError, match="a larger pool"):
        FeatureEdit(**units, values=torch.ones(2), pool=(0, 1, 2))
    with pytest.raises(InputError, match="is no strength"):
        one_of("add", rotary).plan(torch.inf)
    with pytest.raises(InputError, match="keeping the norm has none"):
        Normed(Scale(1.0), "keep", 2.0)
    with pytest.raises(InputError, match="one at least"):
        Edits(())


def test_edits_compose(rotary, batch):
    add, gain = Edits((one_of("add", rotary),), "mean", confounds={"length": 0.2}), Edits((one_of("gain", rotary),))
    both = add | gain
    apart = add.plan(0.5) | gain.plan(0.5)
    assert both.plan(0.5) == apart
    assert both.confounds == {"mean: length": 0.2}
    assert both.method == "mean + given"
    late = both.at(rounds=range(2, 4))
    assert [len(late.plan(0.5, round=i)) for i in range(5)] == [0, 0, 2, 2, 0]
    assert late.plan(0.5) == apart
    assert {e.where.which for e in both.at(Tokens("masked")).edits} == {"masked"}
    with pytest.raises(InputError, match="no dose yet"):
        both.plan()


def test_every_kind_is_known_by_its_name():
    assert [*EDITS] == ["add", "remove", "set", "swap", "path", "affine", "gain", "feature", "input"]
    assert all(EDITS[name].kind == name for name in EDITS)


def test_plans_with_edits_are_saved_and_read(rotary, batch, tmp_path):
    edits = Edits(tuple(one_of(kind, rotary) for kind in EDITS)).at(Tokens("last", ("<eos>",)))
    edits |= Edits((replace(one_of("add", rotary), norm="cap", limit=2.0),))
    dictionaries = [e.components.dictionary for e in edits.edits if isinstance(e.components, Features)]
    for plan in (edits.plan(0.5), edits.plan(0.5).on(rotary, batch)):
        again = Plan.load(plan.save(tmp_path / "plan"), dictionaries)
        assert again == plan
        assert torch.equal(rotary.run(batch, plan=again).final, rotary.run(batch, plan=plan).final)
    source, target = (rotary.tokenize([text]) for text in ("CCO", "CCN"))
    apart = Stacks(1, Tokens().on(rotary, source), Tokens().on(rotary, target))
    pair = Plan((Intervention(Residuals(), Scale(0.5), apart),))  # resolved on a pair
    assert Plan.load(pair.save(tmp_path / "pair")) == pair


def test_covariance_of_what_flows():
    rows = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(covariance(rows), torch.cov(rows.T))
