"""ArcFace (Deng, Guo, Xue and Zafeiriou 2019, arXiv 1801.07698): the recognisers of InsightFace's model packs.

A pack is chosen by its folder's name (``buffalo_l``); the contract carries the file's name (``w600k_r50``), because
several packs share one file, and vectors of the same file are comparable.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import BadInput
from ..host import Host
from ..packs import packs
from ..session import OnnxModel
from . import Network, Preprocessing, embedders, open_network


def preprocessing(path: Path) -> Preprocessing:
    """Read off the graph whether it normalises by itself, as insightface model_zoo/arcface_onnx.py does.

    Exports from MXNet begin with a subtraction and a multiplication and want 0..255; all others (x - 127.5) / 127.5.
    """
    lead = OnnxModel(path).signature.lead
    return Preprocessing("RGB", 0, 1) if "Sub" in lead and "Mul" in lead else Preprocessing("RGB", 127.5, 127.5)


class PackEmbedder:
    """The recogniser of a model pack."""

    def names(self, host: Host) -> list[str]:
        return [name for name, pack in packs(host).items() if pack.recogniser]

    def open(self, name: str, host: Host) -> Network:
        found = {pack_name: pack.recogniser for pack_name, pack in packs(host).items() if pack.recogniser}
        path = found.get(name) or next(iter(found.values()), None)
        if path is None:
            folders = ", ".join(str(folder) for folder in host.folders("insightface"))
            raise BadInput(
                f"no model pack with a recognition network was found in: {folders}. Put a pack such as buffalo_l "
                "there, as a folder of .onnx files, or choose another embedder."
            )
        return open_network(path, path.stem, preprocessing(path), host)


embedders.add("arcface", PackEmbedder())
