"""Whether the kernels are compiled, so that nobody waits a minute for the first request.

numba keeps compiled kernels beside the source (or in the user's cache folder). `compile_all` fills that cache once, at
set-up, and leaves a stamp that names source, numba, Python and processor; `ready` only reads the stamp.
"""

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
SOURCES = ("index_layout.py", "kernels.py", "position_kernels.py", "road_kernels.py", "answer_kernels.py")


def ready() -> bool:
    """True when numba is here and its cache holds the kernels of this very source."""
    if importlib.util.find_spec("numba") is None:
        return False
    expected = _stamp()
    return any(_read(place) == expected for place in _places())


def load(name: str) -> ModuleType | None:
    """The compiled module `name` of this package, or None where the plain path must serve."""
    return importlib.import_module(f"fourplane.dispatch.{name}") if ready() else None


def compile_all() -> bool:
    """Compile every kernel and leave the stamp; False where numba is missing."""
    if importlib.util.find_spec("numba") is None:
        return False
    if not ready():  # numba looks at a function's own file only, and these call each other across files
        for left in (HERE / "__pycache__").glob("*kernels.*.nb[ci]"):
            left.unlink(missing_ok=True)
    for source in SOURCES[1:]:
        importlib.import_module(f"fourplane.dispatch.{source.removesuffix('.py')}")
    for place in _places():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(_stamp())
        except OSError:
            continue
        return True
    return False


def _places() -> list[Path]:
    name = f"kernels.{sys.implementation.cache_tag}.ready"
    return [HERE / "__pycache__" / name, Path("~/.cache/fourplane").expanduser() / name]


def _stamp() -> str:
    parts = [
        importlib.metadata.version("numba"),
        importlib.metadata.version("numpy"),
        platform.processor(),
        platform.machine(),
    ]
    for source in SOURCES:
        facts = (HERE / source).stat()
        parts.append(f"{source}:{facts.st_mtime_ns}:{facts.st_size}")
    return " ".join(parts)


def _read(place: Path) -> str:
    try:
        return place.read_text()
    except OSError:
        return ""
