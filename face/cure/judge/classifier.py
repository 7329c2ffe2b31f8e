"""Classifiers of CelebA's forty attributes (Liu, Luo, Wang, Tang 2015, arXiv 1411.7766), as ONNX files.

A file ``celeba*.onnx`` in the likeness folder that takes one picture (1, 3, H, W), RGB, normalised as for ImageNet, of
the size that its signature names (224 where that is free), and answers (1, 40) in the order of CelebA's
``list_attr_celeba.txt``. Probabilities are told from logits by their range: all within [0, 1]. Any other file of that
name is refused. The face is cut as CelebA's aligned pictures are (178×218); a square input shows their middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import BadModelFile
from ...geometry import similarity, warp
from ...host import Host
from ...session import OnnxModel
from ...types import Array, Face
from ..words import Attribute
from . import Evidence, Verdict, judges
from ._look import imagenet, told
from ._words import Claim, table, words

NAMES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
"""The order of every network trained on CelebA's own list."""

WORDS = table(
    {
        "5/five clock shadow": "5_o_Clock_Shadow",
        "stubble/stubbly/unshaven": "5_o_Clock_Shadow",
        "arched eyebrows/brows": "Arched_Eyebrows",
        "bags eyes": "Bags_Under_Eyes",
        "bald/balding/hairless": "Bald",
        "bangs/fringe": "Bangs",
        "big/full/large lips": "Big_Lips",
        "big/large nose": "Big_Nose",
        "black hair/haired": "Black_Hair",
        "blond/blonde hair/haired": "Blond_Hair",
        "brown/brunette hair/haired": "Brown_Hair",
        "brunette": "Brown_Hair",
        "bushy/thick eyebrows/brows": "Bushy_Eyebrows",
        "chubby": "Chubby",
        "double chin": "Double_Chin",
        "glasses/eyeglasses/spectacles": "Eyeglasses",
        "goatee": "Goatee",
        "gray/grey hair/haired": "Gray_Hair",
        "heavy makeup": "Heavy_Makeup",
        "makeup": "Heavy_Makeup",
        "high cheekbones": "High_Cheekbones",
        "man/male": "Male",
        "woman/female": "!Male",
        "mouth open": "Mouth_Slightly_Open",
        "mustache/moustache": "Mustache",
        "narrow eyes": "Narrow_Eyes",
        "beard/bearded": "!No_Beard",
        "shaven": "No_Beard",
        "oval": "Oval_Face",
        "pale": "Pale_Skin",
        "pointy/pointed nose": "Pointy_Nose",
        "receding hairline": "Receding_Hairline",
        "rosy cheeks": "Rosy_Cheeks",
        "sideburns": "Sideburns",
        "smiling/smile/smiles": "Smiling",
        "straight hair/haired": "Straight_Hair",
        "wavy hair/haired": "Wavy_Hair",
        "earring/earrings": "Wearing_Earrings",
        "hat": "Wearing_Hat",
        "lipstick": "Wearing_Lipstick",
        "necklace": "Wearing_Necklace",
        "necktie/tie": "Wearing_Necktie",
        "young": "Young",
        "old/elderly": "!Young",
    },
    hints=[
        ("laughing/laugh/laughs/grinning/grin", "Smiling"),
        ("sunglasses", "Eyeglasses"),
        ("cap/beanie/fedora/beret/helmet", "Wearing_Hat"),
    ],
)
"""What CelebA calls the words of a prompt; ``!`` turns it round. Of a hint the network can only say that it is not."""

SIZE = 224
TEMPLATE = np.array([[69.0, 111.0], [109.0, 111.0], [89.0, 135.0], [72.5, 152.0], [105.5, 152.0]])
"""Where the five points lie, on average, in CelebA's aligned pictures of 178×218 (list_landmarks_align_celeba.txt)."""
WIDTH, HEIGHT = 178, 218


