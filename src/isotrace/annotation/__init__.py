"""Features against named concepts, with the statistics that make a label a claim.

Nothing is imported here: `isotrace.annotate` is the function of `annotation.annotate`, and `trace` reads
`annotation.features` without waiting for the rest.
"""
