"""The cure's help pages: every widget with its true default and range, and no error that no code raises."""

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest
from likeness.engine.core.generation import KSampler
from likeness.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from likeness.nodes import host as hosts

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "LikenessFoundationPass",
    "LikenessCureAttributes",
    "LikenessAttributeMasks",
    "LikenessAbstractAttributeGuidance",
    "LikenessJudgeAttributes",
    "LikenessAttributeReport",
    "LikenessCureSampler",
    "LikenessClosedLoop",
]
SAID = ("default", "min", "max")


@pytest.fixture(autouse=True)
def _host(tmp_path):
    hosts.use(hosts.StandaloneNodeHost(work=tmp_path))
    yield
    hosts.use(None)


def page(name):
    return (ROOT / "web" / "docs" / f"{name}.md").read_text()


def widgets(node):
    spec = node.INPUT_TYPES()
    both = {**spec.get("required", {}), **spec.get("optional", {})}
    return {key: options for key, (_, options) in both.items() if "default" in options}


def row(name, key):
    """What the table of inputs says of a widget."""
    lines = [line.split("|") for line in page(name).splitlines() if line.startswith("| `")]
    return next(cells[2] for cells in lines if f"`{key}`" in cells[1])


def says(text, value):
    """Whether ``text`` holds the value as a word of its own."""
    if isinstance(value, bool):
        return f"Default {'on' if value else 'off'}" in text
    if isinstance(value, str):
        return not value or f"`{value}`" in text
    return re.search(rf"(?<![\w.-]){re.escape(f'{value:g}')}(?![\w.]*\d)", text) is not None


@pytest.mark.parametrize("name", PAGES)
def test_every_widget_has_its_true_default_and_range(name):
    """In its row, or in that of the node which the row sends to."""
    titles = {title: key for key, title in NODE_DISPLAY_NAME_MAPPINGS.items()}
    for key, options in widgets(NODE_CLASS_MAPPINGS[name]).items():
        text = row(name, key)
        if (sent := re.search(r"as in ((?:[A-Z]\w+ ?)+)", text)) and "efault" not in text:
            other = titles[sent[1].strip()]
            theirs = widgets(NODE_CLASS_MAPPINGS[other])[key]
        elif re.match(r" As KSampler's", text):
            other, spec = "", KSampler.INPUT_TYPES()
            kind, *more = spec["required"][key]
            theirs = more[0] if more else {}
            if isinstance(kind, list | tuple):
                continue
        else:
            for what in SAID:
                if what in options:
                    assert says(text, options[what]), f"{key}: {what} {options[what]} is not in{text}"
            continue
        for what in SAID:
            assert theirs.get(what) == options.get(what), f"{key}: its {what} is not that of {other or 'KSampler'}"


@lru_cache
def texts():
    """Every string of the code; values in it are an ellipsis."""
    found = set()
    for folder in ("face", "nodes", "engine"):
        for path in (ROOT / folder).rglob("*.py"):
            for one in ast.walk(ast.parse(path.read_text())):
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    found.add(one.value)
                elif isinstance(one, ast.JoinedStr):
                    found.add("".join(v.value if isinstance(v, ast.Constant) else "…" for v in one.values))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_every_error_on_it_is_one_that_the_code_raises(name):
    for quote in re.findall(r'\*"([^"]+)"\*', page(name)):
        pieces = [piece.strip() for piece in re.split(r"…", quote) if piece.strip(" “”")]
        assert any(all(piece in text for piece in pieces) for text in texts()), f"nobody says {quote!r}"
