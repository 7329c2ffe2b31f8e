"""Imports point one way, importing the package is cheap, and the wheel lists every folder."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "kernels": {"kernels"},
    "face": {"face", "kernels"},
    "nodes": {"nodes", "face"},
    "engine": {"engine", "nodes", "face"},
    "lab": {"lab", "engine", "nodes", "face"},
}
HOSTS = {"comfy", "comfy_execution", "comfy_extras", "comfy_api", "folder_paths", "server", "execution"}
BANNED = {"cv2", "insightface", "scipy", "skimage", "torchvision", "tensorflow", "mediapipe", "sklearn"}
FILES = [f for layer in MAY_IMPORT for f in sorted((ROOT / layer).rglob("*.py"))]


def imports(source: str, module: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Absolute names of everything imported; relative ones begin with the layer's name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [("external", *alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(("external", *(node.module or "").split(".")))
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level]
            inner = tuple((node.module or "").split(".")) if node.module else ()
            found += [("ours", *base, *inner, *(() if inner else (alias.name,))) for alias in node.names]
    return found


def offences(source: str, path: Path) -> list[str]:
    """Every import of ``source`` that the layers forbid."""
    module = (*path.parent.parts, path.stem)
    layer = module[0]
    wrong = []
    for kind, *name in imports(source, module):
        top = name[0] if name else ""
        if kind == "ours" and top not in MAY_IMPORT[layer] | {"__version__"}:
            wrong.append(f"{path} reaches into {top or 'the door'}")
        if kind == "external" and top in BANNED:
            wrong.append(f"{path} needs {top}")
        if kind == "external" and top in {"likeness", *MAY_IMPORT}:
            wrong.append(f"{path} imports {top} by its absolute name")
        if kind == "external" and top in HOSTS and path.parent.as_posix() != "nodes/comfy":
            wrong.append(f"{path} imports ComfyUI's {top}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    assert offences(path.read_text(), path.relative_to(ROOT)) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("face/detect/x.py", "from ...nodes import y"),
        ("face/x.py", "from ..engine.cli import main"),
        ("kernels/x.py", "from ..face import types"),
        ("nodes/x.py", "from ..engine import server"),
        ("face/x.py", "import cv2"),
        ("nodes/x.py", "import comfy.utils"),
        ("face/x.py", "from likeness.face import types"),
        ("face/x.py", "def f():\n    import folder_paths"),
    ],
)
def test_the_law_catches_offenders(place, line):
    assert offences(line, Path(place))


def test_no_file_touches_sys_path():
    for path in [*FILES, ROOT / "__init__.py"]:
        assert "sys.path" not in path.read_text(), path


def test_importing_the_package_loads_neither_torch_nor_comfyui():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('likeness', {str(ROOT / '__init__.py')!r},"
        f" submodule_search_locations=[{str(ROOT)!r}])\n"
        "m = importlib.util.module_from_spec(spec); sys.modules['likeness'] = m; spec.loader.exec_module(m)\n"
        "heavy = {'torch', 'numpy', 'onnxruntime', 'onnx', 'comfy', 'aiohttp', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_broken_node_file_is_an_import_error_not_a_skipped_pack(tmp_path):
    # ComfyUI takes a missing attribute for "no nodes here" and says nothing.
    pack = tmp_path / "broken-pack"
    (pack / "nodes").mkdir(parents=True)
    (pack / "__init__.py").write_text((ROOT / "__init__.py").read_text())
    (pack / "nodes" / "__init__.py").write_text("import math\nmath.no_such_function\n")
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('b', {str(pack / '__init__.py')!r},"
        f" submodule_search_locations=[{str(pack)!r}])\n"
        "m = importlib.util.module_from_spec(spec); sys.modules['b'] = m; spec.loader.exec_module(m)\n"
        "try:\n    m.NODE_CLASS_MAPPINGS\nexcept ImportError as e:\n    assert 'no_such_function' in str(e)\n"
        "else:\n    raise SystemExit('no ImportError')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_wheel_lists_every_package():
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = ["likeness"] + [
        "likeness." + ".".join(f.parent.relative_to(ROOT).parts)
        for layer in MAY_IMPORT
        for f in sorted((ROOT / layer).rglob("__init__.py"))
    ]
    assert sorted(listed) == sorted(there)
