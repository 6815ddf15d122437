"""Loss recovered is one for an exact dictionary, zero for the mean, negative for a harmful one."""

import pytest
import torch

import plain_models
import tiny
from isotrace.activations.corpus import Plan as Batches
from isotrace.activations.harvest import Corpus, mask_some, mlp_activations
from isotrace.base.errors import SubjectError
from isotrace.dictionaries.replacement import ablated_hidden, replaced_hidden
from isotrace.evaluation.fidelity import MODES, evaluate, mean_activations
from isotrace.interventions import Apply, Intervention, MLPs, Plan

SEQUENCES = tiny.MOLECULES * 2


@pytest.fixture
def exact(relu_subject):
    return tiny.exact_dictionary(relu_subject)


def scores(subject, dictionary, **options):
    return evaluate(subject, dictionary, SEQUENCES, mask_rate=0.3, n_bootstrap=50, **options)


def test_an_exact_dictionary_recovers_everything(relu_subject, exact):
    found = scores(relu_subject, exact)
    assert found["ablated"]["cross_entropy"] - found["clean"]["cross_entropy"] > 0.1
    for mode in MODES:
        assert found[mode]["loss_recovered"] == pytest.approx(1, abs=1e-3)
        assert found[mode]["ci"] == pytest.approx([1, 1], abs=1e-2)
        assert found[mode]["kl"] == pytest.approx(0, abs=1e-5)
        assert found[mode]["top1_agreement"] == 1
        assert found[mode]["cross_entropy"] == pytest.approx(found["clean"]["cross_entropy"], abs=1e-4)
    assert found["fve"] == pytest.approx([1] * tiny.N_LAYERS, abs=1e-5)


def test_the_mean_recovers_nothing(relu_subject, exact):
    mean = mean_activations(relu_subject, Corpus.of(relu_subject, SEQUENCES), exact.config.writes, 0)
    for layer in range(tiny.N_LAYERS):
        exact.W_dec[layer].data.zero_()
        exact.b_dec[layer].data.copy_(mean[layer])
    found = scores(relu_subject, exact)
    for mode in MODES:
        assert found[mode]["loss_recovered"] == pytest.approx(0, abs=1e-4)
        assert found[mode]["cross_entropy"] == pytest.approx(found["ablated"]["cross_entropy"], abs=1e-5)
        assert found[mode]["kl"] > 1e-3
    assert found["fve"] == pytest.approx([0] * tiny.N_LAYERS, abs=1e-3)


def test_harm_is_negative(relu_subject, exact):
    """A dictionary that writes the opposite is worse than none, and nothing is clipped."""
    for weight in exact.W_dec:
        weight.data.mul_(-20)
    found = scores(relu_subject, exact)
    cost = found["ablated"]["cross_entropy"] - found["clean"]["cross_entropy"]
    for mode in MODES:
        expected = (found["ablated"]["cross_entropy"] - found[mode]["cross_entropy"]) / cost
        assert found[mode]["loss_recovered"] == pytest.approx(expected, rel=1e-4)
        assert found[mode]["loss_recovered"] < -0.2
    assert max(found["fve"]) < -10


def test_numbers_are_those_of_a_plain_loop(relu_subject):
    """One sequence at a time, with its own mask pattern recomputed from the documented seeds."""
    subject, sequences = relu_subject, ["CC(=O)N", "OCCNCC", "c1ccccc1"]
    dictionary = tiny.random_dictionary(subject)
    found = evaluate(subject, dictionary, sequences, mask_rate=0.5, n_bootstrap=20, seed=3)
    corpus = Corpus.of(subject, sequences)
    mean = mean_activations(subject, corpus, dictionary.config.writes, 3)
    sums = dict.fromkeys(("clean", "free_running", "teacher_forced", "ablated"), 0.0)
    divergence, n = 0.0, 0
    for number, rows in enumerate(Batches(corpus.lengths, 4_096, 3).epoch(0)):
        whole = corpus.batch(rows)
        batch, chosen = mask_some(subject, whole, 0.5, torch.Generator().manual_seed(3 * 1_000_003 + number))
        x, _, final = mlp_activations(subject, batch)
        finals = {
            "clean": final,
            "free_running": replaced_hidden(subject, dictionary, batch, "free_running"),
            "teacher_forced": replaced_hidden(subject, dictionary, batch, "teacher_forced", list(x)),
            "ablated": ablated_hidden(subject, dictionary, batch, mean),
        }
        logs = {k: subject.head(v).log_softmax(-1)[chosen] for k, v in finals.items()}
        for name, log in logs.items():
            sums[name] += float(torch.nn.functional.nll_loss(log, whole.ids[chosen], reduction="sum"))
        divergence += float(
            torch.nn.functional.kl_div(logs["free_running"], logs["clean"], log_target=True, reduction="sum")
        )
        n += int(chosen.sum())
    assert found["n_predicted"] == n > 3
    assert found["n_sequences"] == 3
    assert found["free_running"]["kl"] == pytest.approx(divergence / n, rel=1e-4)
    for mode in MODES:
        recovered = (sums["ablated"] - sums[mode]) / (sums["ablated"] - sums["clean"])
        assert found[mode]["loss_recovered"] == pytest.approx(recovered, rel=1e-4)
    assert found["clean"]["cross_entropy"] == pytest.approx(sums["clean"] / n, rel=1e-5)


