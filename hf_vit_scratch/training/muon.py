"""Muon for the matrices of the blocks, beside the optimizer that has everything else."""

import torch
from torch import nn


class WithMuon(torch.optim.Optimizer):
    """Two optimizers that step together; a scheduler sees the parameter groups of both, Muon's last.

    Muon (torch's own) orthogonalizes the update of a matrix, which has no meaning for vectors and is not meant for
    embeddings, stem and head. The query-key-value projection, three matrices in one, is taken as one.

    Args:
        blocks: the part of the model whose linear layers' weights Muon takes over.
        others: an optimizer for all parameters that has not stepped yet; these matrices are taken out of its groups.
        learning_rate: on AdamW's scale: an update's root mean square is a fifth of it, whatever the shape of the
            matrix ("Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2).
        weight_decay: decoupled, of the matrices.
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
        """One step of both. Returns the loss of `closure`, where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict:
        """Those of the two, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        """What `state_dict` gave."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]
