"""Plain tables."""

from fourplane.verbs.table import table


def test_numbers_stand_to_the_right_and_words_to_the_left():
    assert table(("name", "count"), [("a", "5"), ("long", "1,000")]) == "name  count\na         5\nlong  1,000"


def test_a_table_without_rows_is_its_head():
    assert table(("name", "count"), []) == "name  count"
