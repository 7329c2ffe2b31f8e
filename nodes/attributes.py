"""Where the attributes of a prompt are: masks for a cure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..face import analyse as analysing
from ..face import parse
from ..face.analyse import Look
from ..face.cure import masks as masking
from ..face.cure import words
from ..face.cure.masks import Masked
from ..face.cure.words import Attribute
from ..face.errors import MissingModel
from ..face.image import as_image, check_faces
from ..face.lab import of_the_lab
from ..face.masks import FURTHEST
from ..face.types import Faces
from .form import CATEGORY, FACES, TAPE, as_json, choice, integer, number, socket, switch, text
from .host import host
from .preview import preview

PROMPT, NOTHING = "prompt", "nothing"


def showing() -> dict[str, Any]:
    """The widgets that settle what shows where an attribute is."""
    return {
        "source": choice(
            list(masking.SOURCES),
            "What shows where an attribute is. *auto*: a parser network, else the mesh, else cross-attention, "
            "whichever is there and can show it. Cross-attention needs the CLIP.",
        ),
        "parser": choice(
            parse.choices(host()),
            "Which face parser. *auto*: the first bisenet*.onnx or segface*.onnx in the likeness folder.",
        ),
        "grow": integer(0, -FURTHEST, FURTHEST, "Pixels by which the masks' edges move outwards; negative: inwards."),
    }


class AttributeMasks:
    CATEGORY = f"{CATEGORY}/cure"
    DESCRIPTION = (
        "Finds the attributes in a prompt (curly red hair, round glasses, …) and masks where each is in the picture. "
        "A face parser shows it, or the mesh, or the attention that the foundation pass paid to its word, or your own "
        "mask. What has no place, or is not there, is listed with the reason."
    )
    RETURN_TYPES = ("MASK", "MASK", "IMAGE", "STRING")
    RETURN_NAMES = ("mask", "per_attribute", "preview", "details")
    OUTPUT_TOOLTIPS = (
        "One mask per picture, all attributes together, each as strong as wanted; black if none has a mask.",
        "One mask per attribute and picture: all pictures of the first attribute, then of the second, …",
        "The pictures with each attribute in its colour, and a legend below.",
        "Per attribute its kind, source and area in percent, or why it has no mask, as JSON.",
    )
    FUNCTION = "run"
    SHOWS = ("images", "text")
    SEARCH_ALIASES = ["freecure", "face parsing", "hair mask", "glasses mask", "bisenet", "segface", "attention map"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The foundation pass's pictures: drawn without the identity."),
                "prompt": text("", "The prompt of these pictures. Its attributes are masked.", multiline=True),
                "attributes": text(
                    "",
                    "Your own list instead of the prompt's attributes, one a line or with commas between. "
                    "*curly hair: 0.6* is masked at that strength.",
                    multiline=True,
                ),
                "if_empty": choice(
                    [PROMPT, NOTHING],
                    "What an empty list means: the prompt's attributes, or none. *nothing* is for a list that is "
                    "wired, as from Judge Attributes, where nothing may be missing.",
                ),
                **showing(),
                "strength": number(1.0, 0.0, 1.0, 0.05, "Times the mask; per_attribute stays as it is."),
                "expressions": switch(
                    False,
                    "Mask brows, eyes and mouth for an expression. It has no place of its own, and more of the "
                    "person is lost there.",
                ),
            },
            "optional": {
                "faces": socket(FACES, "From Detect Faces on these pictures; else they are looked for."),
                "tape": socket(TAPE, "From Foundation Pass, with its record of the attention to each word."),
                "clip": socket("CLIP", "The text encoder of the prompt: tells which tokens are which word's."),
                "mask": socket(
                    "MASK",
                    "Your own: as many as attributes, one for each; else one, or one a picture, which joins the mask.",
                ),
            },
        }

    def run(
        self,
        image: Tensor,
        prompt: str,
        attributes: str,
        if_empty: str,
        source: str,
        parser: str,
        grow: int,
        strength: float,
        expressions: bool,
        faces: Faces | None = None,
        tape: Any = None,
        clip: Any = None,
        mask: Tensor | None = None,
    ) -> dict[str, Any]:
        image = as_image(image)
        listed = bool(attributes.strip()) or if_empty == NOTHING
        placed = places(
            image,
            words.parse_list(attributes) if listed else words.split(prompt),
            prompt,
            listed=listed,
            source=source,
            parser=parser,
            grow=grow,
            expressions=expressions,
            faces=faces,
            tape=tape,
            clip=clip,
            mask=mask,
        )
        drawn = placed.drawn(image)
        return {
            "ui": preview(drawn, placed.notes),
            "result": (placed.whole() * strength, placed.each(), drawn, as_json(placed.record())),
        }


@dataclass(frozen=True, eq=False)
class Placed:
    """Where attributes are in a batch of P pictures, and what there is to say about it."""

    found: Masked
    extra: Tensor | None
    """(P, H, W): the user's own mask that belongs to no attribute."""
    notes: tuple[str, ...]

    def whole(self) -> Tensor:
        """(P, H, W): all of it together, each attribute as strong as wanted."""
        return self.found.union() if self.extra is None else self.found.union().maximum(self.extra)

    def each(self) -> Tensor:
        """(A P, H, W): all pictures of the first attribute, then of the second, …; one black mask without any."""
        found = self.found
        return found.masks.flatten(0, 1) if found.attributes else torch.zeros(1, *found.masks.shape[2:])

    def drawn(self, image: Tensor) -> Tensor:
        """The pictures with each attribute in its colour."""
        return masking.coloured(image, self.found, self.extra)

    def record(self) -> dict[str, Any]:
        """Plain values: every attribute with its source and area, or why it has no mask."""
        return {"schema": "likeness.masks/1", "attributes": _records(self.found), "notes": list(self.notes)}


