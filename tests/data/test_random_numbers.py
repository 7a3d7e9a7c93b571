import pytest
import torch
from scipy import stats

from hf_vit_scratch.data.random_numbers import image_keys, normal, uniform

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# The first numbers of SplitMix64 with seed 1234567, as https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
# has them.
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


@pytest.mark.parametrize("device", DEVICES)
def test_the_numbers_are_those_of_splitmix64(device):
    found = uniform(torch.tensor([1234567, 7], device=device), len(PUBLISHED))
    assert found.dtype == torch.float32
    assert found[0].tolist() == [number / 2**64 // 2**-24 * 2**-24 for number in PUBLISHED]


# Each case draws a table from which numbers of neighbours are compared: rows, columns and streams that follow another.
TABLES = {
    "images": lambda draw: draw(image_keys(42, 3, torch.arange(8000)), 2),
    "epochs": lambda draw: torch.cat([draw(image_keys(42, epoch, torch.tensor([5])), 2) for epoch in range(1000)]),
    "seeds": lambda draw: torch.cat([draw(image_keys(seed, 0, torch.tensor([0])), 2) for seed in range(1000)]),
    "counts": lambda draw: draw(image_keys(0, 0, torch.arange(2)), 8000).T,
    "streams": lambda draw: torch.stack([draw(image_keys(0, 0, torch.arange(2)), 1, s)[:, 0] for s in range(1000)]),
    "seed and epoch": lambda draw: torch.cat(
        [
            draw(image_keys(one, other, torch.tensor([1])), 1)
            for one, other in zip(range(1000), range(1, 1001), strict=True)
        ]
    ),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("draw", "distribution"), [(uniform, "uniform"), (normal, "norm")])
def test_numbers_of_neighbours_are_independent_and_of_their_distribution(draw, distribution, name):
    table = TABLES[name](draw).double().numpy()
    for column in table.T:
        assert stats.kstest(column, distribution).pvalue > 1e-3
        for distance in (1, 2, 32):
            assert stats.pearsonr(column[:-distance], column[distance:]).pvalue > 1e-3
    pairs = [(table[:-1, 0], table[1:, 0])] + ([(table[:, 0], table[:, 1])] if table.shape[1] > 1 else [])
    for one, other in pairs:  # an 8x8 table of counts, for a dependence that is no correlation
        cells = (stats.rankdata(values) * 8 // (len(values) + 1) for values in (one, other))
        counts = stats.contingency.crosstab(*cells).count
        assert counts.shape == (8, 8) and stats.chi2_contingency(counts).pvalue > 1e-3


def test_seed_epoch_and_index_are_told_apart():
    keys = [image_keys(seed, epoch, torch.arange(50)) for seed in (-1, 0, 1, 2**32 - 1, 2**63) for epoch in range(50)]
    assert len(torch.cat(keys).unique()) == 5 * 50 * 50
    assert image_keys(0, 0, torch.zeros(0, dtype=torch.int64)).shape == (0,)
    keys = torch.cat(keys)
    streams = torch.cat([uniform(keys, 4, stream) for stream in (0, 1, 2**31 - 1)], dim=1)
    assert (streams.unique(dim=0).shape, streams.min() >= 0, streams.max() < 1) == ((12500, 12), True, True)


@pytest.mark.parametrize("device", DEVICES)
def test_an_image_has_its_numbers_in_any_batch_at_any_place_on_any_device(device):
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    whole = image_keys(7, 2, torch.arange(200))
    shuffled = image_keys(7, 2, order.to(device))
    assert torch.equal(shuffled.cpu(), whole[order])
    parts = [uniform(keys, 9, 3).cpu() for keys in shuffled.split((1, 60, 100, 39))]
    assert torch.equal(torch.cat(parts), uniform(whole, 9, 3)[order])
    assert torch.equal(uniform(whole, 4, 3), uniform(whole, 9, 3)[:, :4])  # the first do not depend on the count
    torch.testing.assert_close(normal(shuffled, 50).cpu(), normal(whole, 50)[order], rtol=1e-5, atol=1e-5)


def test_normal_numbers_reach_far_and_are_never_infinite():
    numbers = normal(image_keys(0, 0, torch.arange(2_000_000)), 1)
    assert 4.5 < numbers.max() < 5.4 and -5.4 < numbers.min() < -4.5
