"""RoBERTa: BERT's blocks; learned positions that start behind the padding index; another head."""

from isotrace.subjects.families.bert import encoder_stack, only_encoders
from isotrace.subjects.families.family import Family, HeadPaths

ROBERTA = Family(
    model_type="roberta",
    base="roberta",
    objective="masked",
    words=("roberta.embeddings.word_embeddings",),
    positions=("roberta.embeddings.position_embeddings",),
    stacks=(encoder_stack("roberta"),),
    norms=("roberta.embeddings.LayerNorm",),
    head="lm_head",
    head_dense="lm_head.dense",
    head_norm="lm_head.layer_norm",
    head_decoder="lm_head.decoder",
    sequence=HeadPaths("classifier.out_proj", "cls", "classifier.dense", "tanh"),
    token=HeadPaths("classifier", "token"),
    optional_weights=("pooler", "position_ids"),
    refuse=only_encoders,
)
