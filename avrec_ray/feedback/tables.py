"""The tables of the event store, in portable SQL. A change here needs a revision in migrations/versions."""

import sqlalchemy as sa

SCHEMA_VERSION = 3
"""Number of the newest revision, kept in `store_info` too: what came before migrations looks there."""

metadata = sa.MetaData()

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # only INTEGER makes a row number in SQLite

store_info = sa.Table(
    "store_info",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.String(256), nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    # The server's order. Never reused, so that an export's watermark stays true after rows are erased.
    sa.Column("seq", _BIG_KEY, primary_key=True, autoincrement=True),
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

ACTED = events.c.event != sa.literal_column("'impression'")
"""Events that belong to a history. Written out, not bound: a partial index serves only a literal condition."""

sa.Index(
    "events_history", events.c.user_id, events.c.at_us, events.c.seq, sqlite_where=ACTED, postgresql_where=ACTED
)  # fmt: skip

ANSWERED = events.c.request_id.is_not(None)
"""Events that answer a served list, and can be joined to their impression."""

sa.Index(
    "events_request", events.c.request_id, events.c.item_id, sqlite_where=ANSWERED, postgresql_where=ANSWERED
)  # fmt: skip

SHOWN = events.c.event == sa.literal_column("'impression'")
"""The other events: few readers, but an erased user's must be found."""

sa.Index("events_shown", events.c.user_id, sqlite_where=SHOWN, postgresql_where=SHOWN)

impressions = sa.Table(
    "impressions",
    metadata,
    sa.Column("seq", _BIG_KEY, primary_key=True, autoincrement=True),
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

sa.Index("impressions_user", impressions.c.user_id)

erasures = sa.Table(
    "erasures",
    metadata,
    sa.Column("seq", _BIG_KEY, primary_key=True, autoincrement=True),
    # Who, by a digest: a name would be a trace of the user itself. See Pseudonyms.tombstones.
    sa.Column("tombstone", sa.String(64), nullable=False, unique=True),
    sa.Column("erased_us", sa.BigInteger, nullable=False),
    # Rows of the user up to these are gone for every reader from now on, and removed soon after.
    sa.Column("event_seq", sa.BigInteger, nullable=False),
    sa.Column("impression_seq", sa.BigInteger, nullable=False),
    sa.Column("num_events", sa.BigInteger, nullable=False),
    sa.Column("num_impressions", sa.BigInteger, nullable=False),
    sa.Column("purged_us", sa.BigInteger),
    sa.Column("receipt", sa.Text),
    sqlite_autoincrement=True,
)

erased_events = sa.Table(
    "erased_events",
    metadata,
    sa.Column("seq", _BIG_KEY, primary_key=True, autoincrement=True),
    # So that a client that sends an erased event again does not bring it back. See Pseudonyms.event_digests.
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("erased_us", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
