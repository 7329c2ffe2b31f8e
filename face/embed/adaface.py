"""AdaFace (Kim, Jain and Liu 2022, arXiv 2204.00964): files ``adaface*.onnx`` in the ``likeness`` folder.

BGR, unlike all its relatives (mk-minchul/AdaFace inference.py: to_input). An export with two outputs gives direction
and length apart; they are multiplied, because the length tells quality.
"""

from . import FileEmbedder, Preprocessing, embedders

embedders.add("adaface", FileEmbedder("adaface", Preprocessing("BGR", 127.5, 127.5), unit=True))
