"""The core nodes that portrait workflows need, with ComfyUI's ids, inputs, defaults and behaviour."""

from __future__ import annotations

from . import files, generation, images, masks, values

CORE: dict[str, type] = {**files.NODES, **images.NODES, **masks.NODES, **values.NODES, **generation.NODES}
TITLES: dict[str, str] = {**files.TITLES, **images.TITLES, **masks.TITLES, **values.TITLES, **generation.TITLES}
