"""Durable records in PostgreSQL. One file a noun; `Store` in `store.py` bundles them."""
