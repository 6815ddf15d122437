# %% [markdown]
# # A prediction, followed back to its atoms
#
# The bundled model reads caffeine, and a probe on it says how likely the molecule is to pass the blood–brain barrier.
# Which features make it say so, on which atoms, and does the explanation hold when the model is changed?

# %%
import isotrace
from isotrace.attribution.trace import TraceConfig

CAFFEINE = "Cn1cnc2c1c(=O)n(C)c(=O)n2C"
config = TraceConfig(max_features=80, n_nodes=6, n_controls=3, n_spellings=0)
found = isotrace.trace("bundled:molm", "bundled:molm-clt", CAFFEINE, "probe:bbb", config)

# %% [markdown]
# What was found is plain data; in a notebook `found` shows itself.

# %%
summary = found.to_dict()
print(f"{summary['target']['description']}: {summary['target']['value']:.2f} {summary['target']['unit']}")
for line in summary["warnings"]:
    print("warning:", line)
