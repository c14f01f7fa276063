"""Audits of a ranking, the same for the report and for the gate: which items are shown, and who is served well."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from avrec_ray.catalogue import Catalogue
from avrec_ray.evaluation.audit import (
    AuditConfig,
    GroupFinding,
    audit_items,
    audit_users,
    group_codes,
    popularity_groups,
)
from avrec_ray.evaluation.metrics import Ranked, ndcg_at_k
from avrec_ray.evaluation.slices import history_slices

Targets = Sequence[npt.NDArray[np.int64]]


def audit_exposure(
    ranked: Ranked, targets: Targets, items: Catalogue, cfg: AuditConfig, seed: int
) -> list[GroupFinding]:
    """Exposure of categories, creators and popularity groups against what users chose."""
    grouped = {
        "popularity": popularity_groups(items.popularity),
        "category": group_codes(items.categories),
        "creator": group_codes(items.creator_ids),
    }
    found = [
        audit_items(ranked, targets, kind, codes, names, cfg, seed) for kind, (codes, names) in grouped.items() if names
    ]
    return [finding for findings in found for finding in findings]


def audit_quality(
    ranked: Ranked,
    targets: Targets,
    attributes: Mapping[str, Sequence[str | None]],
    history_lengths: npt.NDArray[np.integer],
    cfg: AuditConfig,
    seed: int,
) -> list[GroupFinding]:
    """NDCG of new and known users, and of the groups of every attribute of users, against that of all others."""
    is_new = history_slices(history_lengths)["new_users"].users
    assert is_new is not None
    values: dict[str, Sequence[str | None]] = {"history": ["new" if new else "known" for new in is_new], **attributes}
    per_user = ndcg_at_k(ranked, targets, cfg.k)
    found = [audit_users(per_user, f"users by {kind}", *group_codes(of), cfg, seed) for kind, of in values.items()]
    return [finding for findings in found for finding in findings]
