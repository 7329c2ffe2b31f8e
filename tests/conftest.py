"""Imports the checkout as ``likeness`` by its path, the way ComfyUI imports a pack, so a bare clone is enough."""

import importlib.util
import os
import sys
from pathlib import Path

from hypothesis import settings

# Before torch loads: threads that spin while they wait make it many times slower beside any other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent.parent

if "likeness" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "likeness", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["likeness"] = package
    spec.loader.exec_module(package)

# The same examples every time, so that a failure means a change; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("steady", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
