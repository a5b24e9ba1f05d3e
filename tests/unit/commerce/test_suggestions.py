"""Suggestions and synonyms are what the catalog says, heaviest first."""

from fourplane.commerce.suggestions import Suggestions, Synonyms

PHRASES = {"Coffee pot": 10, "Café table": 50, "Coat": 30, "Pot": 7, "coffee POT": 3}


def test_heavier_phrases_come_first_and_accents_do_not_matter():
    found = Suggestions(PHRASES, most=100)
    assert found.find("co") == ["Coat", "Coffee pot"]
    assert found.find("CAFE") == ["Café table"]


def test_any_word_of_a_phrase_begins_a_suggestion():
    assert Suggestions(PHRASES, most=100).find("pot") == ["Pot", "Coffee pot"]
    assert Suggestions(PHRASES, most=100).find("tab") == ["Café table"]


def test_nothing_typed_and_nothing_known_suggest_nothing():
    assert Suggestions(PHRASES, most=100).find(" ") == []
    assert Suggestions(PHRASES, most=100).find("zebra") == []
    assert Suggestions({}, most=100).find("a") == []


def test_only_the_heaviest_are_kept():
    assert Suggestions(PHRASES, most=1).find("co") == []
    assert Suggestions(PHRASES, most=1).find("ca") == ["Café table"]


def test_a_word_stands_for_its_group_in_singular_and_plural():
    synonyms = Synonyms([("sneaker", "trainer", "running shoe"), ("sofa", "couch")])
    assert synonyms.of("Red Sneakers") == ["trainer", "running shoe"]
    assert synonyms.of("A running shoe") == ["sneaker", "trainer"]
    assert synonyms.of("A lamp") == []
    assert synonyms.of("sofa") == ["couch"]
