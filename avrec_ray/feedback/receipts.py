"""Signed receipts of erasures: what was removed, when, and what is still to come."""

import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import ConfigError, FeedbackError
from avrec_ray.feedback.pseudonyms import Pseudonyms, read_hex_key
from avrec_ray.feedback.tables import store_info

KEY_VARIABLE = "AVREC_RECEIPT_KEY"
_STORE_KEY = "receipt_key"


@dataclass(frozen=True)
class ReceiptKey:
    """A secret and the name by which a receipt says which one signed it."""

    key_id: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What an erasure did. It names nobody: whoever knows the user's id, and the key, can tell that it is theirs."""

    subject: str
    """HMAC of the user under the receipt's key."""
    erased_at: str
    """ISO 8601, UTC: what happened up to here is gone."""
    issued_at: str
    removed: dict[str, int]
    """Rows by store and, where files were looked through, by file."""
    pending: list[str]
    """What is still to come, and what ends it."""
    key_id: str
    signature: str = ""


def receipt_key(connection: sa.Connection, pseudonyms: Pseudonyms) -> ReceiptKey:
    """AVREC_RECEIPT_KEY; without it one derived from the users' key; without keys one that the store made itself.

    The last says that this store signed, and nothing to whoever can read the store. A transaction that may write.
    """
    if text := os.environ.get(KEY_VARIABLE, "").strip():
        secret = read_hex_key(text, KEY_VARIABLE)
        return ReceiptKey("env:" + hashlib.sha256(secret).hexdigest()[:8], secret)
    if pseudonyms.is_keyed:
        return ReceiptKey(f"user_key:{pseudonyms.newest}", pseudonyms.receipt_key)
    query = sa.select(store_info.c.value).where(store_info.c.name == _STORE_KEY)
    found = connection.execute(query).scalar()
    if found is None:
        found = secrets.token_hex(32)
        connection.execute(sa.insert(store_info).values(name=_STORE_KEY, value=found))
    return ReceiptKey("store", bytes.fromhex(found))


def subject_of(core: bytes, key: ReceiptKey) -> str:
    """What a receipt calls the user whose `Pseudonyms.core` this is: the same under every user key."""
    return hmac.new(key.secret, b"subject\0" + core, hashlib.sha256).hexdigest()[:32]


def sign(receipt: Receipt, key: ReceiptKey) -> Receipt:
    """The receipt with its signature, HMAC-SHA256 over its other values as canonical JSON."""
    return dataclasses.replace(receipt, signature=_signature(receipt, key))


def verify_receipt(receipt: Receipt, key: ReceiptKey, core: bytes | None = None) -> None:
    """Check a signature and, with the user's `core`, that the receipt is of this user.

    Raises:
        FeedbackError: it was signed with another key, changed, or is of somebody else.
    """
    if receipt.key_id != key.key_id:
        raise FeedbackError(f"receipt: signed with key {receipt.key_id!r}, this is {key.key_id!r}; give that key")
    if not hmac.compare_digest(receipt.signature, _signature(receipt, key)):
        raise FeedbackError("receipt: the signature does not fit; it was changed, or is not of this service")
    if core is not None and not hmac.compare_digest(receipt.subject, subject_of(core, key)):
        raise FeedbackError("receipt: it is of another user")


def to_json(receipt: Receipt) -> str:
    """As kept in the store."""
    return json.dumps(to_dict(receipt), sort_keys=True)


def from_json(values: str | Mapping[str, Any]) -> Receipt:
    """A receipt as it was answered or kept.

    Raises:
        FeedbackError: it is none.
    """
    try:
        return from_dict(Receipt, json.loads(values) if isinstance(values, str) else values)
    except (ValueError, ConfigError) as error:
        raise FeedbackError(f"receipt: {error}") from error


def _signature(receipt: Receipt, key: ReceiptKey) -> str:
    body = {name: value for name, value in to_dict(receipt).items() if name != "signature"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hmac.new(key.secret, text.encode(), hashlib.sha256).hexdigest()
