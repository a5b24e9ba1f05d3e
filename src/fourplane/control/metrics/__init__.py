"""The metrics store: dimensions, columns, roll-ups, one small query language."""