def aligned(picture: Tensor, face: Face, height: int, width: int) -> Tensor:
    """(height, width, 3): the face of ``picture`` (H, W, 3) as CelebA shows it.

    Pictures near to CelebA's own shape get all of it, others the middle square, as most training code cuts it.
    """
    whole = abs(height / width - HEIGHT / WIDTH) < 0.1
    seen_height, top = (HEIGHT, 0) if whole else (WIDTH, (HEIGHT - WIDTH) / 2)
    matrix = similarity(face.points, TEMPLATE - np.array([0.0, top]))
    scale = np.array([width / WIDTH, height / seen_height])
    matrix = matrix * scale[:, None]
    # Drawn finer and averaged down where the face is larger than the crop.
    times = int(np.clip(np.round(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))), 1, 8))
    finer = matrix * times
    finer[:, 2] += (times - 1) / 2
    drawn = warp(picture, finer[None], (height * times, width * times), border="border")
    return torch.nn.functional.avg_pool2d(drawn, times)[0].permute(1, 2, 0)


@dataclass(frozen=True)
class _Classifier:
    rank = 30

    def _files(self, host: Host) -> dict[str, Path]:
        files = [path for folder in host.folders("likeness") for path in sorted(folder.glob("*.onnx"))]
        return {path.stem: path for path in reversed(files) if path.stem.lower().startswith("celeba")}

    def names(self, host: Host) -> list[str]:
        return sorted(self._files(host))

    def judge(
        self, name: str, picture: Tensor, face: Face | None, attribute: Attribute, evidence: Evidence, host: Host
    ) -> Verdict | None:
        claims, unsaid = WORDS.read(attribute.text)
        if not {"year", "years"}.isdisjoint(words(attribute.text)):
            # "20 years old" is not old.
            ages = [claim for claim in claims if claim.value.endswith("Young")]
            claims = [claim for claim in claims if claim not in ages]
            unsaid += tuple(word for claim in ages for word in claim.words)
        if not claims or face is None:
            return None
        odds = evidence.once(
            ("celeba", name), lambda: probabilities(OnnxModel(self._files(host)[name], host), picture, face)
        )
        values = [Claim(claim.words, _value(odds, claim.value), claim.whole) for claim in claims]
        score = told(values)
        details = ", ".join(f"{c.value.lstrip('!')} {odds[NAMES.index(c.value.lstrip('!'))]:.2f}" for c in claims)
        return Verdict(attribute.text, score >= 0.5, score, name, details, unsaid)


def _value(odds: Array, name: str) -> float:
    value = float(odds[NAMES.index(name.lstrip("!"))])
    return 1 - value if name.startswith("!") else value


def probabilities(model: OnnxModel, picture: Tensor, face: Face) -> Array:
    """(40,) what the network says of the face, each in [0, 1]. BadModelFile for a network of another shape."""
    port, answers = model.signature.inputs[0], model.signature.outputs[0]
    if len(model.signature.inputs) != 1 or len(port.shape) != 4 or port.shape[1] not in (3, None):
        raise _another(model, f"takes {port.shape}")
    if len(answers.shape) != 2 or answers.shape[1] not in (len(NAMES), None):
        raise _another(model, f"answers {answers.shape}")
    height, width = (side or SIZE for side in port.shape[2:])
    answer = model.run({port.name: imagenet(aligned(picture, face, height, width))})[0].reshape(-1).astype(np.float64)
    if len(answer) != len(NAMES) or not np.isfinite(answer).all():
        raise _another(model, f"answers {len(answer)} numbers, or such as are not finite,")
    inside = bool(((answer >= 0) & (answer <= 1)).all())
    return answer if inside else 1 / (1 + np.exp(-np.clip(answer, -60, 60)))


def _another(model: OnnxModel, what: str) -> BadModelFile:
    return BadModelFile(
        f"{model.path.name} {what} where a classifier of CelebA's attributes takes (1, 3, H, W) and answers "
        f"(1, {len(NAMES)}). It is another model: rename it, or remove it from the likeness folder."
    )


judges.add("classifier", _Classifier())
