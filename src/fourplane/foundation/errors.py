"""One tree of errors for every plane and every system.

    FourplaneError
    |-- Rejected            the caller's fault: malformed, not allowed by a rule         HTTP 400, XMPP bad-request
    |   |-- Unauthenticated who are you?                                                 HTTP 401, XMPP not-authorized
    |   |-- Forbidden       known, but not allowed                                       HTTP 403, XMPP forbidden
    |   `-- TooLarge        over a stated bound                                          HTTP 413, XMPP policy-violation
    |-- NotFound            no such thing                                                HTTP 404, XMPP item-not-found
    |-- Conflict            the state moved on: version, stock, duplicate key            HTTP 409, XMPP conflict
    |-- Overloaded          try later, after `retry_after_s`                             HTTP 503, XMPP resource-constraint
    |-- Unavailable         a dependency or an owner cannot be reached                   HTTP 503, XMPP service-unavailable
    |-- DeadlineExceeded    no answer in time; the work may or may not have happened     HTTP 504, XMPP remote-server-timeout
    |-- Corrupt             stored bytes are not what was written: file and place        HTTP 500
    `-- Misconfigured       a setting is wrong; said before anything starts              exit code 2

`code` is stable and machine-readable, `message` is one sentence for a person, `fields` carry the facts.
A bug is none of these: it is an assertion, the actor crashes and its supervisor acts.
"""

from typing import ClassVar


class FourplaneError(Exception):
    """Anything the system says no with."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, /, *, code: str = "", **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.reason = code or self.code
        self.fields = fields

    @property
    def public(self) -> str:
        """The message for people outside: a file of ours is called by its name, where it lies is told nobody."""
        folder, slash, _ = str(self.fields.get("file", "")).rpartition("/")
        return self.message.replace(folder + slash, "") if slash else self.message


class Rejected(FourplaneError):
    """The request itself is wrong; sending it again will not help."""

    code = "rejected"
    http_status = 400


class Unauthenticated(Rejected):
    """No valid proof of who is asking."""

    code = "unauthenticated"
    http_status = 401


class Forbidden(Rejected):
    """The asker is known and may not do this."""

    code = "forbidden"
    http_status = 403


class TooLarge(Rejected):
    """Past a stated bound."""

    code = "too_large"
    http_status = 413


class NotFound(FourplaneError):
    """No such thing."""

    code = "not_found"
    http_status = 404


class Conflict(FourplaneError):
    """The state is not what the caller assumed: a version, a stock, a key that exists."""

    code = "conflict"
    http_status = 409


class Overloaded(FourplaneError):
    """Too much work at the moment; come back after `retry_after_s`."""

    code = "overloaded"
    http_status = 503

    def __init__(self, message: str, /, *, retry_after_s: float = 1.0, code: str = "", **fields: object) -> None:
        super().__init__(message, code=code, **fields)
        self.retry_after_s = retry_after_s


class Unavailable(FourplaneError):
    """A dependency or an owner cannot be reached now."""

    code = "unavailable"
    http_status = 503


class DeadlineExceeded(FourplaneError):
    """The answer did not come in time; the work may or may not have happened."""

    code = "deadline_exceeded"
    http_status = 504


class Corrupt(FourplaneError):
    """Stored bytes are not what was written; fields `file` and `place` say where."""

    code = "corrupt"


class Misconfigured(FourplaneError):
    """A setting is wrong; raised before anything starts."""

    code = "misconfigured"
