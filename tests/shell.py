"""Commands as the shell runs them, in this process."""

from typer.testing import CliRunner

from isotrace.base.errors import IsotraceError
from isotrace.cli import app


def said(*arguments: object) -> str:
    """What `isotrace` prints on stdout. Raises the IsotraceError that it ends with."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if isinstance(result.exception, IsotraceError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout
