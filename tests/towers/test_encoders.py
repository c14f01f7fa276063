"""Every encoder, by one contract: shapes, determinism, no influence between rows, gradients everywhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from avrec_ray.towers.encoder_registry import build_encoder
from avrec_ray.towers.encoders import TEXT_TOKENS, TextEncoder, VideoEncoder, with_change
from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.types import MODALITIES
from tests.tiny_models import random_inputs, tiny_towers

CFG = tiny_towers()
INPUT_OF: dict[str, Callable[[ItemInputs], Tensor]] = {
    "video": lambda inputs: inputs.frames,
    "audio": lambda inputs: inputs.log_mel,
    "text": lambda inputs: inputs.word_ids,
}
TOKENS = {"video": 2, "audio": 2, "text": TEXT_TOKENS}


def encoder_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(name, CFG)


@pytest.mark.parametrize("name", MODALITIES)
@pytest.mark.parametrize("batch", [1, 3])
def test_encoder_gives_finite_tokens_of_the_promised_shape(name: str, batch: int) -> None:
    tokens = encoder_of(name)(INPUT_OF[name](random_inputs(CFG, batch)))
    assert tokens.shape == (batch, TOKENS[name], CFG.model_dim)
    assert tokens.dtype == torch.float32
    assert tokens.isfinite().all()


@pytest.mark.parametrize("name", MODALITIES)
def test_encoder_row_does_not_depend_on_other_rows(name: str) -> None:
    encoder, values = encoder_of(name), INPUT_OF[name](random_inputs(CFG, 4))
    torch.testing.assert_close(encoder(values)[2:3], encoder(values[2:3]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODALITIES)
def test_encoder_gives_every_weight_a_gradient(name: str) -> None:
    encoder = encoder_of(name)
    encoder(INPUT_OF[name](random_inputs(CFG, 3))).pow(2).mean().backward()
    without = [key for key, weight in encoder.named_parameters() if weight.grad is None]
    assert not without


@pytest.mark.parametrize("name", MODALITIES)
def test_encoder_serves_what_it_trained(name: str) -> None:
    # In inference mode torch takes another kernel for transformer layers: it must agree with the training one.
    encoder, values = encoder_of(name), INPUT_OF[name](random_inputs(CFG, 3))
    trained = encoder(values)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.eval()(values), trained, atol=1e-5, rtol=0)


def test_video_encoder_sees_the_order_of_frames() -> None:
    encoder, frames = VideoEncoder(CFG), random_inputs(CFG, 2).frames
    assert not torch.allclose(encoder(frames), encoder(frames.flip(1)), atol=1e-4)


def test_each_frame_comes_with_what_changed_since_the_one_before() -> None:
    pixels = torch.tensor([1.0, 4.0, 2.0]).view(1, 3, 1, 1, 1).expand(2, 3, 3, 4, 4)
    seen = with_change(pixels)
    assert torch.equal(seen[:, :, :3], pixels)
    assert (seen[1, :, 3:].mean((1, 2, 3))).tolist() == [0.0, 3.0, -2.0]
    assert not with_change(pixels[:, :1])[:, :, 3:].any()


def test_video_encoder_reads_what_changed() -> None:
    """Two clips whose frames are the same, one of them still: the weights of the change alone tell them apart."""
    encoder, frames = VideoEncoder(CFG).eval(), random_inputs(CFG, 2).frames
    with torch.no_grad():
        encoder.patchify.weight[:, :3] = 0.0
        encoder.frame_position.zero_()
        still = encoder(frames[:, :1].expand_as(frames))
        assert torch.allclose(still[0], still[1], atol=1e-5)  # a still says nothing of its change
        assert not torch.allclose(encoder(frames)[0], encoder(frames)[1], atol=1e-4)


def test_video_encoder_of_one_frame_gives_one_token() -> None:
    cfg = tiny_towers(num_frames=1)
    assert VideoEncoder(cfg)(random_inputs(cfg, 2).frames).shape == (2, 1, cfg.model_dim)


def test_text_encoder_without_words_gives_zeros() -> None:
    tokens = TextEncoder(CFG)(torch.zeros(2, CFG.max_text_tokens, dtype=torch.int64))
    assert (tokens == 0).all()


def test_text_encoder_ignores_what_lies_in_its_padding_slots() -> None:
    encoder = TextEncoder(CFG).eval()
    words = random_inputs(CFG, 3).word_ids
    before = encoder(words)
    with torch.no_grad():
        encoder.words.weight[0] += 5.0
    torch.testing.assert_close(encoder(words), before, atol=1e-6, rtol=0)


def test_text_encoder_with_hidden_words_in_front_reads_the_rest() -> None:
    words = torch.tensor([[0, 0, 5, 6, 0, 0]])
    tokens = TextEncoder(CFG)(words)
    assert tokens.isfinite().all()
    assert tokens.abs().sum() > 0
