"""What commands import before they begin: seconds that users wait for."""

from __future__ import annotations

import subprocess
import sys


def test_infer_of_files__before_it_begins__imports_nothing_that_only_stores_or_pictures_need() -> None:
    """Nor does the demo; both are imported where they are used."""
    code = """
import sys
import coarse2fine.cli.infer_run, coarse2fine.demo
slow = ("coarse2fine.large.run", "coarse2fine.cli.stores", "matplotlib", "jinja2", "dask")
print(*(name for name in slow if name in sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
