"""Retraining: events since the last run to a new bundle that starts from the champion and replaces it if it may.

Every run has a folder of its own, retrain/run-<watermark>/, with its tables, stages and bundle: what is served, and
what full_loop left, stays as it is until the alias moves. Killed at any step, the same call goes on where it was.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.bundle import BundleMetadata, load_metadata
from avrec_ray.config import JobConfig
from avrec_ray.errors import StageError
from avrec_ray.feedback.impressions import Watermark
from avrec_ray.feedback.store import EventStore
from avrec_ray.media.config import CLIP_SHAPE
from avrec_ray.pipelines import (
    baselines,
    build_index,
    bundle,
    drift,
    embed_items,
    evaluate,
    finetune,
    load_events,
    promote,
    retrain_items,
    retrain_tables,
    split,
    train_reranker,
    warm_start,
)
from avrec_ray.pipelines.event_export import export_new, exported, read_events
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.retrain_plan import (
    Outcome,
    Plan,
    last_finished,
    new_plan,
    prune,
    retrain_lock,
    save_outcome,
    save_plan,
    unfinished,
)
from avrec_ray.pipelines.stage import Loop, read_record
from avrec_ray.pipelines.storage import Storage

NUM_STAGES = 14


def run(loop: Loop, job: JobConfig) -> Outcome | None:
    """One retraining; None where too little is new. Ray must be connected.

    Raises:
        StageError: there is no champion to start from, another retraining is at work, or a stage failed.
    """
    with retrain_lock(loop.storage):
        load_events.run(loop, job)  # what full_loop learned from is in the store too, once
        plan = unfinished(loop.storage)
        if plan:
            loop.echo(f"going on with {plan.name}, which was interrupted; events since then are for the next run")
        else:
            plan = _next_plan(loop, job)
        if plan is None:
            return None
        outcome = _carry_out(loop, job, plan)
        save_outcome(loop.storage, plan, outcome)
        for folder in prune(loop.storage, job.retrain.keep_runs):
            loop.echo(f"removed {folder.name}, of an earlier run")
        return outcome


def run_scheduled(loop: Loop, job: JobConfig) -> Iterator[Outcome | None]:
    """`run` once, or every `retrain.every_hours` until the process is stopped. A failure ends it."""
    while True:
        began = time.monotonic()
        yield run(loop, job)
        if not job.retrain.every_hours:
            return
        wait_seconds = max(0.0, job.retrain.every_hours * 3600 - (time.monotonic() - began))
        loop.echo(f"next run in {wait_seconds / 3600:.1f} hours")
        time.sleep(wait_seconds)


def _next_plan(loop: Loop, job: JobConfig) -> Plan | None:
    """Export, and plan a run if enough is new."""
    storage = loop.storage
    loaded = read_record(storage, "load_events")
    first = int(loaded.metrics.get("watermark", 0)) if loaded else 0
    store = EventStore(load_events.events_url(loop, job), job.feedback.busy_timeout_seconds)
    try:
        upto = export_new(store, storage, first)
    finally:
        store.close()
    last = last_finished(storage)
    since = last.upto if last else Watermark(events=min(first, upto.events))
    num_new = _num_acted(read_events(storage, upto, since))
    if num_new < job.retrain.min_new_events:
        loop.echo(
            f"nothing to learn: {num_new} new events behind watermark {since.events}, which "
            f"{'the last run' if last else 'full_loop'} knew; retrain.min_new_events is {job.retrain.min_new_events}"
        )
        return None
    champion = loop.tracking.champion()
    if champion is None:
        raise StageError(_no_champion(storage))
    plan = new_plan(since, upto, champion.reference, champion.model_version)
    save_plan(storage, plan)
    return plan


def _no_champion(storage: Storage) -> str:
    """Why there may be none, and what to do."""
    built = read_record(storage, "register")
    if built is None:
        return f"retrain: there is no champion to start from; run jobs.full_loop storage_path={storage.root} first"
    refused = "" if built.metrics["passed"] else ", for the gate refused what full_loop built"
    promote_it = (
        f"python -m jobs.promote version={int(built.metrics['registry_version'])}{' force=true' * bool(refused)}"
    )
    return (
        f"retrain: there is no champion to start from{refused}. To serve that bundle all the same: {promote_it} "
        f"storage_path={storage.root}"
    )


def _carry_out(loop: Loop, job: JobConfig, plan: Plan) -> Outcome:
    """Every stage of a run that is not done yet."""
    storage, champion = loop.storage, loop.tracking.resolve_bundle(plan.champion)
    metadata = load_metadata(champion)
    changes = retrain_items.note_changes(loop, job, plan, metadata)
    job = _shaped_as(job, metadata)
    limits = retrain_items.limits_of_new_items(job)
    job = _job_of(job, plan, storage, loop.tracking_uri)
    with open_loop(job, "retrain", NUM_STAGES) as own:
        own.echo = loop.echo
        decoded = retrain_items.decode(own, job, storage, changes, limits)  # new items -> clips beside those of before
        prepared = retrain_tables.run(own, job, storage, plan, changes)  # exported events -> what may be learned from
        drifted = drift.run(own, job, plan, champion)  # new events against those of before
        split.run(own, job)  # the newest choices are for test
        baselines.run(own, job)
        warm_start.run(own, job, storage, plan, champion)  # champion -> towers over this catalogue
        finetune.go_on(own, job)  # these + train -> towers
        train_reranker.run(own, job)
        finetune.refresh(own, job)  # towers + train and valid -> the towers that are served
        embed_items.run(own, job)
        build_index.run(own, job)
        bundle.run(own, job)
        evaluate.run(own, job)  # beside the champion, on the newest choices
        with promote.promotion_lock(storage):  # the lock that jobs.promote takes
            registered = promote.register(own, job)
        built = bundle.bundle_folder(own, job)
    version = str(int(registered.metrics["registry_version"]))
    return Outcome(
        name=plan.name,
        bundle=str(built),
        model_version=built.name,
        registry_version=version,
        passed=bool(registered.metrics["passed"]),
        num_new_events=int(prepared.metrics["num_new_events"]),
        held_back={
            name.removeprefix("held_back_"): int(value)
            for name, value in prepared.metrics.items()
            if name.startswith("held_back_")
        },
        drifted=drift.warned(drifted),
        num_new_items=int(decoded.metrics.get("num_new_usable", 0)),
        num_new_items_set_aside=int(decoded.metrics.get("num_new_quarantined", 0)),
    )


def _shaped_as(job: JobConfig, champion: BundleMetadata) -> JobConfig:
    """The job with the champion's towers, and media cut into clips as they were for it."""
    known = champion.media or job.media
    media = replace(job.media, **{name: getattr(known, name) for name in CLIP_SHAPE})
    return replace(job, towers=champion.towers, media=media)


