# %% [markdown]
# # Features of molecules, as numbers
#
# What the dictionary sees in a few molecules: every activation, token by token, and one row for each molecule, as
# scikit-learn takes it.

# %%
import isotrace

MOLECULES = ["CC(=O)Oc1ccccc1C(=O)O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "CCO", "c1ccncc1", "CCN(CC)CC", "CC(=O)O"]
subject = isotrace.load_subject("bundled:molm")
dictionary = isotrace.load_dictionary("bundled:molm-clt", subject)

# %% [markdown]
# `elements` are the atoms that a token writes, numbered as in what was given.

# %%
found = isotrace.features(subject, dictionary, MOLECULES)
print(found.to_frame().sort("activation", descending=True).head(5))

# %% [markdown]
# The largest activation of every feature, as columns: which features tell acids from the rest?

# %%
featuriser = isotrace.Featuriser(subject, dictionary, pool="max", sparse_output=False).fit(MOLECULES)
values = featuriser.transform(MOLECULES)
is_acid = [text.endswith("C(=O)O") for text in MOLECULES]
others = [not acid for acid in is_acid]
margin = values[is_acid].min(0) - values[others].max(0)
names = featuriser.get_feature_names_out()
for column in margin.argsort()[::-1][:5]:
    print(f"feature {names[column]}: at least {margin[column]:.2f} more in every acid than in any other")

# %% [markdown]
# What does the strongest feature do? Set it to zero wherever it fires, and run the molecules again: by how much every
# final hidden state changes, and what the subject would now write.

# %%
from isotrace.dictionaries.features import Features  # noqa: E402
from isotrace.interventions import Intervention, Select, Set  # noqa: E402

layer, feature = found.to_frame().sort("activation", descending=True).select("layer", "feature").row(0)
without = Intervention(Features(dictionary), Set(0.0), Select(layers=(layer,), index=(feature,)))
changed = isotrace.intervene(subject, MOLECULES, [without])
print(changed.to_frame().sort("change", descending=True).head(5))
