"""Muon for the weight matrices of the blocks, combined with another optimizer for all other parameters."""

import torch
from torch import nn


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
        muon = torch.optim.Muon(matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw")
        self.parts = {"others": others, "muon": muon}
        super().__init__([*others.param_groups, *muon.param_groups], {})

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

    def state_dict(self) -> dict:
        """The state dicts of both optimizers, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state dict of [`~WithMuon.state_dict`]."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]
