"""Batch-gradient verification, the check for mixed samples that Lightning-Bolts offers, written out as a peer.

The gradient of one sample's outputs with respect to the other samples' inputs must be zero. It needs floating inputs
and outputs that carry a gradient; layers of torch's own batch norms are put into evaluation mode first.

Source: `pl_bolts.callbacks.verification.batch_gradient` of Lightning-Bolts.
"""

from __future__ import annotations

import copy

import torch
from tests.zoo.case import Case, map_tensors, seeded, tensors_of
from torch import nn

__all__ = ["batch_gradients"]

EXEMPT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm)


def batch_gradients(case: Case, model: nn.Module, *, training: bool = False, exempt: bool = True) -> bool | None:
    """Whether batch-gradient verification says that samples mix; None where it cannot be used.

    `training` runs it as at the start of training, where the callback runs it; `exempt=False` leaves batch norms alone.
    """
    model = copy.deepcopy(model)
    if training:
        model.train()
    for module in model.modules():
        if exempt and isinstance(module, EXEMPT):
            module.eval()
    batch = map_tensors(case.batch, lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()))
    inputs = [tensor for tensor in tensors_of(batch) if tensor.requires_grad]
    if not inputs or isinstance(batch, list):
        return None
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        seeded(0)
        outputs = (
            model(**batch) if isinstance(batch, dict) else model(*batch) if isinstance(batch, tuple) else model(batch)
        )
        rows = [tensor[0].sum() for tensor in tensors_of(outputs) if tensor.dim() and len(tensor) == case.samples]
        rows = [row for row in rows if row.requires_grad]
        if not rows:
            return None
        gradients = torch.autograd.grad(torch.stack(rows).sum(), inputs, allow_unused=True)
    outside = [gradient[1:] for gradient in gradients if gradient is not None]
    return any(bool((gradient != 0).any()) for gradient in outside)
