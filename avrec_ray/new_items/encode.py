"""One item through the served towers: clips and text to embedding and moments, as stage `embed_items` makes them.

Dimension key: C clips, M moments, D embedding.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avrec_ray.bundle import NEIGHBOUR_FILES, load_catalogue, load_metadata, verify_files
from avrec_ray.catalogue import Catalogue
from avrec_ray.errors import BundleError
from avrec_ray.new_items.eligible import why_not_encodable
from avrec_ray.new_items.predict import FILES as PREDICTOR_FILES
from avrec_ray.new_items.predict import Predictor, SpokenFor, load_predictor
from avrec_ray.new_items.submission import Submission
from avrec_ray.new_items.tokens import mean_tokens
from avrec_ray.new_items.vectors import TABLES, NewItem
from avrec_ray.retrieval.neighbours import load_neighbours
from avrec_ray.towers.config import GIVEN, TowersConfig, moment_layout
from avrec_ray.towers.encoder_registry import build_encoder
from avrec_ray.towers.item_tower import ItemTokens, ItemTower, token_shapes
from avrec_ray.towers.text_checkpoints import tokenize
from avrec_ray.towers.text_tokens import hash_tokens
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.weights import load_weights
from avrec_ray.types import MODALITIES, Clip


class ItemEncoder:
    """The towers of a bundle with their encoders, loaded once. Not for use from several threads at once."""

    def __init__(self, bundle: str | Path) -> None:
        """Raises BundleError where `why_not_encodable` has a reason, or a file is missing or changed."""
        path, metadata = Path(bundle), load_metadata(bundle)
        if reason := why_not_encodable(metadata):
            raise BundleError(f"{path} takes no new items: {reason}")
        verify_files(path, metadata)
        self.metadata, self.cfg = metadata, metadata.towers
        self.items: Catalogue = load_catalogue(path)
        self.towers = TwoTower(self.cfg, len(self.items))
        load_weights(path / "towers.safetensors", self.towers)
        self.towers.eval()
        self.encoders = _encoders(path, self.cfg, self.towers)
        self.predictor: Predictor | None = None
        self._tables: dict[str, SpokenFor] = {}
        if (path / PREDICTOR_FILES[0]).exists():
            self.predictor = load_predictor(path)
            for name, file in zip(TABLES, NEIGHBOUR_FILES, strict=True):
                if name in self.predictor.weights:
                    table, count = load_neighbours(path / file, len(self.items)), metadata.reranker.cold_neighbours
                    self._tables[name] = SpokenFor(table, self.predictor, name, count)

    @torch.inference_mode()
    def __call__(self, facts: Submission, clips: Sequence[Clip], keeps_behaviour: bool = True) -> NewItem:
        """An item from its clips (none for text alone), at most `max_clips` of them.

        Args:
            keeps_behaviour: an item of the bundle gets its id vector, as it learned from behaviour; false where the
                item was taken down since.

        Raises:
            BundleError: the result is not finite.
        """
        tokens, clip_spans = self.tokens(facts, clips)
        row = self.items.idx(facts.item_id) if keeps_behaviour else None
        warm = row is not None and bool(self.items.warm[row])
        embedding = self.towers.embed_items(tokens, torch.tensor([row or 0]), torch.tensor([warm]))[0].numpy()
        moments, present = self.towers.item.moments(tokens)
        mask: npt.NDArray[np.bool_] = present[0].numpy()
        kept: npt.NDArray[np.float32] = np.where(mask[:, None], moments[0].numpy(), np.float32(0))
        if not (np.isfinite(embedding).all() and np.isfinite(kept).all()):
            raise BundleError(f"the towers of {self.metadata.model_version} gave {facts.item_id!r} no finite vector")
        end = max((clip.end_seconds for clip in clips), default=0.0)
        spans = _moment_spans(clip_spans) * mask[:, None]
        item = NewItem(facts, end if end > 0 else float("nan"), embedding, kept, mask, spans)
        if self.predictor is not None:
            means = {n: mean_tokens(tokens.tokens[n].numpy(), tokens.masks[n].numpy())[0] for n in MODALITIES}
            item.predicted = self.predictor(
                facts, means, self._tables, self.items.item_ids, self.metadata.model_version
            )
        return item

    def tokens(self, facts: Submission, clips: Sequence[Clip]) -> tuple[ItemTokens, npt.NDArray[np.float32]]:
        """What the encoders leave of one item, and the spans [C, 2] of its clips."""
        shapes = token_shapes(self.cfg)
        tokens = {name: torch.zeros(1, *shapes[name]) for name in MODALITIES}
        masks = {name: torch.zeros(1, shapes[name][0], dtype=torch.bool) for name in MODALITIES}
        spans = np.zeros((self.cfg.max_clips, 2), np.float32)
        for clip in clips:
            spans[clip.clip_idx] = clip.start_seconds, clip.end_seconds
            for name, values, is_there in (
                ("video", clip.frames, clip.has_video),
                ("audio", clip.log_mel, clip.has_audio),
            ):
                if name in self.encoders and is_there:
                    per_clip = shapes[name][0] // self.cfg.max_clips
                    place = slice(clip.clip_idx * per_clip, (clip.clip_idx + 1) * per_clip)
                    tokens[name][0, place] = self.encoders[name](torch.from_numpy(values)[None])[0]
                    masks[name][0, place] = True
        if "text" in self.encoders:
            words = self._words(facts.text)
            tokens["text"] = self.encoders["text"](words)
            masks["text"][:] = bool((words > 0).any())
        return ItemTokens(tokens, masks), spans

    def _words(self, text: str) -> Tensor:
        if self.cfg.text_encoder == "scratch":
            return torch.from_numpy(hash_tokens([text], self.cfg.num_text_buckets, self.cfg.max_text_tokens))
        return torch.from_numpy(tokenize([text], self.cfg))


def _encoders(path: Path, cfg: TowersConfig, towers: TwoTower) -> dict[str, nn.Module]:
    """Of each modality that is read from media or words: those of the bundle, else the checkpoint's own."""
    tuned: ItemTower | None = None
    if cfg.tuned:
        tuned = ItemTower(cfg)
        load_weights(path / "item_tower.safetensors", tuned)
    found: dict[str, nn.Module] = {}
    for name in MODALITIES:
        if cfg.encoder_of(name) == "scratch":
            found[name] = towers.item.encoders[name]
        elif cfg.encoder_of(name) not in GIVEN:
            found[name] = tuned.encoders[name] if tuned is not None else build_encoder(name, cfg)
        if name in found:
            found[name].eval()
    return found


def _moment_spans(clip_spans: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[M, 2] of clips [C, 2]; text spans all of them from 0."""
    whole = np.array([0.0, clip_spans[:, 1].max()], np.float32)
    return np.stack([clip_spans[clip] if clip >= 0 else whole for _, clip in moment_layout(len(clip_spans))])
