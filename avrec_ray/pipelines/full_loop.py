"""The whole loop, stage by stage: from media files and behaviour to a registered bundle and a filled event store.

Read this file first, then follow one import a stage.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.pipelines import (
    baselines,
    build_index,
    bundle,
    decode_media,
    embed_items,
    evaluate,
    finetune,
    load_events,
    prepare,
    pretrain,
    promote,
    split,
    train_reranker,
)
from avrec_ray.pipelines.stage import Loop, require_record
from avrec_ray.pipelines.storage import Storage

NUM_STAGES = 14
MLFLOW_UI_URL = "http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
"""MLflow's UI opens on its pages for language models unless told otherwise."""


def run(loop: Loop, job: JobConfig) -> Path:
    """Run every stage that is not done yet and return the folder of the bundle. Ray must be connected.

    One MLflow parent run with a child a stage; a loop with nothing to do opens none.
    """
    prepare.run(loop, job)  # dataset -> items, interactions, users
    decode_media.run(loop, job)  # media files -> clips, or quarantine with a reason
    split.run(loop, job)  # interactions -> train, valid, test by time
    baselines.run(loop, job)  # train, valid -> what models are measured against
    pretrain.run(loop, job)  # clips + text -> item tower, by contrast between modalities
    finetune.run(loop, job)  # item tokens + train -> item and user tower, by next-item softmax
    train_reranker.run(loop, job)  # matcher's candidates + valid -> attention reranker
    finetune.refresh(loop, job)  # towers + train and valid -> the towers that are served
    embed_items.run(loop, job)  # item tokens -> embeddings, moments
    build_index.run(loop, job)  # embeddings -> index
    bundle.run(loop, job)  # everything above -> one immutable directory
    evaluate.run(loop, job)  # bundle + test -> metrics against baselines
    promote.register(loop, job)  # bundle -> MLflow registry; alias champion if the gate lets it
    load_events.run(loop, job)  # interactions -> event store
    return bundle.bundle_folder(loop, job)


def print_summary(loop: Loop, bundle_path: Path) -> None:
    """The metric table, where things lie, and the commands that come next."""
    root = loop.storage.root
    print()
    print((root / "evaluation" / "headline.txt").read_text())
    print(f"bundle     {bundle_path}")
    registered = require_record(loop.storage, "register")
    if not registered.metrics["passed"]:
        version = int(registered.metrics["registry_version"])
        print(f"refused    by the gate, see the checks above; jobs.promote version={version} force=true overrules it")
    print(f"report     {root / 'evaluation' / 'report.html'}")
    print(f"serve      python -m jobs.serve storage_path={root}")
    print(f"MLflow UI  mlflow ui --backend-store-uri {loop.tracking_uri}   then open {MLFLOW_UI_URL}")


@contextmanager
def open_loop(job: JobConfig, name: str, num_stages: int = 1) -> Iterator[Loop]:
    """The storage, the tracking and the terminal that the stages of a job share; the parent run ends with it."""
    storage = Storage.at(job.storage_path)
    settings = to_dict(job)
    loop = Loop(storage, job.tracking, run_name(job, name), settings, num_stages)
    try:
        yield loop
    except BaseException:
        loop.close(failed=True)
        raise
    if loop.had_work:
        loop.parent.artifact_json(json.loads(json.dumps(settings)), "config.json")
    loop.close()


def run_name(job: JobConfig, name: str) -> str:
    """Name of the parent run: the job, the dataset and the seed."""
    dataset = job.data.movielens.variant if job.data.dataset == "movielens" else job.data.dataset
    return f"{name}-{dataset}-seed{job.seed}"
