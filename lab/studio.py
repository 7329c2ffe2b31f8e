"""Drawing in the lab through the pack's own nodes and engine, many prompts at once, with every kind of cure.

One person is drawn at a time, with all prompts as one batch: the conditionings of a batch are stacked, as hosts stack
them, and everything else is what a workflow would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..engine.diffusion import load
from ..engine.host import EngineHost
from ..face import adapters as adapter_files
from ..face.cure import masks as masking
from ..face.cure import words as cure_words
from ..face.cure.layers import AUTHORS
from ..face.image import as_image
from ..face.keypoints import draw as draw_points
from ..face.types import Contract, Face, Faces, Identity, Person
from ..face.vocabulary import CARD
from ..nodes import host as nodes_host
from ..nodes.adapter import ApplyIdentityAdapter, IdentityControlNet
from ..nodes.cure import GUIDANCE, cured, foundation, guided
from ..nodes.host import Sampling
from . import nets
from .base import SIDE
from .world import Values

Tensor = torch.Tensor
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

STEPS, CFG, SAMPLER, SCHEDULER = 12, 2.0, "euler", "sgm_uniform"
FILES = {
    "checkpoint": "checkpoints/lab.safetensors",
    "faceid": "likeness/adapters/lab_faceid.safetensors",
    "instantid": "likeness/adapters/lab_instantid.safetensors",
    "controlnet": "controlnet/lab_identitynet.safetensors",
}
WHOLE = "whole picture"
"""A source of masks for comparison: everywhere."""


@dataclass(frozen=True)
class Arm:
    """One way of drawing somebody."""

    adapter: str = ""
    """``faceid``, ``instantid``, or nobody."""
    strength: float = 1.0
    method: str = ""
    """``attention``, ``noise blending`` or ``guidance``: how it is cured; empty: not at all."""
    omega: float = -1.0
    omega_mode: str = "additive"
    start: float = -1.0
    end: float = 1.0
    source: str = masking.PARSER
    grow: int = 0
    layers: str = AUTHORS
    gamma: float = 0.0
    """Of the guidance: with the method of that name for every attribute, else for those without a place, after the
    cure; 0: none."""

    @property
    def name(self) -> str:
        plain = Arm()
        told = [
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in vars(self).items()
            if key not in ("adapter", "strength", "method") and value != getattr(plain, key)
        ]
        head = f"{self.adapter} {self.strength:g}" if self.adapter else "base"
        return ", ".join([head, *([self.method] if self.method else []), *told])


class Studio:
    """The lab's models, opened once."""

    def __init__(self, models: Path) -> None:
        self.host = EngineHost([Path()], Path(), Path(), models)
        nodes_host.use(self.host)
        device = self.host.device()
        opened: Any = load.checkpoint(models / FILES["checkpoint"], device, [models / "likeness" / CARD.file])
        self.model, self.clip, self.vae = opened
        self.adapters = {name: adapter_files.load(models / FILES[name], name) for name in ("faceid", "instantid")}
        self.controlnet = load.controlnet(models / FILES["controlnet"], device)

    def identity(self, vectors: np.ndarray[Any, Any]) -> Identity:
        """A person of the recogniser's vectors (N, V)."""
        return Identity(
            Contract("lab", "", vectors.shape[1], False, ""), (Person("somebody", vectors.astype(np.float32), ()),)
        )

    def conditioning(self, prompts: Sequence[str]) -> list[list[Any]]:
        """One entry that holds all prompts, a row each."""
        unique = {text: self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))[0] for text in set(prompts)}
        rows = torch.cat([unique[text][0] for text in prompts])
        return [[rows, {"pooled_output": torch.cat([unique[text][1]["pooled_output"] for text in prompts])}]]

    def session(self, who: Values, vectors: np.ndarray[Any, Any], prompts: Sequence[str], seed: int) -> Session:
        return Session(self, who, self.identity(vectors), tuple(prompts), seed)


