"""Catalog to shipped order: search, cart, two-phase checkout, inventory, orders."""
