"""Four production architectures on one runtime of four planes: edge, service, state, control."""

__version__ = "0.1.0"
