"""Files that other tools saved are the same functions here as there (recorded by scripts/make_interop_fixtures.py)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from isotrace.base.errors import DictionaryError, InputError
from isotrace.dictionaries import interop
from isotrace.dictionaries.interop import Hints
from isotrace.dictionaries.saving import load_dictionary

DATA = Path(__file__).parents[2] / "data" / "interop"
KINDS = sorted(folder.parent for folder in DATA.glob("*/*/files"))
REVERSE = sorted(folder.parent for folder in DATA.glob("reverse/*/*/files"))
RELATIVE = 1e-5
SITE = "layers.{}.resid_post"


def source(kind: Path) -> Path:
    """What a user would name: the folder, or the file where the format is one."""
    files = kind / "files"
    return next(files.glob("*.ckpt"), next(files.glob("sae.safetensors"), next(files.glob("layer_3"), files)))


def hints(kind: Path) -> Hints:
    """What the format leaves to the user; the fixtures have k = 3."""
    tool = kind.parent.name
    site = SITE if tool in ("dictionary_learning", "clt_forge") else None
    out = "layers.{}.mlp_out" if tool == "clt_forge" else None
    return Hints(
        (4,) if tool == "interprot" else (), site, out, 3 if kind.name == "topk" and tool == "interprot" else None
    )


def features(dictionary, x):
    return torch.stack([dictionary.encode(s, x[s]).dense(dictionary.config.n_features) for s in range(len(x))])


def same(a, b, relative=RELATIVE):
    assert (a - b).abs().max() <= relative * b.abs().max()


def test_every_format_has_fixtures():
    assert {kind.parent.name for kind in KINDS} == set(interop.FORMATS)
    assert {kind.parent.name for kind in REVERSE} == set(interop.written())


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.parent.name}-{k.name}")
def test_the_function_is_that_of_the_tool(kind):
    recorded = load_file(kind / "recorded.safetensors")
    assert interop.detect(source(kind)) == kind.parent.name
    dictionary = interop.read([source(kind)], hints(kind)).dictionary()
    found, active = features(dictionary, recorded["x"]), recorded["features"] > 0
    assert 0 < active.float().mean() < 1
    assert torch.equal(found > 0, active)
    same(found, recorded["features"])
    same(dictionary(recorded["x"]), recorded["y"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.parent.name}-{k.name}")
def test_written_and_read_again_it_is_the_same_function(kind, tmp_path):
    """In every format that can hold it; those that cannot must say so."""
    x = load_file(kind / "recorded.safetensors")["x"]
    dictionary = interop.read([source(kind)], hints(kind)).dictionary()
    config, held = dictionary.config, []
    for tool in interop.written():
        try:
            interop.write(dictionary, tmp_path / tool, tool, "tiny")
        except DictionaryError:
            assert not (tmp_path / tool).exists()
            continue
        held.append(tool)
        back = Hints(config.layers, config.hookpoint_in, config.hookpoint_out)
        again = interop.read([tmp_path / tool], back, tool).dictionary()
        assert again.config.layers == config.layers
        same(features(again, x), features(dictionary, x))
        same(again(x), dictionary(x))
    if kind.parent.name in interop.written() and kind.name != "plt_topk":
        assert kind.parent.name in held


@pytest.mark.parametrize("kind", REVERSE, ids=lambda k: f"{k.parent.name}-{k.name}")
def test_the_tool_reads_what_is_written_as_the_same_function(kind, tmp_path):
    """The tool's own result on the recorded files; what is written now must be what it was given then."""
    dictionary = load_dictionary(DATA / "reverse" / "dictionaries" / kind.name)
    interop.write(dictionary, tmp_path, kind.parent.name, "tiny")
    names = {p.relative_to(kind / "files") for p in (kind / "files").rglob("*") if p.is_file()}
    assert {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()} == names, "run the script again"
    for name in names:
        new, old = tmp_path / name, kind / "files" / name
        if name.suffix in (".json", ".yaml"):
            assert new.read_bytes() == old.read_bytes(), f"{name} changed: run the script again"
            continue
        read = load_file if name.suffix == ".safetensors" else torch.load
        a, b = read(new), read(old)
        assert a.keys() == b.keys(), f"{name} changed: run the script again"
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-6, atol=1e-6)
    recorded = load_file(kind / "recorded.safetensors")
    same(features(dictionary, recorded["x"]), recorded["features"])
    same(dictionary(recorded["x"]), recorded["y"])


