"""The command line: finds verbs, refuses in one line, answers programs in JSON."""

import json

import pytest

from fourplane import __main__ as command_line


def run(capsys, *arguments):
    code = command_line.main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_without_a_verb_it_says_what_there_is(capsys):
    code, out, _ = run(capsys)
    assert code == 2
    assert "usage: fourplane VERB" in out
    assert run(capsys, "--help")[0] == 0


def test_only_verbs_that_exist_are_offered(capsys):
    names = {verb.name for verb in command_line.offered()}
    assert {"test", "check", "check-config", "bench", "docs", "setup"} <= names
    _, out, _ = run(capsys, "--help")
    for verb in command_line.VERBS:
        assert (f"  {verb.name} " in out) == (verb.name in names)


@pytest.mark.parametrize(("wrong", "right"), [("tset", "test"), ("benhc", "bench"), ("chek-config", "check-config")])
def test_an_unknown_verb_gets_the_nearest_right_name(capsys, wrong, right):
    code, out, err = run(capsys, wrong)
    assert (code, out) == (2, "")
    assert err.splitlines() == [f"fourplane: unknown verb '{wrong}' (did you mean \"{right}\"?)"]


def test_a_verb_like_no_other_gets_the_list(capsys):
    _, _, err = run(capsys, "xyzzy")
    assert err.startswith("fourplane: unknown verb 'xyzzy'; there are ")


def test_wrong_arguments_are_one_line_that_names_the_verb(capsys):
    code, _, err = run(capsys, "docs", "--colour")
    assert code == 2
    assert err == "fourplane: docs: unrecognized arguments: --colour; see fourplane docs --help\n"


def test_an_unknown_page_gets_the_nearest_right_name(capsys):
    code, _, err = run(capsys, "docs", "metric")
    assert (code, err) == (2, "fourplane: unknown page 'metric' (did you mean \"metrics\"?)\n")


def test_a_program_gets_its_refusal_in_json(capsys):
    code, out, err = run(capsys, "test", "no/such/file.py", "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["error"]["code"] == "no_tests"


def test_every_verb_explains_itself(capsys):
    for verb in command_line.offered():
        with pytest.raises(SystemExit) as left:
            command_line.main([verb.name, "--help"])
        assert left.value.code == 0
        out = capsys.readouterr().out
        assert f"usage: fourplane {verb.name}" in out
        assert "--json" in out


def test_setup_tells_a_program_what_is_there(capsys):
    code, out, _ = run(capsys, "setup", "--json")
    assert code == 0
    assert json.loads(out)["python"].startswith("3.")
