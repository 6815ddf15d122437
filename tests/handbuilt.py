"""A subject whose weights were written by hand, so that its circuit is known before it is looked for.

Eight orthogonal zero-mean directions of a 16-dimensional stream: C, N, O, other tokens, u, moved, v, w.

    embedding   every token writes its own direction
    layer 0     MLP neuron 0: C → u.  neuron 1 (decoy): N → w, with the same activation
    layer 1     attention is uniform and copies u into `moved` at every position
                MLP neuron 0: O and moved → v.  neuron 1 (decoy): u → w
    probe       mean of v

The circuit of "CNO" is therefore: token C → (0, C, 0) → attention → (1, O, 0) ← token O, and (1, O, 0) → probe.
Neurons are so far above or below zero that GELU is ReLU, so a per-layer dictionary with the neurons as features
is exact.
"""

from dataclasses import replace

import torch
from transformers import EsmConfig, EsmForMaskedLM

import tiny
from isotrace.subjects.probe import Probe

DIRECTIONS = ("C", "N", "O", "other", "u", "moved", "v", "w")
D, NEURONS = 16, 4
POSITION = {"C": 1, "N": 2, "O": 3}
SOURCE, READER = [0, POSITION["C"], 0], [1, POSITION["O"], 0]
DECOYS = [[0, POSITION["N"], 1], [1, POSITION["C"], 1]]


def direction(name):
    """Unit length and zero mean, so that a LayerNorm rescales it and nothing else."""
    vector = torch.zeros(D)
    at = 2 * DIRECTIONS.index(name)
    vector[at], vector[at + 1] = 2**-0.5, -(2**-0.5)
    return vector


def handbuilt_model():
    config = EsmConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=D, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=NEURONS, max_position_embeddings=32, pad_token_id=1, mask_token_id=4,
        token_dropout=False, position_embedding_type="rotary", emb_layer_norm_before=False,
    )  # fmt: skip
    model = EsmForMaskedLM(config)
    for name, parameter in model.named_parameters():
        parameter.data.fill_(float("norm" in name.lower() and name.endswith("weight")))
    vocabulary = tiny.tokenizer().get_vocab()
    for token, index in vocabulary.items():
        model.esm.embeddings.word_embeddings.weight.data[index] = direction(token if token in POSITION else "other")
    first, second = model.esm.encoder.layer
    # queries and keys are zero: attention is uniform
    second.attention.self.value.weight.data.copy_(torch.outer(direction("u"), direction("u")))
    second.attention.output.dense.weight.data.copy_(1.4 * torch.outer(direction("moved"), direction("u")))
    # an input token alone has length 4 behind the norm
    write(first, 0, 10 * direction("C"), -20, 0.1 * direction("u"))
    write(first, 1, 10 * direction("N"), -20, 0.1 * direction("w"))
    write(second, 0, 12 * direction("moved") + 8 * direction("O"), -45, 0.1 * direction("v"))
    write(second, 1, 10 * direction("u"), -16, 0.1 * direction("w"))
    for layer in (first, second):
        layer.intermediate.dense.bias.data[2:] = -30
    return model


def write(layer, neuron, reads, bias, writes):
    layer.intermediate.dense.weight.data[neuron] = reads
    layer.intermediate.dense.bias.data[neuron] = bias
    layer.output.dense.weight.data[:, neuron] = writes


def handbuilt(folder, sign=1.0):
    """(subject, exact dictionary); the subject's probe `v` is `sign` times the mean of v. Float32."""
    subject = tiny.load_tiny(tiny.save_subject(handbuilt_model(), folder))
    dictionary = tiny.exact_dictionary(subject)
    dictionary.mean_activation.zero_()
    config = replace(tiny.random_probe(subject).config, name="v", description="mean of v", outputs=("v",))
    Probe(config, sign * direction("v")[:, None].float(), torch.zeros(1)).save(folder / "probes" / "v")
    return subject, dictionary
