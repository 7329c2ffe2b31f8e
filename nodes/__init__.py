"""The skin: V1 node classes, one file a stage, in the order of the flow."""

from __future__ import annotations

import re

from . import adapter, attributes, cure, faces, identity, judge, lab, loop, models, score, swap

_CLASSES = [
    *faces.NODES,
    *identity.NODES,
    *adapter.NODES,
    *cure.NODES,
    *attributes.NODES,
    *swap.NODES,
    *judge.NODES,
    *loop.NODES,
    *score.NODES,
    *lab.NODES,
    *models.NODES,
]

NODE_CLASS_MAPPINGS = {f"Likeness{node.__name__}": node for node in _CLASSES}
NODE_DISPLAY_NAME_MAPPINGS = {
    f"Likeness{node.__name__}": re.sub(r"(?<=[a-z])(?=[A-Z])(?!Net$)", " ", node.__name__) for node in _CLASSES
}
