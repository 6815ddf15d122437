"""What an annotation's run folder shows on a protein structure, on a tiny random subject."""

import json
import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import EsmConfig, EsmForMaskedLM, PreTrainedTokenizerFast

import tiny
from isotrace.annotation.annotate import Annotation
from isotrace.annotation.nulls.sources import feature_activations
from isotrace.annotation.summary import COLUMNS as ASSOCIATION
from isotrace.base.result import Result
from isotrace.base.runs import open_run
from isotrace.datasets.annotated import prepare
from isotrace.domains.domain import domain_of
from isotrace.report.atlas.annotation import AnnotationResult
from isotrace.report.atlas.atlas_payload import COLUMNS
from isotrace.subjects.subject import load_subject

STRUCTURE = Path(__file__).parents[1] / "data" / "1pga.pdb"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
GB1 = "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
MUTANT = GB1.replace("DGEWTYDD", "DGEATYDD")
SEQUENCES = ["MKAILVVLLYTFATANADTLCIGYHANNSTDTVDTVLEKNVTVTHSVNLLEDKHN", MUTANT, GB1, "MASNDYTQQATSAVAARVAAY" * 2]
N_FEATURES, K = 120, 24


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protein")
    names = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>", special_tokens=[("<cls>", 0), ("<eos>", 2)]
    )
    special = {f"{name}_token": f"<{name}>" for name in ("cls", "pad", "eos", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=130, pad_token_id=1, mask_token_id=4, token_dropout=False,
        position_embedding_type="rotary", emb_layer_norm_before=False,
    )  # fmt: skip
    model = EsmForMaskedLM(config)
    tiny.perturb(model, 0.25, seed=0)
    model.save_pretrained(folder)
    return load_subject(folder, domain="protein")


@pytest.fixture(scope="module")
def dictionary(subject):
    return tiny.random_dictionary(subject, "transcoder", n_features=N_FEATURES, k=K)


@pytest.fixture
def saved(subject, dictionary, tmp_path):
    """Saves an annotation of `sequences` made by hand: (folder, its summary)."""

    def save(sequences, structure=STRUCTURE):
        names = [f"protein {i}" for i in range(len(sequences))]
        rows = pl.DataFrame({"index": range(len(sequences)), "name": names, "sequence": sequences})
        data = prepare(subject, domain_of("protein"), rows, [], seed=0)
        given = annotation(data)
        with open_run(tmp_path / "run", command="test", seed=0, inputs={}, overwrite=False) as run:
            traces = partial(feature_activations, subject, dictionary)
            result = AnnotationResult.of(given, data, structure=structure, activations=traces)
            result.write(run)
        return tmp_path / "run", result.summary

    return save


def annotation(data) -> Annotation:
    """Two of three features have a label; one of four never fired."""
    number = np.arange(2 * N_FEATURES)
    labelled = number % 3 > 0
    own = {
        "layer": number // N_FEATURES,
        "feature": number % N_FEATURES,
        "label": np.where(labelled, "helix <b>", "unexplained"),
        "f1": np.where(labelled, 0.5 + number / 1000, np.nan),
        "max_activation": np.where(number % 4 > 0, 2.0 + number % 5, np.nan),
    }
    features = pl.DataFrame(own).with_columns(pl.col("f1", "max_activation").fill_nan(None))
    lists = dict.fromkeys(("histogram", "promoted", "promoted_by", "suppressed", "suppressed_by"), pl.List(pl.Float64))
    rest = [name for name in COLUMNS["features"] if name not in own]
    features = features.with_columns(pl.lit(None, dtype=lists.get(name, pl.String)).alias(name) for name in rest)
    counts = dict.fromkeys(COLUMNS["coverage"], pl.Int64) | {"source": pl.String}
    empty = {"associations": pl.DataFrame(schema=ASSOCIATION), "coverage": pl.DataFrame(schema=counts)}
    examples = pl.DataFrame(
        schema=dict.fromkeys(COLUMNS["examples"], pl.Int64)
        | {"positions": pl.List(pl.Int16), "values": pl.List(pl.Float32), "group": pl.String}
    )
    concepts = pl.DataFrame(schema=dict.fromkeys(COLUMNS["concepts"], pl.String))
    summary = dict.fromkeys(
        ("n_features", "n_concepts", "n_token_concepts", "n_tokens", "n_sequences", "n_selection", "n_permutations",
         "n_rejected", "n_labelled", "seconds"), 1,
    )  # fmt: skip
    summary |= {"subject": "tiny", "dictionary": "random", "warnings": [], "sources": {"dictionary": {"reason": "-"}}}
    return Annotation(
        features=features, examples=examples, sequences=data.sequences(), concepts=concepts, rejects=data.rejects,
        summary=summary, **empty,
    )  # fmt: skip


def carried(page: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" class="structure-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


@torch.no_grad()
def dense(subject, dictionary, text: str) -> np.ndarray:
    """float64 `[2, N_FEATURES, residues]`, by a matrix product and the k largest of it."""
    sites = [f"layers.{layer}.mlp_in" for layer in range(2)]
    captured = subject.run(subject.tokenize([text]), capture=sites).captured
    found = []
    for layer, site in enumerate(sites):
        before = captured[site][0].double() @ dictionary.W_enc[layer].double() + dictionary.b_enc[layer].double()
        kept = torch.zeros_like(before).scatter(1, (top := before.topk(K, 1)).indices, top.values.relu())
        found.append(kept[1:-1].T)
    return torch.stack(found).numpy()


def test_the_closest_sequence_is_shown_with_its_strongest_features(saved, subject, dictionary):
    folder, summary = saved(SEQUENCES)
    assert summary["warnings"] == []
    assert 'href="structure.html"' in (folder / "report.html").read_text()
    page = (folder / "structure.html").read_text()
    assert 'href="report.html"' in page
    assert "protein 2 on 1pga.pdb" in page
    data = carried(page)
    assert data["sequence"] == GB1
    expected = dense(subject, dictionary, GB1)
    for track in data["tracks"]:
        layer, feature = map(int, track["name"].split()[0].split("."))
        assert track["values"] == pytest.approx(expected[layer, feature].tolist(), rel=1e-3, abs=1e-5)
    peak = expected.max(-1).ravel()
    fires = [n for n in range(2 * N_FEATURES) if n % 4 and peak[n] > 0]
    labelled = sorted((n for n in fires if n % 3), reverse=True)[:40]  # F1 grows with the number
    others = sorted((n for n in fires if n % 3 == 0), key=lambda n: -peak[n] / (2 + n % 5))[:10]
    assert (len(labelled), len(others)) == (40, 10)
    names = [f"{n // N_FEATURES}.{n % N_FEATURES} helix <b> (F1 {0.5 + n / 1000:.3f})" for n in labelled]
    names += [f"{n // N_FEATURES}.{n % N_FEATURES} unexplained" for n in others]
    assert [t["name"] for t in data["tracks"]] == names


@pytest.mark.parametrize(
    ("sequences", "structure", "reason"),
    [
        ([SEQUENCES[0], SEQUENCES[3]], STRUCTURE, "no chain of 1pga.pdb"),
        ([SEQUENCES[0], GB1[:12] + SEQUENCES[3]], STRUCTURE, "the closest, A, agrees in"),
        (SEQUENCES, STRUCTURE.with_name("missing.pdb"), "missing.pdb does not exist"),
    ],
    ids=["nothing in common", "a part in common", "no file"],
)
def test_without_a_match_there_is_a_warning_and_everything_else(saved, sequences, structure, reason):
    folder, summary = saved(sequences, structure)
    (warning,) = summary["warnings"]
    assert "no structure.html was written" in warning
    assert reason in warning
    assert json.loads((folder / "annotation.json").read_text())["warnings"] == [warning]
    assert not (folder / "structure.html").exists()
    assert 'href="structure.html"' not in (folder / "report.html").read_text()


def test_without_a_structure_there_is_no_page(saved):
    folder, summary = saved(SEQUENCES, None)
    assert summary["warnings"] == []
    assert not (folder / "structure.html").exists()
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("structure", [STRUCTURE, None])
def test_what_was_saved_makes_the_same_pages_again(saved, structure):
    folder, summary = saved(SEQUENCES, structure)
    found = Result.load(folder)
    assert isinstance(found, AnnotationResult)
    assert found.to_dict() == summary | {"rejects": []}
    assert found.page() == (folder / "report.html").read_text()
    page = folder / "structure.html"
    assert found.structure_page() == (page.read_text() if structure else None)
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert hash(again) == hash(found)
    assert again.to_frame().equals(pl.read_parquet(folder / "features.parquet"))
    assert "features of random named" in found._repr_html_()
    assert again.save(folder.with_name("copy")) == folder.with_name("copy")
    assert Result.load(folder.with_name("copy")) == found