def test_activity(relu_subject):
    dictionary = tiny.random_dictionary(relu_subject, n_features=12, k=3)
    dictionary.b_enc[1].data[:4] = -1e6
    found = scores(relu_subject, dictionary)
    assert 0 < found["l0"] <= 3
    assert found["dead_fraction"] >= 4 / 36


def test_teacher_forcing_reads_the_clean_stream(relu_subject):
    """With the clean inputs given the encoders see no drift; without them they do."""
    batch = relu_subject.tokenize(["CC(=O)N"])
    dictionary = tiny.random_dictionary(relu_subject)
    x, _, _ = mlp_activations(relu_subject, batch)
    forced = replaced_hidden(relu_subject, dictionary, batch, "teacher_forced", list(x))
    expected = dictionary(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
    plan = Plan((Intervention(MLPs(), Apply(lambda layer, _: expected[layer][:, :, None])),))
    run = relu_subject.run(batch, plan=plan)
    torch.testing.assert_close(forced, run.final, rtol=1e-5, atol=1e-5)
    assert float((replaced_hidden(relu_subject, dictionary, batch, "free_running") - forced).abs().max()) > 1e-3
    for mode, inputs in (("teacher_forced", None), ("free_running", list(x))):
        with pytest.raises(ValueError, match="teacher_forced needs clean activations"):
            replaced_hidden(relu_subject, dictionary, batch, mode, inputs)


@pytest.mark.parametrize("causal", ["gpt2", "llama"])
def test_a_causal_subject_is_measured_at_every_next_token(causals, folders, causal):
    """As transformers' own loss says, with the dictionary, or the mean, in place of every MLP of the plain model."""
    subject = causals[causal]
    dictionary = tiny.random_dictionary(subject, window=1)
    found = evaluate(subject, dictionary, SEQUENCES[:6], n_bootstrap=20)
    mean = mean_activations(subject, Corpus.of(subject, SEQUENCES[:6]), dictionary.config.writes, 0)
    model, losses = plain_models.plain(causal, folders[causal]), {}
    mlps = [block.mlp for block, *_ in plain_models.blocks(causal, model)]

    def features(layer):
        def replace(module, args, output):
            active = dictionary.encode(layer, args[0]).dense(12)
            return dictionary.decode(layer, {layer: active}, args[0])

        return replace

    ways = {
        "clean": lambda layer: lambda *_: None,
        "ablated": lambda layer: lambda module, args, output: mean[layer].expand_as(output),
        "free_running": features,
    }
    for name, way in ways.items():
        handles = [mlp.register_forward_hook(way(layer)) for layer, mlp in enumerate(mlps)]
        total, n = 0.0, 0
        for text in SEQUENCES[:6]:
            ids = subject.tokenize([text]).ids
            with torch.no_grad():
                total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            n += ids.shape[1] - 1
        losses[name] = total / n
        for handle in handles:
            handle.remove()
    assert found["n_predicted"] == n
    for name, loss in losses.items():
        assert found[name]["cross_entropy"] == pytest.approx(loss, rel=1e-4), name
    assert len({round(loss, 3) for loss in losses.values()}) == 3
    recovered = (losses["ablated"] - losses["free_running"]) / (losses["ablated"] - losses["clean"])
    assert found["free_running"]["loss_recovered"] == pytest.approx(recovered, rel=1e-2)


def test_padding_is_not_predicted(causals):
    """Sequences of unequal length count as they do apart."""
    subject = causals["gpt2"]
    dictionary = tiny.random_dictionary(subject)
    texts = ["CCO", "c1cc[nH]c1C", "CC"]
    lengths = [int(subject.tokenize([text]).mask.sum()) for text in texts]
    assert evaluate(subject, dictionary, texts, n_bootstrap=20)["n_predicted"] == sum(lengths) - 3
    with pytest.raises(SubjectError, match="fills no masks: leave the masking rate out"):
        evaluate(subject, dictionary, texts, mask_rate=0.2)
