"""FreeCure as one node, and as a loop that looks what is missing, cures that, and looks again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..face import score as scoring
from ..face.cure import judge as judging
from ..face.cure import masks as masking
from ..face.cure import report, words
from ..face.cure.attention import ADDITIVE
from ..face.cure.judge.clip import similarity as clip_similarity
from ..face.cure.layers import PAPER_OMEGA
from ..face.cure.loop import Judge, closed_loop
from ..face.cure.masks import Masked
from ..face.cure.run import check_window, refuse_cured
from ..face.cure.tape import ANSWERS, Tape, refuse_adaptive
from ..face.cure.words import Attribute
from ..face.errors import BadInput
from ..face.image import as_image
from ..face.types import Faces, Identity
from .attributes import Placed, places, showing
from .cure import (
    ATTENTION,
    CURING,
    GUIDANCE,
    GUIDING,
    KEPT,
    METHOD,
    METHODS,
    cured,
    foundation,
    guided,
    latent_shape,
    planned,
    sampler_inputs,
)
from .form import CATEGORY, FACES, IDENTITY, as_json, choice, integer, number, socket, switch, text
from .host import Sampling, host
from .preview import preview
from .saving import DRAWN

JOINS, REPLACES = "joins", "replaces"
NOT_CURED = "nothing is cured: the picture is the plain one with the person"

NO_UNCURED = "there is no uncured picture: switch show_uncured on"


@dataclass(eq=False, kw_only=True)
class Making:
    """Pictures in the making: runs with and without the person, from the same noise. ``close`` it in any case."""

    model: Any
    person_model: Any
    positive: Any
    negative: Any
    latent_image: Any
    vae: Any
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float
    prompt: str
    attributes: str
    source: str
    parser: str
    grow: int
    own_mask: str
    strength: float
    method: str
    omega: float
    omega_mode: str
    start: float
    end: float
    keep: str
    layers: str
    budget: float
    expressions: bool = False
    person_positive: Any = None
    person_negative: Any = None
    clip: Any = None
    faces: Faces | None = None
    mask: Tensor | None = None
    node_id: str | None = None
    wanted: tuple[Attribute, ...] = field(init=False)
    tape: Tape | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Refuses, before anything is drawn, what would be refused after it."""
        self.listed = bool(self.attributes.strip())
        self.wanted = words.parse_list(self.attributes) if self.listed else words.split(self.prompt)
        self.sampling = Sampling(self.seed, self.steps, self.cfg, self.sampler_name, self.scheduler, self.denoise)
        if self.vae is None:
            raise BadInput("there is no VAE to decode the pictures with: wire one into vae with the node Load VAE")
        if self.source == masking.CROSS_ATTENTION and self.clip is None and not self._alone:
            raise BadInput(
                "the source cross-attention needs the CLIP, which tells the words of the prompt apart: wire it into "
                "clip, or take another source"
            )
        if self.keep == ANSWERS and self.method == ATTENTION:
            raise BadInput(
                f"keep is {ANSWERS}, which serves noise blending only. Keep keys and values, or set the method to "
                "noise blending."
            )
        shape = latent_shape(self.latent_image)
        if self.faces is not None and len(self.faces) != shape[0]:
            raise BadInput(
                f"the faces come from {len(self.faces)} pictures, but {shape[0]} are drawn. Connect the faces of the "
                "pictures without the person, or none: then they are looked for."
            )
        refuse_adaptive(self.sampler_name)
        if self.method == ATTENTION:
            refuse_cured(host().hooks(self.person_model))
        check_window(max(self.start, 0.0), self.end)
        if self.method == GUIDANCE:
            if self.mask is not None:
                raise BadInput(
                    "the method guidance changes the whole picture, so the wired mask would mean nothing: disconnect "
                    f"it, or set the method to one of {', '.join(METHODS)}"
                )
            return
        kept = self.keep, self.layers, self.budget
        planned(self.model, self.positive, self.latent_image, self.sampling, *kept, self._beforehand())

    @property
    def _alone(self) -> bool:
        return self.mask is not None and self.own_mask == REPLACES

    def _own(self) -> Tensor | None:
        """The user's mask (P, H, W), all of it together. Raises BadImage for one that cannot be."""
        if self.mask is None:
            return None
        shape = latent_shape(self.latent_image)
        pictures, height, width = int(shape[0]), int(shape[-2]) * 8, int(shape[-1]) * 8
        empty = Masked(self.wanted, torch.zeros(len(self.wanted), pictures, height, width), (), ())
        found, extra = masking.with_given(empty, self.mask)
        return found.union() if extra is None else extra

    def _beforehand(self) -> Tensor | None:
        """The user's mask where it is known that nothing else will be cured: the tape then keeps only that."""
        own = self._own()
        return own if self._alone and self.omega_mode == ADDITIVE else None

    def decode(self, latent: Any) -> Tensor:
        host().check_interrupt()
        return as_image(self.vae.decode(latent["samples"]))

    def plain(self) -> tuple[Any, Tensor]:
        """The run with the person as a KSampler would do it: latent and pictures."""
        latent = self._with_person(self.person_model)
        return latent, self.decode(latent)

    def without_person(self) -> tuple[Tensor, str]:
        """The run without the person, which leaves the tape: pictures, and what to say of the tape."""
        host().check_interrupt()
        latent, self.tape, said = foundation(
            self.model,
            self.positive,
            self.negative,
            self.latent_image,
            self.sampling,
            keep=self.keep,
            layers=self.layers,
            budget=self.budget,
            words=self.clip is not None and not self._alone,
            mask=self._beforehand(),
            node_id=self.node_id,
        )
        return self.decode(latent), said

    def places(self, image: Tensor) -> Placed:
        """Where all wanted attributes are in the foundation's pictures."""
        return places(
            image,
            self.wanted,
            self.prompt,
            listed=self.listed,
            source=self.source,
            parser=self.parser,
            grow=self.grow,
            expressions=self.expressions,
            faces=self.faces,
            tape=self.tape,
            clip=self.clip,
            mask=self.mask,
            alone=self._alone,
        )

    def curing(self, mask: Tensor, excess: float = 1.0) -> tuple[Any, str]:
        """The model that cures, and what to say of it; ``person_model`` itself where there is nothing to cure.

        ``excess`` (1 or more) multiplies what the keys inside count: in the exponent as ln, as the mask does there.
        """
        omega = self.omega
        if excess > 1 and self.method == ATTENTION:
            additive = self.omega_mode == ADDITIVE
            if omega < 0:
                omega = host().self_layers(self.person_model).omega if additive else PAPER_OMEGA
            omega = omega + math.log(excess) if additive else omega * excess
        assert self.tape is not None
        return cured(
            self.person_model,
            self.tape,
            mask,
            strength=self.strength,
            method=self.method,
            omega=omega,
            omega_mode=self.omega_mode,
            start=self.start,
            end=self.end,
        )

    def cured(self, model: Any) -> tuple[Any, Tensor]:
        """The run with the person on the model that cures: latent and pictures."""
        latent = self._with_person(model)
        return latent, self.decode(latent)

    def _with_person(self, model: Any) -> Any:
        here = host()
        here.check_interrupt()
        positive = self.positive if self.person_positive is None else self.person_positive
        negative = self.negative if self.person_negative is None else self.person_negative
        return here.sample(model, positive, negative, self.latent_image, self.sampling)

    def guided(self, latent: Any, attributes: Sequence[Attribute], gamma: float, refinements: int) -> Any:
        """The latent with these attributes, by inversion."""
        host().check_interrupt()
        template = words.without(self.prompt, attributes)
        added = [a.text for a in attributes if words.without(self.prompt, [a]) == self.prompt]
        told = ", ".join(part for part in (self.prompt, *added) if part)
        without, with_it = (self.clip.encode_from_tokens_scheduled(self.clip.tokenize(t)) for t in (template, told))
        return guided(
            self.model,
            without,
            with_it,
            self.negative,
            latent,
            self.sampling,
            gamma=gamma,
            refinements=refinements,
            check=False,
        )[0]

    def close(self) -> None:
        """Give the tape's memory back, whatever happened."""
        if self.tape is not None:
            self.tape.clear()
            self.tape = None


