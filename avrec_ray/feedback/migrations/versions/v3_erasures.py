"""Users that were erased, and what they must not get back."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Adds tables, and indexes by user; no row of `events` or `impressions` is touched."""
    key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "erasures",
        sa.Column("seq", key, primary_key=True, autoincrement=True),
        sa.Column("tombstone", sa.String(64), nullable=False, unique=True),
        sa.Column("erased_us", sa.BigInteger, nullable=False),
        sa.Column("event_seq", sa.BigInteger, nullable=False),
        sa.Column("impression_seq", sa.BigInteger, nullable=False),
        sa.Column("num_events", sa.BigInteger, nullable=False),
        sa.Column("num_impressions", sa.BigInteger, nullable=False),
        sa.Column("purged_us", sa.BigInteger),
        sa.Column("receipt", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "erased_events",
        sa.Column("seq", key, primary_key=True, autoincrement=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("erased_us", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    shown = sa.text("event = 'impression'")
    op.create_index("events_shown", "events", ["user_id"], sqlite_where=shown, postgresql_where=shown)
    op.create_index("impressions_user", "impressions", ["user_id"])
    op.execute("UPDATE store_info SET value = '3' WHERE name = 'schema_version'")
