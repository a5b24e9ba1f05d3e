"""Plain text tables: columns as wide as their widest cell, numbers to the right."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head; a column whose every cell starts with a digit (or is empty) is aligned to the right."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    right = [
        bool(rows) and all(not row[place] or row[place].lstrip("-")[:1].isdigit() for row in rows)
        for place in range(len(head))
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)
