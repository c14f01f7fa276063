"""Sizes of the towers. Presets are YAML files under conf/towers/."""

from dataclasses import dataclass

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError
from avrec_ray.types import MODALITIES

ENCODER_CHOICES = {
    "video": ("scratch", "none", "precomputed", "transformers", "efficientnet_lite0"),
    "audio": ("scratch", "none", "precomputed", "transformers"),
    "text": ("scratch", "none", "precomputed", "transformers", "minilm"),
}
"""Choices of `towers.<modality>_encoder`; encoder_registry.py builds each."""

GIVEN = ("none", "precomputed")
"""Encoders that read a vector of the items table, or nothing, instead of media or words."""

MODES = ("frozen", "top", "lora", "full")
"""Choices of `towers.<modality>_mode`: what pretraining changes of a pretrained encoder."""

USER_BLOCK_NAMES = ("sasrec", "hstu")
"""Keys of `user_blocks.USER_BLOCKS`."""
MAX_HISTORY_LENGTH = 4096


@dataclass(kw_only=True)
class TowersConfig:
    """Item tower and user tower. Input shapes (`num_frames` ...) are filled from the media config by the pipeline."""

    embedding_dim: int = 64
    """D of items, moments and queries."""
    model_dim: int = 64
    """Width of every transformer."""
    num_heads: int = 4
    encoder_layers: int = 2
    fusion_layers: int = 2
    user_layers: int = 2
    num_bottleneck_tokens: int = 4
    """Tokens through which modalities exchange information (Nagrani et al. 2021)."""
    tokens_per_clip: int = 4
    """Tokens that the video and the audio encoder each leave of one clip."""
    patch_size: int = 16
    """Side of a frame patch, pixels."""
    num_text_buckets: int = 8192
    """Rows of the hashed word table."""
    max_text_tokens: int = 48
    history_length: int = 50
    """Events the user tower reads, newest last; 50 to 1,000 are usual."""
    user_blocks: str = "sasrec"
    """Attention over the history. sasrec: softmax (Kang & McAuley 2018); hstu: pointwise (Zhai et al. 2024)."""
    last_item: bool = False
    """Add the vector of each position's own item, times a learned weight, to its query: what comes next is often like
    what came last, and the blocks then learn the rest."""
    time_bias: bool = False
    """Let attention of sasrec depend on the time between two events; hstu always does."""
    num_attribute_buckets: int = 0
    """Rows of the hashed table of users' attributes ("gender=F"), added to every position; 0: they are not read."""
    attribute_dropout: float = 0.2
    """Chance, in training, that a user's attributes are hidden, so that users without any work too."""
    num_friends: int = 0
    """Friends of a user, those of most weight first, whose choices are read; 0: none."""
    friend_items: int = 10
    """Newest choices of each friend that a query reads."""
    dropout: float = 0.1
    modality_dropout: float = 0.2
    """Chance, in training, that a present modality of an item is hidden; one always stays."""
    use_item_ids: bool = True
    """Add a learned vector an item, so that warm items gain from behaviour beyond their content."""
    id_dropout: float = 0.3
    """Chance, in training, that an item's id vector is hidden, so that cold items work too."""
    content_weight: float = 8.0
    """Length of an item's content vector beside its id vector, which starts at 1; less where content says little."""

    video_encoder: str = "scratch"
    """scratch: trained here; none: the modality is absent everywhere; precomputed: `<modality>_vector` of the items
    table, image_vector counting as video; transformers: `<modality>_checkpoint`; efficientnet_lite0 and minilm (text):
    weights of the extra `offline`."""
    audio_encoder: str = "scratch"
    text_encoder: str = "scratch"
    video_checkpoint: str = ""
    """Name on the hub, or absolute folder, of a transformers checkpoint; safetensors only, no code of its own."""
    audio_checkpoint: str = ""
    text_checkpoint: str = ""
    video_mode: str = ""
    """frozen: runs once, its tokens are kept; top: the last `top_blocks` blocks train; lora: low-rank matrices beside
    the attention weights do; full: everything does. Empty: full from scratch, else frozen."""
    audio_mode: str = ""
    text_mode: str = ""
    top_blocks: int = 1
    lora_rank: int = 8
    text_prefix: str = ""
    """What a text checkpoint wants before every text; E5: "passage: "."""
    video_width: int = 0
    """Width of a pretrained encoder's tokens or of the precomputed vectors. 0: the pipeline finds it out and keeps it,
    so that a bundle needs neither checkpoint nor table. The same for the next two."""
    audio_width: int = 0
    text_width: int = 0

    num_frames: int = 8
    frame_size: int = 64
    num_mel_bins: int = 80
    num_mel_frames: int = 400
    front_end: str = "whisper"
    """media.front_end, which an audio checkpoint must fit."""
    max_clips: int = 2

    def encoder_of(self, modality: str) -> str:
        """Key of the modality's encoder."""
        return str(getattr(self, f"{modality}_encoder"))

    def mode_of(self, modality: str) -> str:
        """What pretraining changes of the modality's encoder, one of MODES."""
        given = str(getattr(self, f"{modality}_mode"))
        return given or ("full" if self.encoder_of(modality) == "scratch" else "frozen")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that are not absent everywhere, in the order of MODALITIES."""
        return tuple(name for name in MODALITIES if self.encoder_of(name) != "none")

    @property
    def tuned(self) -> tuple[str, ...]:
        """Modalities whose pretrained encoders pretraining changes."""
        return tuple(m for m in MODALITIES if self.encoder_of(m) != "scratch" and self.mode_of(m) != "frozen")

    @property
    def all_frozen(self) -> bool:
        """Whether pretraining changes no encoder, so that their tokens can be made before it."""
        return all(self.mode_of(name) == "frozen" for name in MODALITIES)

    def __post_init__(self) -> None:
        for modality in MODALITIES:
            self._check_encoder(modality)
        if self.model_dim % self.num_heads:
            raise ConfigError(f"towers.model_dim={self.model_dim} is not a multiple of num_heads={self.num_heads}")
        if self.video_encoder == "scratch" and self.frame_size % self.patch_size:
            raise ConfigError(
                f"media.frame_size={self.frame_size} is not a multiple of towers.patch_size={self.patch_size}"
            )
        if self.video_encoder not in GIVEN and self.num_frames % min(self.num_frames, self.tokens_per_clip):
            raise ConfigError(
                f"media.num_frames={self.num_frames} is not a multiple of tokens_per_clip={self.tokens_per_clip}"
            )
        check_range("towers.content_weight", self.content_weight, 0.0, 100.0)
        for name in ("dropout", "modality_dropout", "id_dropout", "attribute_dropout"):
            check_range(f"towers.{name}", getattr(self, name), 0.0, 0.99)
        for name in ("embedding_dim", "encoder_layers", "fusion_layers", "user_layers", "max_clips"):
            check_range(f"towers.{name}", getattr(self, name), 1)
        for name in ("top_blocks", "lora_rank", "tokens_per_clip", "max_text_tokens"):
            check_range(f"towers.{name}", getattr(self, name), 1)
        check_range("towers.history_length", self.history_length, 1, MAX_HISTORY_LENGTH)
        check_range("towers.num_attribute_buckets", self.num_attribute_buckets, 0)
        check_range("towers.num_friends", self.num_friends, 0, 1000)
        check_range("towers.friend_items", self.friend_items, 1, 1000)
        check_choice("towers.user_blocks", self.user_blocks, USER_BLOCK_NAMES)

    def _check_encoder(self, modality: str) -> None:
        encoder, mode = self.encoder_of(modality), self.mode_of(modality)
        check_choice(f"towers.{modality}_encoder", encoder, ENCODER_CHOICES[modality])
        check_choice(f"towers.{modality}_mode", mode, MODES)
        check_range(f"towers.{modality}_width", getattr(self, f"{modality}_width"), 0)
        checkpoint = getattr(self, f"{modality}_checkpoint")
        if (encoder == "transformers") != bool(checkpoint):
            raise ConfigError(
                f"towers.{modality}_encoder={encoder!r} with {modality}_checkpoint={checkpoint!r}; a checkpoint and "
                "the encoder transformers go together"
            )
        if encoder == "scratch" and mode != "full":
            raise ConfigError(
                f"towers.{modality}_mode={mode!r}, but an encoder from scratch learns everything; expected full"
            )
        if encoder in GIVEN and mode != "frozen":
            raise ConfigError(
                f"towers.{modality}_mode={mode!r}, but encoder {encoder!r} has no weights; leave it empty"
            )

    @property
    def reads_profiles(self) -> bool:
        """Whether the user tower reads more of a user than their own behaviour."""
        return self.num_attribute_buckets > 0 or self.num_friends > 0


def moment_layout(max_clips: int) -> list[tuple[str, int]]:
    """(modality, clip_idx) of each moment row; the text moment has clip_idx -1.

    >>> moment_layout(1)
    [('video', 0), ('audio', 0), ('text', -1)]
    """
    clips = range(max_clips)
    return [("video", c) for c in clips] + [("audio", c) for c in clips] + [("text", -1)]
