"""A bundle's scores for candidates by histories: what the reranker orders by, and what explanations take apart.

Dimension key: B histories, I interests, M moments, K candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from avrec_ray.bundle import CLASSES_FILE, CONTENT_FILE, NEIGHBOUR_FILES, Bundle
from avrec_ray.new_items.overlay import speak_for
from avrec_ray.new_items.vectors import TABLES, NewItem
from avrec_ray.ranking.config import TARGETS
from avrec_ray.ranking.content_likeness import load_likeness
from avrec_ray.ranking.interaction import AttentionReranker, combine
from avrec_ray.ranking.lists import Interests, ItemArrays, ItemToItem, context_features, interests_of
from avrec_ray.ranking.user_classes import UserClasses, load_tastes
from avrec_ray.retrieval.neighbours import load_neighbours
from avrec_ray.training.histories import EventColumns
from avrec_ray.training.weights import load_weights


@dataclass(eq=False)
class Scored:
    """What the scorer says of the same candidates for each history."""

    blended: npt.NDArray[np.float32]
    """[B, K]: of attention and context features, also where a history has no interest."""
    served: npt.NDArray[np.float32]
    """[B, K]: the score to order by; the matcher's where there is nothing to attend to."""
    attention: Tensor
    """float32 [B, K, I, M]; zeros where the heads weigh none of it."""
    interests: Interests
    probabilities: npt.NDArray[np.float32]
    """[B, K, T]: how likely each target is, in [0, 1]; NaN where it was not calibrated or there is no interest."""


class HistoryScorer:
    """The reranker's weights and what it reads of the catalogue, loaded once."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.cfg = bundle.metadata.reranker
        self.model = AttentionReranker(self.cfg, bundle.metadata.towers.embedding_dim)
        load_weights(bundle.path / "reranker.safetensors", self.model)
        self.model.eval()
        self.items = item_arrays(bundle)
        self.item_to_item = load_item_to_item(bundle)
        told = self.model.calibrated_targets()
        self._is_calibrated = torch.tensor([name in told for name in TARGETS])

    def cover(self, living: Mapping[int, NewItem], added: Sequence[int]) -> None:
        """After an `Overlay` has changed the bundle: read its arrays, and what was predicted of cold items.

        Args:
            living: rows that were added or updated, and are there.
            added: all rows that joined, also those that left since.
        """
        self.items = item_arrays(self.bundle)
        tables = self.item_to_item
        tables.content.cover(living, added, self.bundle.metadata.model_version)
        tables.classes.cover(self.bundle.embeddings, tables.content.vectors, list(living), added)
        for name in TABLES:
            speak_for(getattr(tables, name), name, living, self.bundle)

    @torch.inference_mode()
    def __call__(
        self,
        columns: EventColumns,
        spans: Sequence[tuple[int, int]],
        matcher_scores_BK: npt.NDArray[np.float32],
        rows_K: npt.NDArray[np.int64],
        moment_mask_KM: Tensor | None = None,
    ) -> Scored:
        """Scores of the candidates at catalogue `rows_K` by B histories, those at row `spans` [start, stop).

        Args:
            matcher_scores_BK: the matcher's score of each candidate by each history.
            moment_mask_KM: bool, moments that may be looked at; all that exist where it is left out.
        """
        interests = interests_of(columns, spans, self.cfg.num_interests)
        matcher = torch.from_numpy(matcher_scores_BK)
        said = np.stack([self.item_to_item.scores(columns, span, rows_K) for span in spans])
        rows = torch.from_numpy(rows_K)
        mask = self.items.moment_mask[rows] if moment_mask_KM is None else moment_mask_KM
        popularity = self.items.popularity[rows].expand(len(spans), -1, -1)
        context = context_features(matcher, popularity, torch.from_numpy(said))
        logits, attention = self._attend(interests, self.items.moments.index_select(0, rows), mask, context)
        blended = combine(logits, self.cfg.target_weights)
        has_interest = interests.mask.any(1, keepdim=True)
        served = torch.where(has_interest, blended, matcher)
        known = has_interest[..., None] & self._is_calibrated
        probabilities = torch.where(known, self.model.probabilities(logits), torch.nan)
        return Scored(blended.numpy(), served.numpy(), attention, interests, probabilities.numpy())

    def _attend(
        self, interests: Interests, moments_KMD: Tensor, mask_KM: Tensor, context_BKC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, K, T] and attention [B, K, I, M], one history at a time: no answer depends on who else asks.

        Where fitting kept no epoch of attention its heads are zero: then nothing but context counts, and nothing is
        looked at.
        """
        if not self.model.heads.weight.any():
            nothing = torch.zeros(len(context_BKC), *mask_KM.shape[:1], interests.mask.shape[1], mask_KM.shape[1])
            return self.model.heads.bias + self.model.context(context_BKC), nothing
        moments = self.model.moment_terms(moments_KMD, mask_KM)
        logits, attention = [], []
        for row, count in enumerate(interests.mask.sum(1).tolist()):
            newest = slice(interests.mask.shape[1] - count, None)
            of_row = (interests.event[row, newest], interests.watch_ratio[row, newest])
            embeddings = self.items.embeddings[interests.item_idx[row, newest]]
            told, attended = self.model.score_history(embeddings, *of_row, moments, context_BKC[row])
            logits.append(told)
            attention.append(F.pad(attended, (0, 0, newest.start, 0)))
        return torch.stack(logits), torch.stack(attention)


def item_arrays(bundle: Bundle) -> ItemArrays:
    """The bundle's vectors as tensors."""
    return ItemArrays(
        embeddings=torch.from_numpy(bundle.embeddings),
        moments=torch.from_numpy(bundle.moments),
        moment_mask=torch.from_numpy(bundle.moment_mask),
        popularity=torch.from_numpy(bundle.items.popularities),
    )


def load_item_to_item(bundle: Bundle) -> ItemToItem:
    """The bundle's item-to-item tables, its vectors of content, and its kinds of users."""
    taste, session = (load_neighbours(bundle.path / name, len(bundle.items)) for name in NEIGHBOUR_FILES)
    content = load_likeness(bundle.path / CONTENT_FILE, len(bundle.items))
    dim = bundle.embeddings.shape[1] + content.vectors.shape[1]
    tastes = load_tastes(bundle.path / CLASSES_FILE, dim)
    return ItemToItem(taste, session, content, UserClasses(tastes, bundle.embeddings, content.vectors))
