"""Random checkpoints of every family, a few thousand weights each, saved as their authors' code saves real ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from avrec_ray.towers.config import TowersConfig
from tests.tiny_models import tiny_towers

WORDS = ["cat", "dog", "plays", "sleeps", "loud", "music", "night", "day"]
_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_heads": 2,
}
_PICTURE: dict[str, Any] = {**_SMALL, "image_size": 16, "patch_size": 8}
_SIDE = {"height": 16, "width": 16}


def clip(folder: Path) -> None:
    """Pictures and text in one checkpoint, as OpenAI's."""
    text = {**_SMALL, "vocab_size": 40, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    config = hf.CLIPConfig(vision_config=dict(_PICTURE), text_config={**text, "pad_token_id": 1}, projection_dim=8)
    hf.CLIPModel(config).save_pretrained(folder)
    hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=_SIDE).save_pretrained(folder)
    letters = sorted({letter for word in WORDS for letter in word})
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({piece: place for place, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    hf.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


def siglip(folder: Path) -> None:
    hf.SiglipVisionModel(hf.SiglipVisionConfig(**_PICTURE)).save_pretrained(folder)
    hf.SiglipImageProcessor(size=_SIDE).save_pretrained(folder)


def dinov2(folder: Path) -> None:
    hf.Dinov2Model(hf.Dinov2Config(**_PICTURE)).save_pretrained(folder)
    hf.BitImageProcessor(size={"shortest_edge": 16}, crop_size=_SIDE).save_pretrained(folder)


def vit(folder: Path) -> None:
    hf.ViTModel(hf.ViTConfig(**_PICTURE)).save_pretrained(folder)
    hf.ViTImageProcessor(size=_SIDE).save_pretrained(folder)


def videomae(folder: Path) -> None:
    hf.VideoMAEModel(hf.VideoMAEConfig(**_PICTURE, num_frames=4, tubelet_size=2)).save_pretrained(folder)
    hf.VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size=_SIDE).save_pretrained(folder)


def clap(folder: Path) -> None:
    """The sound's half alone, at the size of input that real ones have."""
    config = hf.ClapAudioConfig(
        patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[1, 2], num_hidden_layers=2, hidden_size=16
    )
    model = hf.ClapAudioModel(config)
    with torch.no_grad():
        model.audio_encoder.batch_norm.running_mean += 0.5
    model.save_pretrained(folder)
    hf.ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50).save_pretrained(folder)


def ast(folder: Path) -> None:
    hf.ASTModel(hf.ASTConfig(**_SMALL, max_length=96)).save_pretrained(folder)
    values = {"feature_extractor_type": "ASTFeatureExtractor", "max_length": 96, "mean": -6.0, "std": 5.0}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))  # the class itself warns of its filters


def whisper(folder: Path) -> None:
    config = hf.WhisperConfig(
        d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=40, max_source_positions=50, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None,
    )  # fmt: skip
    hf.WhisperForConditionalGeneration(config).save_pretrained(folder)
    hf.WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)


def bert(folder: Path) -> None:
    hf.BertModel(hf.BertConfig(**_SMALL, vocab_size=20, max_position_embeddings=12)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    hf.BertTokenizer.from_pretrained(folder).save_pretrained(folder)


VIDEO = {"clip": clip, "siglip": siglip, "dinov2": dinov2, "vit": vit, "videomae": videomae}
AUDIO = {"clap": clap, "ast": ast, "whisper": whisper}
TEXT = {"clip": clip, "bert": bert}
ALL: dict[str, dict[str, Callable[[Path], None]]] = {"video": VIDEO, "audio": AUDIO, "text": TEXT}
FRONT_ENDS: dict[str, dict[str, Any]] = {
    "clap": {"front_end": "clap", "num_mel_bins": 64, "num_mel_frames": 51},
    "ast": {"front_end": "ast", "num_mel_bins": 128, "num_mel_frames": 48},
    "whisper": {"front_end": "whisper", "num_mel_bins": 80, "num_mel_frames": 50},
}
"""What media make of half a second for each."""


def towers_of(modality: str, name: str, folder: Path, **overrides: Any) -> TowersConfig:
    """Towers with the checkpoint in `folder` for one modality."""
    given = {f"{modality}_encoder": "transformers", f"{modality}_checkpoint": str(folder)}
    return tiny_towers(**{**given, **FRONT_ENDS.get(name, {}), "num_frames": 4, "max_text_tokens": 10, **overrides})
