"""What each part of the towers' training is worth: the loop's towers without it, on the same data, split and seeds.

Run: PYTHONPATH=. python -m benchmarks.ablations STORAGE [--seeds 0] [--variants full,no_logq] [overrides of the job]

STORAGE is the folder of a full loop that has prepared, decoded and split its data, such as runs/demo after `make demo`;
overrides are those of that loop (experiment=demo). Each variant pretrains and fine-tunes in a copy of it. Printed for
each: NDCG@10 of the fine-tuned towers alone, without reranker, on what users of test chose with train and valid as
history, over all their targets, over warm and over cold ones.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from hydra import compose, initialize_config_dir

from avrec_ray import config
from avrec_ray.config import JobConfig
from avrec_ray.evaluation.baselines import top_k
from avrec_ray.evaluation.rank_metrics import ndcg_at_k
from avrec_ray.pipelines import finetune, pretrain
from avrec_ray.pipelines.catalogue import item_durations, positive_counts, read_fitted, read_item_tokens, read_items
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.question import ask
from avrec_ray.pipelines.session import session
from avrec_ray.pipelines.split import history_paths
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.towers_of_job import with_widths
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.histories import columns_from_table, pad_histories
from avrec_ray.training.weights import load_weights

VARIANTS = {
    "full": [],
    "no_pretraining": ["training.pretrain.epochs=1", "training.pretrain.learning_rate=0"],
    "no_logq": ["training.finetune.logq=false", "training.finetune.negatives=mixed"],
    "logq": ["training.finetune.negatives=mixed"],
    "no_modality_dropout": ["towers.modality_dropout=0"],
    "no_ids": ["towers.use_item_ids=false"],
    "hstu": ["towers.user_blocks=hstu"],
    "minilm_frozen": ["towers.text_encoder=minilm", "towers.max_text_tokens=64"],
    "minilm_top": ["towers.text_encoder=minilm", "towers.max_text_tokens=64", "towers.text_mode=top"],
}
"""What each variant changes. Read no_logq beside logq, minilm_top beside minilm_frozen, the others beside full."""
KEPT = ("tables", "clips", "quarantine", "splits")
RECORDS = ("prepare", "decode_media", "split")


def main(storage: Path, variants: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> None:
    print(f"{'variant':22}{'seed':>5}{'NDCG@10':>10}{'warm':>9}{'cold':>9}", flush=True)
    for variant in variants:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as name:
                job = job_of([*overrides, *VARIANTS[variant], f"seed={seed}", f"storage_path={name}"])
                figures = train(copied(storage, Path(name)), job)
            print(f"{variant:22}{seed:5}" + "".join(f"{value:9.4f}" for value in figures), flush=True)


def job_of(overrides: Sequence[str]) -> JobConfig:
    config.register()
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        return config.to_typed(compose("full_loop", overrides=list(overrides)))


def copied(storage: Path, folder: Path) -> Path:
    """The data stages of a storage folder, hard linked."""
    for name in KEPT:
        shutil.copytree(storage / name, folder / name, copy_function=os.link)
    (folder / "stages").mkdir()
    for name in RECORDS:
        record = (storage / "stages" / f"{name}.json").read_text()
        (folder / "stages" / f"{name}.json").write_text(record.replace(str(storage), str(folder)))
    return folder


def train(root: Path, job: JobConfig) -> tuple[float, float, float]:
    with session(job.cluster), open_loop(job, "ablation", 2) as loop:
        loop.echo = lambda line: None
        pretrain.run(loop, job)
        finetune.run(loop, job)
    return measure(root, with_widths(Storage.at(job.storage_path), job))


@torch.inference_mode()
def measure(root: Path, job: JobConfig, cutoff: int = 10) -> tuple[float, float, float]:
    """NDCG of the towers' lists over all targets, over warm and over cold ones."""
    item_ids, tokens, _ = read_item_tokens(root / "item_tokens" / "tokens.parquet", job.towers)
    counts = positive_counts(read_fitted(root, ("train",)), item_ids)
    warm = torch.from_numpy(counts > 0)
    towers = TwoTower(job.towers, len(item_ids))
    load_weights(root / "finetune" / "towers.safetensors", towers)
    towers.eval()
    embeddings_ND = towers.embed_items(tokens, torch.arange(len(warm)), warm)
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    durations = item_durations(read_items(root / "tables" / "items.parquet", item_ids))
    question = ask(root, index, durations)
    columns = columns_from_table(pq.ParquetDataset(history_paths(root)).read(), index, durations)
    row_of = {user: row for row, user in enumerate(columns.user_ids)}
    spans = [(columns.rows(row_of[user]).start, columns.rows(row_of[user]).stop) for user in question.users]
    history = pad_histories(columns, spans, job.towers.history_length)
    scores = (towers.queries(history, embeddings_ND)[:, -1] @ embeddings_ND.T).numpy()
    found = []
    for wanted in (np.ones(len(counts), bool), counts > 0, counts == 0):
        targets = [items[wanted[items]] for items in question.targets]
        asked = [row for row, items in enumerate(targets) if len(items)]
        ranked = top_k(scores[asked], [question.seen[row] for row in asked], cutoff, wanted)
        found.append(float(np.mean(ndcg_at_k(ranked, [targets[row] for row in asked], cutoff))) if asked else np.nan)
    return found[0], found[1], found[2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--seeds", default="0")
    given, overrides = parser.parse_known_args()
    main(given.storage.resolve(), given.variants.split(","), [int(s) for s in given.seeds.split(",")], overrides)
