"""Reference pages from code: settings with the comments behind them, metrics and error codes by reading."""

import msgspec

from fourplane.verbs import reference


class Inner(msgspec.Struct, frozen=True):
    port: int = 5222  # where clients connect
    name: str = "x"


class Outer(msgspec.Struct, frozen=True):
    data: str = "./data"  # the one folder
    inner: Inner = Inner()


def test_every_setting_stands_with_type_default_and_comment():
    page = reference.settings_page(Outer)
    assert '| `data` | `str` | `"./data"` | the one folder |' in page
    assert "## [inner]" in page
    assert "| `port` | `int` | `5222` | where clients connect |" in page
    assert '| `name` | `str` | `"x"` |  |' in page


def test_metrics_are_read_from_the_code(tmp_path):
    (tmp_path / "edge.py").write_text(
        'a = registry.counter("fourplane_edge_x_total", "what | it is", route=r)\nb = other.counter("not_ours")\n'
    )
    page = reference.metrics_page(tmp_path)
    assert "| `fourplane_edge_x_total` | counter | `route` | what \\| it is | `src/fourplane/edge.py` |" in page
    assert "not_ours" not in page


def test_error_codes_are_read_from_the_code(tmp_path):
    (tmp_path / "cart").mkdir()
    (tmp_path / "cart" / "x.py").write_text(
        'raise errors.Conflict("gone", code="out_of_stock")\nraise Other("x", code="no")\n'
    )
    page = reference.errors_page(tmp_path)
    assert "| `out_of_stock` | Conflict | 409 | `cart` |" in page
    assert "| `not_found` | NotFound | 404 | any |" in page
    assert "`no`" not in page