def _wires() -> dict[str, Any]:
    """The sockets that are always needed, and the sampler's widgets."""
    return {
        "model": socket("MODEL", "The model without the person: before any identity adapter, with all LoRAs."),
        "person_model": socket("MODEL", "The same with the person: after all identity adapters."),
        "positive": socket("CONDITIONING", "The prompt with all its attributes, without the person."),
        "negative": socket("CONDITIONING", "The negative prompt, without the person."),
        "latent_image": socket("LATENT", "What to begin with, as for KSampler."),
        "vae": socket("VAE", "Decodes the pictures: attributes are looked for in them."),
        **sampler_inputs(),
        "denoise": number(1.0, 0.0, 1.0, 0.01, "As for KSampler."),
        "prompt": text("", "The text of the positive prompt. Its attributes are cured.", multiline=True),
        "attributes": text(
            "",
            "Your own list instead of the prompt's attributes, one a line or with commas between. *curly hair: 0.6* "
            "is cured at that strength.",
            multiline=True,
        ),
        **showing(),
        "own_mask": choice(
            [JOINS, REPLACES],
            "A wired mask *joins* what is found, or *replaces* it; then nothing is looked for, and the tape keeps "
            "only what lies inside.",
        ),
        **CURING,
        **KEPT,
    }


def _optional() -> dict[str, Any]:
    return {
        "person_positive": socket(
            "CONDITIONING", "The positive prompt as Apply Identity Adapter or Identity Prompt gave it; else positive."
        ),
        "person_negative": socket(
            "CONDITIONING", "The negative prompt as Apply Identity Adapter or Identity Prompt gave it; else negative."
        ),
        "clip": socket("CLIP", "The text encoder of the prompt: tells which tokens are which word's."),
        "faces": socket(FACES, "The faces in the pictures without the person, if they are known; else looked for."),
        "mask": socket(
            "MASK", "Your own: as many as attributes, one for each; else one, or one a picture, for all of them."
        ),
    }


