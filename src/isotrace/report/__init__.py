"""Pages that show results to a reader, self-contained and usable offline."""

from isotrace.report.page import render_index, render_trace

__all__ = ["render_index", "render_trace"]
