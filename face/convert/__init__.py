"""Turns published weights into float32 ONNX that onnxruntime runs fast; done once, when a model is fetched.

``tokens`` is for what is no ONNX: a checkpoint that came with a small table of tokens gets CLIP's whole one.

A card's ``convert`` is one line: the converter's name, then its arguments: ``fold N 3 H W``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BadInput, MissingPackage

VERSIONS = {"fold": 1, "tflite": 1, "shapes": 1, "faceapi": 1, "tokens": 1}
"""By converter, a number that grows when it writes other files than before."""


def convert(recipe: str, files: Sequence[bytes]) -> bytes:
    """The file that ``recipe`` makes of the published ones. Raises BadModelFile if they do not fit it."""
    if recipe.split()[0] == "tokens":
        from .tokens import convert as expand

        return expand(files)
    try:
        import onnx
    except ImportError as error:
        raise MissingPackage("converting a model needs the onnx package; install it with: pip install onnx") from error
    from .prelu import spread

    name, *arguments = recipe.split()
    if name == "fold":
        from .fold import convert as run
    elif name == "tflite":
        from .tflite import convert as run
    elif name == "shapes":
        from .shapes import convert as run
    elif name == "faceapi":
        from .faceapi import convert as run
    else:
        raise BadInput(f"there is no converter called {name!r}. Known: {', '.join(VERSIONS)}.")
    model = run(files, arguments)
    spread(model)
    model.producer_name, model.producer_version = f"likeness {name}", str(VERSIONS[name])
    model.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)