class CureSampler:
    CATEGORY = f"{CATEGORY}/cure"
    DESCRIPTION = (
        "The whole cure (FreeCure) in one node: draws the picture without the person, finds the prompt's attributes "
        "in it, and draws the person with them. Costs about two generations. Foundation Pass, Attribute Masks and "
        "Cure Attributes do the same in parts."
    )
    RETURN_TYPES = ("LATENT", "IMAGE", "IMAGE", "IMAGE", "MASK", "STRING")
    RETURN_NAMES = ("latent", "image", "foundation", "uncured", "mask", "details")
    OUTPUT_TOOLTIPS = (
        "The cured pictures' latent.",
        "The cured pictures; where nothing could be cured, the plain ones with the person.",
        "The pictures without the person: all attributes should be in them.",
        "The pictures with the person as they are without a cure; stopped if show_uncured is off.",
        "Where was cured, one mask a picture.",
        "What was done, with each attribute's mask or why it has none, as JSON.",
    )
    FUNCTION = "run"
    MARK = DRAWN
    SHOWS = ("images", "text")
    SEARCH_ALIASES = ["freecure", "ksampler", "prompt consistency", "attributes", "cure"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                **_wires(),
                "expressions": switch(
                    False,
                    "Mask brows, eyes and mouth for an expression. It has no place of its own, and more of the "
                    "person is lost there.",
                ),
                "show_uncured": switch(
                    True,
                    "Also draw the person without a cure, for comparison: one more plain generation, so that all "
                    "takes half as long again.",
                ),
            },
            "optional": _optional(),
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(self, show_uncured: bool, unique_id: str | None = None, **wires: Any) -> dict[str, Any]:
        with closing(Making(**wires, node_id=unique_id)) as making:
            before, tape = making.without_person()
            placed = making.places(before)
            mask = placed.whole()
            model, said = making.curing(mask)
            idle = model is making.person_model
            plain = making.plain() if show_uncured or idle else None
            latent, image = plain if plain is not None and idle else making.cured(model)
        shown = [("foundation", before), *([("uncured", plain[1])] if plain and show_uncured else []), ("cured", image)]
        lines = [f"{NOT_CURED}. {said}" if idle else said, *placed.notes]
        drawn = preview(report.beside(shown), lines)
        drawn["images"] += preview(placed.drawn(before))["images"]
        record = {
            "schema": "likeness.cure_sampler/1",
            "cured": not idle,
            "said": said,
            "tape": tape,
            **{key: value for key, value in placed.record().items() if key != "schema"},
        }
        uncured = plain[1] if plain and show_uncured else host().blocker(NO_UNCURED)
        return {"ui": drawn, "result": (latent, image, before, uncured, mask, as_json(record))}


@dataclass(frozen=True, eq=False)
class Look:
    """What was drawn for one look of the loop."""

    latent: Any
    image: Tensor
    mask: Tensor
    """(P, H, W): where was cured."""
    done: tuple[str, ...] = ()


