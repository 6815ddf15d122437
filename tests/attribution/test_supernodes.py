"""Groups are found where they were planted, the same every time, and their names survive a round trip."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import tiny
from isotrace.attribution.graph import frame
from isotrace.attribution.supernodes import (
    SupernodeConfig,
    activation_profiles,
    find_supernodes,
    group,
    merged,
    read_supernodes,
    similarity,
    vectors,
)
from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.base.runs import dumps

N_GROUPS, SIZE, D, SAMPLES = 4, 6, 24, 60
TRUE = np.repeat(np.arange(N_GROUPS), SIZE)


def planted(seed, by):
    """(concepts, read, write, profiles) of features in four groups, told apart by one view only."""
    g = torch.Generator().manual_seed(seed)
    noise = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    centres = lambda d: noise(N_GROUPS, d)[TRUE] + 0.2 * noise(len(TRUE), d)  # noqa: E731
    concepts = [f"concept {k}" if by == "concept" else None for k in TRUE]
    read = centres(D) if by == "vectors" else noise(len(TRUE), D)
    write = centres(D) if by == "vectors" else noise(len(TRUE), D)
    profiles = (centres(SAMPLES) if by == "coactivation" else noise(len(TRUE), SAMPLES)).relu()
    return concepts, read, write, profiles


@pytest.mark.parametrize("by", ["concept", "vectors", "coactivation"])
def test_every_view_finds_what_it_alone_shows(by):
    weights = {"concept": 0.0, "read": 0.0, "write": 0.0, "coactivation": 0.0}
    weights |= {"read": 1.0, "write": 1.0} if by == "vectors" else {by: 1.0}
    config = SupernodeConfig(threshold=0.75, **weights)
    concepts, read, write, profiles = planted(0, by)
    labels = group(similarity(config, concepts, read, write, profiles), config.threshold)
    assert adjusted_rand_score(TRUE, labels) == 1.0
    blind = SupernodeConfig(threshold=0.75, **{k: 1.0 - min(1.0, w) for k, w in weights.items()})
    others = group(similarity(blind, concepts, read, write, profiles), blind.threshold)
    assert abs(adjusted_rand_score(TRUE, others)) < 0.5, "the other views do not show it"


def test_similarity_is_the_weighted_mean_of_the_defined_views():
    config = SupernodeConfig(concept=2.0, read=1.0, write=0.5, coactivation=0.25)
    concepts, read, write, profiles = (
        ["a", "a", "b", None],
        *torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0)),
    )
    found = similarity(config, concepts, read, write, profiles)
    cos = lambda x, i, j: float(torch.nn.functional.cosine_similarity(x[i].double(), x[j].double(), 0))  # noqa: E731
    for i in range(4):
        for j in range(4):
            views = [(1.0, read), (0.5, write), (0.25, profiles)]
            total, weight = sum(w * cos(x, i, j) for w, x in views), sum(w for w, _ in views)
            if None not in (concepts[i], concepts[j]):
                total, weight = total + 2.0 * (concepts[i] == concepts[j]), weight + 2.0
            assert found[i, j] == pytest.approx(total / weight, abs=1e-9)


def test_the_threshold_is_average_linkage():
    """Two pairs of similarity 0.9, 0.3 between them on average."""
    similarities = np.array([[1, 0.9, 0.2, 0.4], [0.9, 1, 0.3, 0.3], [0.2, 0.3, 1, 0.9], [0.4, 0.3, 0.9, 1]])
    assert group(similarities, 0.95).tolist() == [0, 1, 2, 3]
    assert group(similarities, 0.31).tolist() == [0, 0, 1, 1]
    assert group(similarities, 0.29).tolist() == [0, 0, 0, 0]
    assert group(similarities[[3, 0, 1, 2]][:, [3, 0, 1, 2]], 0.5).tolist() == [0, 1, 1, 0]
    assert group(np.ones((1, 1)), 0.5).tolist() == [0]
    assert len(group(np.ones((0, 0)), 0.5)) == 0


@pytest.fixture
def features(rotary):
    """Keys of features active on one input, their dictionary and their activations there."""
    batch, target = tiny.prepared("mask", rotary)
    framing = frame(rotary, tiny.random_dictionary(rotary, n_features=24, k=5), batch, target)
    found = set()
    for layer, position, slot in (framing.active.values > 0).nonzero().tolist():
        found.add((layer, int(framing.active.indices[layer, position, slot])))
    keys = sorted(found)
    assert len(keys) > 15
    return keys, framing


def test_profiles_are_activations(features):
    keys, framing = features
    profiles = activation_profiles(framing, keys)
    for (layer, feature), row in zip(keys, profiles, strict=True):
        dense = framing.dictionary.encode(layer, framing.frozen.actual.mlp_in[layer][0]).dense(24)
        torch.testing.assert_close(row, dense[:, feature])
    read, write = vectors(framing.dictionary, keys)
    layer, feature = keys[3]
    torch.testing.assert_close(read[3], framing.dictionary.W_enc[layer][:, feature])
    targets = framing.dictionary.config.targets(layer)
    torch.testing.assert_close(write[3], sum(framing.dictionary.decoder(layer, t)[feature] for t in targets))


def test_groups_are_complete_and_the_same_every_time(features):
    keys, framing = features
    concepts = [None if k % 3 == 0 else f"concept {k % 5}" for k in range(len(keys))]
    profiles = activation_profiles(framing, keys)
    first, again = (find_supernodes(SupernodeConfig(), keys, concepts, framing.dictionary, profiles) for _ in range(2))
    assert first == again
    assert sorted(key for g in first.groups for key in g.features) == sorted(keys)
    assert 1 < len(first.groups) < len(keys)
    assert len({g.name for g in first.groups}) == len(first.groups)
    for g in first.groups:
        known = [concepts[keys.index(k)] for k in g.features if concepts[keys.index(k)]]
        best = max((known.count(c) for c in known), default=0)
        assert not known or known.count(g.name.split(" (")[0]) == best
        assert known or g.name.startswith(f"layer {g.features[0][0]}, feature {g.features[0][1]}")
    few, many = (
        find_supernodes(SupernodeConfig(threshold=t), keys, concepts, framing.dictionary, profiles) for t in (0.2, 0.9)
    )
    assert len(few.groups) < len(first.groups) < len(many.groups)
    with pytest.raises(ValueError, match="named once"):
        find_supernodes(SupernodeConfig(), [*keys, keys[0]], [*concepts, None], framing.dictionary, profiles)


def test_stability_is_high_only_where_coactivation_has_groups(features):
    """The same features, once with planted activations and once with independent ones."""
    keys, framing = features
    g = torch.Generator().manual_seed(0)
    config = SupernodeConfig(concept=0.0, read=0.0, write=0.0, coactivation=1.0, threshold=0.6)
    labels = torch.arange(len(keys)) % 4
    blocks = torch.rand(4, 80, generator=g).gt(0.7).float()[labels] + 0.05 * torch.rand(len(keys), 80, generator=g)
    nothing = [None] * len(keys)
    planted = find_supernodes(config, keys, nothing, framing.dictionary, blocks)
    found = [planted.group_of()[key] for key in keys]
    assert adjusted_rand_score(labels.numpy(), found) == 1.0
    assert planted.stability.adjusted_rand > 0.95
    assert abs(planted.stability.null) < 0.2
    assert planted.stability.interval[0] <= planted.stability.adjusted_rand <= planted.stability.interval[1]
    sparse = (torch.rand(len(keys), 80, generator=g) > 0.8).float()
    loose = find_supernodes(replace(config, threshold=0.35), keys, nothing, framing.dictionary, sparse)
    assert loose.stability.adjusted_rand < 0.7


def test_edited_names_come_back(features, tmp_path):
    keys, framing = features
    profiles = activation_profiles(framing, keys)
    automatic = find_supernodes(SupernodeConfig(), keys, [None] * len(keys), framing.dictionary, profiles)
    path = tmp_path / "supernodes.json"
    text = json.loads(dumps(automatic))
    text["groups"][0]["name"] = "my ünïts"
    path.write_text(json.dumps(text), encoding="utf-8")
    given = read_supernodes(path, framing.dictionary)
    assert given.groups[0].name == "my ünïts"
    assert given.groups[1:] == automatic.groups[1:]
    assert merged(given, automatic).groups == given.groups
    # another circuit: what it lacks is dropped, what the file does not know keeps its automatic group
    lost, new = keys[0], next(k for k in keys if k not in automatic.groups[0].features)
    text["groups"] = [g | {"features": [f for f in g["features"] if tuple(f) != new]} for g in text["groups"]]
    path.write_text(json.dumps(text), encoding="utf-8")
    rest = find_supernodes(SupernodeConfig(), keys[1:], [None] * len(keys[1:]), framing.dictionary, profiles[1:])
    joined = merged(read_supernodes(path, framing.dictionary), rest)
    assert sorted(k for g in joined.groups for k in g.features) == keys[1:]
    assert lost not in joined.group_of()
    assert any(new in g.features for g in joined.groups)


def damage(path, change):
    text = json.loads(path.read_text())
    change(text)
    path.write_text(json.dumps(text))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.update(colour=1), "colour"),
        (lambda t: t.update(format="other"), "format"),
        (lambda t: t.update(format_version=3), "format_version"),
        (lambda t: t["groups"][0].pop("name"), "name"),
        (lambda t: t["groups"].append(t["groups"][0]), "twice"),
        (lambda t: t["groups"][0]["features"].append([-1, 0]), "groups"),
        (lambda t: t.update(dictionary_id="0"), "another dictionary"),
    ],
)
def test_files_that_cannot_be_used(features, tmp_path, change, match):
    keys, framing = features
    path = tmp_path / "supernodes.json"
    automatic = find_supernodes(SupernodeConfig(), keys, [None] * len(keys), framing.dictionary, torch.eye(len(keys)))
    path.write_text(dumps(automatic))
    assert read_supernodes(path, framing.dictionary) == automatic
    damage(path, change)
    with pytest.raises(InputError, match=match) as caught:
        read_supernodes(path, framing.dictionary)
    assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        read_supernodes(path, framing.dictionary)
    with pytest.raises(InputError, match="cannot be read"):
        read_supernodes(tmp_path / "none.json", framing.dictionary)


def test_the_hash_sees_every_weight(rotary):
    first, same, other = (tiny.random_dictionary(rotary, seed=seed) for seed in (0, 0, 1))
    assert identity(first) == identity(same) != identity(other)
    same.b_dec[1].data[0] += 1e-6
    assert identity(first) != identity(same)
