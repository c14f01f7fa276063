"""Items submitted to the running service, and the log of changes of the catalogue that replicas follow."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Adds two tables; no row of the others is touched."""
    key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "new_items",
        sa.Column("seq", key, primary_key=True, autoincrement=True),
        sa.Column("item_id", sa.Text, nullable=False, unique=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("media_file", sa.Text),
        sa.Column("fingerprint", sa.LargeBinary(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("submitted_us", sa.BigInteger, nullable=False),
        sa.Column("lease_owner", sa.Text, nullable=False),
        sa.Column("lease_until_us", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("new_items_waiting", "new_items", ["state", "submitted_us"])
    op.create_table(
        "item_changes",
        sa.Column("seq", key, primary_key=True, autoincrement=True),
        sa.Column("item_id", sa.Text, nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("towers_version", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("media_file", sa.Text),
        sa.Column("vectors", sa.LargeBinary, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("item_changes_item", "item_changes", ["item_id", "seq"])
    op.execute("UPDATE store_info SET value = '4' WHERE name = 'schema_version'")