def places(
    image: Tensor,
    wanted: Sequence[Attribute],
    prompt: str,
    *,
    listed: bool,
    source: str,
    parser: str,
    grow: int,
    expressions: bool = False,
    faces: Faces | None = None,
    tape: Any = None,
    clip: Any = None,
    mask: Tensor | None = None,
    alone: bool = False,
) -> Placed:
    """Where the ``wanted`` attributes of ``prompt`` are in ``image``; ``listed``: whether the user named them.

    A user's ``mask`` joins what is found, or stands ``alone`` instead of it.
    """
    notes: list[str] = []
    if mask is not None and alone:
        empty, count = torch.zeros(len(wanted), *image.shape[:3]), len(wanted)
        found = Masked(tuple(wanted), empty, ("",) * count, ("your mask stands for all of them",) * count)
    else:
        faces, notes = _faces(image, faces, needed=_needed(wanted, source, parser))
        maps = getattr(tape, "maps", None)
        if maps is not None and clip is None:
            notes.append("the tape's attention is not used: connect the CLIP, which tells the words apart")
        found = masking.attribute_masks(
            image,
            wanted,
            faces=faces,
            parser=parser,
            maps=None if clip is None else maps,
            places=None if clip is None or maps is None else words.places(clip, prompt, wanted),
            source=source,
            grow=grow,
            expressions=expressions,
            host=host(),
        )
    found, extra = (found, None) if mask is None else masking.with_given(found, mask)
    whole = found.union() if extra is None else found.union().maximum(extra)
    return Placed(found, extra, (*_told(found, bool(whole.any()), listed), *notes))


def _needed(wanted: Sequence[Attribute], source: str, parser: str) -> bool:
    """Whether faces help to find the attributes."""
    return bool(wanted) and source != masking.CROSS_ATTENTION and not of_the_lab(parser)


def _faces(image: Tensor, faces: Faces | None, needed: bool) -> tuple[Faces | None, list[str]]:
    """The faces with their mesh, looked for where they are not given; without the models none, and a note."""
    if faces is not None:
        check_faces(image, faces)
    if not needed:
        return faces, []
    try:
        if faces is None:
            return analysing.analyse(image, Look(), host=host()), []
        return analysing.with_mesh(image, faces, host=host()), []
    except MissingModel as error:
        return faces, [f"no mesh was looked for: {error}"]


def _records(found: Masked) -> list[dict[str, Any]]:
    told = zip(found.attributes, found.sources, found.areas(), found.reasons, strict=True)
    return [
        {
            "attribute": attribute.text,
            "kind": attribute.kind,
            "strength": attribute.strength,
            "source": source or None,
            "area_percent": area,
            "reason": reason or None,
        }
        for attribute, source, area, reason in told
    ]


def _told(found: Masked, anything: bool, listed: bool) -> list[str]:
    """Lines about what has no mask."""
    lines = [] if anything else ["no attribute has a mask: the mask is black"]
    if not found.attributes:
        lines.append(
            "the list of attributes is empty"
            if listed
            else "the vocabulary finds no attribute in the prompt: name them in the list of attributes"
        )
    told = zip(found.attributes, found.reasons, strict=True)
    return lines + [f"{attribute.text}, no mask: {reason}" for attribute, reason in told if reason]


NODES = [AttributeMasks]
