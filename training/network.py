"""Define the compact anchor-free detector whose weights polyolo ships.

The outputs follow YOLOX (Ge et al., 2021, "YOLOX: Exceeding YOLO Series in 2021",
arXiv:2107.08430): one prediction per cell at strides 8, 16 and 32, with a decoupled head. The body
is our own: plain 3x3 convolutions with ReLU, because on a CPU they are dense matrix products with
a free activation, where depthwise ones wait for memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

STRIDES = (8, 16, 32)


class Conv(nn.Module):
    """Apply a convolution, batch norm and ReLU."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(cout, eps=1e-3, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.norm(self.conv(x)))


class Residual(nn.Module):
    """Add a 1x1, 3x3 bottleneck to its input (He et al., 2016, arXiv:1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = Conv(width, width // 2, 1)
        self.expand = Conv(width // 2, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.squeeze(x))


class Head(nn.Module):
    """Predict raw boxes, objectness and classes: [B, C, H, W] to [B, 5 + classes, H, W]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.where = Conv(width, width)
        self.what = Conv(width, width)
        self.box = nn.Conv2d(width, 4, 1)
        self.objectness = nn.Conv2d(width, 1, 1)
        self.kind = nn.Conv2d(width, classes, 1)
        for layer in (
            self.objectness,
            self.kind,
        ):  # start rare, as Lin et al., 2017 (arXiv:1708.02002), section 4.1
            nn.init.constant_(layer.bias, -math.log((1 - 0.01) / 0.01))

    def forward(self, x: Tensor) -> Tensor:
        where, what = self.where(x), self.what(x)
        return torch.cat([self.box(where), self.objectness(where), self.kind(what)], dim=1)


class Detector(nn.Module):
    """Detect objects: float32 [B, 3, S, S] BGR 0..255 to [B, anchors, 5 + classes].

    Anchors come stride by stride, row-major. A row is (tx, ty, tw, th) in grid units, an objectness
    and the class scores; the last two are logits in training mode, probabilities in evaluation.
    """

    def __init__(
        self, classes: int, widths: tuple[int, ...] = (16, 32, 64, 96, 128), neck: int = 64
    ) -> None:
        super().__init__()
        a, b, c, d, e = widths
        self.stem = nn.Sequential(Conv(3, a, 3, 2), Conv(a, b, 3, 2), Residual(b))
        self.level8 = nn.Sequential(Conv(b, c, 3, 2), Residual(c), Residual(c))
        self.level16 = nn.Sequential(Conv(c, d, 3, 2), Residual(d), Residual(d))
        self.level32 = nn.Sequential(Conv(d, e, 3, 2), Residual(e))
        # a path down and a path up between the levels: PANet, Liu et al., 2018, arXiv:1803.01534
        self.lateral = nn.ModuleList(Conv(width, neck, 1) for width in (c, d, e))
        self.down = nn.ModuleList(Residual(neck) for _ in range(2))
        self.up = nn.ModuleList(Conv(neck, neck, 3, 2) for _ in range(2))
        self.heads = nn.ModuleList(Head(neck, classes) for _ in STRIDES)

    def forward(self, images: Tensor) -> Tensor:
        x8 = self.level8(self.stem(images * (1 / 255)))
        x16 = self.level16(x8)
        x32 = self.level32(x16)
        p8, p16, p32 = (layer(x) for layer, x in zip(self.lateral, (x8, x16, x32), strict=True))
        p16 = self.down[1](p16 + nn.functional.interpolate(p32, scale_factor=2.0))
        p8 = self.down[0](p8 + nn.functional.interpolate(p16, scale_factor=2.0))
        p16 = p16 + self.up[0](p8)
        p32 = p32 + self.up[1](p16)
        rows = [head(x).flatten(2) for head, x in zip(self.heads, (p8, p16, p32), strict=True)]
        raw = torch.cat(rows, dim=2).transpose(1, 2)
        return raw if self.training else torch.cat([raw[..., :4], raw[..., 4:].sigmoid()], dim=2)


def anchor_grid(side: int) -> tuple[Tensor, Tensor]:
    """Return each anchor's cell, float32 [A, 2] as (column, row), and stride in pixels, [A, 1]."""
    cells, strides = [], []
    for stride in STRIDES:
        index = torch.arange(side // stride, dtype=torch.float32)
        rows, columns = torch.meshgrid(index, index, indexing="ij")
        cells.append(torch.stack([columns, rows], dim=-1).reshape(-1, 2))
        strides.append(torch.full((len(cells[-1]), 1), float(stride)))
    return torch.cat(cells), torch.cat(strides)


def fold(module: nn.Module) -> nn.Module:
    """Fold every batch norm into its convolution, in place; return the module for evaluation."""
    module.eval()
    for part in module.modules():
        if isinstance(part, Conv):
            part.conv, part.norm = fuse_conv_bn_eval(part.conv, part.norm), nn.Identity()
    return module
