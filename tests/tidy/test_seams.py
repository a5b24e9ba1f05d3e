"""Time, chance, sockets, threads and processes come through a few modules of foundation and nowhere else."""

import ast

import pytest

CLOCK, NETWORK, BLOCKING, DISK_SYNC, PROCESSES = (
    f"foundation/{name}.py" for name in ("clock", "network", "blocking", "disk_sync", "processes")
)
LIFECYCLE = "foundation/lifecycle.py"
FLEET = "control/fleet.py"  # the parent of the workers sets their thread counts before it forks, and hears them
SIMULATOR = "simulator/"  # it implements the seams, so it may build them: seeded chance, an event loop
VERBS = "verbs/"  # the command line's process: its tasks end with it

# What may be imported where: a prefix of the module's path that may, anything else may not.
MODULES = {
    "time": (CLOCK,),
    "uuid": (),
    "secrets": (CLOCK,),
    "threading": (BLOCKING, PROCESSES),
    "_thread": (),
    "queue": (BLOCKING,),
    "concurrent": (),
    "subprocess": (),
    "multiprocessing": (),
    "select": (),
    "selectors": (SIMULATOR,),
    "socketserver": (),
    "http.server": (),
    "http.client": (),
    "urllib.request": (),
    "requests": (),
    "httpx": (),
    "starlette.staticfiles": (),
}

# Names behind a dot (or imported by name) and where they may be used.
NAMES = {
    "os.urandom": (),
    "os.getrandom": (),
    "os.fork": (PROCESSES,),
    "os.system": (),
    "os.popen": (),
    "os.kill": (PROCESSES, FLEET),
    "os.eventfd": (DISK_SYNC,),
    "os.environ": (PROCESSES, FLEET, "verbs/settings.py"),
    "os.getenv": (),
    "datetime.now": (),
    "datetime.utcnow": (),
    "datetime.today": (),
    "date.today": (),
    "socket.socket": (NETWORK,),
    "socket.create_connection": (NETWORK,),
    "socket.create_server": (NETWORK,),
    "socket.socketpair": (NETWORK,),
    "asyncio.sleep": (CLOCK, SIMULATOR),
    "asyncio.create_task": (),
    "asyncio.ensure_future": (SIMULATOR,),
    "asyncio.to_thread": (),
    "asyncio.start_server": (),
    "asyncio.open_connection": (),
    "asyncio.create_subprocess_exec": (PROCESSES,),
    "asyncio.create_subprocess_shell": (),
    "responses.FileResponse": (),
}

# Methods of an event loop, whatever the variable is called.
METHODS = {
    "run_in_executor": (SIMULATOR,),
    "add_reader": (NETWORK, DISK_SYNC, SIMULATOR),
    "add_writer": (SIMULATOR,),
    "create_server": (NETWORK, SIMULATOR),
    "create_unix_server": (NETWORK, SIMULATOR),
    "create_connection": (NETWORK, SIMULATOR),
    "create_unix_connection": (NETWORK, SIMULATOR),
    "create_datagram_endpoint": (NETWORK, SIMULATOR),
    "subprocess_exec": (PROCESSES, SIMULATOR),
}


def allowed(name, places):
    return any(name == place or (place.endswith("/") and name.startswith(place)) for place in places)


def imported(tree):
    """Every module and every `module.name` a file imports, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def banned_imports(tree, name):
    for module, line in imported(tree):
        for banned, places in MODULES.items():
            if (module == banned or module.startswith(banned + ".")) and not allowed(name, places):
                yield f"{name}:{line}: import of {banned}"
        if module in NAMES and not allowed(name, NAMES[module]):
            yield f"{name}:{line}: import of {module}"


def banned_names(tree, name):
    annotations = {id(part) for node in ast.walk(tree) for part in _annotation_parts(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in annotations:
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
        dotted = f"{owner}.{node.attr}"
        if dotted in NAMES and not allowed(name, NAMES[dotted]):
            yield f"{name}:{node.lineno}: {dotted}"
        if node.attr in METHODS and not allowed(name, METHODS[node.attr]) and "loop" in ast.unparse(node.value):
            yield f"{name}:{node.lineno}: {ast.unparse(node)}"
        of_loop = node.attr == "create_task" and "loop" in ast.unparse(node.value)
        if of_loop and not allowed(name, (LIFECYCLE, PROCESSES, SIMULATOR)):
            yield f"{name}:{node.lineno}: a task outside a TaskGroup and outside lifecycle's Tasks"


def unseeded_chance(tree, name):
    """`random.Random(seed)`, handed on as an argument, is no chance; the module's own generator and an unseeded one are."""
    if allowed(name, (CLOCK,)):
        return
    for module, line in imported(tree):
        if module.startswith("random.") and module != "random.Random":
            yield f"{name}:{line}: import of {module}"
    whole = any(isinstance(node, ast.Import) and any(a.name == "random" for a in node.names) for node in ast.walk(tree))
    for node in ast.walk(tree):
        dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if whole and dotted.startswith("random.") and dotted != "random.Random" and dotted.count(".") == 1:
            yield f"{name}:{node.lineno}: {dotted}"
        called = isinstance(node, ast.Call) and not node.args and not node.keywords
        if called and ast.unparse(node.func) in {"Random", "random.Random"}:
            yield f"{name}:{node.lineno}: an unseeded generator"


def _annotation_parts(node):
    """`socket.socket` as a type is no socket made."""
    for field in ("annotation", "returns"):
        annotation = getattr(node, field, None)
        if annotation is not None:
            yield from ast.walk(annotation)


def test_only_the_seams_import_what_reaches_outside(modules):
    assert [found for module in modules for found in banned_imports(module.tree, module.name)] == []


def test_only_the_seams_use_what_reaches_outside(modules):
    assert [found for module in modules for found in banned_names(module.tree, module.name)] == []


def test_chance_comes_from_the_clock_or_from_a_seed(modules):
    assert [found for module in modules for found in unseeded_chance(module.tree, module.name)] == []


def test_no_statement_asks_the_database_for_the_time(modules):
    told = [
        f"{module.name}:{node.lineno}"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "CURRENT_TIMESTAMP" in node.value.upper()
    ]
    assert told == []


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "import concurrent.futures",
        "from os import urandom",
        "import urllib.request",
        "from asyncio import sleep",
    ],
)
def test_a_forbidden_import_is_found(code):
    assert list(banned_imports(ast.parse(code), "messaging/app.py"))


@pytest.mark.parametrize(
    "code",
    [
        "os.urandom(3)",
        "datetime.datetime.now()",
        "asyncio.get_running_loop().run_in_executor(None, f)",
        "loop.create_task(work())",
        "socket.socket()",
    ],
)
def test_a_forbidden_use_is_found(code):
    assert list(banned_names(ast.parse(code), "messaging/app.py"))


@pytest.mark.parametrize("code", ["import random\nrandom.random()", "from random import choice", "Random()"])
def test_forbidden_chance_is_found(code):
    assert list(unseeded_chance(ast.parse(code), "messaging/app.py"))


def test_a_seeded_generator_is_fine():
    code = "import random\ndef f(rng: random.Random): return random.Random(7), rng.random()"
    assert list(unseeded_chance(ast.parse(code), "messaging/app.py")) == []


def test_a_socket_in_an_annotation_is_fine():
    assert list(banned_names(ast.parse("def f(s: socket.socket) -> socket.socket: ..."), "edge/listener.py")) == []
