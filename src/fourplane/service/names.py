"""Account names and passwords in one normal form, so that two spellings of one name are one account.

Names follow PRECIS UsernameCaseMapped (RFC 8265), minus the characters an XMPP localpart may not hold (RFC 7622, 3.3.1),
because every account can also chat. Passwords follow OpaqueString. Cost: 3-30 us.
"""

import precis_i18n

from fourplane.foundation.errors import Rejected

NAME_BYTES_MAX = 255
PASSWORD_BYTES_MAX = 1_023
_NOT_IN_LOCALPART = frozenset("\"&'/:<>@")
_username = precis_i18n.get_profile("UsernameCaseMapped")
_opaque = precis_i18n.get_profile("OpaqueString")


def normal_name(name: str) -> str:
    """The stored form of an account name; raises Rejected (`bad_name`) for one that cannot be a name."""
    if len(name) > NAME_BYTES_MAX:
        raise Rejected(f"a name has at most {NAME_BYTES_MAX} bytes", code="bad_name")
    if name.isascii() and name.isalnum() and name.islower():  # the usual case, 30 times cheaper
        return name
    try:
        normal = str(_username.enforce(name))
    except UnicodeEncodeError as error:
        raise Rejected(f"not a possible account name: {error.reason}", code="bad_name") from None
    if _NOT_IN_LOCALPART & set(normal):
        raise Rejected("an account name cannot hold any of \" & ' / : < > @", code="bad_name")
    if len(normal.encode()) > NAME_BYTES_MAX:
        raise Rejected(f"a name has at most {NAME_BYTES_MAX} bytes", code="bad_name")
    return normal


def normal_password(password: str) -> bytes:
    """The bytes that are hashed; raises Rejected (`bad_password`) for an empty, endless or unprintable one."""
    if len(password) > PASSWORD_BYTES_MAX:
        raise Rejected(f"a password has at most {PASSWORD_BYTES_MAX} bytes", code="bad_password")
    try:
        normal = str(_opaque.enforce(password)).encode()
    except UnicodeEncodeError as error:
        raise Rejected(f"not a possible password: {error.reason}", code="bad_password") from None
    if len(normal) > PASSWORD_BYTES_MAX:
        raise Rejected(f"a password has at most {PASSWORD_BYTES_MAX} bytes", code="bad_password")
    return normal
