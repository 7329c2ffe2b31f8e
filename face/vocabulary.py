"""CLIP's vocabulary (Radford et al. 2021, openai/CLIP clip/bpe_simple_vocab_16e6.txt.gz): what turns words to tokens.

Checkpoint files do not bring it. ComfyUI has a copy of its own; without ComfyUI the engine reads this one.
"""

from .models import ModelCard, PackageSource, catalogue

CARD = catalogue.add(
    ModelCard(
        name="clip-vocabulary",
        kind="text",
        file="bpe_simple_vocab_16e6.txt.gz",
        licence="MIT",
        commercial=True,
        size=1356917,
        source=PackageSource(
            "pypi",
            "open_clip_torch",
            "3.3.0",
            "wheel",
            "open_clip/bpe_simple_vocab_16e6.txt.gz",
            "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
        ),
        about="The words of CLIP's text encoders (openai/CLIP), for prompts in the engine; ComfyUI has its own.",
    )
)
