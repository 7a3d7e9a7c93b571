"""Muon for the weight matrices of the blocks, combined with another optimizer for all other parameters."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from .sharding import shard_like, whole


class ShardedMuon(torch.optim.Muon):
    """torch's Muon, also for matrices that FSDP2 has sharded: orthogonalizing an update needs the whole matrix.

    The momentum stays sharded. Each process gathers one update after the other and orthogonalizes all of them.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step. Returns the loss of `closure`, or None without it."""
        if not any(isinstance(matrix, DTensor) for group in self.param_groups for matrix in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._step(matrix, group)
        return loss

    def _step(self, matrix: DTensor, group: dict) -> None:
        momentum = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix.grad))
        momentum.lerp_(matrix.grad, 1 - group["momentum"])
        gradient = matrix.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        # From zero and without momentum, a step of torch's Muon is the orthogonalized gradient times the rate.
        change = nn.Parameter(torch.zeros(matrix.shape, dtype=matrix.dtype, device=matrix.device))
        change.grad = whole(gradient)
        alone = {**{name: group[name] for name in self.defaults}, "momentum": 0.0, "weight_decay": 0.0}
        torch.optim.Muon([change], **alone).step()
        matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(shard_like(change.detach(), matrix))


class WithMuon(torch.optim.Optimizer):
    """Two optimizers as one. Schedulers see the parameter groups of both, Muon's last.

    Muon (of torch) orthogonalizes the update of a matrix. It is not defined for vectors and not meant for embeddings,
    stem and head. The query-key-value projection, which stacks three matrices, is treated as one matrix.

    Args:
        blocks: the part of the model in which Muon trains the weights of the linear layers.
        others: an optimizer of all parameters that has not made a step yet. The weights of `blocks` are removed from
            its groups.
        learning_rate: learning rate on AdamW's scale. The root mean square of an update is a fifth of it for any shape
            of the matrix ("Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2).
        weight_decay: decoupled weight decay of the matrices.
    """

    def __init__(self, blocks: nn.Module, others: torch.optim.Optimizer, learning_rate: float, weight_decay: float):
        matrices = [module.weight for module in blocks.modules() if isinstance(module, nn.Linear)]
        taken = {id(matrix) for matrix in matrices}
        for group in others.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in taken]
        muon = ShardedMuon(matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw")
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
