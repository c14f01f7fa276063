"""The HTML page of an evaluated bundle: what it is worth, against whom, for whom, and what its lists look like."""

from pathlib import Path

import numpy as np

from avrec_ray.config import JobConfig
from avrec_ray.evaluation import pictures
from avrec_ray.evaluation.glossary import GLOSSARY
from avrec_ray.evaluation.list_quality import LIST_QUALITY
from avrec_ray.evaluation.metrics import ndcg_at_k
from avrec_ray.evaluation.page import Page, Picture, Section, Table, Terms, interval, number, render
from avrec_ray.evaluation.significance import bootstrap_interval, compare_models
from avrec_ray.evaluation.slices import Slices
from avrec_ray.pipelines.audits import audit_exposure, audit_quality
from avrec_ray.pipelines.champion import ChampionLists
from avrec_ray.pipelines.measured import ORACLE, SERVED, Measured
from avrec_ray.pipelines.report_champion import champion_section, champion_sentence, compare_with_champion
from avrec_ray.pipelines.report_slices import (
    best_baseline,
    compare_on_slices,
    exposure_tables,
    quality_tables,
    slice_table,
)
from avrec_ray.pipelines.slices import named_slices, user_attributes
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.strips import fill_shelf, items_of_users, shown_users, user_strips

SHOWN = {"ndcg": "NDCG", "recall": "recall", "mrr": "MRR"}


def write_report(path: Path, measured: Measured, champion: ChampionLists, storage: Storage, job: JobConfig) -> None:
    """Write the page as one file."""
    path.write_text(render(build_page(measured, champion, storage, job)))


def build_page(measured: Measured, champion: ChampionLists, storage: Storage, job: JobConfig) -> Page:
    """Sections in the order in which a reader asks; each begins with how to read it."""
    bundle, lengths = measured.bundle, measured.history_lengths
    slices = named_slices(
        storage, bundle.items, measured.users, lengths, measured.choice_counts, job.evaluation.gate.slices
    )
    against = _against_baselines(measured, job.seed)
    change = compare_with_champion(measured, champion, slices, job.seed)
    users, served = shown_users(measured), measured.rankings[SERVED]
    needed = items_of_users(measured, users, served)
    needed |= items_of_users(measured, change.users, served, change.ranked) if change else set()
    shelf = fill_shelf(bundle.items, needed, storage.folder("clips"))
    return Page(
        title=f"Bundle {bundle.metadata.model_version}",
        verdict=_verdict(against) + champion_sentence(change),
        facts=[
            ("users asked", str(len(measured.users))),
            ("items", str(len(bundle.items))),
            ("data", bundle.metadata.data_version),
            ("seed", str(bundle.metadata.seed)),
        ],
        sections=[
            _metrics(measured, job),
            Section(
                "Against the baselines",
                "Is the served ranking better than simple ones? Each row compares it with one of them on the same "
                "users; a difference whose interval holds 0 may be chance.",
                [against],
            ),
            champion_section(measured, change, champion.note, shelf),
            Section(
                "Over the length of the list",
                "Does the order of models depend on how much of the list is looked at? One line a model, higher is "
                "better.",
                [_curves(measured)],
            ),
            _slices(measured, slices, job.seed),
            _quality(measured, storage, job),
            _exposure(measured, job),
            _beyond_accuracy(measured, job.evaluation.cutoffs[0]),
            Section(
                "Embeddings",
                "Does the model see what items have in common? One point an item; items that lie together are taken to "
                "be alike, so colours should form groups where categories matter.",
                [_map(measured)],
            ),
            Section(
                "Ten users",
                "Do the lists make sense to a person? What each user watched, newest last, and the list for them; "
                "framed items are among those that the user went on to choose.",
                user_strips(measured, users, shelf),
            ),
            Section("Glossary", "What the words and metrics of this page mean.", [Terms(GLOSSARY)]),
        ],
    )


