"""What a person can ask for on the command line: one module per verb, with `add(parser)` and `run(options) -> int`."""
