"""The tables of the event store, in portable SQL. A change here needs a revision in migrations/versions."""

import sqlalchemy as sa

SCHEMA_VERSION = 5
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

new_items = sa.Table(
    "new_items",
    metadata,
    sa.Column("seq", _BIG_KEY, primary_key=True, autoincrement=True),
    sa.Column("item_id", sa.Text, nullable=False, unique=True),
    # Rises with every accepted body: work on an older one is thrown away.
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

sa.Index("new_items_waiting", new_items.c.state, new_items.c.submitted_us)

item_changes = sa.Table(
    "item_changes",
    metadata,
    # What replicas follow: the order of commits, never reused.
    sa.Column("seq", _BIG_KEY, primary_key=True, autoincrement=True),
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

sa.Index("item_changes_item", item_changes.c.item_id, item_changes.c.seq)

lineups = sa.Table(
    "lineups",
    metadata,
    sa.Column("seq", _BIG_KEY, primary_key=True, autoincrement=True),
    # One more than the one it follows: of two writers that saw the same lineup one is refused.
    sa.Column("revision", sa.BigInteger, nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("seq", _BIG_KEY, primary_key=True, autoincrement=True),
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

sa.Index("rollouts_open", rollouts.c.state, rollouts.c.seq)
