"""``LIKENESS_GOLDEN=DIR pytest tests/test_golden.py`` runs every golden test on another directory of the same form.

Other sizes and other seeds, that is; without the variable the tests run from their own files, and here is nothing.
"""

import importlib
import os
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("test_golden_*.py"))

if os.environ.get("LIKENESS_GOLDEN"):
    for file in FILES:
        name = f"likeness.tests.{file.stem}"
        pytest.register_assert_rewrite(name)
        subject = file.stem.removeprefix("test_golden_")
        for test, function in vars(importlib.import_module(name)).items():
            if test.startswith("test_"):
                # Two files may have tests of one name.
                globals()[f"test_{subject}_{test.removeprefix('test_')}"] = function
