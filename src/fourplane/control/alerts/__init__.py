"""Alerts: what is wrong now, told to the people and programs that should know, once and until it is over."""
