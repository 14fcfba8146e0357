"""Run the benchmarks: every case ours, peer, ours, peer, and so on, after a warm-up call of each."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before NumPy loads: one thread for everyone

import benchmarks  # noqa: E402
from benchmarks import Case  # noqa: E402


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(case: Case) -> dict[str, Any]:
    """Times of one case and the ratio peer / ours: of the medians, and its range over the rounds."""
    case.ours()
    case.peer()
    ours, peer = [], []
    for _ in range(case.rounds):
        ours.append(_seconds(case.ours) * case.ours_scale)
        peer.append(_seconds(case.peer) * case.peer_scale)
    ratios = [theirs / mine for mine, theirs in zip(ours, peer, strict=True)]
    return {
        "case": case.name,
        "peer": case.peer_name,
        "ours_seconds": statistics.median(ours),
        "peer_seconds": statistics.median(peer),
        "ratio": statistics.median(peer) / statistics.median(ours),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "target": case.target_ratio,
        "rounds": case.rounds,
        "note": case.note,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="run only cases whose file or name contains this text")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    chosen = parser.parse_args(arguments)
    rows = []
    print(f"{'case':44s} {'peer':34s} {'ratio':>8s} {'min-max':>17s} {'target':>7s}")
    for module in sorted(pkgutil.iter_modules(benchmarks.__path__), key=lambda found: found.name):
        if module.name.startswith("_"):
            continue
        source = importlib.import_module(f"benchmarks.{module.name}")
        if not hasattr(source, "cases"):
            continue
        for case in source.cases():
            if chosen.only not in module.name and chosen.only not in case.name:
                continue
            row = measure(case)
            rows.append(row)
            span = f"{row['ratio_low']:.1f}-{row['ratio_high']:.1f}"
            mark = "" if row["ratio"] >= row["target"] else "  below target"
            print(
                f"{case.name:44s} {case.peer_name:34s} {row['ratio']:8.1f} {span:>17s} "
                f"{row['target']:7.1f}{mark}"
            )
            sys.stdout.flush()
    for row in rows:
        if row["note"]:
            print(f"\n{row['case']}: {row['note']}")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if rows else 2


if __name__ == "__main__":
    sys.exit(main())
