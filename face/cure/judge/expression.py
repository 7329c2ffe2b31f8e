"""Expressions: networks of eight of them, and what the mesh can measure: an open mouth, closed eyes.

FER+ (Barsoum, Zhang, Canton Ferrer, Zhang 2016, arXiv 1608.01041; ``emotion-ferplus*.onnx`` of the ONNX model zoo):
(1, 1, 64, 64) grey 0 to 255, eight logits. HSEmotion (Savchenko 2021, arXiv 2103.17107; ``enet_b*_8*.onnx``,
``hsemotion*.onnx``): (1, 3, S, S) RGB, normalised as for ImageNet, eight logits, or ten of which the last two are
valence and arousal. Both see the detector's box and nothing around it. face-api.js (github.com/vladmandic/face-api,
MIT; in the catalogue): (1, 3, 112, 112) RGB 0 to 255, seven probabilities, of the upright face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ...errors import BadModelFile
from ...host import Host
from ...models import ModelCard, PackageSource, catalogue, find, status
from ...score.expression import openings
from ...session import OnnxModel
from ...types import Array, Face
from ..words import Attribute
from . import Evidence, Verdict, judges
from ._look import head, imagenet, told
from ._words import Claim, table

FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
HSEMOTION = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")

FACEAPI = ("neutral", "happiness", "sadness", "anger", "fear", "disgust", "surprise")

CARD = catalogue.add(
    ModelCard(
        name="expression",
        kind="expression",
        file="expression.onnx",
        licence="MIT",
        commercial=True,
        size=1303120,
        source=PackageSource(
            "npm",
            "@vladmandic/face-api",
            "1.7.15",
            "tgz",
            "package/model/face_expression_model.bin",
            "9a9840f2cf1f4c7eab95f197512569345c00d2426754d4608b92af30e0300f3d",
            more=(
                (
                    "package/model/face_expression_model-weights_manifest.json",
                    "5b349c17c7836da506e03422cd6461c74085d8bb2713ad4114647dc5d28174c8",
                ),
            ),
        ),
        convert="faceapi expression",
        converted="95ab3fce018017fe3ed90df9f3aed5e562897d198bb96d8ea7e5ac0344f1d8f9",
        about="face-api.js: seven expressions (github.com/vladmandic/face-api).",
    )
)

MOUTH = "open mouth"
"""Beside the names above: the network's word is not enough, the mesh has to see the mouth open."""

WORDS = table(
    {
        "smiling/smile/smiles/smiled/grinning/grin/happy/happily/joyful/joyfully/cheerful/cheerfully": ("happiness",),
        "laughing/laugh/laughs/laughter": ("happiness", MOUTH),
        "sad/sadly/sadness/unhappy/unhappily/sorrowful/melancholic/melancholy/depressed": ("sadness",),
        "angry/angrily/anger/furious/mad/enraged": ("anger",),
        "frowning/frown/frowns/scowling/scowl": ("anger", "sadness", "disgust"),
        "worried/worriedly/anxious/anxiously/nervous/nervously": ("fear", "sadness"),
        "surprised/surprise/astonished/amazed": ("surprise",),
        "shocked/startled": ("surprise", "fear"),
        "afraid/scared/fearful/frightened/terrified": ("fear",),
        "disgusted/disgust": ("disgust",),
        "contempt/contemptuous/contemptuously": ("contempt",),
        "neutral/calm/serious/expressionless": ("neutral",),
    },
    hints=[("crying/cry/cries/weeping", ("sadness", "fear", "anger"))],
)
"""Any of the expressions will do; tears no network of these can see."""

SHAPES = table(
    {
        "mouth open/opened/agape": "mouth open",
        "mouth closed/shut": "mouth closed",
        "eyes closed/shut": "eyes closed",
        "eyes open/opened": "eyes open",
        "winking/wink/winks": "winking",
    },
    hints=[("laughing/laugh/laughs/laughter/shouting/screaming/yelling/singing/yawning", "mouth open")],
)

MARGIN = 0.0
"""What face-api's crop has around the box."""
LIPS, LIDS = (0.05, 0.12), (0.045, 0.075)
"""Below the first shut, above the second open, between them nobody can say: ``face.score.expression``."""


