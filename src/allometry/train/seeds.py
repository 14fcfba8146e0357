"""Named random streams.

A stream depends on (seed, name) alone, so that arms with one seed share what they can.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seeds:
    """A family of random streams.

    >>> Seeds(1).integer("data") == Seeds(1).integer("data") != Seeds(2).integer("data")
    True
    >>> float(torch.rand((), generator=Seeds(1).generator("init"))) < 1
    True
    """

    root: int

    def integer(self, name: str) -> int:
        """63 bits that depend on the seed and the name."""
        digest = hashlib.sha256(f"{self.root}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator at the start of the named stream."""
        return torch.Generator(device=device).manual_seed(self.integer(name))

    def child(self, name: str) -> Seeds:
        """A family of its own under this one."""
        return Seeds(self.integer(name))
