"""``python -m likeness.engine``, or ``python engine`` in a checkout that was never installed."""

import importlib
import importlib.util
import sys
from pathlib import Path


def load() -> str:
    """Import the checkout as ``likeness`` by its path, the way ComfyUI imports a pack; the package's name."""
    if __package__:
        return __package__.rpartition(".")[0]
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        "likeness", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{root} holds no __init__.py; run this from a whole checkout")
    sys.modules["likeness"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return "likeness"


if __name__ == "__main__":
    sys.exit(importlib.import_module(f"{load()}.engine.cli").main())
