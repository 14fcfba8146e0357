"""Ten million rows in the memory of a few hundred thousand, at the pace of the parser."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MEGABYTE = 2**20


def write_log(path, rows, runs=8, block=50_000):
    """A log of ``rows`` steps of several runs, some 40 bytes a row; every loss is its own number."""
    steps = rows // runs
    generator = np.random.default_rng(0)
    with open(path, "w") as file:
        file.write("run,step,params,tokens,val_loss\n")
        for run in range(runs):
            params = 10**6 * 2**run
            for begin in range(0, steps, block):
                step = np.arange(begin, min(begin + block, steps))
                loss = 2 + 4 / np.sqrt(1 + step) + 1e-3 * generator.random(len(step))
                file.writelines(
                    f"r{run},{i},{params},{4096 * i + 4096},{value:.9f}\n"
                    for i, value in zip(step.tolist(), loss.tolist(), strict=True)
                )
    return path


# The peak of this address space. ru_maxrss would start at what the parent held when it forked: the size of
# the whole test run, however little the reader takes.
READ = """
import json, sys, time
import pandas
from allometry.laws import read_runs

def high_water():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

loaded = high_water()
begun = time.process_time()
found = read_runs(sys.argv[1])
spent = time.process_time() - begun
peak = high_water()
final = found.final()
print(json.dumps({"loaded": loaded, "peak": peak, "seconds": spent, "kept": len(found.table),
    "left": int(found.left_out["count"].sum()), "steps": final["step"].tolist(),
    "runs": final["run"].tolist()}))
"""
PANDAS = """
import sys, time
import pandas
begun = time.process_time()
for chunk in pandas.read_csv(sys.argv[1], chunksize=200_000):
    pass
print(time.process_time() - begun)
"""


def run(code, path):
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    limit = 3 * 2**30  # of address space; a whole file of strings would pass it

    def bounded():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ | one, capture_output=True,
                          text=True, preexec_fn=bounded)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_ten_million_rows_need_no_more_memory_than_one(tmp_path):
    found = {}
    for rows in (1_000_000, 10_000_000):
        path = write_log(tmp_path / "long.csv", rows)
        found[rows] = run(READ, path)
        size, told = Path(path).stat().st_size, found[rows]
        assert told["kept"] + told["left"] == rows
        assert told["kept"] <= 300_000
        assert told["steps"] == [rows // 8 - 1] * 8
        assert told["runs"] == [f"r{i}" for i in range(8)]
    assert size > 350 * MEGABYTE
    assert found[10_000_000]["peak"] < 700
    assert found[10_000_000]["peak"] < 1.15 * found[1_000_000]["peak"]
    ours, pandas = found[10_000_000]["seconds"], run(PANDAS, path)
    print(f"{rows / ours:,.0f} rows a second, {ours / pandas:.2f} times pandas; peak {told['peak']:.0f} MB")
    assert ours < 6 * pandas  # 3 to 4 times where nothing else runs: exact counts, labels, thinning
