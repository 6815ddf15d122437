# %% [markdown]
# # A prediction, followed back to its atoms
#
# The bundled model reads caffeine, and a probe on it says how likely the molecule is to pass the blood–brain barrier.
# Which features make it say so, on which atoms, and does the explanation hold when the model is changed?

# %%
import isotrace

CAFFEINE = "Cn1cnc2c1c(=O)n(C)c(=O)n2C"
quick = {"max_features": 80, "nodes": 6, "controls": 3, "spellings": 0}
found = isotrace.trace("bundled:molm", "bundled:molm-clt", CAFFEINE, "probe:bbb", **quick)

# %% [markdown]
# What was found is plain data; in a notebook `found` shows itself.

# %%
summary = found.to_dict()
print(f"{summary['target']['description']}: {summary['target']['value']:.2f} {summary['target']['unit']}")
for line in summary["warnings"]:
    print("warning:", line)
