"""What SQLite says, in our words: one table from its errors to ours."""

import apsw

from fourplane.foundation.errors import Conflict, Corrupt, FourplaneError, Rejected, TooLarge, Unavailable

_CALLERS = (apsw.SQLError, apsw.MismatchError, apsw.RangeError, apsw.ReadOnlyError, apsw.BindingsError, apsw.AuthError)
_PYTHONS = (TypeError, OverflowError, UnicodeError)
_RULES = {
    apsw.SQLITE_CONSTRAINT_UNIQUE: "unique",
    apsw.SQLITE_CONSTRAINT_PRIMARYKEY: "unique",
    apsw.SQLITE_CONSTRAINT_ROWID: "unique",
    apsw.SQLITE_CONSTRAINT_CHECK: "check",
    apsw.SQLITE_CONSTRAINT_FOREIGNKEY: "foreign_key",
    apsw.SQLITE_CONSTRAINT_TRIGGER: "trigger",
}


def spoils_group(error: BaseException) -> bool:
    """True when the whole transaction is in doubt, not only the caller whose statement raised."""
    if isinstance(error, (apsw.ConstraintError, apsw.TooBigError, *_CALLERS)):
        return False
    return isinstance(error, (apsw.Error, OSError, Corrupt, MemoryError))


def translate(error: BaseException, path: str, corrupt: Corrupt | None = None) -> BaseException:
    """The error a caller sees; errors of ours and bugs pass unchanged."""
    match error:
        case FourplaneError():
            return error
        case apsw.ConstraintError():
            rule = _RULES.get(getattr(error, "extendedresult", 0), "")
            if rule:
                return Conflict(str(error), code=f"{rule}_rule", rule=rule)
            return Rejected(str(error), code="bad_row")
        case apsw.TooBigError():
            return TooLarge(str(error))
        case apsw.CorruptError() | apsw.NotADBError():
            return corrupt or Corrupt(f"{path}: {error}", file=path, place="structure")
        case apsw.FullError():
            return Unavailable(f"the disk is full: {path}", code="disk_full", file=path)
        case apsw.BusyError() | apsw.LockedError():
            return Unavailable(f"{path} is locked by another process", code="locked", file=path)
        case apsw.IOError() | apsw.CantOpenError() | OSError():
            return corrupt or Unavailable(f"the disk failed: {path}: {error}", code="disk_failed", file=path)
    if isinstance(error, _CALLERS + _PYTHONS):
        return Rejected(f"the statement cannot run: {error}", code="bad_statement")
    if isinstance(error, apsw.Error):
        return Unavailable(f"{path}: {error}", code="engine_failed", file=path)
    return error
