# %% [markdown]
# # The circuit of a task
#
# Which features of the bundled dictionary does the bundled model use to tell molecules that pass the blood–brain barrier?
# The settings here are small, so that it takes seconds: read the numbers as an example, and
# [the documentation](../docs/studies.md) for what the full ones say.

# %%
from isotrace import load_dictionary, load_subject
from isotrace.datasets.tasks import prepare
from isotrace.discovery.tasks.task_circuit import TaskConfig, find_circuit
from isotrace.domains.domain import domain_of
from isotrace.studies import bundled_table

subject = load_subject("bundled:molm")
dictionary = load_dictionary("bundled:molm-clt", subject)

# %% [markdown]
# A table with sequences and labels, of which every twelfth row is taken. Scaffolds keep to one side of the split: the probe is fitted on `fit`, features are
# ranked on `discover`, numbers come from `report`.

# %%
table = bundled_table("bbb").gather_every(12).rename({"smiles": "sequence"}).with_row_index("index")
data = prepare(
    subject, domain_of("molecule"), table, label="bbb", kind="class", split="split_scaffold", group=None,
    mutations=None, seed=0, limit=40,
)  # fmt: skip
print({part: len(examples) for part, examples in data.parts.items()})

# %% [markdown]
# The best n features speak alone, everything else stands at its mean; beside them random circuits that are matched in
# layer and in how often they are active, and as many neurons.

# %%
config = TaskConfig(sizes=(92, 922), n_controls=2, n_bootstrap=50, seed=0)
circuit = find_circuit(subject, dictionary, data, config)
metric = circuit.summary["task_metric"]
print(f"{metric['name']} of the model {metric['subject']:.3f}, of chance {metric['chance']:.3f}")
for row in circuit.summary["sweep"]:
    alone, random, neurons = (row[of] for of in ("free_running", "random", "neurons"))
    print(
        f"{row['n']:5d} features keep {alone['sufficiency']:.2f}, "
        f"as many random ones {random['mean']:.2f}, as many neurons {neurons['sufficiency']:.2f}"
    )

# %% [markdown]
# The features of the circuit, strongest first.

# %%
print(circuit.parts(10))
