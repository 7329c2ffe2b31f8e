"""The README tells the truth: its tables are the registries', its commands exist, its snippet runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from likeness.engine import docs
from likeness.engine.cli import build_parser
from likeness.face.host import STANDALONE
from likeness.face.models import catalogue, status

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_tables_are_those_of_the_registries():
    assert docs.filled(README) == README, "run: likeness docs"
    assert (ROOT / "node_list.json").read_text() == docs.node_list(), "run: likeness docs"


def test_a_stale_table_would_be_seen():
    stale = README.replace("**Swap Faces**", "**Swap Phases**")
    assert stale != README and docs.filled(stale) == README


def test_every_command_in_the_readme_is_one():
    parser = build_parser()
    lines = re.findall(r"^(?:likeness|python ComfyUI-Likeness/engine) (.+?)(?:\s+#.*)?$", README, re.M)
    assert len(lines) >= 5
    for line in lines:
        words = line.split("|")[0].split()
        if words[:2] == ["models", "list"]:
            words = ["models", "list"]
        parser.parse_args(words)


def test_every_make_target_in_the_readme_is_one():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = {a or b for a, b in re.findall(r"`make ([\w-]+)|^make ([\w-]+)", README, re.M)}
    assert len(named) > 3 and named <= targets


def test_every_workflow_is_in_the_readme():
    named = set(re.findall(r"^\| `(\w+)` \|", README, re.M))
    assert named == {p.stem for p in (ROOT / "workflows" / "api").glob("*.json")}


def test_every_file_it_links_to_is_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


@pytest.mark.weights
def test_the_library_snippet_runs():
    if any(status(card, STANDALONE) != "installed" for card in catalogue.select("default")):
        pytest.skip("the default models are not fetched: likeness models fetch default")
    snippet = re.search(r"```python\n(.*?)```", README, re.S)[1]
    door = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('likeness', {str(ROOT / '__init__.py')!r},"
        f" submodule_search_locations=[{str(ROOT)!r}])\n"
        "m = importlib.util.module_from_spec(spec); sys.modules['likeness'] = m; spec.loader.exec_module(m)\n"
    )
    done = subprocess.run([sys.executable, "-c", door + snippet], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.3
