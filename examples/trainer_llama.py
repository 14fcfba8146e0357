"""A Llama of bytes, trained by Hugging Face's Trainer; nothing of allometry in it.

Trainer leaves its log in OUT/trainer_state.json.  One line is added to it: the number of parameters (without
embeddings and head), which a law needs and Trainer does not log.  Tokens are those that Trainer counts.
AdamW as it comes, with no rule for the width, so that each width wants a rate of its own.
Needs transformers and accelerate.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

CONTEXT, BATCH, DEPTH, HEAD = 64, 16, 2, 16

parser = argparse.ArgumentParser(description=__doc__)
for name, kind, value in (("width", int, 32), ("tokens", float, 5e5), ("lr", float, 4e-3), ("seed", int, 0)):
    parser.add_argument(f"--{name}", type=kind, default=value)
parser.add_argument("--out", type=Path, default=Path("out"))
asked = parser.parse_args()

files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
parts = [b"".join(file.read_bytes() for file in files[i::10]) for i in range(10)]  # a tenth is held out


class Windows(torch.utils.data.Dataset):
    """Stretches of a text, one after another."""

    def __init__(self, text, count=None):
        whole = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        self.rows = whole[: len(whole) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:count]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


class WithParams(Trainer):
    """Trainer whose log has the number of parameters."""

    def log(self, logs, *args, **kwargs):
        params = sum(p.numel() for p in self.model.model.layers.parameters())
        super().log({**logs, "params": params}, *args, **kwargs)


def main():
    torch.manual_seed(asked.seed)
    config = LlamaConfig(
        vocab_size=256, hidden_size=asked.width, intermediate_size=4 * asked.width, num_hidden_layers=DEPTH,
        num_attention_heads=asked.width // HEAD, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(asked.out), max_steps=max(1, round(asked.tokens / (BATCH * CONTEXT))),
        per_device_train_batch_size=BATCH, per_device_eval_batch_size=64, learning_rate=asked.lr,
        lr_scheduler_type="cosine", warmup_steps=50, adam_beta2=0.95, max_grad_norm=1.0, seed=asked.seed,
        logging_steps=100, save_strategy="no", report_to=[], disable_tqdm=True,
        include_num_input_tokens_seen=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = WithParams(
        LlamaForCausalLM(config), arguments, train_dataset=Windows(b"".join(parts[1:])),
        eval_dataset=Windows(parts[0], 512),
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    trainer.save_state()


if __name__ == "__main__":
    main()
