"""The lineups that gateways follow, and the rollouts that were asked for."""

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    """Adds two tables; no row of the others is touched."""
    key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "lineups",
        sa.Column("seq", key, primary_key=True, autoincrement=True),
        sa.Column("revision", sa.BigInteger, nullable=False, unique=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "rollouts",
        sa.Column("seq", key, primary_key=True, autoincrement=True),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("bundle", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("share", sa.Double, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("changed_us", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("rollouts_open", "rollouts", ["state", "seq"])
    op.execute("UPDATE store_info SET value = '5' WHERE name = 'schema_version'")
