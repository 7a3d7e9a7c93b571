"""Muon for the weights of blocks and convolutions, combined with another optimizer for all other parameters."""

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..device import computes_bf16
from .sharding import shard_like, whole

# A stack has no more numbers than this, 128 MB in fp32: those of large models would fill the memory.
_STACKED_NUMBERS = 2**25


def orthogonalize(matrices: list[torch.Tensor], group: dict) -> list[torch.Tensor]:
    """The nearest orthogonal matrices, roughly, of matrices that all have one shape or its transpose.

    It is the Newton-Schulz iteration of torch's Muon with the constants of a parameter group. Like torch's it computes
    in bf16, but in fp32 where the device has no bf16 in hardware: a CPU takes about twenty times as long to emulate
    it. It runs on a stack of all matrices at once, since they are small and the calls are most of its time.
    """
    a, b, c = group["ns_coefficients"]
    tall = [matrix.shape[0] > matrix.shape[1] for matrix in matrices]
    stack = torch.stack([matrix.T if high else matrix for matrix, high in zip(matrices, tall, strict=True)])
    stack = stack.to(torch.bfloat16 if computes_bf16(stack.device) else torch.float32)
    stack.div_(stack.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"]))
    for _ in range(group["ns_steps"]):
        gram = stack @ stack.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        stack = torch.baddbmm(stack, gram, stack, beta=a)
    return [matrix.T if high else matrix for matrix, high in zip(stack.unbind(), tall, strict=True)]


def _rate(shape: torch.Size, group: dict) -> float:
    """Equation 4 of "Muon is Scalable for LLM Training" (arXiv 2502.16982), for a matrix of this shape."""
    return group["lr"] * 0.2 * math.sqrt(max(shape))


class StackedMuon(torch.optim.Muon):
    """torch's Muon with `adjust_lr_fn="match_rms_adamw"`, which steps all matrices of one shape at once.

    A matrix and one of the transposed shape go together too. The steps are those of torch's Muon but for rounding.
    The weight of a convolution is a matrix with a filter in each row ("Muon: An optimizer for hidden layers in neural
    networks", kellerjordan.github.io/posts/muon).
    It also takes matrices that FSDP2 has sharded. Their momentum stays sharded: since orthogonalizing an update needs
    the whole matrix, each process gathers one update after the other and orthogonalizes all of them.
    """

    def __init__(self, matrices: list[nn.Parameter], learning_rate: float, weight_decay: float):
        # torch's Muon takes two dimensions only, and filters have four.
        stand_in = nn.Parameter(torch.zeros(1, 1))
        super().__init__([stand_in], learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw")
        self.param_groups[0]["params"] = matrices

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step. Returns the loss of `closure`, or None without it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            stacks: dict[tuple[int, ...], list[torch.Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None and isinstance(matrix, DTensor):
                    self._step_sharded(matrix, group)
                elif matrix.grad is not None:
                    stacks.setdefault(tuple(sorted(matrix.flatten(1).shape)), []).append(matrix)
            for shape, matrices in stacks.items():
                at_once = max(1, _STACKED_NUMBERS // math.prod(shape))
                for start in range(0, len(matrices), at_once):
                    self._step_stacked(matrices[start : start + at_once], group)
        return loss

    def _step_stacked(self, matrices: list[torch.Tensor], group: dict) -> None:
        """Make the step of matrices of one shape, or of its transpose."""
        gradients = [matrix.grad for matrix in matrices]
        momenta = [self._momentum(matrix) for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        updates = [update.flatten(1) for update in updates]
        changes, rate = orthogonalize(updates, group), _rate(updates[0].shape, group)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        for matrix, change in zip(matrices, changes, strict=True):
            matrix.add_(change.view_as(matrix), alpha=-rate)

    def _momentum(self, matrix: torch.Tensor) -> torch.Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        return state["momentum_buffer"]

    def _step_sharded(self, matrix: DTensor, group: dict) -> None:
        momentum = self._momentum(matrix)
        momentum.lerp_(matrix.grad, 1 - group["momentum"])
        gradient = matrix.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = whole(gradient).flatten(1)
        (change,) = orthogonalize([update], group)
        step = shard_like(change.to(matrix.dtype).view(matrix.shape), matrix)
        matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-_rate(update.shape, group))


class WithMuon(torch.optim.Optimizer):
    """Two optimizers as one. Schedulers see the parameter groups of both, Muon's last.

    Muon (of torch) orthogonalizes the update of a matrix. It is not defined for vectors and not meant for position
    embeddings, class token and head. The query-key-value projection, which stacks three matrices, is treated as one
    matrix.

    Args:
        part: the part of the model in which Muon trains the weights of linear layers and convolutions.
        others: an optimizer of all parameters that has not made a step yet. The weights that Muon trains are
            removed from its groups.
        learning_rate: learning rate on AdamW's scale. The root mean square of an update is a fifth of it for any shape
            of the matrix ("Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2).
        weight_decay: decoupled weight decay of the matrices.
    """

    def __init__(self, part: nn.Module, others: torch.optim.Optimizer, learning_rate: float, weight_decay: float):
        matrices = [module.weight for module in part.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        taken = {id(matrix) for matrix in matrices}
        for group in others.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in taken]
        muon = StackedMuon(matrices, learning_rate, weight_decay)
        self.parts = {"others": others, "muon": muon}
        super().__init__([*others.param_groups, *muon.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts work on the groups and the states of this optimizer, which are what is saved and loaded."""
        count = len(self.parts["others"].param_groups)
        self.parts["others"].param_groups, self.parts["muon"].param_groups = (
            self.param_groups[:count],
            self.param_groups[count:],
        )
        for part in self.parts.values():
            part.state = self.state

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step of both optimizers. Returns the loss of `closure`, or None without it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state dict of [`~WithMuon.state_dict`]."""
        super().load_state_dict(state_dict)
        self._share()
