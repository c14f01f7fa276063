"""What is left of a model when modalities are missing, in every pattern: by presence mask, and by imputation.

Run: PYTHONPATH=. python -m benchmarks.availability STORAGE [--cutoff 10]

STORAGE is the folder of a finished full loop, such as runs/demo after `make demo`. For each of V, A, T, VA, VT, AT and
VAT all items lose the other modalities, in histories and in the catalogue alike; the towers of the bundle, without
reranker, then rank the catalogue for every test user. `masked` is what the product does: absent tokens are masked.
`zero` and `mean` leave the mask as if nothing were missing and put zeros, or the modality's mean over the catalogue, in
the tokens' place.

Two tables of NDCG: with the vectors of item ids, as warm items are served, and by content alone, as cold ones are.
"""

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from avrec_ray.bundle import load_bundle, load_metadata
from avrec_ray.evaluation.baselines import top_k
from avrec_ray.evaluation.rank_metrics import ndcg_at_k
from avrec_ray.evaluation.tuning import Question
from avrec_ray.pipelines.catalogue import read_item_tokens
from avrec_ray.pipelines.question import ask
from avrec_ray.pipelines.split import read_split
from avrec_ray.towers.item_tower import ItemTokens
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.histories import EventColumns, columns_from_table, pad_histories
from avrec_ray.training.weights import load_weights

FILLS = ("masked", "zero", "mean")


def main(storage: Path, cutoff: int) -> None:
    bundle = load_bundle(max((storage / "bundle").glob("v-*"), key=lambda folder: folder.stat().st_mtime))
    metadata = load_metadata(bundle.path)
    towers = TwoTower(metadata.towers, len(bundle.items))
    load_weights(bundle.path / "towers.safetensors", towers)
    towers.eval()
    item_ids, tokens, _ = read_item_tokens(storage / "item_tokens" / "tokens.parquet", metadata.towers)
    rows = torch.tensor([item_ids.index(item_id) for item_id in bundle.items.item_ids])
    tokens = ItemTokens({n: t[rows] for n, t in tokens.tokens.items()}, {n: m[rows] for n, m in tokens.masks.items()})
    question = ask(storage, bundle.items.index_of, bundle.items.durations)
    history = [storage / "splits" / f"{part}.parquet" for part in read_split(storage).history]
    columns = columns_from_table(pq.ParquetDataset(history).read(), bundle.items.index_of, bundle.items.durations)
    print(
        f"{bundle.path.name}: {len(question.users)} users, {len(bundle.items)} items, NDCG@{cutoff} of the towers alone"
    )
    warm = torch.from_numpy(bundle.items.warm)
    for name, known in (("with the vectors of item ids", warm), ("by content alone", torch.zeros_like(warm))):
        print(f"\n{name}\n{'':8}" + "".join(f"{fill:>9}" for fill in FILLS))
        for pattern in patterns(metadata.towers.modalities):
            figures = [
                measure(towers, filled(tokens, pattern, fill), known, question, columns, cutoff) for fill in FILLS
            ]
            print(
                f"{''.join(m[0].upper() for m in pattern):8}" + "".join(f"{figure:9.4f}" for figure in figures),
                flush=True,
            )


def patterns(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every set of modalities that may be there, single ones first."""
    return [kept for size in range(1, len(modalities) + 1) for kept in combinations(modalities, size)]


def filled(tokens: ItemTokens, kept: Sequence[str], fill: str) -> ItemTokens:
    """The catalogue without the other modalities: masked, or as if they were there."""
    values, masks = dict(tokens.tokens), dict(tokens.masks)
    for name in set(values) - set(kept):
        if fill == "masked":
            masks[name] = torch.zeros_like(masks[name])
            continue
        present = masks[name].unsqueeze(-1).float()
        mean = (values[name] * present).sum((0, 1)) / present.sum().clamp(min=1)
        values[name] = torch.zeros_like(values[name]) + (mean if fill == "mean" else 0.0)
        masks[name] = masks[name].any(0, keepdim=True).expand_as(masks[name])
    return ItemTokens(values, masks)


@torch.inference_mode()
def measure(
    towers: TwoTower, tokens: ItemTokens, warm: Tensor, question: Question, columns: EventColumns, cutoff: int
) -> float:
    embeddings_ND = towers.embed_items(tokens, torch.arange(len(warm)), warm)
    row_of = {user: row for row, user in enumerate(columns.user_ids)}
    spans = [columns.rows(row_of[user]) for user in question.users]
    history = pad_histories(columns, [(s.start, s.stop) for s in spans], towers.cfg.history_length)
    scores = (towers.queries(history, embeddings_ND)[:, -1] @ embeddings_ND.T).numpy()
    ranked = top_k(scores, question.seen, cutoff, question.candidates)
    return float(np.mean(ndcg_at_k(ranked, question.targets, cutoff)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("--cutoff", type=int, default=10)
    given = parser.parse_args()
    main(given.storage, given.cutoff)