@dataclass(frozen=True)
class _Network:
    prefixes: tuple[str, ...]
    order: tuple[str, ...]
    size: int
    """Where the file leaves it free."""
    grey: bool
    contains: str = ""
    rank = 10

    def _files(self, host: Host) -> dict[str, Path]:
        files = [path for folder in host.folders("likeness") for path in sorted(folder.glob("*.onnx"))]
        named = {path.stem: path for path in reversed(files)}
        return {
            stem: path
            for stem, path in named.items()
            if stem.lower().startswith(self.prefixes) and (self.contains in stem or not stem.startswith("enet"))
        }

    def names(self, host: Host) -> list[str]:
        return sorted(self._files(host))

    def open(self, name: str, host: Host) -> OnnxModel:
        return OnnxModel(self._files(host)[name], host)

    def judge(
        self, name: str, picture: Tensor, face: Face | None, attribute: Attribute, evidence: Evidence, host: Host
    ) -> Verdict | None:
        claims, unsaid = WORDS.read(attribute.text)
        if not claims or face is None:
            return None
        odds = evidence.once(("expression", name), lambda: self.odds(self.open(name, host), picture, face))
        values: list[Claim[float]] = []
        for claim in claims:
            value = sum(float(odds[self.order.index(part)]) for part in claim.value if part in self.order)
            opening = _mouth(face) if MOUTH in claim.value else 1.0
            if opening is None:
                unsaid += tuple(word for word in claim.words if claim.whole)
            values.append(
                Claim(claim.words, min(value, 1.0 if opening is None else opening), claim.whole and opening is not None)
            )
        score = told(values)
        best = int(odds.argmax())
        details = f"{self.order[best]} {odds[best]:.2f}"
        if any(MOUTH in claim.value for claim in claims):
            opening = _mouth(face)
            details += ", mouth " + ("not measured" if opening is None else "open" if opening >= 0.5 else "closed")
        return Verdict(attribute.text, score >= 0.5, score, name, details, unsaid)

    def odds(self, model: OnnxModel, picture: Tensor, face: Face) -> Array:
        """(8,) probabilities. BadModelFile for a network of another shape."""
        port, channels = model.signature.inputs[0], 1 if self.grey else 3
        if len(port.shape) != 4 or port.shape[1] not in (channels, None):
            raise self._another(model, f"takes {port.shape}")
        side = port.shape[2] or self.size
        seen, _ = head(picture, face, side, 0.0)
        if self.grey:
            grey = seen.numpy() @ np.array([0.299, 0.587, 0.114], np.float32) * 255
            x = grey[None, None].astype(np.float32)
        else:
            x = imagenet(seen)
        answer = model.run({port.name: x})[0].reshape(-1).astype(np.float64)
        allowed = (8,) if self.grey else (8, 10)
        if len(answer) not in allowed or not np.isfinite(answer).all():
            raise self._another(model, f"answers {len(answer)} numbers")
        logits = answer[:8]
        odds = np.exp(logits - logits.max())
        return odds / odds.sum()

    def _another(self, model: OnnxModel, what: str) -> BadModelFile:
        channels = 1 if self.grey else 3
        return BadModelFile(
            f"{model.path.name} {what} where an expression network of this name takes (1, {channels}, {self.size}, "
            f"{self.size}) and answers 8 logits. It is another model: rename it, or remove it from the likeness folder."
        )


@dataclass(frozen=True)
class _Catalogued(_Network):
    """The network of the catalogue."""

    def names(self, host: Host) -> list[str]:
        return [] if status(CARD, host) == "missing" else [CARD.name]

    def open(self, name: str, host: Host) -> OnnxModel:
        return OnnxModel(find(CARD, host), host)

    def odds(self, model: OnnxModel, picture: Tensor, face: Face) -> Array:
        """(7,) probabilities. BadModelFile for a network of another shape."""
        if model.signature.outputs[0].shape[-1] != len(self.order):
            raise BadModelFile(f"{model.path} is not the catalogue's expression network. Delete it and fetch it again.")
        seen, _ = head(picture, face, self.size, MARGIN)
        # Mean and scale are inside the graph.
        x = (seen * 255).permute(2, 0, 1)[None].contiguous().numpy()
        return model.run({model.signature.inputs[0].name: x})[0][0].astype(np.float64)


def between(value: float, limits: tuple[float, float]) -> float:
    """0 at the first limit and below, 1 at the second and above, straight between."""
    return float(np.clip((value - limits[0]) / (limits[1] - limits[0]), 0, 1))


def _mouth(face: Face) -> float | None:
    """How open the mouth is, 0 to 1; None without landmarks."""
    gaps = openings(face)
    return None if gaps is None else between(gaps.mouth, LIPS)


@dataclass(frozen=True)
class _Mesh:
    rank = 12

    def names(self, host: Host) -> list[str]:
        return ["mesh"]

    def judge(
        self, name: str, picture: Tensor, face: Face | None, attribute: Attribute, evidence: Evidence, host: Host
    ) -> Verdict | None:
        claims, unsaid = SHAPES.read(attribute.text)
        if not claims or face is None:
            return None
        gaps = openings(face)
        if gaps is None:
            return Verdict(attribute.text, None, judge=name, details="the face carries no landmarks")
        mouth = between(gaps.mouth, LIPS)
        lids = [between(gap, LIDS) for gap in (gaps.left_eye, gaps.right_eye)]
        measured = {
            "mouth open": mouth,
            "mouth closed": 1 - mouth,
            "eyes closed": 1 - max(lids),
            "eyes open": min(lids),
            "winking": min(1 - min(lids), max(lids)),
        }
        values = [Claim(claim.words, measured[claim.value], claim.whole) for claim in claims]
        score = told(values)
        details = f"mouth {gaps.mouth:.2f}, eyes {gaps.left_eye:.3f} and {gaps.right_eye:.3f} of the eye distance"
        if any(0 < value.value < 1 for value in values) and not any(value.value == 0 for value in values):
            return Verdict(
                attribute.text, None, judge=name, details=f"neither clearly open nor clearly shut: {details}"
            )
        return Verdict(attribute.text, score >= 0.5, score, name, details, unsaid)


def _entries() -> Sequence[tuple[str, _Network]]:
    return (
        ("hsemotion", _Network(("hsemotion", "enet_b"), HSEMOTION, 224, False, contains="_8")),
        ("catalogue", _Catalogued((), FACEAPI, 112, False)),
        ("ferplus", _Network(("emotion-ferplus", "emotion_ferplus"), FERPLUS, 64, True)),
    )


for _name, _entry in _entries():
    judges.add(_name, _entry)
judges.add("mesh", _Mesh())