def _metrics(measured: Measured, job: JobConfig) -> Section:
    names = {f"{name}_at_{k}": f"{head} at {k}" for k in job.evaluation.cutoffs for name, head in SHOWN.items()}
    names |= {f"coverage_at_{k}": f"coverage at {k}" for k in job.evaluation.cutoffs[:1]}
    low, high = bootstrap_interval(ndcg_at_k(measured.rankings[SERVED], measured.targets, 10), np.random.default_rng(0))
    note = f"NDCG at 10 of {SERVED} lies in {interval(low, high)} with 95 % confidence over users."
    text = (
        "How good are the lists? Every model ranked the whole catalogue for every user, items already met left out; "
        f"higher is better, and {SERVED} is what would be served."
    )
    return Section("Metrics", text, [_models(measured, names, note)])


def _beyond_accuracy(measured: Measured, k: int) -> Section:
    names = {f"{name}_at_{k}": _heading(name) for name in (*LIST_QUALITY, "gini")}
    known = {name: head for name, head in names.items() if any(name in row for row in measured.results.values())}
    text = (
        f"What are the first {k} places like beside right? There is no best value: a model that lists unknown "
        "items at random is novel and varied. Read each column beside the metrics above; low miscalibration is a list "
        "true to the user's own mix of categories."
    )
    return Section("Beyond accuracy", text, [_models(measured, known)])


def _models(measured: Measured, names: dict[str, str], note: str = "") -> Table:
    """One row a model, one column a metric under its heading; ours is marked."""
    rows = [[model, *(number(row.get(name, np.nan)) for name in names)] for model, row in measured.results.items()]
    return Table(["model", *names.values()], rows, frozenset({0}), note)


def _heading(name: str) -> str:
    return name.replace("intra_list", "intra-list").replace("_", " ")


def _against_baselines(measured: Measured, seed: int) -> Table:
    mine = {"ndcg_at_10": ndcg_at_k(measured.rankings[SERVED], measured.targets, 10)}
    rows = []
    for name, ranked in measured.rankings.items():
        if name in (SERVED, ORACLE):
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
    if not parts:
        return "There is no baseline to compare the served ranking with."
    return f"In NDCG at 10 the served ranking is {'; '.join(parts)}."


def _slices(measured: Measured, slices: Slices, seed: int) -> Section:
    text = "For whom and for what is the served ranking good? Each row counts a part of the users or of the items alone"
    best = best_baseline(measured)
    other = measured.rankings[best or SERVED]
    rows = compare_on_slices(measured, other, slices, seed)
    against = (
        f", beside {best}, the best baseline over all users." if best else "; there is no baseline to compare with."
    )
    return Section("Slices", text + against, [slice_table(rows, SERVED, best or SERVED)])


def _quality(measured: Measured, storage: Storage, job: JobConfig) -> Section:
    findings = audit_quality(
        measured.rankings[SERVED],
        measured.targets,
        user_attributes(storage, measured.users),
        measured.history_lengths,
        job.evaluation.audit,
        job.seed,
    )
    text = (
        "Are some groups of users served worse than others? A gap below 0 means worse than everybody else; groups can "
        "differ for good reasons, such as how much is known of them, so a finding asks for a look, not for a verdict."
    )
    return Section("Groups of users", text, quality_tables(findings, job))


def _exposure(measured: Measured, job: JobConfig) -> Section:
    items, cfg = measured.bundle.items, job.evaluation.audit
    findings = audit_exposure(measured.rankings[SERVED], measured.targets, items, cfg, job.seed)
    shown = {name: measured.rankings[name] for name in (SERVED, "popularity", "item_knn") if name in measured.rankings}
    png = pictures.exposure_against_popularity(shown, measured.choice_counts.astype(np.float64))
    picture = Picture(png, "Items from the most to the least popular: above the diagonal popular ones are favoured.")
    text = (
        "Are groups of items shown as much as users choose them? The choices are what a group earns, the exposure is "
        "what the lists give it; a ratio of 1 is fair in that sense, 0.5 is half of what it earns."
    )
    return Section("Exposure", text, [*exposure_tables(findings, len(items), job), picture])


def _curves(measured: Measured) -> Picture:
    return Picture(pictures.curves_over_k(measured.rankings, measured.targets), "Means over users; higher is better.")


def _map(measured: Measured) -> Picture:
    items = measured.bundle.items
    return Picture(
        pictures.embedding_map(measured.bundle.embeddings, items.categories), "One point an item, by category."
    )
