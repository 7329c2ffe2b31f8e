"""The lab's autoencoder: its encoder and the copying half of its decoder are exact, whatever was learned between."""

import pytest
import torch
import torch.nn.functional as F
from likeness.lab import autoencoder
from likeness.lab.autoencoder import AUTOENCODER, AutoencoderTask, Unfolding, assemble, gate, left, opened
from likeness.lab.base import CHANNELS, LATENT_SCALE, SIDE, fold, scenes
from likeness.lab.stages import GateFailed


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(5)
    return Unfolding().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def weights(module):
    return dict(module.named_parameters())


@pytest.fixture(scope="module")
def vae(weights):
    """With its weights as float16 keeps them, and nothing trained."""
    return opened(weights)


def portraits(count=4, seed=9):
    return fold(scenes(count, seed).portraits.pixels)


def large(latents):
    """(N, 3, 128, 128): every pixel of the portrait four by four."""
    return F.interpolate(F.pixel_shuffle(latents, 2), scale_factor=4)


@pytest.mark.parametrize(
    "latents",
    [portraits(), torch.ones(1, CHANNELS, SIDE, SIDE), torch.rand(2, CHANNELS, SIDE, SIDE) * 2 - 1],
    ids=["portraits", "white", "anything"],
)
def test_the_encoder_folds_exactly(vae, latents):
    with torch.no_grad():
        encoded = vae.encode(large(latents)).latent_dist
    assert torch.allclose(encoded.mean * LATENT_SCALE, latents, atol=0.003)
    assert float(encoded.std.max()) < 1e-6


def test_the_encoder_averages_what_is_finer_than_a_portrait(vae):
    fine = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        encoded = vae.encode(fine).latent_dist.mean * LATENT_SCALE
    assert torch.allclose(encoded, F.pixel_unshuffle(F.avg_pool2d(fine, 4), 2), atol=0.003)


def test_the_decoder_copies_what_was_learned_four_by_four(vae, module):
    latents = portraits()
    with torch.no_grad():
        learned, decoded = module(latents), vae.decode(latents / LATENT_SCALE).sample
    assert float(learned.std()) > 0.1
    assert torch.allclose(decoded, F.interpolate(learned, scale_factor=4), atol=0.01)
    assert torch.allclose(decoded, F.interpolate(F.avg_pool2d(decoded, 4), scale_factor=4), atol=0.01)


def test_everything_learned_finds_its_place(weights):
    state = assemble(weights)
    assert state.keys() == autoencoder.network().state_dict().keys()
    for name, tensor in weights.items():
        if not name.startswith("head."):
            ours, rest = name.split(".", 1)
            assert torch.equal(state[f"{autoencoder.PLACES[ours]}.{rest}"], tensor), name


def test_it_is_small_and_survives_float16(weights):
    stored = {name: tensor.half() for name, tensor in assemble(weights).items()}
    assert sum(tensor.nbytes for tensor in stored.values()) < 1_000_000
    assert all(tensor.isfinite().all() for tensor in stored.values())
    assert AUTOENCODER["latent_channels"] == CHANNELS


def test_training_noises_what_is_decoded_and_never_what_it_should_become():
    torch.manual_seed(0)
    noise = left(torch.zeros(200, CHANNELS, SIDE, SIDE))
    assert abs(float(noise.mean())) < 0.005
    assert 0.02 < float(noise.std()) < 0.1

    def unfolded(latents):
        assert not torch.equal(latents, portraits(2, seed=4))
        return F.pixel_shuffle(portraits(2, seed=4), 2)

    assert float(AutoencoderTask().loss(unfolded, 2, seed=4, step=0)) == 0


def test_the_gate_stays_shut_for_what_was_not_trained(weights, tmp_path):
    torch.save(weights, tmp_path / "autoencoder.pt")
    with pytest.raises(GateFailed, match="below 35 dB"):
        gate(tmp_path, count=10)
    assert (tmp_path / "autoencoder.png").is_file()
