"""Objectives: what users were promised, how much of it is spent, and how fast; probes that ask as users do."""
