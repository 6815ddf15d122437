# %% [markdown]
# # A prediction, followed back to its atoms
#
# The bundled model reads caffeine, and a probe on it says how lipophilic the molecule is. Which features make it say
# so, on which atoms, and does the explanation hold when the model is changed?

# %%
import isotrace

CAFFEINE = "Cn1cnc2c1c(=O)n(C)c(=O)n2C"
quick = {"max_features": 80, "nodes": 6, "controls": 3, "spellings": 0}
found = isotrace.trace("bundled:molm", "bundled:molm-clt", CAFFEINE, "probe:logd", **quick)

# %% [markdown]
# In a notebook what was found shows itself: the atoms in the colours of their effects, what was asked, what to doubt.

# %%
found  # noqa: B018

# %% [markdown]
# It is plain data: a summary, tables, and a page of its own.

# %%
summary = found.to_dict()
print(f"{summary['target']['description']}: {summary['target']['value']:.2f} {summary['target']['unit']}")
for line in summary["warnings"]:
    print("warning:", line)

# %%
found.to_frame().select("layer", "feature", "token", "label", "activation", "effect").head(4)

# %% [markdown]
# A folder keeps all of it, with the page as `report.html`, and gives it back.

# %%
found.save("caffeine", overwrite=True)
print(isotrace.load("caffeine") == found)
