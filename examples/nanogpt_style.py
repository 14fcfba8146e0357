"""A byte-level GPT in one file, as many are written: plain PyTorch, nothing of allometry in it.

What a ladder needs of a trainer is here: the sizes come from the command line, the log has the number of
parameters (without embeddings and head), tokens and the validation loss, and the rate decays to its horizon.
Matrices inside the blocks get the rate divided by the width and the head starts at zero (after Yang and Hu,
2020, arXiv:2011.14522), so that one --lr serves all widths.
"""

import argparse
import csv
import math
import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

CONTEXT, BATCH, DEPTH, HEAD, BASE = 64, 16, 2, 16, 64

parser = argparse.ArgumentParser(description=__doc__)
for name, kind, value in (("width", int, 32), ("tokens", float, 5e5), ("lr", float, 4e-3), ("seed", int, 0)):
    parser.add_argument(f"--{name}", type=kind, default=value)
parser.add_argument("--out", type=Path, default=Path("out"))
asked = parser.parse_args()
torch.manual_seed(asked.seed)

files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
parts = [b"".join(file.read_bytes() for file in files[i::10]) for i in range(10)]  # a tenth is held out
texts = (parts[0], b"".join(parts[1:]))
held_out, training = (torch.frombuffer(bytearray(t), dtype=torch.uint8).long() for t in texts)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):  # (B, T, C)
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, -1, HEAD))  # (B, T, 3, H, D)
        heads = heads.permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        mixed = scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.token, self.place = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(DEPTH)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, bytes_):  # (B, T) -> (B, T, 256)
        return self.head(self.norm(self.blocks(self.token(bytes_) + self.place.weight[: bytes_.shape[1]])))


def windows(text, starts):
    block = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return block[:, :-1], block[:, 1:].flatten()


@torch.no_grad()
def validation_loss(model):
    inputs, targets = windows(held_out, torch.linspace(0, len(held_out) - CONTEXT - 1, 512).long())
    return sum(cross_entropy(model(i).flatten(0, 1), t).item() for i, t in zip(
        inputs.chunk(8), targets.chunk(8), strict=True)) / 8  # fmt: skip


model = GPT(asked.width)
inner = [p for p in model.blocks.parameters() if p.ndim == 2] + [model.head.weight]
outer = [p for p in model.parameters() if not any(p is q for q in inner)]
params = sum(p.numel() for p in [*model.blocks.parameters(), *model.norm.parameters()])
groups = [{"params": inner, "scale": BASE / asked.width}, {"params": outer, "scale": 1.0}]
optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
steps = max(1, round(asked.tokens / (BATCH * CONTEXT)))
asked.out.mkdir(parents=True, exist_ok=True)
with (asked.out / "metrics.csv").open("w", newline="") as file:
    log = csv.writer(file)
    log.writerow(["step", "tokens", "params", "train_loss", "val_loss"])
    for step in range(1, steps + 1):
        rate = asked.lr * min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        inputs, targets = windows(training, torch.randint(len(training) - CONTEXT, (BATCH,)))
        loss = cross_entropy(model(inputs).flatten(0, 1), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0 or step == steps:
            shown = validation_loss(model)
            log.writerow([step, step * BATCH * CONTEXT, params, f"{loss.item():.5f}", f"{shown:.6f}"])
            print(f"step {step}/{steps}  loss {loss.item():.4f}  validation {shown:.4f}", flush=True)
