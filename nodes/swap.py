"""Put one person's face onto another's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..face import analyse as analysing
from ..face import swap as swapping
from ..face.image import as_image, check_faces
from ..face.types import Faces, Identity
from .form import CATEGORY, FACES, IDENTITY, choice, number, socket
from .host import host
from .preview import preview
from .saving import SWAPPED


def told(faces: Faces, swapped: swapping.Swapped) -> list[str]:
    """Lines: how many faces were swapped, and what stayed as it was for want of a face or of a mesh."""
    done = sum(len(numbers) for numbers in swapped.swapped)
    lines = [
        f"{done} of {faces.count} face{'s' * (faces.count != 1)} swapped in {len(faces)} "
        f"picture{'s' * (len(faces) != 1)}"
    ]
    if bare := [str(n) for n, found in enumerate(faces, 1) if not found]:
        lines.append(f"unchanged, no face: picture {', '.join(bare)}")
    if left := [f"{j + 1} of picture {i}" for i, numbers in enumerate(swapped.left, 1) for j in numbers]:
        lines.append(f"unchanged, cannot be drawn over (cut off or unclear): face {', '.join(left)}")
    return lines


class SwapFaces:
    CATEGORY = f"{CATEGORY}/swap"
    DESCRIPTION = (
        "Puts the identity's face onto the given faces. The geometric swapper (*mesh*) needs no learned weights: "
        "it warps the "
        "reference picture's mesh onto the target's and matches colour and light. Outside the mask no pixel changes. "
        "Swap only faces of people who agreed to it."
    )
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The pictures with the faces swapped.", "Where they were changed.")
    FUNCTION = "run"
    SHOWS = ("images", "text")
    SEARCH_ALIASES = ["face swap", "reactor", "inswapper", "deepfake"]
    MARK = SWAPPED

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The pictures that get another face."),
                "faces": socket(FACES, "Which faces to swap: all of these. Choose them with Select Faces."),
                "identity": socket(IDENTITY, "Whose face to put there, from Embed Identity."),
                "swapper": choice(swapping.swappers.names(), "The method.", "mesh"),
                "strength": number(1.0, 0.0, 1.0, 0.01, "0 changes nothing, 1 swaps fully."),
                "mapping": choice(
                    swapping.MAPPINGS,
                    "Which person goes where, with several in the identity: in the order of the faces, or each "
                    "onto the "
                    "face that is named after them, or that is recognised as them.",
                ),
                "mouth": choice(
                    swapping.MOUTHS,
                    "Whose mouth interior: *auto* keeps the target's where its mouth is open, so that teeth do "
                    "not smear.",
                ),
                "feather": number(
                    0.08, 0.0, 0.5, 0.01, "Width of the soft edge, in parts of the face's width, inside it."
                ),
                "colour": number(
                    1.0,
                    0.0,
                    1.0,
                    0.05,
                    "How far the target's light and complexion replace those of the reference picture.",
                ),
                "no_face": choice(["error", "pass through"], "What to do with a picture that has no face to swap."),
            }
        }

    def run(
        self,
        image: Tensor,
        faces: Faces,
        identity: Identity,
        swapper: str,
        strength: float,
        mapping: str,
        mouth: str,
        feather: float,
        colour: float,
        no_face: str,
    ) -> dict[str, Any]:
        image, here = as_image(image), host()
        check_faces(image, faces)
        if no_face == "error":
            analysing.require_faces(faces, "Swap Faces is to put a face into every picture")
        if mapping == "identity":
            faces = analysing.with_embeddings(image, faces, identity.contract, host=here)
        swapped = swapping.swap(
            image,
            faces,
            identity,
            swapper=swapper,
            strength=strength,
            mapping=mapping,
            mouth=mouth,
            feather=feather,
            colour=colour,
            host=here,
        )
        return {"ui": preview(swapped.image, told(faces, swapped)), "result": (swapped.image, swapped.mask)}


NODES = [SwapFaces]
