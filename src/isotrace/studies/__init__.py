"""Tables that anyone can compute again; see `study`."""

from isotrace.studies.study import STUDIES, Outcome, Setting, Study, bundled_table, study

__all__ = ["STUDIES", "Outcome", "Setting", "Study", "bundled_table", "study"]