@dataclass(eq=False)
class Loop:
    """The functions that ``closed_loop`` is given, and what they leave behind."""

    making: Making
    abstract: bool
    gamma: float
    refinements: int
    looks: list[Look] = field(default_factory=list)
    placed: Placed | None = None
    notes: list[str] = field(default_factory=list)
    judge: str = ""
    """The recogniser that measured the likeness, and whether it drove the pictures."""
    took_part: bool = False

    def draw(self) -> Tensor:
        latent, image = self.making.plain()
        self.looks.append(Look(latent, image, torch.zeros(image.shape[:3])))
        return image

    def cure(self, attributes: Sequence[Attribute]) -> Tensor:
        host().send_text(f"curing {', '.join(a.text for a in attributes)}", self.making.node_id)
        first = self.looks[0]
        latent, image, mask, done = first.latent, first.image, first.mask, list[str]()
        if self.making.strength == 0:
            done.append("strength 0: nothing is cured")
        else:
            local = [a for a in attributes if not self._is_guided(a)]
            if local:
                mask, excess, names = self._mask(local)
                model, said = self.making.curing(mask, excess)
                done.append(f"{', '.join(names) or 'none of them has a mask'}: {said}")
                if model is not self.making.person_model:
                    latent, image = self.making.cured(model)
            left = [a.text for a in attributes if a.abstract and not self.abstract]
            if left:
                done.append(f"{', '.join(left)}: has no place, and the switch abstract is off")
            guided_ = [a for a in attributes if self._is_guided(a) and a.text not in left]
            if guided_:
                gamma = min(self.gamma * max(a.strength for a in guided_), 1.0)
                latent = self.making.guided(latent, guided_, gamma, self.refinements)
                image = self.making.decode(latent)
                done.append(f"{', '.join(a.text for a in guided_)}: guidance, gamma {gamma:g}")
        self.looks.append(Look(latent, image, mask, tuple(done)))
        return image

    def _is_guided(self, attribute: Attribute) -> bool:
        return attribute.abstract or self.making.method == GUIDANCE

    def _mask(self, attributes: Sequence[Attribute]) -> tuple[Tensor, float, list[str]]:
        """Where these attributes are, how much more than 1 they are wanted, and which of them have a place.

        A mask holds strengths up to 1. What is wanted more is left to the curing's ``excess``, by which all are divided
        here.
        """
        if self.placed is None:
            image, said = self.making.without_person()
            self.notes.append(f"tape: {said}")
            self.placed = self.making.places(image)
            # What has no place is guided, and needs none.
            bodiless = tuple(f"{a.text}, no mask" for a in self.making.wanted if a.abstract)
            self.notes += [note for note in self.placed.notes if not (bodiless and note.startswith(bodiless))]
        found = self.placed.found
        names = {a.text: n for n, a in enumerate(found.attributes)}
        here = [a for a in attributes if found.sources[names[a.text]]]
        strengths = [a.strength if self.making.method == ATTENTION else min(a.strength, 1.0) for a in here]
        excess = max([1.0, *strengths])
        mask = masking.union(found.masks[[names[a.text] for a in here]], [s / excess for s in strengths])
        told = [a.text for a in here]
        if self.placed.extra is not None:
            mask, told = mask.maximum(self.placed.extra / excess), [*told, "your mask"]
        return mask, excess, told

    def likeness(self, identity: Identity, pictures: Tensor) -> list[float | None]:
        """Per picture how like the person the most like face is, by a recogniser that took no part if one is there."""
        records = scoring.score_images(pictures, identity, drivers=(identity.contract,), host=host())
        one = report.side(pictures, [()] * len(pictures), records)
        self.judge, self.took_part = one.judge or self.judge, self.took_part or one.took_part
        return list(one.similarity)


