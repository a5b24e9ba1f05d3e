"""Runbooks: what the deployment does by itself when an alert fires, step by step, bounded, verified, and written down."""
