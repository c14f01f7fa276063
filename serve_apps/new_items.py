"""New items in a gateway replica: it takes them in, and follows what joins and leaves its catalogue."""

from collections.abc import Sequence

from avrec_ray.bundle import BundleMetadata
from avrec_ray.new_items.eligible import why_not_encodable
from avrec_ray.new_items.log import Change
from avrec_ray.new_items.store import NewItemStore
from serve_apps.config import ServeConfig
from serve_apps.flow import RequestFlow
from serve_apps.following import Following, OnLoop, apply_to_catalogue, follower_of
from serve_apps.item_inbox import ItemInbox
from serve_apps.variants import Variants


def follow_changes(cfg: ServeConfig, flow: RequestFlow, metadata: BundleMetadata, store: NewItemStore) -> None:
    """Let a flow keep up; what has joined and left so far is applied to its catalogue here."""

    def apply(changes: Sequence[Change]) -> None:
        flow.rules.cover(apply_to_catalogue(flow.catalogue, metadata.towers, changes))

    on_loop = OnLoop(apply)
    follower = follower_of(store, metadata, flow.catalogue.item_ids, on_loop, cfg.new_items.poll_seconds)
    follower.catch_up()
    flow.following = Following(follower, on_loop)
    flow.why_no_new_items = why_not_encodable(metadata)


def inbox_of(cfg: ServeConfig, variants: Variants, store: NewItemStore) -> ItemInbox:
    """Where new items come in."""
    return ItemInbox(store, cfg.new_items, cfg.new_items.uploads(cfg.storage_path), variants)


def new_item_store(cfg: ServeConfig) -> NewItemStore:
    """The store that a service's settings name."""
    return NewItemStore(cfg.feedback.store_url(cfg.storage_path), cfg.feedback.busy_timeout_seconds)
