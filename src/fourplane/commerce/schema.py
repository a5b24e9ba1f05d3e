"""The tables of commerce. Amounts are BIGINT minor units, times are BIGINT microseconds, bodies are msgpack.

Whole-number keys are SQLite's own row numbers there (a table is one tree instead of two), and tables with other keys are kept in
the order of their key. `STORE` lives in the system's sql store; `SHARD` in every inventory shard (one file and one writer each).
"""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, LargeBinary, MetaData, String, Table, text

Id = BigInteger().with_variant(Integer(), "sqlite")
STORE = MetaData()
SHARD = MetaData()
MONEY = MetaData()  # credits and notices, younger than the rest: a store made before has only to add them
MARK = MetaData()  # younger still

Table(
    "products",
    STORE,
    Column("id", String(200), primary_key=True),
    Column("reference", String(100), nullable=False),
    Column("department", String(60), nullable=False),
    Column("style", String(60), nullable=False),
    Column("active", Integer, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
Table(
    "variants",
    STORE,
    Column("sku", String(200), primary_key=True),
    Column("product_id", String(200), nullable=False),
)
Table(
    "orders",
    STORE,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("attempt", String(100), nullable=False, unique=True),
    Column("cart", String(100), nullable=False),
    Column("claim", String(100), nullable=False, unique=True),
    Column("coordinator", String(60), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("account", BigInteger, nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", String(200), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("changed_us", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
Table(
    "order_events",
    STORE,
    Column("order_id", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(20), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("note", String(200), nullable=False),
    sqlite_with_rowid=False,
)
Table(
    "order_credits",
    MONEY,
    Column("order_id", BigInteger, primary_key=True, autoincrement=False),
    Column("key", String(100), primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Column("lines", LargeBinary, nullable=False),
    Column("state", String(10), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Table(
    "payment_notices",
    MONEY,
    Column("id", String(100), primary_key=True),
    Column("payment_id", String(60), nullable=False),
    Column("state", String(20), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Table(
    "payment_intents",
    STORE,
    Column("transaction_id", Id, primary_key=True, autoincrement=False),
    Column("coordinator", String(60), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("method", String(60), nullable=False),
    Column("state", String(20), nullable=False),
    Column("asked_us", BigInteger, nullable=False),
)
Table(
    "payment_mark",
    MARK,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("mark", String(40), nullable=False),
)
Table(
    "code_uses",
    STORE,
    Column("code", String(40), primary_key=True),
    Column("used", BigInteger, nullable=False),
    Column("uses_max", BigInteger, nullable=False),
    CheckConstraint("used >= 0 AND (uses_max = 0 OR used <= uses_max)", name="code_uses_bound"),
    sqlite_with_rowid=False,
)
Table(
    "webhook_endpoints",
    STORE,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("url", String(500), nullable=False),
    Column("secret", String(100), nullable=False),
)
Table(
    "webhook_deliveries",
    STORE,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("endpoint", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_us", BigInteger, nullable=False),
    Column("state", String(10), nullable=False),
)
Table(
    "promotions",
    STORE,
    Column("id", String(60), primary_key=True),
    Column("body", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
Table(
    "stock",
    SHARD,
    Column("sku", String(200), primary_key=True),
    Column("warehouse", String(20), primary_key=True),
    Column("on_hand", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    CheckConstraint("held >= 0 AND on_hand >= held", name="stock_bound"),
    sqlite_with_rowid=False,
)
Table(
    "holds",
    SHARD,
    Column("transaction_id", BigInteger, primary_key=True, autoincrement=False),
    Column("sku", String(200), primary_key=True),
    Column("warehouse", String(20), primary_key=True),
    Column("quantity", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("coordinator", String(60), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Table(
    "hold_ends",
    SHARD,
    Column("transaction_id", String(80), primary_key=True),
    Column("outcome", String(10), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Table(
    "stock_ledger",
    SHARD,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("sku", String(200), nullable=False),
    Column("warehouse", String(20), nullable=False),
    Column("delta", BigInteger, nullable=False),
    Column("reason", String(40), nullable=False),
    Column("reference", String(80), nullable=False),
    Column("at_us", BigInteger, nullable=False),
)
Table(
    "shard_epoch",
    SHARD,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
)
Index("stock_ledger_reference", SHARD.tables["stock_ledger"].c.reference)
_ORDERS = STORE.tables["orders"].c
_OPEN = text("state IN ('placing', 'paid', 'packed', 'shipped')")
_NAMED = text("account <> 0")
_DELIVERIES = STORE.tables["webhook_deliveries"].c
Index("webhook_deliveries_due", _DELIVERIES.state, _DELIVERIES.due_us)
Index("orders_open", _ORDERS.state, _ORDERS.id, sqlite_where=_OPEN, postgresql_where=_OPEN)
Index("orders_account", _ORDERS.account, _ORDERS.id, sqlite_where=_NAMED, postgresql_where=_NAMED)
