"""What a person reads after a load."""

from fourplane.verbs import load


def report(**errors):
    return {"commerce": {"actions": {}, "errors": errors, "facts": {}}}


def test_a_crowd_that_was_limited_as_one_address_is_told_why():
    assert "FOURPLANE_GATEWAY__RATE_PER_S" in load._readable(report(http_429=7))
    assert "FOURPLANE_GATEWAY__RATE_PER_S" not in load._readable(report(http_503=7))
