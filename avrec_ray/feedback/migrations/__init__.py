"""Revisions of the event store's tables, for alembic."""
