# %% [markdown]
# # From molecules to circuits
#
# Every verb once, on the bundled model and a table of measured solubilities: train features, see how good they are,
# name them, find those that a task rests on, trace one prediction, change the model. Settings are as small as they can
# be, so that it takes a minute: the numbers show the way, not what the features are worth.

# %%
from importlib.resources import files

import polars as pl
from rdkit import Chem

import isotrace
from isotrace.base.result import Result
from isotrace.dictionaries.features import Features
from isotrace.interventions import Intervention, Scale, Select, Set

table = pl.read_csv(str(files("isotrace") / "assets" / "tasks" / "esol.csv.gz")).sample(100, seed=0)
table = table.rename({"measured_log_solubility_mol_per_l": "solubility"})
subject = isotrace.load_subject("bundled:molm", device="auto")
dictionary = isotrace.load_dictionary("bundled:molm-clt", subject)

# %% [markdown]
# Data are a path, a list, a Series, a table or molecules, everywhere.

# %%
active = isotrace.features(subject, dictionary, table["smiles"].head(20)).to_frame()
print(active.sort("activation", descending=True).head(3))
featuriser = isotrace.Featuriser(subject, dictionary, pool="max").fit(table["smiles"])
print(featuriser.transform([Chem.MolFromSmiles("CCO"), Chem.MolFromSmiles("c1ccncc1")]).shape)

# %% [markdown]
# A dictionary of one's own, beside the bundled one.

# %%
isotrace.train(subject, table, architecture="transcoder", out="mine", tokens=2_000, features=128, k=16)
mine = isotrace.load_dictionary("mine", subject)
fidelity = isotrace.evaluate(subject, [dictionary, mine], table.tail(12), bootstrap=20, controls=False)
print(fidelity.to_frame())

# %% [markdown]
# What its features stand for, in the terms of chemistry.

# %%
small = {"sources": ("dictionary", "neurons"), "permutations": 20, "bootstrap": 20, "spellings": 0, "effects": False}
names = isotrace.annotate(subject, mine, table.head(50), min_positive=5, **small)
print(
    names.tables["associations"]
    .sort("f1", descending=True, nulls_last=True)
    .select("layer", "feature", "concept", "f1", "q")
    .head(3)
)

# %% [markdown]
# Which features the solubility rests on, beside random ones and neurons.

# %%
task = isotrace.circuit(
    subject, dictionary, table, "solubility", sizes=(50,), limit=10, controls=2, bootstrap=20, drawn=1
)
print(task.to_frame())

# %% [markdown]
# Why one molecule is said to be soluble, and what its strongest feature does elsewhere.

# %%
quick = {"max_features": 60, "nodes": 6, "controls": 3, "spellings": 0}
one = isotrace.trace(subject, dictionary, Chem.MolFromSmiles("OCC(O)CO"), "probe:esol", **quick)
print(one.to_frame().head(3))
layer, feature = one.to_frame().select("layer", "feature").row(0)
there = Select(layers=(layer,), index=(feature,))
for what in (Set(0.0), Scale(3.0)):
    changed = isotrace.intervene(subject, ["OCC(O)CO", "CC(C)O"], [Intervention(Features(dictionary), what, there)])
    print(what, changed.summary["mean_change"])

# %% [markdown]
# What was found is data: it is saved, read again without a model, and shows itself.

# %%
for name, found in {"names": names, "task": task, "one": one, "fidelity": fidelity, "changed": changed}.items():
    again = Result.load(found.save(name))
    print(name, again == found, sorted(again.to_dict())[:3], again.to_frame().shape, len(again.page()) > 0)
    assert again._repr_html_()
