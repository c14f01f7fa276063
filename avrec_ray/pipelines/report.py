"""The HTML page of an evaluated bundle: what it is worth, against whom, for whom, and what its lists look like."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avrec_ray.config import JobConfig
from avrec_ray.evaluation import pictures
from avrec_ray.evaluation.audit import GroupFinding, audit_items, group_codes, popularity_groups
from avrec_ray.evaluation.metrics import ndcg_at_k
from avrec_ray.evaluation.page import Card, Page, Picture, Section, Strip, Table, render
from avrec_ray.evaluation.significance import bootstrap_interval, compare_models
from avrec_ray.evaluation.slices import history_slices, popularity_slices, slice_metrics, warmth_slices
from avrec_ray.media.clips import iter_clips
from avrec_ray.pipelines.measured import SERVED, Measured

SHOWN = ("ndcg", "recall", "mrr")
NUM_USERS_SHOWN, NUM_HISTORY_SHOWN, NUM_LIST_SHOWN = 10, 10, 10


def write_report(path: Path, measured: Measured, clips: Path, job: JobConfig) -> None:
    """Write the page as one file."""
    path.write_text(render(build_page(measured, clips, job)))


def build_page(measured: Measured, clips: Path, job: JobConfig) -> Page:
    """Sections in the order in which a reader asks."""
    against = _against_baselines(measured, job.seed)
    bundle = measured.bundle
    return Page(
        title=f"Bundle {bundle.metadata.model_version}",
        verdict=_verdict(against),
        facts=[
            ("users asked", str(len(measured.users))),
            ("items", str(len(bundle.items))),
            ("data", bundle.metadata.data_version),
            ("seed", str(bundle.metadata.seed)),
        ],
        sections=[
            Section("Metrics", "Full ranking of the catalogue, items already met left out.", [_metrics(measured, job)]),
            Section("Against the baselines", "Paired over users; 95 % intervals.", [against]),
            Section("Over the length of the list", "", [_curves(measured)]),
            Section("Slices", "NDCG at 10, counting the targets of the slice alone.", [_slices(measured)]),
            Section("Exposure", "Who is shown, against who is chosen.", _exposure(measured, job)),
            Section("Embeddings", "Items that lie together are taken to be alike.", [_map(measured)]),
            Section("Ten users", "What they watched, newest last, and their list.", list(_users(measured, clips))),
        ],
    )


def _metrics(measured: Measured, job: JobConfig) -> Table:
    names = [f"{name}_at_{k}" for k in job.evaluation.cutoffs for name in SHOWN]
    names += [f"coverage_at_{k}" for k in job.evaluation.cutoffs[:1]]
    low, high = bootstrap_interval(ndcg_at_k(measured.rankings[SERVED], measured.targets, 10), np.random.default_rng(0))
    rows = [[model, *(f"{row.get(name, np.nan):.4f}" for name in names)] for model, row in measured.results.items()]
    note = f"NDCG at 10 of {SERVED} lies in [{low:.4f}, {high:.4f}] with 95 % confidence over users."
    return Table(["model", *names], rows, frozenset({0}), note)


def _against_baselines(measured: Measured, seed: int) -> Table:
    mine = {"ndcg_at_10": ndcg_at_k(measured.rankings[SERVED], measured.targets, 10)}
    rows = []
    for name, ranked in measured.rankings.items():
        if name in (SERVED, "oracle"):
            continue
        theirs = {"ndcg_at_10": ndcg_at_k(ranked, measured.targets, 10)}
        (c,) = compare_models(mine, theirs, np.random.default_rng(seed), num_samples=2000)
        better = {"a": SERVED, "b": name, "neither": "neither"}[c.better]
        rows.append([name, f"{c.mean_b:.4f}", f"{c.difference:+.4f}", f"{c.low:+.4f}", f"{c.high:+.4f}", better])
    return Table(["baseline", "NDCG at 10", f"{SERVED} minus it", "low", "high", "better"], rows)


def _verdict(against: Table) -> str:
    beaten = [row[0] for row in against.rows if row[-1] == SERVED]
    lost = [row[0] for row in against.rows if row[-1] == row[0]]
    rest = [row[0] for row in against.rows if row[-1] == "neither"]
    parts = [f"better than {', '.join(beaten)}"] if beaten else []
    parts += [f"not clearly different from {', '.join(rest)}"] if rest else []
    parts += [f"worse than {', '.join(lost)}"] if lost else []
    return f"In NDCG at 10 the served ranking is {'; '.join(parts)}."


def _slices(measured: Measured) -> Table:
    slices = {
        **warmth_slices(~measured.bundle.items.warm),
        **popularity_slices(measured.choice_counts),
        **history_slices(np.array([len(items) for items in measured.seen])),
    }
    models = [name for name in (SERVED, "item_knn", "ease", "popularity", "oracle") if name in measured.rankings]
    found = {name: slice_metrics(measured.rankings[name], measured.targets, slices, (10,)) for name in models}
    rows = []
    for name in slices:
        values = [found[model][name].get("ndcg_at_10", np.nan) for model in models]
        rows.append([name, f"{found[SERVED][name]['num_users']:.0f}", *(f"{value:.4f}" for value in values)])
    return Table(["slice", "users", *models], rows)


def _exposure(measured: Measured, job: JobConfig) -> list[Table | Picture]:
    items, cfg = measured.bundle.items, job.evaluation.audit
    groups = {
        "popularity": popularity_groups(items.popularity),
        "category": group_codes(items.categories),
        "creator": group_codes(items.creator_ids),
    }
    ranked = measured.rankings[SERVED]
    blocks: list[Table | Picture] = []
    for kind, (codes, names) in groups.items():
        if names:
            found = audit_items(ranked, measured.targets, kind, codes, names, cfg, job.seed)
            blocks.append(_findings(kind, sorted(found, key=lambda f: -f.size)[:12]))
    shown = {name: measured.rankings[name] for name in (SERVED, "popularity", "item_knn") if name in measured.rankings}
    png = pictures.exposure_against_popularity(shown, measured.choice_counts.astype(np.float64))
    return [
        *blocks,
        Picture(png, "Items from the most to the least popular: above the diagonal popular ones are favoured."),
    ]


def _findings(kind: str, findings: Iterable[GroupFinding]) -> Table:
    rows, marked = [], set()
    for row, f in enumerate(findings):
        rows.append(
            [
                f.group,
                str(f.size),
                f"{f.expected:.1%}",
                f"{f.share:.1%}",
                f"{f.value:.2f}",
                f"{f.low:.2f} to {f.high:.2f}",
            ]
        )
        if not f.within:
            marked.add(row)
    head = [kind, "items", "of the choices", "of the exposure", "ratio", "interval"]
    return Table(head, rows, frozenset(marked), "Marked rows lie beyond the limits of evaluation.audit.")


def _curves(measured: Measured) -> Picture:
    return Picture(pictures.curves_over_k(measured.rankings, measured.targets), "Means over users; higher is better.")


def _map(measured: Measured) -> Picture:
    items = measured.bundle.items
    return Picture(
        pictures.embedding_map(measured.bundle.embeddings, items.categories), "One point an item, by category."
    )


def _users(measured: Measured, clips: Path) -> Iterable[Strip]:
    """Histories and lists; what the user went on to choose is framed."""
    chosen = np.linspace(0, len(measured.users) - 1, min(NUM_USERS_SHOWN, len(measured.users))).astype(int)
    ranked = measured.rankings[SERVED][:, :NUM_LIST_SHOWN]
    histories = {int(row): measured.seen[row][-NUM_HISTORY_SHOWN:] for row in chosen}
    needed = {int(item) for row in histories for item in [*histories[row], *ranked[row][ranked[row] >= 0]]}
    thumbnails = _thumbnails(measured, needed, clips)
    for row, history in histories.items():
        user, targets = measured.users[row], set(measured.targets[row].tolist())
        yield Strip(f"{user} watched", [_card(measured, int(item), thumbnails) for item in history])
        shown = [int(item) for item in ranked[row] if item >= 0]
        found = sum(item in targets for item in shown)
        cards = [_card(measured, item, thumbnails, item in targets) for item in shown]
        yield Strip(f"{user} is shown ({found} of {len(targets)} later choices among the first {len(shown)})", cards)


def _card(measured: Measured, item: int, thumbnails: dict[int, Picture], hit: bool = False) -> Card:
    items = measured.bundle.items
    line = items.categories[item] or ""
    return Card(items.titles[item], line if items.warm[item] else f"{line} · new", thumbnails.get(item), hit)


def _thumbnails(measured: Measured, rows: set[int], clips: Path) -> dict[int, Picture]:
    """The middle frame of the first clip of each item that has a picture."""
    row_of = {measured.bundle.items.item_ids[row]: row for row in rows}
    found: dict[int, Picture] = {}
    for batch in iter_clips(clips, ["item_id", "frames", "has_video"], batch_size=256):
        for item_id, frames, has_video in zip(batch["item_id"], batch["frames"], batch["has_video"], strict=True):
            row = row_of.get(str(item_id))
            if row is not None and row not in found and has_video:
                frame: npt.NDArray[np.uint8] = frames[len(frames) // 2]
                found[row] = Picture(pictures.thumbnail(frame), "")
    return found
