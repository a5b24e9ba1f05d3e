import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourplane.edge.route_table import RouteTable
from fourplane.foundation.errors import Misconfigured


def table(*paths):
    made = RouteTable()
    for path in paths:
        made.add("GET", path, path)
    return made


def found(made, path):
    match = made.find(path)
    assert made.methods_at(path) == (None if match is None else match[0])
    return None if match is None else (match[0]["GET"], match[1])


def test_fixed_wins_over_parameter_and_parameter_over_tail():
    made = table("/a/b", "/a/{x}", "/a/{rest:path}", "/{y}/b")
    assert found(made, "/a/b") == ("/a/b", {})
    assert found(made, "/a/c") == ("/a/{x}", {"x": "c"})
    assert found(made, "/a/c/d") == ("/a/{rest:path}", {"rest": "c/d"})
    assert found(made, "/z/b") == ("/{y}/b", {"y": "z"})
    assert found(made, "/z/c") is None


def test_a_wrong_turn_is_taken_back():
    made = table("/shop/new/list", "/shop/{shop}/items", "/{rest:path}")
    assert found(made, "/shop/new/items") == ("/shop/{shop}/items", {"shop": "new"})
    assert found(made, "/shop/new/else") == ("/{rest:path}", {"rest": "shop/new/else"})


def test_a_slash_at_the_end_is_another_path():
    made = table("/a", "/b/")
    assert found(made, "/a/") is None
    assert found(made, "/b") is None
    assert found(made, "/b/") == ("/b/", {})


def test_an_encoded_slash_stays_in_its_parameter():
    assert found(table("/a/{x}/c"), "/a/b%2Fd%C3%A4/c") == ("/a/{x}/c", {"x": "b/dä"})


def test_an_empty_segment_is_no_parameter():
    assert found(table("/a/{x}"), "/a/") is None


def test_hundreds_of_segments_are_refused():
    assert found(table("/{rest:path}"), "/a" * 100) is None


@pytest.mark.parametrize("path", ["a", "/{rest:path}/b"])
def test_malformed_routes_are_refused(path):
    with pytest.raises(Misconfigured):
        table(path)


def test_a_parameter_has_one_name():
    made = table("/a/{x}")
    with pytest.raises(Misconfigured):
        made.add("POST", "/a/{y}", "")
    with pytest.raises(Misconfigured):
        made.add("GET", "/a/{x}", "")


SEGMENT = st.sampled_from(["a", "b", "{x}", "c"])


@given(
    st.lists(st.lists(SEGMENT, min_size=1, max_size=3), max_size=6),
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=3),
)
def test_a_path_is_found_exactly_when_some_route_matches(routes, path):
    made = RouteTable()
    for route in {"/" + "/".join(one) for one in routes}:
        made.add("GET", route, route)
    matching = [
        one for one in routes if len(one) == len(path) and all(a in (b, "{x}") for a, b in zip(one, path, strict=True))
    ]
    assert (made.find("/" + "/".join(path)) is not None) == bool(matching)


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "{x}", "{x:path}", ""]), min_size=1, max_size=3), max_size=6),
    st.lists(st.sampled_from(["a", "b", "c", "", "%61"]), min_size=1, max_size=4),
)
def test_the_expression_never_says_anything_else(routes, path):
    made = RouteTable()
    for route in {"/" + "/".join(one) for one in routes if "{x:path}" not in one[:-1]}:
        if route.count("{x") < 2:
            made.add("GET", route, route)
            made.add("POST", route, f"post {route}")
    expression, served = made.expression("POST")
    path = "/" + "/".join(path)
    match = re.fullmatch(expression, path) if served else None
    if match is not None:
        assert made.methods_at(path)["POST"] == served[match.lastindex - 1]


def test_the_expression_knows_every_path_without_a_choice():
    made = table("/a/{x}/b", "/a/{x}/c", "/", "/d/e", "/f/{x:path}", "/g/{x}", "/g/h")
    expression, served = made.expression("GET")
    for path, route in (("/a/1/b", "/a/{x}/b"), ("/a/b/c", "/a/{x}/c"), ("/", "/"), ("/d/e", "/d/e")):
        assert served[re.fullmatch(expression, path).lastindex - 1] == route
    for path in ("/f/1", "/g/1", "/g/h", "/a//b", "/a/%61/b", "/a/1", "/d/e/"):
        assert re.fullmatch(expression, path) is None
    assert made.expression("POST") == ("", [])
