"""What must hold whatever happens: pure functions and books over what people were promised and what they saw.

Each returns the broken promises as sentences; an empty list is what a system owes. They know nothing of time, sockets or
stores, so their tests feed them broken histories by hand.
"""
