"""Virtual time, an in-memory network and seeded faults around the real services."""
