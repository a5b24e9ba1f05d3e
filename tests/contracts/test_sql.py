"""What `Sql` promises, on every engine."""

import asyncio

import pytest
import sqlalchemy as sa

from fourplane.foundation.errors import Conflict, Misconfigured, Rejected, TooLarge
from fourplane.state import schema
from fourplane.state.contracts import Statement

CREATE = "CREATE TABLE item (id BIGINT PRIMARY KEY, name TEXT NOT NULL, stock BIGINT NOT NULL CHECK (stock >= 0))"
INSERT = "INSERT INTO item (id, name, stock) VALUES (?1, ?2, ?3)"


@pytest.fixture(params=["embedded", "memory", "simulated", "postgresql"])
def on(request, opener):
    run = opener("sql", request.param)

    def with_table(body):
        async def prepared(sql):
            await sql.commit([Statement(CREATE)])
            return await body(sql)

        return run(prepared)

    return with_table


def put(number, name="pen", stock=10, **options):
    return Statement(INSERT, (number, name, stock), **options)


def test_rows_come_back_as_written(on):
    async def body(sql):
        await sql.commit([put(1, 'it\'s ?1 "é" 漢'), put(2**62, "", 0)])
        assert await sql.read("SELECT id, name, stock FROM item ORDER BY id") == [
            (1, 'it\'s ?1 "é" 漢', 10),
            (2**62, "", 0),
        ]
        assert await sql.read("SELECT name FROM item WHERE id=?1 AND name<>'?2'", 2**62) == [("",)]
        assert await sql.read("SELECT sum(stock), count(*) FROM item") == [(10, 2)]

    on(body)


def test_statements_commit_together_or_not_at_all(on):
    async def body(sql):
        with pytest.raises(Conflict) as told:
            await sql.commit([put(1), put(2), put(1)])
        assert told.value.fields["rule"] == "unique"
        assert await sql.read("SELECT count(*) FROM item") == [(0,)]

    on(body)


def test_unmet_expectation_undoes_the_commit_and_names_the_statement(on):
    async def body(sql):
        await sql.commit([put(1, stock=3)])
        take = Statement(
            "UPDATE item SET stock=stock-?1 WHERE id=?2 AND stock>=?1", (5, 1), expect_rows=1, label="take 5"
        )
        with pytest.raises(Conflict) as told:
            await sql.commit([put(2), take])
        assert told.value.fields["position"] == 1
        assert told.value.fields["label"] == "take 5"
        assert await sql.read("SELECT id, stock FROM item") == [(1, 3)]
        with pytest.raises(Conflict):
            await sql.commit([Statement("SELECT id FROM item WHERE id=?1", (9,), expect_rows=1)])
        with pytest.raises(Conflict):
            await sql.commit([Statement("UPDATE item SET stock=0", (), expect_rows=2)])
        assert await sql.commit([Statement("SELECT id FROM item WHERE id=?1", (1,), expect_rows=1)]) == [[(1,)]]
        assert await sql.read("SELECT stock FROM item") == [(3,)]

    on(body)


def test_returning_gives_the_rows_of_each_statement(on):
    async def body(sql):
        answers = await sql.commit(
            [
                Statement(f"{INSERT} RETURNING id, stock", (1, "pen", 4), expect_rows=1),
                put(2),
                Statement("UPDATE item SET stock=stock+1 RETURNING id", (), expect_rows=2),
            ]
        )
        assert answers[0] == [(1, 4)]
        assert answers[1] == []
        assert sorted(answers[2]) == [(1,), (2,)]

    on(body)


def test_upsert_is_portable(on):
    async def body(sql):
        upsert = f"{INSERT} ON CONFLICT (id) DO UPDATE SET stock=item.stock+excluded.stock"
        for _ in range(3):
            await sql.commit([Statement(upsert, (1, "pen", 2), expect_rows=1)])
        assert await sql.read("SELECT stock FROM item") == [(6,)]

    on(body)


def test_racing_buyers_never_sell_more_than_there_is(on):
    async def body(sql):
        await sql.commit([put(1, stock=10)])
        sold = 0

        async def buy():
            nonlocal sold
            try:
                await sql.commit(
                    [Statement("UPDATE item SET stock=stock-1 WHERE id=1 AND stock>=1", (), expect_rows=1)]
                )
                sold += 1
            except Conflict:
                pass

        await asyncio.gather(*[buy() for _ in range(30)])
        assert sold == 10
        assert await sql.read("SELECT stock FROM item") == [(0,)]

    on(body)


