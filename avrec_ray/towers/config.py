"""Sizes of the towers. Presets are YAML files under conf/towers/."""

from dataclasses import dataclass

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError

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

    num_frames: int = 8
    frame_size: int = 64
    num_mel_bins: int = 80
    num_mel_frames: int = 400
    max_clips: int = 2

    def __post_init__(self) -> None:
        if self.model_dim % self.num_heads:
            raise ConfigError(f"towers.model_dim={self.model_dim} is not a multiple of num_heads={self.num_heads}")
        if self.frame_size % self.patch_size:
            raise ConfigError(
                f"media.frame_size={self.frame_size} is not a multiple of towers.patch_size={self.patch_size}"
            )
        if self.num_frames % min(self.num_frames, self.tokens_per_clip):
            raise ConfigError(
                f"media.num_frames={self.num_frames} is not a multiple of tokens_per_clip={self.tokens_per_clip}"
            )
        check_range("towers.content_weight", self.content_weight, 0.0, 100.0)
        for name in ("dropout", "modality_dropout", "id_dropout", "attribute_dropout"):
            check_range(f"towers.{name}", getattr(self, name), 0.0, 0.99)
        for name in ("embedding_dim", "encoder_layers", "fusion_layers", "user_layers", "max_clips"):
            check_range(f"towers.{name}", getattr(self, name), 1)
        check_range("towers.history_length", self.history_length, 1, MAX_HISTORY_LENGTH)
        check_range("towers.num_attribute_buckets", self.num_attribute_buckets, 0)
        check_range("towers.num_friends", self.num_friends, 0, 1000)
        check_range("towers.friend_items", self.friend_items, 1, 1000)
        check_choice("towers.user_blocks", self.user_blocks, USER_BLOCK_NAMES)

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
