"""What a person reads after an import."""

from fourplane.verbs import imports


def test_refused_rows_are_a_table_of_row_field_and_reason():
    told = imports._readable(
        {
            "rows": 4,
            "taken": 2,
            "dry_run": True,
            "errors": [{"row": 2, "field": "price", "reason": "not a price: ''"}],
            "errors_total": 3,
        }
    )
    assert told.splitlines() == [
        "rows           4",
        "taken          2",
        "dry_run        True",
        "errors_total   3",
        "",
        "refused  field  why",
        "row 2    price  not a price: ''",
        "and 2 more",
    ]


def test_an_import_without_errors_tells_only_its_facts():
    assert imports._readable({"titles": 1, "errors": [], "errors_total": 0}) == "titles         1\nerrors_total   0"
