"""The record of rollouts on both databases, as the event store's tests have them."""

from tests.feedback.conftest import new_url, postgres_server, url

__all__ = ["new_url", "postgres_server", "url"]