def test_several_folders_become_one_dictionary_in_layer_order(tmp_path):
    one, two = (DATA / "saelens" / "standard" / "files", tmp_path / "other")
    shutil.copytree(one, two)
    cfg = json.loads((two / "cfg.json").read_text())
    cfg["metadata"]["hook_name"] = "blocks.0.hook_resid_post"
    (two / "cfg.json").write_text(json.dumps(cfg))
    weights = load_file(two / "sae_weights.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, two / "sae_weights.safetensors")
    both = interop.read([one, two], Hints())
    single = interop.read([two], Hints()).dictionary()
    assert both.config.layers == (0, 2)
    x = torch.randn(1, 5, both.config.d_in, generator=torch.Generator().manual_seed(0))
    same(both.dictionary()(x.expand(2, -1, -1))[:1], single(x))
    with pytest.raises(DictionaryError, match="differ in activation"):
        interop.read([one, DATA / "saelens" / "topk" / "files"], Hints(layers=(0, 1)))
    with pytest.raises(DictionaryError, match="--layer"):
        interop.read([one, two], Hints(layers=(1,)))


def test_saelens_before_version_6(tmp_path):
    """Metadata at the top level, TopK as an activation function of a standard one."""
    shutil.copytree(DATA / "saelens" / "topk" / "files", tmp_path / "old")
    cfg = json.loads((tmp_path / "old" / "cfg.json").read_text())
    new = cfg.pop("metadata")
    k = cfg.pop("k")
    cfg |= {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": k}}
    (tmp_path / "old" / "cfg.json").write_text(json.dumps(cfg | {"hook_name": new["hook_name"]}))
    recorded = load_file(DATA / "saelens" / "topk" / "recorded.safetensors")
    dictionary = interop.read([tmp_path / "old"], Hints()).dictionary()
    assert (dictionary.config.k, dictionary.config.layers) == (k, (2,))
    same(dictionary(recorded["x"]), recorded["y"])


def test_saelens_scale_of_a_checkpoint_is_folded(tmp_path):
    shutil.copytree(DATA / "saelens" / "standard" / "files", tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(cfg | {"normalize_activations": "expected_average_only_in"}))
    with pytest.raises(DictionaryError, match="do not hold the statistics"):
        interop.read([tmp_path / "sae"], Hints())
    (tmp_path / "sae" / "activation_scaler.json").write_text('{"scaling_factor": 2.0}')
    scaled = interop.read([tmp_path / "sae"], Hints()).dictionary()
    plain = interop.read([DATA / "saelens" / "standard" / "files"], Hints()).dictionary()
    x = load_file(DATA / "saelens" / "standard" / "recorded.safetensors")["x"]
    same(scaled(x), plain(2 * x) / 2)


def edited(tool, kind, tmp_path, file, change):
    folder = tmp_path / "edited"
    shutil.copytree(DATA / tool / kind / "files", folder)
    path = folder / file
    if path.suffix in (".json", ".yaml"):
        content = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
        path.write_text(json.dumps(change(content)))
    elif path.suffix == ".safetensors":
        save_file(change(load_file(path)), path)
    else:
        torch.save(change(torch.load(path)), path)
    return folder if tool != "interplm" else path


REFUSED = {
    "abstopk": ("saelens", "topk", "cfg.json", {"architecture": "abstopk"}, "no equal"),
    "hook_z": ("saelens", "standard", "cfg.json", {"reshape_activations": "hook_z"}, "hook_z"),
    "whitening": ("saelens", "standard", "cfg.json", {"normalize_activations": "covariance_whitening"}, "statistics"),
    "signed": ("sparsify", "sae", "layers.1/cfg.json", {"signed": True}, "may be negative"),
    "signed crosslayer": ("clt_training", "crosslayer", "layers.0.mlp/cfg.json", {"signed": True}, "signed True"),
    "groupmax": ("sparsify", "sae", "layers.1/cfg.json", {"activation": "groupmax"}, "only topk"),
    "coalesce": ("clt_training", "skip", "layers.0.mlp/cfg.json", {"coalesce_topk": "concat"}, "coalesce_topk"),
    "divide": ("clt_training", "crosslayer", "layers.0.mlp/cfg.json", {"divide_cross_layer": True}, "divide"),
    "targets": ("clt_training", "crosslayer", "layers.0.mlp/cfg.json", {"n_targets": 1}, "targets"),
    "post_enc": (
        *("clt_training", "crosslayer", "layers.0.mlp/sae.safetensors"),
        *({"post_encs.1": torch.ones(12)}, "post_encs"),
    ),
    "negative": (
        *("circuit_tracer", "plt_jumprelu", "layer_1.safetensors"),
        *({"activation_function.threshold": torch.full((12,), -1.0)}, "negative"),
    ),
    "activation": ("circuit_tracer", "plt_relu", "config.yaml", {"activation": "gelu"}, "gelu"),
    "absolute path": (
        "circuit_tracer",
        "plt_relu",
        "config.yaml",
        {"transcoders": ["/x/layer_0.safetensors"]},
        "outside",
    ),
    "path upwards": (
        "circuit_tracer",
        "plt_relu",
        "config.yaml",
        {"transcoders": ["a/../../x.safetensors"]},
        "outside",
    ),
    "sqrt_d": (
        *("interplm", "relu", "layer_3/ae_normalized.pt"),
        *({"normalize_to_sqrt_d": torch.tensor(True)}, "sqrt_d"),
    ),
    "which topk": ("interplm", "topk", "layer_3/ae_normalized.pt", {"threshold": torch.tensor(0.2)}, "BatchTopK"),
    "class": (
        "dictionary_learning",
        "AutoEncoder",
        "config.json",
        {"trainer": {"dict_class": "IdentityDict"}},
        "Ident",
    ),
    "shape": ("saelens", "standard", "sae_weights.safetensors", {"b_enc": torch.zeros(5)}, "shape"),
    "more weights": (
        *("clt_forge", "crosslayer", "clt_weights.safetensors"),
        *({"W_skip": torch.zeros(1)}, "W_skip, which CLT-Forge has not"),
    ),
    "depth": ("clt_forge", "crosslayer", "clt_cfg.json", {"n_layers": 4}, "W_enc has shape"),
    "per layer": ("clt_forge", "crosslayer", "clt_cfg.json", {"cross_layer_decoders": False}, "W_dec has shape"),
    "scale": (
        *("clt_forge", "crosslayer", "clt_weights.safetensors"),
        *({"estimated_norm_scaling_factor_out": torch.zeros(3)}, "not positive"),
    ),
    "not sharded": ("clt_forge", "sharded", "clt_cfg.json", {"feature_sharding": False}, "holds shards"),
    "sharded": ("clt_forge", "crosslayer", "clt_cfg.json", {"feature_sharding": True}, "holds no shards"),
    "shards that do not fit": (
        *("clt_forge", "sharded", "rank1_clt_weights.safetensors"),
        *({"W_enc": torch.zeros(2, 6, 6)}, "do not fit together"),
    ),
    "no k": ("sparsify", "sae", "layers.1/cfg.json", {"k": None}, "differ in k"),
}


@pytest.mark.parametrize(("tool", "kind", "file", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_represented_is_refused(tool, kind, file, change, message, tmp_path):
    path = edited(tool, kind, tmp_path, file, lambda content: content | change)
    with pytest.raises(DictionaryError, match=message):
        interop.read([path], hints(DATA / tool / kind), tool)


@pytest.mark.parametrize(
    ("tool", "kind", "file"),
    [("sparsify", "sae", "layers.1/cfg.json"), ("clt_training", "crosslayer", "layers.0.mlp/cfg.json"),
     ("saelens", "standard", "cfg.json"), ("circuit_tracer", "plt_relu", "config.yaml"),
     ("clt_forge", "crosslayer", "clt_cfg.json")],
)  # fmt: skip
def test_settings_that_are_not_known_are_told(tool, kind, file, tmp_path):
    said = hints(DATA / tool / kind)
    known = interop.read([DATA / tool / kind / "files"], said, tool).notes
    assert not any("not known here" in note for note in known), "the tool's own files hold none"
    notes = interop.read([edited(tool, kind, tmp_path, file, lambda c: c | {"use_magic": 1})], said, tool).notes
    assert "settings not known here were left out: use_magic" in notes


def test_weights_that_no_setting_asks_for_are_told(tmp_path):
    path = edited("sparsify", "sae", tmp_path, "layers.1/sae.safetensors", lambda c: c | {"W_skip": torch.ones(2, 2)})
    assert "weights that no setting asks for were left out: W_skip" in interop.read([path], Hints(), "sparsify").notes


def test_a_file_with_python_objects_is_not_unpickled(tmp_path):
    """A `.pt` that would run code when unpickled is refused before it does."""
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (witness,))

    folder = tmp_path / "dl"
    shutil.copytree(DATA / "dictionary_learning" / "AutoEncoder" / "files", folder)
    torch.save({"encoder.weight": Evil()}, folder / "ae.pt")
    with pytest.raises(DictionaryError, match="Python objects"):
        interop.read([folder], Hints((0,), SITE))
    assert not witness.exists()


def test_damaged_missing_and_undeclared_sources(tmp_path):
    folder = tmp_path / "sae"
    shutil.copytree(DATA / "saelens" / "standard" / "files", folder)
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DictionaryError, match="cannot be read"):
        interop.read([folder], Hints())
    (folder / "cfg.json").write_text("{")
    with pytest.raises(DictionaryError, match=r"cfg\.json cannot be read"):
        interop.read([folder], Hints())
    with pytest.raises(InputError, match="does not exist"):
        interop.read([tmp_path / "nothing"], Hints(), "saelens")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DictionaryError, match="--from"):
        interop.read([tmp_path / "empty"], Hints())
    with pytest.raises(InputError, match="no format"):
        interop.read([folder], Hints(), "numpy")
    with pytest.raises(DictionaryError, match="give --k"):
        interop.read([DATA / "interprot" / "topk" / "files" / "sae.safetensors"], Hints((1,)))
    with pytest.raises(DictionaryError, match="final norm"):
        interop.read([source(DATA / "interplm" / "relu")], Hints(n_layers=3))
    with pytest.raises(DictionaryError, match="--hookpoint-in"):
        interop.read([DATA / "dictionary_learning" / "AutoEncoder" / "files"], Hints((1,)))
