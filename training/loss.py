"""Choose which anchors answer for which true box, then score their predictions."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

CENTRE = 2.0  # an anchor may answer for a box whose centre lies within this many strides of it
TOP = 10  # how many of the best overlaps decide a box's number of anchors; the value of the paper
NEVER = 1e6  # a cost that no real candidate reaches


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU of boxes [..., 4] xyxy (Rezatofighi, arXiv:1902.09630)."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    inner = (low[..., 2:] - high[..., :2]).clamp(min=0).prod(-1)
    hull = (high[..., 2:] - low[..., :2]).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    iou = inner / union.clamp(min=1e-6)
    return iou, iou - (hull - union) / hull.clamp(min=1e-6)


def decode(raw: Tensor, grid: Tensor, stride: Tensor) -> Tensor:
    """Return boxes [B, A, 4] xyxy in pixels: centre (t + cell) * stride, size exp(t) * stride."""
    centre = (raw[..., :2] + grid) * stride
    half = raw[..., 2:4].clamp(max=6).exp() * stride / 2
    return torch.cat([centre - half, centre + half], dim=-1)


@torch.no_grad()
def assign(boxes: Tensor, scores: Tensor, labels: Tensor, grid: Tensor, stride: Tensor) -> Tensor:
    """Return the label that each anchor answers for, int64 [B, A], -1 for none.

    Simplified optimal transport (SimOTA; YOLOX, arXiv:2107.08430, section 2.1, after Ge et al.,
    2021, arXiv:2103.14259): a box takes its k cheapest candidates, k being the sum of its ten best
    overlaps, and an anchor that several boxes want goes to the cheapest. ``boxes`` [B, A, 4] and
    ``scores`` [B, A, C] are predictions, ``labels`` [B, M, 5] class, xyxy, class -1 where unused.
    """
    truth, real = labels[..., 1:], labels[..., 0] >= 0
    centre = (truth[..., :2] + truth[..., 2:]) / 2
    away = ((grid + 0.5) * stride - centre[:, :, None]).abs().amax(-1)  # [B, M, A] pixels
    near = (away < CENTRE * stride[:, 0]) & real[..., None]
    iou = overlap(truth[:, :, None], boxes[:, None])[0] * near
    # the cross entropy of each label's class with each anchor's scores, [B, M, A]
    sure, doubt = scores.clamp(min=1e-4).log(), torch.log1p(-scores.clamp(max=0.999))
    kinds = one_hot(labels[..., 0].clamp(min=0).long(), scores.shape[2]).float()
    wrong = -(kinds @ (sure - doubt).transpose(1, 2) + doubt.sum(-1)[:, None])
    cost = torch.where(near, wrong - 3 * (iou + 1e-8).log(), NEVER)  # 3: the weight of the paper
    count = iou.topk(TOP, dim=2).values.sum(2).int().clamp(min=1)
    best = cost.topk(TOP, dim=2, largest=False)
    ranked = torch.arange(TOP) < count[..., None]
    wanted = torch.zeros_like(near).scatter_(2, best.indices, ranked) & near
    cheapest = torch.where(wanted, cost, 2 * NEVER).min(dim=1)
    return torch.where(cheapest.values < NEVER, cheapest.indices, -1)


def detection_loss(raw: Tensor, labels: Tensor, grid: Tensor, stride: Tensor) -> dict[str, Tensor]:
    """Return the weighted terms ``box``, ``objectness`` and ``kind``, scalars per assigned anchor.

    ``raw`` is float32 [B, A, 5 + C] from ``Detector`` in training mode, ``labels`` [B, M, 5].
    Weights are those of YOLOX: 5 for boxes, 1 for the rest. Class targets are plain ones, not
    overlaps, so that a true box passes a confidence threshold of 0.3 with room to spare.
    """
    boxes = decode(raw, grid, stride)
    scores = (raw[..., 5:].sigmoid() * raw[..., 4:5].sigmoid()).sqrt()
    owner = assign(boxes.detach(), scores.detach(), labels, grid, stride)
    hit = owner >= 0
    count = hit.sum().clamp(min=1)
    target = labels.gather(1, owner.clamp(min=0)[..., None].expand(-1, -1, 5))[hit]
    giou = overlap(boxes[hit], target[:, 1:])[1]
    kinds = one_hot(target[:, 0].long(), raw.shape[2] - 5).float()
    entropy = partial(binary_cross_entropy_with_logits, reduction="sum")
    return {
        "box": 5 * (1 - giou).sum() / count,
        "objectness": entropy(raw[..., 4], hit.float()) / count,
        "kind": entropy(raw[..., 5:][hit], kinds) / count,
    }
