"""One request and one answer of each route, as OpenAPI shows them; a test sends the requests."""

from typing import Any

PARAMETERS: dict[str, Any] = {
    "item_id": "i0001", "user_id": "u0001", "q": "guitar lesson", "k": 5, "n": 5, "offset": 0, "model": "champion",
    "write-back-type": "read",
}  # fmt: skip
"""Of path and query, by name."""

_EVENT = {"event_id": "e1", "user_id": "u0001", "item_id": "i0001", "event": "like", "at": "2026-01-31T18:00:00Z"}
_GORSE_EVENT = {"FeedbackType": "read", "UserId": "u0001", "ItemId": "i0001", "Timestamp": "2026-01-31T18:00:00Z"}
_RANKING = {
    "event": "ranking", "id": "r1", "timestamp": 1767225600000, "user": "u0001",
    "items": [{"id": "i0001"}, {"id": "i0002"}],
}  # fmt: skip
_CLICK = {
    "event": "interaction", "id": "c1", "timestamp": "1767225601000", "user": "u0001", "ranking": "r1", "type": "click",
    "item": "i0002",
}  # fmt: skip

REQUESTS: dict[str, dict[str, Any]] = {
    "recommend": {
        "user": {"user_id": "u0001", "k": 10, "explain": True},
        "session": {"session": [{"item_id": "i0001", "event": "view", "watch_seconds": 12.5}], "k": 5},
        "filtered": {"user_id": "u0001", "filters": {"categories": ["music"], "max_duration_seconds": 60}},
    },
    "rank": {"items": {"user_id": "u0001", "items": ["i0002", "i0001"]}},
    "feedback": {"like": {"events": [_EVENT]}},
    "submit_item": {
        "image": {"item_id": "n0001", "title": "Bass at noon", "tags": ["bass"], "category": "music"},
    },
    "claim_visitor": {"visitor": {"anonymous_id": "anonymous:9f86d081"}},
    "gorse_feedback": {"read": [_GORSE_EVENT]},
    "gorse_put_feedback": {"read": [_GORSE_EVENT]},
    "gorse_session_recommend": {"read": [{"FeedbackType": "read", "UserId": "", "ItemId": "i0001"}]},
    "metarank_rank": {
        "items": {
            "id": "r1",
            "timestamp": "1767225600000",
            "user": "u0001",
            "items": [{"id": "i0001"}, {"id": "i0002"}],
        }
    },
    "metarank_feedback": {"ranking": _RANKING, "several": [_RANKING, _CLICK]},
}
"""By operation and name of the example."""

_ITEM = {
    "item_id": "i0002",
    "rank": 1,
    "score": 1.25,
    "title": "Guitar at night",
    "category": "music",
    "propensity": 1.0,
}
_LIST: dict[str, Any] = {
    "request_id": "3f6c1d2e4b5a49788f0e1d2c3b4a5968",
    "model_version": "v-0123456789ab",
    "variant": "champion",
    "degraded": [],
    "items": [{**_ITEM, "explanation": None}],
    "stages_ms": {"profile": 1.2, "match": 3.4, "rerank": 5.6, "total": 10.4},
}
_HEALTH = {
    "Ready": True, "DataStoreError": None, "CacheStoreError": None, "DataStoreConnected": True,
    "CacheStoreConnected": True,
}  # fmt: skip

_AFFINITY = {"name": "guitar", "share": 0.6, "lift": 4.2}

ANSWERS: dict[str, Any] = {
    "recommend": _LIST,
    "rank": {**_LIST, "unknown_items": []},
    "similar": _LIST,
    "search": {**_LIST, "kind": "embedding"},
    "feedback": {"accepted": 1, "duplicates": 0, "rejected": []},
    "item": {
        "item_id": "i0002", "title": "Guitar at night", "category": "music", "tags": ["guitar", "night"],
        "creator_id": "c01", "language": "en", "duration_seconds": 12.0, "popularity": 0.01,
        "model_version": "v-0123456789ab",
    },
    "submit_item": {"item_id": "n0001", "status": "queued"},
    "item_status": {"item_id": "n0001", "status": "servable", "served": True},
    "delete_item": {"item_id": "n0001", "status": "deleted"},
    "user_data": {
        "user_id": "u0001", "stored_as": "u0001", "erased_at": None, "impressions": [], "profile": None,
        "events": [{**_EVENT, "watch_seconds": None, "value": None, "request_id": None, "position": None}],
    },
    "user_profile": {
        "user_id": "u0001", "num_events": 2, "model_version": "v-0123456789ab",
        "short_term": {"tags": [_AFFINITY], "categories": [_AFFINITY], "creators": []},
        "long_term": {"tags": [_AFFINITY], "categories": [_AFFINITY], "creators": []},
        "recent": [{"item_id": "i0001", "title": "Guitar at night", "event": "like", "at_seconds": 1769882400.0}],
    },
    "claim_visitor": {"events": 2},
    "erase_user": {
        "subject": "5d41402abc4b2a76b9719d911017c592", "erased_at": "2026-01-31T18:00:00Z",
        "issued_at": "2026-01-31T18:00:01Z", "removed": {"events": 12, "impressions": 120},
        "pending": ["files and models: jobs.erase_user"], "key_id": "2c26b46b68ffc68f",
        "signature": "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9",
    },
    "metrics": 'avrec_requests_total{route="/v1/recommend",status="200"} 12.0\n',
    "live": {"status": "live"},
    "ready": {"status": "ready", "missing": [], "model_version": "v-0123456789ab", "index_version": "v-ba9876543210"},
    "gorse_recommend": ["i0002", "i0007"],
    "gorse_session_recommend": [{"Id": "i0002", "Score": 1.25}],
    "gorse_item": {
        "ItemId": "i0002", "IsHidden": False, "Categories": ["music"], "Timestamp": "0001-01-01T00:00:00Z",
        "Labels": ["guitar", "night"], "Comment": "Guitar at night",
    },
    "gorse_feedback": {"RowAffected": 1, "Rejected": []},
    "gorse_put_feedback": {"RowAffected": 1, "Rejected": []},
    "gorse_live": _HEALTH,
    "gorse_ready": _HEALTH,
    "metarank_rank": {"took": 5, "items": [{"item": "i0002", "score": 1.25}, {"item": "i0001", "score": 0.5}]},
    "metarank_feedback": {
        "accepted": 1, "status": "ok", "tookMillis": 3, "updated": 2, "unsupported": {}, "rejected": [],
    },
}  # fmt: skip
"""By operation."""
