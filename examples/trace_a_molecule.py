# %% [markdown]
# # A prediction, followed back to its atoms
#
# The bundled model reads caffeine, and a probe on it says how likely the molecule is to pass the blood–brain barrier.
# Which features make it say so, on which atoms, and does the explanation hold when the model is changed?

# %%
import isotrace
from isotrace.attribution.trace import TraceConfig

CAFFEINE = "CN1C=NC2=C1C(=O)N(C(=O)N2C)C"
config = TraceConfig(max_features=120, n_nodes=12, n_controls=4, n_spellings=2)
found = isotrace.trace("bundled:molm", "bundled:molm-clt", CAFFEINE, "probe:bbb", config)

# %% [markdown]
# What was found is plain data; in a notebook `found` shows itself.

# %%
summary = found.to_dict()
print(f"{summary['target']['description']}: {summary['target']['value']:.2f} {summary['target']['unit']}")
for line in summary["warnings"]:
    print("warning:", line)
