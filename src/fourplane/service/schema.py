"""Tables of the service plane: accounts, payments and their ledger, decisions of two-phase commits, outbox, ownership."""

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from fourplane.state.schema import Migration

if TYPE_CHECKING:
    from alembic.operations import Operations

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # there the row's own number: one tree instead of two

ACCOUNTS = sa.MetaData()
PAYMENTS = sa.MetaData()
DECISIONS = sa.MetaData()
OUTBOX = sa.MetaData()
OWNERSHIP = sa.MetaData()

accounts = sa.Table(
    "accounts",
    ACCOUNTS,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("roles", sa.Text, nullable=False),  # sorted, joined by a space
    sa.Column("web_cost", sa.Text, nullable=False),
    sa.Column("web_salt", sa.LargeBinary, nullable=False),
    sa.Column("web_digest", sa.LargeBinary, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("tenant", "name", name="accounts_name"),
)

account_scram = sa.Table(
    "account_scram",
    ACCOUNTS,
    sa.Column("account_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("mechanism", sa.Text, primary_key=True),
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("iterations", sa.BigInteger, nullable=False),
    sa.Column("stored_key", sa.LargeBinary, nullable=False),
    sa.Column("server_key", sa.LargeBinary, nullable=False),
)

account_sessions = sa.Table(
    "account_sessions",
    ACCOUNTS,
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    sa.Column("account_id", sa.BigInteger, nullable=False),
    sa.Column("expires_us", sa.BigInteger, nullable=False),
    sa.Index("account_sessions_account", "account_id"),
    sa.Index("account_sessions_expiry", "expires_us"),
)

operator_links = sa.Table(
    "operator_links",
    ACCOUNTS,
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    sa.Column("expires_us", sa.BigInteger, nullable=False),
)

payments = sa.Table(
    "payments",
    PAYMENTS,
    sa.Column("id", ROW_ID, primary_key=True, autoincrement=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("authorised", sa.BigInteger, nullable=False),
    sa.Column("captured", sa.BigInteger, nullable=False),
    sa.Column("refunded", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
)

HELD = sa.text("state = 'authorised'")
sa.Index("payments_held", payments.c.id, sqlite_where=HELD, postgresql_where=HELD)


def _find_held(change: "Operations") -> None:
    change.create_index("payments_held", "payments", ["id"], sqlite_where=HELD, postgresql_where=HELD)


def _moves() -> list[sa.Column[Any]]:
    """What an operation moves, per account; they add up to zero."""
    return [
        sa.Column("currency", sa.Text, nullable=False, server_default=""),
        *(sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in ("card", "held", "merchant")),
    ]


def _move_with_operations(change: "Operations") -> None:
    for column in _moves():
        change.add_column("payment_operations", column)


PAYMENTS_MIGRATIONS = (
    Migration("what is held is found", _find_held),
    Migration("an operation's row is its line in the ledger", _move_with_operations),
)

payment_operations = sa.Table(
    "payment_operations",
    PAYMENTS,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("payment_id", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),  # what the key was first used for; another use is refused
    sa.Column("at_us", sa.BigInteger, nullable=False),
    *_moves(),
    sa.Index("payment_operations_payment", "payment_id", "at_us"),
    sqlite_with_rowid=False,
)

payment_ledger = sa.Table(  # lines of releases before the operations had them
    "payment_ledger",
    PAYMENTS,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("line", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("payment_id", sa.BigInteger, nullable=False),
    sa.Column("account", sa.Text, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

coordinators = sa.Table(
    "coordinators",
    DECISIONS,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)

decisions = sa.Table(
    "decisions",
    DECISIONS,
    sa.Column("transaction_id", ROW_ID, primary_key=True, autoincrement=False),
    sa.Column("coordinator", sa.Text, nullable=False),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("participants", sa.Text, nullable=False),  # names joined by a space
    sa.Column("decided_us", sa.BigInteger, nullable=False),
)

outbox = sa.Table(
    "outbox",
    OUTBOX,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.BigInteger, nullable=False),
    sa.Column("event", sa.LargeBinary, nullable=False),
)

owners = sa.Table(
    "owners",
    OWNERSHIP,
    sa.Column("shard", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("granted_us", sa.BigInteger, nullable=False),
    sa.Column("moving_to", sa.Text, nullable=False, server_default=""),
)

owner_moves = sa.Table(
    "owner_moves",
    OWNERSHIP,
    sa.Column("shard", sa.Text, primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("step", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
)

shard_epochs = sa.Table(
    "shard_epochs",
    OWNERSHIP,
    sa.Column("shard", sa.Text, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)
