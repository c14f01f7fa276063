"""Tables of the report that look at parts: slices, groups of users, groups of items."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from avrec_ray.config import JobConfig
from avrec_ray.evaluation.audit import GroupFinding
from avrec_ray.evaluation.metrics import ndcg_at_k
from avrec_ray.evaluation.page import Table, interval, number
from avrec_ray.evaluation.slice_compare import MIN_USERS, SliceRow, compare_slices
from avrec_ray.evaluation.slices import Slices, slice_values
from avrec_ray.pipelines.measured import ORACLE, SERVED, Measured, Rankings

MAX_GROUPS = 12
"""Groups of a kind that a table of the audit shows, the largest."""


def best_baseline(measured: Measured) -> str | None:
    """The model with most NDCG at 10 that is neither ours nor the oracle; None where there is no other."""
    others = [name for name in measured.rankings if name not in (SERVED, ORACLE)]
    return max(others, key=lambda name: ndcg_at_k(measured.rankings[name], measured.targets, 10).mean(), default=None)


def compare_on_slices(measured: Measured, other: Rankings, slices: Slices, seed: int) -> list[SliceRow]:
    """NDCG at 10 of the served ranking and of another, slice by slice."""
    mine, theirs = (
        slice_values(ranked, measured.targets, slices, "ndcg_at_10") for ranked in (measured.rankings[SERVED], other)
    )
    return compare_slices(mine, theirs, seed)


def slice_table(rows: Sequence[SliceRow], mine: str, other: str) -> Table:
    """One row a slice; those on which `mine` is worse are marked."""
    cells = [
        [
            row.name,
            f"{row.num_users}",
            number(row.mean),
            interval(row.low, row.high),
            number(row.other),
            number(row.difference, "+z.4f"),
            interval(row.difference_low, row.difference_high, "+z.4f"),
            row.verdict,
        ]
        for row in rows
    ]
    head = ["slice", "users", mine, "interval", other, "difference", "interval", f"{mine} is"]
    marked = frozenset(position for position, row in enumerate(rows) if row.verdict == "worse")
    note = (
        "NDCG at 10, counting the targets of the slice alone; intervals at 95 % over users. Better or worse is said "
        "where the difference is clear, of parts after correction for their number; worse rows are marked. Slices of "
        f"fewer than {MIN_USERS} users are not judged."
    )
    return Table(head, cells, marked, note)


def exposure_tables(findings: Sequence[GroupFinding], num_items: int, job: JobConfig) -> list[Table]:
    """One table a kind of item groups."""
    limits = job.evaluation.audit
    note = (
        f"Ratio: exposure over choices. Marked: the whole interval lies below {limits.min_exposure_ratio:g} or above "
        f"{limits.max_exposure_ratio:g}. Groups of fewer than {limits.min_choices} choices are not judged."
    )
    head = ["share of the items", "share of the choices", "share of the exposure", "ratio", "interval"]

    def cells(f: GroupFinding) -> list[str]:
        shares = [f"{f.size / num_items:.1%}", f"{f.expected:.1%}", f"{f.share:.1%}"]
        return [*shares, number(f.value, ".2f"), interval(f.low, f.high, ".2f")]

    return _tables(findings, head, cells, note)


def quality_tables(findings: Sequence[GroupFinding], job: JobConfig) -> list[Table]:
    """One table a kind of user groups."""
    limits = job.evaluation.audit
    note = (
        f"Gap: NDCG at {limits.k} of the group minus that of all other users. Marked: the whole interval lies beyond "
        f"{limits.max_quality_gap:g}. Groups of fewer than {limits.min_choices} users are not judged."
    )
    head = ["users", "share of the users", "NDCG of the group", "of all others", "gap", "interval"]

    def cells(f: GroupFinding) -> list[str]:
        quality = [number(f.expected + f.value), number(f.expected), number(f.value, "+z.4f")]
        return [f"{f.size}", f"{f.share:.1%}", *quality, interval(f.low, f.high, "+z.4f")]

    return _tables(findings, head, cells, note)


def _tables(
    findings: Sequence[GroupFinding], head: Sequence[str], cells: Callable[[GroupFinding], list[str]], note: str
) -> list[Table]:
    """One table a kind; `note`, which holds for all of them, stands below the last."""
    tables = []
    for kind in dict.fromkeys(finding.kind for finding in findings):
        found = sorted((f for f in findings if f.kind == kind), key=lambda f: -f.size)
        # What lies beyond the limits is shown however small its group is.
        shown = [f for position, f in enumerate(found) if position < MAX_GROUPS or not f.within]
        left_out = f"{len(found) - len(shown)} smaller groups are left out." if len(found) > len(shown) else ""
        marked = frozenset(position for position, f in enumerate(shown) if not f.within)
        rows = [[f.group, *cells(f)] for f in shown]
        tables.append(Table([kind, *head], rows, marked, left_out))
    return [*tables[:-1], *(replace(table, note=f"{table.note} {note}".strip()) for table in tables[-1:])]
