"""Impressions as they were served, and events by the request they answer."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Adds a table and an index; no row of `events` is touched."""
    op.create_table(
        "impressions",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("item_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("propensity", sa.Double),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("variant", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("request_id", "item_id", name="impressions_once"),
        sqlite_autoincrement=True,
    )
    answered = sa.text("request_id IS NOT NULL")
    op.create_index(
        "events_request", "events", ["request_id", "item_id"], sqlite_where=answered, postgresql_where=answered
    )  # fmt: skip
    op.execute("UPDATE store_info SET value = '2' WHERE name = 'schema_version'")
