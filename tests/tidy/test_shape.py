"""Files and functions a person can read in one sitting, named by nouns of the field."""

import ast
import re

LINES_MAX = 600
FUNCTION_LINES_MAX = 70
BANNED_MODULES = {"utils", "util", "common", "helpers", "helper", "base", "core", "manager", "misc", "shared"}
TEST_FOLDERS = {"contracts", "failure", "journeys", "machines", "protocol", "simulation", "tidy", "unit"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
CODE = (".py", ".js", ".css", ".html", ".toml", ".sh")


def lines_of(node):
    body = node.body
    first = body[1] if ast.get_docstring(node) and len(body) > 1 else body[0]
    return node.end_lineno - first.lineno + 1


def test_no_file_is_longer_than_600_lines(texts):
    long = {
        name: text.count("\n") for name, text in texts if name.endswith((".py", ".js")) and text.count("\n") > LINES_MAX
    }
    assert long == {}


def test_no_function_is_longer_than_70_lines(modules):
    long = [
        f"{module.name}:{node.lineno} {node.name}: {lines_of(node)} lines"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_every_module_says_what_it_is(modules):
    assert [module.name for module in modules if len(ast.get_docstring(module.tree) or "") < 20] == []


def test_no_module_is_called_by_a_name_that_says_nothing(modules):
    told = [m.name for m in modules if BANNED_MODULES & set(re.split(r"[/.]", m.name))]
    assert told == []


def test_nothing_is_left_to_do_in_the_code(texts):
    this = "tests/tidy/test_shape.py"
    told = [
        f"{name}:{number}"
        for name, text in texts
        if name.endswith(CODE) and name not in {this, "pyproject.toml"}
        for number, line in enumerate(text.splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert told == []


def test_tests_stand_in_the_folders_of_the_house_style(root, files):
    tests = [path.relative_to(root / "tests") for path in files if path.is_relative_to(root / "tests")]
    assert {path.parts[0] for path in tests if len(path.parts) > 1} <= TEST_FOLDERS
    packages = {path.name for path in (root / "src" / "fourplane").iterdir()}
    units = {path.parts[1] for path in tests if path.parts[0] == "unit" and len(path.parts) > 2}
    assert units <= packages, "tests/unit mirrors the tree of src/fourplane"


def test_packages_only_gather_names(modules):
    """An `__init__.py` has imports and names, no work."""
    working = [
        f"{module.name}:{node.lineno}"
        for module in modules
        if module.name.endswith("__init__.py")
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.For | ast.While | ast.With | ast.Try)
    ]
    assert working == []
