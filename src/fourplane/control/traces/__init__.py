"""Traces: the requests worth looking at, span by span over all processes."""
