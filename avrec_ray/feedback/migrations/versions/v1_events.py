"""Events by event_id, and a user's history by index."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """What every store had before there were migrations."""
    op.create_table(
        "store_info",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.String(256), nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.Text, nullable=False, unique=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("item_id", sa.Text, nullable=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("received_us", sa.BigInteger, nullable=False),
        sa.Column("watch_seconds", sa.Double),
        sa.Column("value", sa.Double),
        sa.Column("request_id", sa.Text),
        sa.Column("position", sa.Integer),
        sa.Column("fingerprint", sa.LargeBinary(16), nullable=False),
        sqlite_autoincrement=True,
    )
    acted = sa.text("event != 'impression'")
    op.create_index(
        "events_history", "events", ["user_id", "at_us", "seq"], sqlite_where=acted, postgresql_where=acted
    )  # fmt: skip
    op.execute("INSERT INTO store_info (name, value) VALUES ('schema_version', '1')")
