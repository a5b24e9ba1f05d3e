"""One tree of errors: stable codes, fields, one status each."""

import inspect

from fourplane.edge.http_answers import error_body
from fourplane.foundation import errors


def test_every_error_has_a_code_of_its_own_and_stands_in_the_drawing():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.FourplaneError)]
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert kind.__name__ in errors.__doc__


def test_the_status_in_the_drawing_is_the_status_of_the_class():
    for line in errors.__doc__.splitlines():
        words = line.replace("|", " ").replace("`--", " ").replace("--", " ").split()
        if "HTTP" in line:
            assert getattr(errors, words[0]).http_status == int(line.partition("HTTP ")[2][:3])


def test_an_error_carries_code_message_and_fields():
    error = errors.Conflict("only 3 left", code="out_of_stock", product="p_1", left=3)
    assert (error.reason, error.message, error.fields) == ("out_of_stock", "only 3 left", {"product": "p_1", "left": 3})
    assert errors.Conflict("x").reason == "conflict"
    assert str(error) == "only 3 left"


def test_people_outside_hear_the_name_of_a_file_and_not_where_it_lies():
    error = errors.Unavailable(
        "the disk is full: /data/state/orders.db", code="disk_full", file="/data/state/orders.db"
    )
    assert error.public == "the disk is full: orders.db"
    assert error.message == "the disk is full: /data/state/orders.db"
    assert errors.Conflict("only 3 left", file="names.csv").public == "only 3 left"
    assert b"/data" not in error_body(error.reason, error.public, error.fields)


def test_overload_says_when_to_come_back():
    assert errors.Overloaded("busy", retry_after_s=2.5).retry_after_s == 2.5
