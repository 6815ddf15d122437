"""Errors a user can act on. Each message is one line that says what is wrong and what to do."""


class IsotraceError(Exception):
    """Base of every error the command line prints as one line and exits with `exit_code`."""

    exit_code = 1


class InputError(IsotraceError):
    """The sequence, file or target given cannot be used."""

    exit_code = 2


class SubjectError(IsotraceError):
    """The subject cannot be loaded, or does not offer what was asked of it."""

    exit_code = 3


class DictionaryError(IsotraceError):
    """The dictionary is damaged, or belongs to another subject, layer range or site."""

    exit_code = 4


class RunError(IsotraceError):
    """The run folder cannot be written, or the computation met a value it cannot go on with."""

    exit_code = 5
