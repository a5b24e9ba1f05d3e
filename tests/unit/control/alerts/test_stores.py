"""A server of stores that does not answer is one alert that names them; a connection that broke is none."""

import math

from fourplane.control.alerts.book import AlertBook
from fourplane.control.alerts.stores import FOR_S, StoreWatch

SHOP, BOOKS, CACHE = ("sql.commerce", "2"), ("records.commerce", "2"), ("cache.main", "0")


def told(*seconds):
    """What the alert book says of these looks, one a second: begun and ended alerts with their second."""
    watch, book, heard = StoreWatch(), AlertBook(), []
    for second, unanswered in enumerate(seconds):
        watch.seen(float(second), unanswered)
        heard += [
            (second, alert.state, alert.summary)
            for alert in book.update(float(second), watch.conditions(float(second)))
        ]
    return heard


def test_a_server_that_stays_away_is_one_alert_until_it_answers():
    away = [{SHOP: 3.0 * n, BOOKS: 1.0 * n, CACHE: 0.0} for n in range(5)]
    back = [{SHOP: 0.0, BOOKS: 0.0, CACHE: 0.0}] * 8
    said = "a server of stores does not answer: records.commerce, sql.commerce"
    began, ended = told(*away, *back)
    assert began == (1 + math.ceil(FOR_S), "firing", said)
    assert ended[1:] == ("resolved", said)


def test_a_connection_that_broke_and_was_opened_again_is_no_news():
    assert told({SHOP: 0.0}, {SHOP: 4.0}, {SHOP: 0.0}, {SHOP: 0.0}, {SHOP: 2.0}, {SHOP: 0.0}) == []


def test_a_store_that_nobody_asks_any_more_does_not_page_for_ever():
    states = [state for _, state, _ in told(*[{SHOP: 2.0 * n} for n in range(4)], *[{SHOP: 6.0}] * 20)]
    assert states == ["firing", "resolved"]


def test_a_worker_that_did_not_tell_changes_nothing():
    assert told({SHOP: 0.0}, {SHOP: math.nan}, {}, {SHOP: 0.0}) == []


def test_a_store_of_one_worker_hides_no_other():
    watch = StoreWatch()
    watch.seen(1.0, {("sql.accounts", "0"): 0.0, ("sql.accounts", "3"): 5.0})
    assert [one.summary for one in watch.conditions(1.0)] == ["a server of stores does not answer: sql.accounts"]


def test_many_stores_are_counted():
    watch = StoreWatch()
    watch.seen(1.0, {(f"sql.{n}", "0"): 1.0 for n in range(9)})
    [condition] = watch.conditions(1.0)
    assert condition.summary.endswith("sql.5 and 3 more")