class Session:
    """One person and some prompts from one noise; what several arms share is drawn once."""

    def __init__(self, studio: Studio, who: Values, identity: Identity, prompts: tuple[str, ...], seed: int) -> None:
        self.studio, self.identity, self.prompts = studio, identity, prompts
        self.sampling = Sampling(seed, STEPS, CFG, SAMPLER, SCHEDULER)
        self.latent = {"samples": torch.zeros(len(prompts), 4, SIDE, SIDE)}
        self.positive = studio.conditioning(prompts)
        self.negative = studio.conditioning([""])
        self.points = keypoints(nets.points(who)[0])
        self._foundations: dict[tuple[bool, str], tuple[Any, Any]] = {}
        self._masks: dict[tuple[bool, str, int], Tensor] = {}
        self._runs: dict[Arm, Any] = {}

    def pixels(self, arm: Arm) -> Pixels:
        """(P, 32, 32, 3) of the prompts in their order: the decoded pictures, four pixels to one."""
        pictures = self._decoded(self._latent(arm)).movedim(-1, 1)
        return (F.avg_pool2d(pictures, 4).movedim(1, -1) * 255).round().to(torch.uint8).numpy()

    def _decoded(self, latent: Any) -> Tensor:
        return as_image(self.studio.vae.decode(latent["samples"]))

    def _latent(self, arm: Arm) -> Any:
        if arm not in self._runs:
            self._runs[arm] = self._draw(arm)
        return self._runs[arm]

    def _draw(self, arm: Arm) -> Any:
        if arm.gamma:
            everything = arm.method == GUIDANCE
            before = replace(arm, gamma=0.0, method="" if everything else arm.method)
            return self._guided(self._latent(before), arm.gamma, everything)
        host = self.studio.host
        if not arm.adapter:
            return host.sample(self.studio.model, self.positive, self.negative, self.latent, self.sampling)
        model, positive, negative = self._with_person(arm)
        if arm.method:
            control = arm.adapter == "instantid"
            _, tape = self._foundation(control, arm.layers)
            mask = self._mask(control, arm.source, arm.grow)
            model, _ = cured(
                model,
                tape,
                mask,
                method=arm.method,
                omega=arm.omega,
                omega_mode=arm.omega_mode,
                start=arm.start,
                end=arm.end,
            )
        return host.sample(model, positive, negative, self.latent, self.sampling)

    def _with_person(self, arm: Arm) -> tuple[Any, Any, Any]:
        adapter = self.studio.adapters[arm.adapter]
        model, positive, negative, _ = ApplyIdentityAdapter().run(
            self.studio.model, adapter, self.identity, arm.strength, 1.0, 0.0, 1.0, "linear", "", "V only",
            "together", "authors", "default", 1.0, False, self.positive, self.negative,
        )["result"]  # fmt: skip
        if arm.adapter == "instantid":
            positive, negative = self._control(positive, negative, arm.strength, "the person")
        return model, positive, negative

    def _control(self, positive: Any, negative: Any, strength: float, who: str) -> tuple[Any, Any]:
        return IdentityControlNet().run(
            positive, negative, self.studio.controlnet, self.studio.adapters["instantid"], self.identity, self.points,
            strength, 0.0, 1.0, "authors", False, who=who,
        )  # fmt: skip

    def _foundation(self, control: bool, layers: str) -> tuple[Any, Any]:
        if (control, layers) not in self._foundations:
            positive, negative = self.positive, self.negative
            if control:
                positive, negative = self._control(positive, negative, 1.0, "nobody")
            latent, tape, _ = foundation(
                self.studio.model, positive, negative, self.latent, self.sampling, layers=layers, words=True
            )
            self._foundations[control, layers] = latent, tape
        return self._foundations[control, layers]

    def _mask(self, control: bool, source: str, grow: int) -> Tensor:
        """(P, 128, 128): where the attributes of each prompt are in its own picture."""
        if (control, source, grow) not in self._masks:
            latent, tape = self._foundation(control, AUTHORS)
            pictures = self._decoded(latent)
            self._masks[control, source, grow] = torch.stack(
                [self._where(pictures, tape, row, source, grow) for row in range(len(self.prompts))]
            )
        return self._masks[control, source, grow]

    def _where(self, pictures: Tensor, tape: Any, row: int, source: str, grow: int) -> Tensor:
        if source == WHOLE:
            return torch.ones(pictures.shape[1:3])
        text = self.prompts[row]
        wanted = cure_words.split(text)
        maps = places = None
        if source == masking.CROSS_ATTENTION:
            maps, places = tape.maps[row : row + 1], cure_words.places(self.studio.clip, text, wanted)
        found = masking.attribute_masks(
            pictures[row : row + 1],
            wanted,
            parser="lab",
            maps=maps,
            places=places,
            source=source,
            grow=grow,
            host=self.studio.host,
        )
        return found.union()[0]

    def _guided(self, latent: Any, gamma: float, everything: bool) -> Any:
        """What a prompt asks for, all of it or what has no place, by going part of the way back to noise."""
        asked = [[a for a in cure_words.split(text) if everything or a.abstract] for text in self.prompts]
        rows = [row for row, found in enumerate(asked) if found]
        if not rows:
            return latent
        samples = latent["samples"].clone()
        without = self.studio.conditioning([cure_words.without(self.prompts[r], asked[r]) for r in rows])
        told = self.studio.conditioning([self.prompts[r] for r in rows])
        out, _ = guided(
            self.studio.model, without, told, self.negative, {"samples": samples[rows]}, self.sampling,
            gamma=gamma, check=False,
        )  # fmt: skip
        samples[rows] = out["samples"]
        return {"samples": samples}


def keypoints(points: np.ndarray[Any, Any]) -> Tensor:
    """(1, 128, 128, 3): five points (5, 2) as Face Keypoints Image draws them."""
    side = 8 * SIDE
    box = np.array([0, 0, side, side], np.float32)
    return draw_points(Faces(((Face(box, np.asarray(points, np.float32), 1.0),),), ((side, side),)))
