"""The page on pricing by hand prints what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "by-hand.md"


@pytest.mark.slow
def test_the_page_prints_what_it_says(tmp_path):
    text = PAGE.read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    said = "".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL))
    assert len(code) == len(re.findall(r"```text\n", text)) == 7
    script = tmp_path / "by_hand.py"
    script.write_text("\n".join(code))
    done = subprocess.run([sys.executable, script.name], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == said
