"""EdgeFace (George, Ecabert, Otroshi Shahreza, Kotwal and Marcel 2023, arXiv 2307.01838): files ``edgeface*.onnx``."""

from . import FileEmbedder, Preprocessing, embedders

embedders.add("edgeface", FileEmbedder("edgeface", Preprocessing("RGB", 127.5, 127.5)))
