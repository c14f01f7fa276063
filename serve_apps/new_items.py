"""New items in a gateway replica: it takes them in, and follows what joins and leaves its catalogue."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from avrec_ray.bundle import BundleMetadata
from avrec_ray.new_items.eligible import why_not_encodable
from avrec_ray.new_items.follow import Follower
from avrec_ray.new_items.log import Change
from avrec_ray.new_items.store import NewItemStore
from serve_apps.config import ServeConfig
from serve_apps.flow import RequestFlow
from serve_apps.following import OnLoop, apply_to_catalogue, follower_of
from serve_apps.item_inbox import ItemInbox
from serve_apps.metrics import GatewayMetrics


@dataclass(eq=False)
class NewItems:
    """The parts that live as long as the application."""

    inbox: ItemInbox
    follower: Follower
    on_loop: OnLoop

    def start(self) -> None:
        """Follow, in the running event loop."""
        self.on_loop.loop = asyncio.get_running_loop()
        self.follower.start()

    async def measure(self, metrics: GatewayMetrics) -> None:
        """Put into the metrics how far the catalogue has followed, and what waits."""
        metrics.catalogue_current.set(self.follower.current_at_seconds)
        metrics.catalogue_change.set(self.follower.watermark)
        await self.inbox.measure(metrics)

    def close(self) -> None:
        """End following; wait for what is being queued."""
        self.follower.stop()
        self.inbox.close()


def new_items_of(cfg: ServeConfig, flow: RequestFlow, metadata: BundleMetadata) -> NewItems:
    """The parts for one gateway; what has joined and left so far is applied to the flow's catalogue here."""

    def apply(changes: Sequence[Change]) -> None:
        flow.rules.cover(apply_to_catalogue(flow.catalogue, metadata.towers, changes))

    store = NewItemStore(cfg.feedback.store_url(cfg.storage_path), cfg.feedback.busy_timeout_seconds)
    on_loop = OnLoop(apply)
    follower = follower_of(store, metadata, flow.catalogue.item_ids, on_loop, cfg.new_items.poll_seconds)
    follower.catch_up()
    flow.follow_with(follower.catch_up)
    uploads = cfg.new_items.uploads(cfg.storage_path)
    return NewItems(ItemInbox(store, cfg.new_items, uploads, flow, why_not_encodable(metadata)), follower, on_loop)
