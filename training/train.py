"""Train the board detector on boards drawn here, and export an early and a final version of it.

python train.py --out ../src/polyolo/models
"""

from __future__ import annotations

import argparse
import math
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import torch
from dataset import batches, cache_boards
from defects import NAMES
from export import export
from layout import INPUT
from loss import detection_loss
from network import Detector, anchor_grid
from torch import nn


def learning_rate(step: int, steps: int, peak: float, warm: int = 150) -> float:
    """Return a linear warm-up, then a cosine to 2 % (Loshchilov & Hutter, arXiv:1608.03983)."""
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the averaged weights a little towards the model's, faster at the beginning."""
    weight = 1 - min(0.998, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, weight)


def decayed(model: nn.Module, decay: float) -> list[dict]:
    """Return parameter groups in which only convolution kernels decay."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def train(args: argparse.Namespace) -> None:
    """Run the schedule; averaged weights go to ``args.work``, finished models to ``args.out``."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    images, labels = cache_boards(args.work, 0, args.boards, args.threads)
    stream = batches(images, labels, args.batch, args.seed)
    model = Detector(len(NAMES)).to(memory_format=torch.channels_last).train()
    average = deepcopy(model)
    optimizer = torch.optim.AdamW(decayed(model, 0.02), lr=args.rate)
    grid, stride = anchor_grid(INPUT)
    started, seen = time.monotonic(), {}
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, stream)
        for step in range(1, args.steps + 1):
            pictures, truth = (torch.from_numpy(part) for part in coming.result())
            coming = pool.submit(next, stream)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.rate)
            pictures = pictures.permute(0, 3, 1, 2).float()  # already channels-last in memory
            # 1.9 times as fast as float32 where the CPU has AMX
            with torch.autocast("cpu", dtype=torch.bfloat16):
                raw = model(pictures)
            terms = detection_loss(raw.float(), truth, grid, stride)
            optimizer.zero_grad(set_to_none=True)
            sum(terms.values()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            follow(average, model, step)
            for name, term in terms.items():
                seen[name] = 0.95 * seen.get(name, term.item()) + 0.05 * term.item()
            if step % 50 == 0:
                losses = "  ".join(f"{name} {value:.3f}" for name, value in seen.items())
                elapsed = time.monotonic() - started
                print(f"{step:5d}/{args.steps}  {losses}  {elapsed:.0f} s", flush=True)
            if step % args.every == 0 or step in (args.early, args.steps):
                torch.save(average.state_dict(), args.work / f"step-{step:05d}.pt")
    for version, step in ((1, args.early), (2, args.steps)):
        if step <= args.steps:
            export(args.work / f"step-{step:05d}.pt", args.out / f"pcb-{version}.onnx", version)


def main() -> None:
    """Read the command line and train."""
    cache = Path(__file__).parent / ".cache"
    options = (
        ("--work", cache, "where drawn boards and checkpoints go"),
        ("--out", cache, "where the two ONNX files go"),
        ("--boards", 6000, "how many boards to draw, from seed 0 up"),
        ("--steps", 4000, "optimizer steps of the whole schedule"),
        ("--early", 300, "the step that becomes version 1"),
        ("--batch", 16, "boards a step"),
        ("--rate", 2e-3, "peak learning rate"),
        ("--every", 100, "steps between checkpoints"),
        ("--threads", 2, "CPU threads, and processes that draw boards"),
        ("--seed", 0, "seed of weights, order and augmentation"),
    )
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in options:
        parser.add_argument(name, type=type(default), default=default, help=text)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
