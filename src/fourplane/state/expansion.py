"""A migration as SQL text: Alembic's operations without those that take something away.

A module of its own because Alembic is loaded only where a store really is older than the program.
"""

import io
from collections.abc import Callable

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.engine.interfaces import Dialect

from fourplane.foundation.errors import Misconfigured

_CONTRACTIONS = ("drop_", "rename_table", "alter_column", "batch_alter_table", "execute")


def rendered(dialect: Dialect, title: str, change: Callable[[Operations], None]) -> list[str]:
    """The statements of one migration; raises Misconfigured when it contracts."""
    buffer = io.StringIO()
    context = MigrationContext.configure(
        dialect=dialect, opts={"as_sql": True, "output_buffer": buffer, "literal_binds": True}
    )
    change(_ExpandOnly(context, title))
    return [text.strip() for text in buffer.getvalue().split(";\n") if text.strip()]


class _ExpandOnly(Operations):
    """Refuses by name."""

    def __init__(self, context: MigrationContext, title: str) -> None:
        super().__init__(context)
        self._title = title

    def __getattribute__(self, name: str) -> object:
        if name.startswith(_CONTRACTIONS):
            title = object.__getattribute__(self, "_title")
            raise Misconfigured(f"migration {title!r} calls {name}; migrations only expand", code="contraction")
        return super().__getattribute__(name)
