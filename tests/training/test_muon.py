import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification
from hf_vit_scratch.training import muon
from hf_vit_scratch.training.muon import WithMuon, orthogonalize


@pytest.fixture(autouse=True)
def as_torch_computes(monkeypatch):
    monkeypatch.setattr(muon, "computes_bf16", lambda device: True)


def make_model() -> ViTScratchForImageClassification:
    torch.manual_seed(0)
    config = ViTScratchConfig.from_size("digits-tiny", hidden_size=16, num_hidden_layers=2, num_labels=10)
    return ViTScratchForImageClassification(config)


def with_muon(model) -> WithMuon:
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    return WithMuon(model.vit.layers, adamw, learning_rate=3e-2, weight_decay=0.1)


def learn(model, *optimizers, steps: int = 3, first: int = 0):
    for step in range(first, first + steps):
        pixels = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(step))
        model(pixels, labels=torch.arange(8)).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()


def same(one, other) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_matrices_of_the_blocks_follow_torchs_muon_and_all_else_adamw():
    ours, theirs = make_model(), make_model()
    learn(ours, with_muon(ours))
    blocks = {f"vit.layers.{name}" for name, _ in theirs.vit.layers.named_parameters()}
    matrices = [p for name, p in theirs.named_parameters() if name in blocks and p.dim() == 2]
    rest = [p for name, p in theirs.named_parameters() if not (name in blocks and p.dim() == 2)]
    assert len(matrices) == 2 * 4
    expected = torch.optim.Muon(matrices, lr=3e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    learn(theirs, expected, torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.0))
    assert same(ours, theirs)
    assert not same(ours, make_model())


def test_filters_follow_torchs_muon_as_rows_of_a_matrix():
    class Rows(nn.Linear):
        """A 3x3 convolution whose weight is a matrix."""

        def forward(self, images):
            filters = self.weight.view(len(self.weight), images.shape[1], 3, 3)
            return nn.functional.conv2d(images, filters, padding=1)

    torch.manual_seed(0)
    # The second has more rows than columns.
    ours = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Conv2d(4, 40, 3, padding=1, bias=False))
    theirs = nn.Sequential(Rows(2 * 9, 4, bias=False), Rows(4 * 9, 40, bias=False))
    for filters, rows in zip(ours, theirs, strict=True):
        rows.weight.data = filters.weight.detach().flatten(1).clone()
    expected = torch.optim.Muon(theirs.parameters(), lr=3e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizer = WithMuon(ours, torch.optim.AdamW(ours.parameters()), learning_rate=3e-2, weight_decay=0.1)
    for step in range(3):
        images = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(step))
        for model, its in ((ours, optimizer), (theirs, expected)):
            model(images).square().mean().backward()
            its.step()
            model.zero_grad()
    for filters, rows in zip(ours, theirs, strict=True):
        torch.testing.assert_close(filters.weight.flatten(1), rows.weight)


@pytest.mark.parametrize(("in_hardware", "tolerance"), [(True, 5e-2), (False, 1e-4)])
def test_the_iteration_maps_singular_values_by_its_polynomial_in_either_precision(monkeypatch, in_hardware, tolerance):
    monkeypatch.setattr(muon, "computes_bf16", lambda device: in_hardware)
    group = with_muon(make_model()).param_groups[-1]
    a, b, c = group["ns_coefficients"]
    torch.manual_seed(0)
    matrices = [torch.randn(6, 20), torch.randn(20, 6) * 1e-3]
    for matrix, found in zip(matrices, orthogonalize(matrices, group), strict=True):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        values = values / values.norm()
        for _ in range(group["ns_steps"]):
            values = a * values + b * values**3 + c * values**5
        torch.testing.assert_close(found.double(), left @ values.diag() @ right, rtol=0, atol=tolerance)


def test_a_scheduler_moves_the_rates_of_both():
    optimizer = with_muon(make_model())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    scheduler.step()
    assert {name: part.param_groups[0]["lr"] for name, part in optimizer.parts.items()} == {
        "muon": 1.5e-2,
        "others": 5e-3,
    }
    assert optimizer.param_groups[0]["lr"] == 5e-3  # what the Trainer logs: learning_rate, as it was told


def test_what_is_saved_goes_on_as_if_never_stopped():
    whole = make_model()
    learn(whole, with_muon(whole), steps=6)
    stopped = make_model()
    optimizer = with_muon(stopped)
    learn(stopped, optimizer)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(stopped.state_dict())
    resumed = make_model()
    resumed.load_state_dict(weights)
    optimizer = with_muon(resumed)
    optimizer.load_state_dict(saved)
    learn(resumed, optimizer, first=3)
    assert same(resumed, whole)
    # The groups that a scheduler sees are still those that the two step with.
    assert [id(group) for group in optimizer.param_groups] == [
        id(group) for part in optimizer.parts.values() for group in part.param_groups
    ]


def test_the_loss_of_a_closure_is_handed_on():
    weight = nn.Linear(3, 2)
    blocks = nn.ModuleList([nn.Linear(3, 3)])
    optimizer = WithMuon(blocks, torch.optim.SGD([*weight.parameters(), *blocks.parameters()]), 1e-2, 0.0)
    assert optimizer.step(lambda: torch.tensor(2.0)) == 2.0


class Products(TorchDispatchMode):
    """Counts the batched products of matrices."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function in (torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default)
        return function(*arguments, **(keywords or {}))


def test_a_deeper_model_takes_no_more_products():
    counts = []
    for depth in (1, 3):
        config = ViTScratchConfig.from_size("digits-tiny", hidden_size=16, num_hidden_layers=depth, num_labels=10)
        model = ViTScratchForImageClassification(config)
        optimizer = with_muon(model)
        model(torch.randn(2, 1, 28, 28), labels=torch.tensor([0, 1])).loss.backward()
        with Products() as products:
            optimizer.step()
        counts.append(products.count)
    # Of 16x16, 16x48 and 16x256, the last with its transpose: three products in each of five iterations.
    assert counts == [3 * 5 * 3] * 2


def test_large_matrices_go_in_stacks_that_fit_into_memory(monkeypatch):
    ours, theirs = make_model(), make_model()
    with monkeypatch.context() as patched:
        patched.setattr(muon, "_STACKED_NUMBERS", 16 * 48)  # one of 16x48, and three of 16x16
        learn(ours, with_muon(ours))
    learn(theirs, with_muon(theirs))
    assert same(ours, theirs)
