"""The attention that train.py compiles on a CPU in bf16, against eager attention and numerical gradients."""

from types import SimpleNamespace

import pytest
import torch

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification
from hf_vit_scratch.model.modeling_vit_scratch import eager_attention_forward
from hf_vit_scratch.training.short_attention import (
    SHORT_ATTENTION,
    attention_for_training,
    short_attention_forward,
)

TRAINED = SimpleNamespace(training=True)


def parts(dtype=torch.float64, tokens=7, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(2, 3, tokens, 4, dtype=torch.float64, generator=generator) * scale for _ in "qkv")
    return [each.to(dtype).requires_grad_() for each in made]


def attend(forward, tensors, **options):
    return forward(TRAINED, *tensors, None, scaling=0.5, **options)[0]


def test_its_gradients_are_the_numerical_ones():
    assert torch.autograd.gradcheck(lambda *qkv: attend(short_attention_forward, qkv), parts())


@pytest.mark.parametrize("scale", [1.0, 300.0])  # exp of the larger scores overflows unless their maximum is taken off
def test_output_and_gradients_are_those_of_eager_attention(scale):
    found, expected = parts(scale=scale), parts(scale=scale)
    outputs = [attend(short_attention_forward, found), attend(eager_attention_forward, expected)]
    torch.testing.assert_close(*outputs)
    weight = torch.arange(outputs[0].numel()).view_as(outputs[0]).double().sin()
    for output in outputs:
        (output * weight).sum().backward()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_in_bf16_it_is_as_close_to_the_exact_values_as_eager_attention():
    distances = {}
    for forward in (short_attention_forward, eager_attention_forward):
        rounded = parts(torch.bfloat16, tokens=50)
        exact = [each.detach().double().requires_grad_() for each in rounded]
        for tensors in (exact, rounded):
            attend(eager_attention_forward if tensors is exact else forward, tensors).float().square().sum().backward()
        errors = [(a.grad - b.grad.double()).norm() / a.grad.norm() for a, b in zip(exact, rounded, strict=True)]
        distances[forward] = torch.stack(errors).max()
    assert distances[short_attention_forward] < 1.5 * distances[eager_attention_forward]


def test_dropout_and_a_part_of_the_queries_are_eager_attention():
    query, key, value = parts()
    for tensors, dropout in (((query, key, value), 0.5), ((query[:, :, :1], key, value), 0.0)):
        found, expected = (
            (torch.manual_seed(1), attend(forward, tensors, dropout=dropout))[1]
            for forward in (short_attention_forward, eager_attention_forward)
        )
        assert torch.equal(found, expected)


def test_second_derivatives_are_refused():
    tensors = parts()
    squares = attend(short_attention_forward, tensors).square().sum()
    (gradient,) = torch.autograd.grad(squares, tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_it_is_chosen_for_short_sequences_in_bf16_that_are_compiled_for_a_cpu():
    cpu, cases = torch.device("cpu"), [(50, True, True), (50, True, False), (50, False, True), (5000, True, True)]
    chosen = [attention_for_training(tokens, cpu, bf16, compiled) for tokens, bf16, compiled in cases]
    assert chosen == [SHORT_ATTENTION, "eager", "eager", "sdpa"]
    assert attention_for_training(50, torch.device("cuda"), True, True) == "sdpa"


def test_a_model_has_the_same_logits_loss_and_gradients_with_it():
    torch.manual_seed(0)
    model = ViTScratchForImageClassification(ViTScratchConfig.from_size("digits-tiny", num_hidden_layers=2)).double()
    arguments, found = {"pixel_values": torch.randn(2, 1, 28, 28).double(), "labels": torch.tensor([0, 1])}, []
    for attention in ("eager", attention_for_training(50, torch.device("cpu"), bf16=True, compiled=True)):
        model.set_attn_implementation(attention)
        outputs = model(**arguments)
        found.append([outputs.logits, *torch.autograd.grad(outputs.loss, list(model.parameters()))])
    assert model.config._attn_implementation == SHORT_ATTENTION
    torch.testing.assert_close(found[1], found[0])
    assert len(model(**arguments, output_attentions=True).attentions) == model.config.num_hidden_layers