def _job_of(job: JobConfig, plan: Plan, storage: Storage, tracking_uri: str) -> JobConfig:
    """The job as the stages of this run see it: their own storage, and the tracking of all."""
    finetuning = replace(job.training.finetune, epochs=job.retrain.epochs, learning_rate=job.retrain.learning_rate)
    newest = replace(job.evaluation.split, kind="temporal", rank_among="all", refit=True)
    return replace(
        job,
        storage_path=str(plan.folder(storage)),
        # The store stays where it is: it knows who was erased.
        feedback=replace(job.feedback, url=job.feedback.store_url(job.storage_path)),
        training=replace(job.training, finetune=finetuning),
        tracking=replace(job.tracking, uri=tracking_uri),
        evaluation=replace(job.evaluation, split=newest),
    )


def _num_acted(events: pa.Table) -> int:
    return int(pc.sum(pc.not_equal(events["event"], "impression")).as_py() or 0)


def print_summary(loop: Loop, outcome: Outcome | None) -> None:
    """What was written, and the command that comes next."""
    root = loop.storage.root
    if outcome is None:
        print(f"nothing was trained; events are exported up to watermark {exported(loop.storage).events}")
        print("next: once more events have come in, the same command again (retrain.every_hours=<n> repeats it)")
        return
    folder = loop.storage.folder("retrain") / outcome.name
    print()
    print((folder / "evaluation" / "headline.txt").read_text())
    num_held = sum(outcome.held_back.values())
    held = f"{num_held} of all held back, see {folder / 'held_back'}" if num_held else "none of all held back"
    print(f"events     {outcome.num_new_events} new; {held}")
    if outcome.num_new_items or outcome.num_new_items_set_aside:
        aside = f"; {outcome.num_new_items_set_aside} could not be decoded, see {folder / 'quarantine'}"
        print(f"new items  {outcome.num_new_items} in the bundle{aside if outcome.num_new_items_set_aside else ''}")
    print(f"drift      {', '.join(outcome.drifted) or 'none beyond chance and threshold'}")
    print(f"bundle     {outcome.bundle}")
    print(f"report     {folder / 'evaluation' / 'report.html'}")
    if outcome.passed:
        print(f"version {outcome.registry_version} is champion\nnext: python -m jobs.serve storage_path={root}")
    else:
        print(
            f"version {outcome.registry_version} is refused and the champion stays: see the checks above\n"
            f"next, if it should be served all the same: python -m jobs.promote version={outcome.registry_version} "
            f"force=true storage_path={root}"
        )
