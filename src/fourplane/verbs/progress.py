"""A progress line that people can read: a bar on a terminal, a line every few percent elsewhere."""

import sys
from typing import TextIO

WIDTH = 28
STEP = 0.1


class ProgressLine:
    """Shows a share from 0 to 1 and what is being done; `close` ends the line."""

    def __init__(self, *, quiet: bool = False, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._quiet = quiet
        self._live = self._out.isatty()
        self._last = -1.0
        self._open = False

    def show(self, share: float, text: str) -> None:
        """Draw; cheap enough to be called for every step."""
        if self._quiet:
            return
        share = min(1.0, max(0.0, share))
        if self._live:
            filled = int(share * WIDTH)
            bar = "█" * filled + "·" * (WIDTH - filled)
            print(f"\r\x1b[K{bar} {share:4.0%}  {text[:80]}", end="", file=self._out, flush=True)
            self._open = True
        elif share >= self._last + STEP or share >= 1.0 > self._last:
            print(f"{share:4.0%}  {text}", file=self._out, flush=True)
            self._last = share

    def close(self) -> None:
        """Leave the terminal on a fresh line."""
        if self._open:
            print(file=self._out, flush=True)
            self._open = False