class ClosedLoop:
    CATEGORY = f"{CATEGORY}/cure"
    DESCRIPTION = (
        "Draws a person, looks which of the prompt's attributes are missing, cures only those, looks again, and stops "
        "by itself. What nobody can judge is reported as not judged, never as present, and left alone. The best "
        "pictures are kept, with a sheet that shows before and after."
    )
    RETURN_TYPES = ("IMAGE", "LATENT", "IMAGE", "MASK", "IMAGE", "BOOLEAN", "STRING")
    RETURN_NAMES = ("image", "latent", "before", "mask", "sheet", "all_present", "json")
    OUTPUT_TOOLTIPS = (
        "Of every picture the best round.",
        "Their latents.",
        "The pictures as they are without a cure.",
        "Where the kept pictures were cured; black where the uncured one was kept, or by guidance, which has no mask.",
        "Before and after side by side, with a line for every attribute.",
        "Whether every attribute was found in every picture. Not judged is not found.",
        "Every round, verdict and similarity, what was done, and why it stopped, as JSON.",
    )
    FUNCTION = "run"
    MARK = DRAWN
    SHOWS = ("images", "text")
    SEARCH_ALIASES = ["freecure", "feedback", "agent", "self correcting", "prompt consistency", "iterate"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                **_wires(),
                "method": choice(
                    (*METHODS, GUIDANCE),
                    f"{METHOD} *guidance*: everything by going part of the way back to noise and down again, without "
                    "masks. It also gives back shapes, such as glasses, and may change more of the picture. Needs the "
                    "CLIP.",
                ),
                "judges": choice(
                    judging.choices(host()),
                    "Who is asked. *auto*: everybody who is there, those trained for the one thing first, CLIP last.",
                ),
                "rounds": integer(2, 0, 10, "How often is cured at most. 0 only looks."),
                "stronger": number(
                    1.5,
                    1.0,
                    4.0,
                    0.05,
                    "How many times as strongly an attribute is cured again if it is still missing. 1: not again.",
                ),
                "cure_unjudged": switch(False, "Also cure, once, what nobody could judge."),
                "abstract": switch(
                    True,
                    "Cure what has no place, such as an expression, by going part of the way back to noise and down "
                    "again with it. Needs the CLIP.",
                ),
                **GUIDING,
            },
            "optional": {
                **_optional(),
                "clip_vision": socket(
                    "CLIP_VISION",
                    "The image side of the CLIP: judges what no network was trained on. SDXL's: ViT-bigG.",
                ),
                "identity": socket(IDENTITY, "Who it should be: the likeness is measured before and after."),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(
        self,
        judges: str,
        rounds: int,
        stronger: float,
        cure_unjudged: bool,
        abstract: bool,
        gamma: float,
        refinements: int,
        clip_vision: Any = None,
        identity: Identity | None = None,
        unique_id: str | None = None,
        **wires: Any,
    ) -> dict[str, Any]:
        with closing(Making(**wires, node_id=unique_id)) as making:
            loop = Loop(making, abstract, gamma, refinements)
            judge = _judge(making, judges, clip_vision)
            if rounds and making.clip is None:
                _refuse_without_clip(making, abstract)
            if identity is not None:
                # Raises before anything is drawn if nobody can tell.
                scoring.appointed(identity, scoring.AUTO, (identity.contract,), host=host())
            looped = closed_loop(
                loop.draw,
                loop.cure,
                judge,
                making.wanted,
                rounds,
                similarity=None if identity is None else partial(loop.likeness, identity),
                cure_unjudged=cure_unjudged,
                stronger=stronger,
            )
        best = [(loop.looks[r], i) for i, r in enumerate(looped.best)]
        first = loop.looks[0]
        latent = {**first.latent, "samples": torch.stack([look.latent["samples"][i] for look, i in best])}
        mask = torch.stack([look.mask[i] for look, i in best])
        told = (loop.judge, loop.took_part)
        like = [tuple(side) if identity else () for side in (looped.similarity_before, looped.similarity_after)]
        before = report.Side(first.image, looped.rounds[0].verdicts, like[0], *told)
        after = report.Side(looped.pictures, looped.verdicts, like[1], *told)
        notes = loop.notes if making.wanted else ["no attribute was found: name them in the list of attributes"]
        for number_, look in enumerate(loop.looks):
            notes += [f"round {number_}, {line}" for line in look.done]
        settings = {**looped.to_json(), "notes": notes}
        if loop.placed is not None:
            settings["masks"] = loop.placed.record()["attributes"]
        everything = all(verdict.present is True for row in looped.verdicts for verdict in row)
        sheet = report.sheet(before, after)
        lines = [report.told(before, after), f"stopped: {looped.stopped}", *notes]
        result = (looped.pictures, latent, first.image, mask, sheet, everything)
        return {
            "ui": preview(sheet, lines),
            "result": (*result, as_json(report.to_json(before, after, settings=settings))),
        }


def _judge(making: Making, judges: str, clip_vision: Any) -> Judge:
    if clip_vision is not None and making.clip is None:
        raise BadInput("clip_vision is connected and clip is not: texts and pictures are compared with both")
    compared = clip_similarity(making.clip, clip_vision) if clip_vision is not None and making.wanted else None

    # Raises before anything is drawn for a judge that is not there.
    judging.judge_all(torch.zeros(1, 8, 8, 3), (), judges=judges, host=host())

    def judge(pictures: Tensor, attributes: Sequence[Attribute]) -> Sequence[Sequence[judging.Verdict]]:
        host().check_interrupt()
        return judging.judge_all(pictures, attributes, judges=judges, similarity=compared, host=host())

    return judge


def _refuse_without_clip(making: Making, abstract: bool) -> None:
    if making.method == GUIDANCE and making.wanted:
        raise BadInput("the method guidance needs the CLIP: wire it into clip, or take the method attention")
    bodiless = [attribute.text for attribute in making.wanted if attribute.abstract]
    if bodiless and abstract:
        raise BadInput(
            f"“{bodiless[0]}” has no place that a mask could hold, so it is cured by guidance, which needs the CLIP: "
            "wire it into clip, or switch abstract off"
        )


NODES = [CureSampler, ClosedLoop]
