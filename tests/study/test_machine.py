"""Memory and processor from the kernel's own files, laid out as its documentation says."""

from pathlib import Path

import pytest

from allometry.study.machine import Memory, memory, processor

GIB = 1 << 30


def write(files: dict[str, str], root: Path) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\n"


def test_version_2_takes_the_group_with_the_least_left_up_to_the_root(tmp_path):
    proc = write({"meminfo": MEMINFO, "self/cgroup": "0::/a/b\n"}, tmp_path / "proc")
    cgroup = write(
        {
            "memory.max": "max\n",
            "a/memory.max": f"{4 * GIB}\n", "a/memory.current": f"{3 * GIB}\n",
            "a/b/memory.max": f"{2 * GIB}\n", "a/b/memory.current": f"{GIB // 2}\n",
        },
        tmp_path / "cgroup",
    )  # fmt: skip
    held = memory(proc=proc, cgroup=cgroup)
    assert held == Memory(16 * GIB, 8 * GIB, 4 * GIB, 3 * GIB)
    assert held.left == GIB


def test_version_1_and_its_way_to_say_no_limit(tmp_path):
    proc = write(
        {"meminfo": MEMINFO, "self/cgroup": "4:cpu:/x\n3:memory,hugetlb:/box\n0::/\n"}, tmp_path / "p"
    )
    cgroup = write(
        {
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/box/memory.limit_in_bytes": f"{GIB}\n",
            "memory/box/memory.usage_in_bytes": f"{GIB // 4}\n",
        },
        tmp_path / "c",
    )
    assert memory(proc=proc, cgroup=cgroup).left == GIB * 3 // 4
    (cgroup / "memory/box/memory.limit_in_bytes").write_text("9223372036854771712")
    assert memory(proc=proc, cgroup=cgroup).limit is None
    assert memory(proc=proc, cgroup=cgroup).left == 8 * GIB


def test_a_machine_that_tells_nothing_is_unknown_not_empty(tmp_path):
    held = memory(proc=tmp_path / "none", cgroup=tmp_path / "none")
    assert (held.available, held.limit, held.left) == (None, None, None)
    assert held.total is None or held.total > 0


@pytest.mark.parametrize(
    ("text", "name", "abilities"),
    [
        ("model name\t: Some CPU\nflags\t\t: fpu avx2 fma avx512f amx_bf16\n", "Some CPU",
         ("AVX2", "FMA", "AVX-512", "AMX BF16")),
        ("processor : 0\nFeatures\t: fp asimd sve bf16\n", None, ("NEON", "SVE", "BF16")),
        ("model name\t: Old CPU\nflags\t\t: fpu sse2 avx2x\n", "Old CPU", ()),
    ],
)  # fmt: skip
def test_abilities_are_whole_words_of_the_kernels_list(tmp_path, text, name, abilities):
    (tmp_path / "cpuinfo").write_text(text)
    found = processor(proc=tmp_path)
    assert found.abilities == abilities
    assert name is None or found.name == name
