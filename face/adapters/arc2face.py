"""Arc2Face: a whole SD1.5 U-Net that reads faces; its fine-tuned text encoder gets the vector in place of a word.

foivospar/Arc2Face 8f3acd7 arc2face/utils.py: project_face_embs, arc2face/models.py: CLIPTextModelWrapper
(Papantoniou et al. 2024, arXiv 2403.11641). The adapter file is ``encoder/pytorch_model.bin``; the U-Net is loaded as
any checkpoint. There is no free prompt: the sentence is always "photo of a id person".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadInput
from ..prompt import LENGTH, TextEncoder, Written
from . import Choices, Evidence, IdAdapter, Recogniser, formats
from ._checkpoint import Checkpoint
from ._clip import embed_tokens, text
from ._net import Net

BEGIN, END, ID = 49406, 49407, 1014
SENTENCE = (1125, 539, 320, ID, 2533)
"""CLIP's numbers of "photo of a id person"; a test reads them off the vocabulary."""
VECTOR = 512
"""Numbers of the published recogniser's vector; the file does not tell, for it is padded to the text's width."""

NAMES = (
    r"embeddings\.(?:token|position)_embedding\.weight",
    r"embeddings\.position_ids",
    r"encoder\.layers\.\d+\.(?:layer_norm[12]|self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])\.(?:weight|bias)",
    r"final_layer_norm\.(?:weight|bias)",
)


def written(net: Net, ids: Tensor, vector: Tensor | None = None, place: int = ID) -> Tensor:
    """(1, L, D): the sentence ``ids`` (1, L) read, with ``vector`` (V,) in place of the token ``place``."""
    embedded = embed_tokens(net, ids)
    if vector is not None:
        padded = torch.nn.functional.pad(vector, (0, embedded.shape[-1] - vector.shape[-1]))
        embedded[ids == place] = padded
    return text(net, embedded)


def sentence(*words: int) -> Tensor:
    """(1, 77) token numbers, padded with the end."""
    ids = [BEGIN, *words, END]
    return torch.tensor([ids + [END] * (LENGTH - len(ids))])


@dataclass(frozen=True)
class Arc2FaceText:
    """The two conditionings: the person, and the empty prompt read by the same encoder."""

    tensors: Mapping[str, Tensor]
    start: float = 0.0
    trigger: str = ""
    needs_pictures: bool = False
    needs_clip: bool = False

    def write(
        self, clip: TextEncoder | None, prompt: str, negative: str, evidence: Evidence, start: float, trigger: str
    ) -> tuple[list[Written], list[Written]]:
        if prompt.strip() or negative.strip():
            raise BadInput(
                "Arc2Face draws from the identity alone and takes no prompt: its text encoder no longer reads words. "
                "Leave both prompts empty."
            )
        if len(evidence.vectors) != 1:
            raise BadInput(
                f"Arc2Face takes one vector; the identity has {len(evidence.vectors)}. Combine them by the mean."
            )
        net = Net(self.tensors)
        positive = written(net, sentence(*SENTENCE), evidence.vectors[0])
        return [Written(positive, None)], [Written(written(net, sentence()), None)]


def _no_tokens(evidence: Evidence, choices: Choices) -> tuple[Tensor, Tensor | None]:
    raise BadInput("Arc2Face acts through the prompt: use Identity Prompt")


@dataclass(frozen=True)
class _Arc2Face:
    title: str = "Arc2Face"

    def claims(self, file: Checkpoint) -> bool:
        return "text_model.embeddings.token_embedding.weight" in file and "text_model.final_layer_norm.weight" in file

    def likely(self, file: Checkpoint) -> bool:
        return True

    def load(self, file: Checkpoint) -> IdAdapter:
        file.only_groups(("text_model",), self.title)
        file.only("text_model", NAMES, self.title)
        tensors = file.group("text_model")
        return IdAdapter(
            format="arc2face",
            title=self.title,
            path=file.path,
            project=_no_tokens,
            recogniser=Recogniser("arcface", "antelopev2 with Arc2Face's arcface.onnx", True, VECTOR),
            text=Arc2FaceText(tensors),
            layers=16,
            context=file.takes("text_model.embeddings.token_embedding.weight"),
        )


formats.add("arc2face", _Arc2Face())