def test_one_callers_conflict_leaves_its_neighbours_alone(on):
    async def body(sql):
        await sql.commit([put(5)])
        answers = await asyncio.gather(*[sql.commit([put(100 + n), put(n)]) for n in range(10)], return_exceptions=True)
        assert [isinstance(answer, Conflict) for answer in answers] == [n == 5 for n in range(10)]
        assert await sql.read("SELECT count(*) FROM item") == [(19,)]
        assert await sql.read("SELECT count(*) FROM item WHERE id=105") == [(0,)]

    on(body)


def test_a_read_sees_every_commit_that_returned(on):
    async def body(sql):
        for number in range(20):
            await sql.commit([put(number)])
            assert await sql.read("SELECT count(*) FROM item") == [(number + 1,)]

    on(body)


def test_check_rule_is_a_conflict_and_missing_value_is_rejected(on):
    async def body(sql):
        with pytest.raises(Conflict) as told:
            await sql.commit([put(1, stock=-1)])
        assert told.value.fields["rule"] == "check"
        with pytest.raises(Rejected):
            await sql.commit([put(1, name=None)])

    on(body)


@pytest.mark.parametrize(
    "text",
    ["SELEC 1", "INSERT INTO nowhere VALUES (1)", "COMMIT", " begin", "INSERT INTO item (id) VALUES (?1, ?2)", ""],
)
def test_wrong_sql_is_rejected_and_harms_nobody(on, text):
    async def body(sql):
        wrong, right = await asyncio.gather(
            sql.commit([put(2), Statement(text)]), sql.commit([put(1)]), return_exceptions=True
        )
        assert isinstance(wrong, Rejected)
        assert right == [[]]
        assert await sql.read("SELECT id FROM item") == [(1,)]
        with pytest.raises(Rejected):
            await sql.read("SELECT nothing FROM item")

    on(body)


def test_reading_changes_nothing(on):
    async def body(sql):
        with pytest.raises(Rejected):
            await sql.read("DELETE FROM item")
        with pytest.raises(Rejected):
            await sql.read(f"{INSERT} RETURNING id", 1, "pen", 1)
        await sql.commit([put(1)])
        assert await sql.read("SELECT id FROM item") == [(1,)]

    on(body)


def test_bounds_are_told(on):
    async def body(sql):
        with pytest.raises(TooLarge):
            await sql.commit([put(1)] * 10_001)
        many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<?1) SELECT i FROM n"
        assert len(await sql.read(many, 10_000)) == 10_000
        with pytest.raises(Rejected):
            await sql.read(many, 10_001)
        assert await sql.read("SELECT count(*) FROM item") == [(0,)]

    on(body)


def tables(*, with_colour=False):
    metadata = sa.MetaData()
    extra = [sa.Column("colour", sa.Text)] if with_colour else []
    columns = [sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("photo", sa.LargeBinary), *extra]
    sa.Table("product", metadata, *columns, sa.Column("price", sa.BigInteger, index=True))
    return metadata


def add_colour(operations):
    operations.add_column("product", sa.Column("colour", sa.Text))
    operations.create_index("product_colour", "product", ["colour"])


def test_schema_is_made_then_migrated_and_never_goes_back(on):
    async def body(sql):
        assert await schema.ensure(sql, "shop", tables()) == 1
        await sql.commit([Statement("INSERT INTO product (id, photo, price) VALUES (?1, ?2, ?3)", (1, b"\x00\xff", 5))])
        grown = (schema.Migration("colours", add_colour),)
        assert await schema.ensure(sql, "shop", tables(with_colour=True), grown) == 2
        assert await schema.ensure(sql, "shop", tables(with_colour=True), grown) == 2
        assert await sql.read("SELECT id, photo, price, colour FROM product") == [(1, b"\x00\xff", 5, None)]
        with pytest.raises(Misconfigured):
            await schema.ensure(sql, "shop", tables())
        shrink = schema.Migration("shrink", lambda operations: operations.drop_table("product"))
        with pytest.raises(Misconfigured):
            await schema.ensure(sql, "shop", tables(), (*grown, shrink))
        assert await sql.read("SELECT count(*) FROM product") == [(1,)]

    on(body)
