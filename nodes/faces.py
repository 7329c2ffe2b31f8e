"""Find, choose, follow, mask and cut out faces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..face import analyse as analysing
from ..face import attributes, crop, detect, keypoints, landmarks, masks, overlay, select, track
from ..face.analyse import NONE, Look
from ..face.image import as_image, check_faces
from ..face.types import Faces, Identity
from .form import (
    CATEGORY,
    FACE_CROPS,
    FACES,
    IDENTITY,
    as_json,
    choice,
    integer,
    number,
    socket,
    switch,
    text,
)
from .host import host
from .preview import preview


def described(faces: Faces) -> str:
    """One line per picture: how many faces, how large, how sure."""
    return "\n".join(
        f"picture {n}: "
        + (
            ", ".join(f"{f.width:.0f}×{f.height:.0f} px ({f.confidence:.2f})" for f in found[:8])
            + (f" and {len(found) - 8} more" if len(found) > 8 else "")
            if found
            else "no face"
        )
        for n, found in enumerate(faces, 1)
    )


def as_records(faces: Faces) -> list[list[dict[str, Any]]]:
    """Every face as plain values."""
    return [
        [
            {
                "box": [float(v) for v in f.box],
                "points": [[float(v) for v in p] for p in f.points],
                "confidence": float(f.confidence),
                "pose": None if f.pose is None else {"yaw": f.pose.yaw, "pitch": f.pose.pitch, "roll": f.pose.roll},
                "age": f.age,
                "gender": f.gender,
                "track": f.track,
                "label": f.label,
            }
            for f in found
        ]
        for found in faces
    ]


class DetectFaces:
    CATEGORY = f"{CATEGORY}/faces"
    DESCRIPTION = (
        "Finds the faces in every picture of a batch, with five points each, and adds the 468-point mesh, head "
        "pose, age and "
        "gender if asked. A picture without a face is no error here: it gives an empty list."
    )
    RETURN_TYPES = (FACES, "INT", "STRING")
    RETURN_NAMES = ("faces", "count", "details")
    OUTPUT_TOOLTIPS = (
        "The faces of every picture, largest first.",
        "Faces in all pictures together.",
        "Boxes, points, confidence, pose, age and gender as JSON.",
    )
    FUNCTION = "run"
    SHOWS = ("images", "text")
    SEARCH_ALIASES = ["face detection", "yunet", "scrfd", "retinaface", "insightface", "landmarks"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        here = host()
        return {
            "required": {
                "image": socket("IMAGE", "The pictures to look at; all faces of each are found."),
                "detector": choice(
                    detect.choices(here),
                    "Which network looks for faces. InsightFace packs in models/insightface/models are listed by name.",
                    "yunet",
                ),
                "minimum_confidence": number(
                    0.0,
                    0.0,
                    1.0,
                    0.01,
                    "Faces the detector is less sure of are left out. 0: the detector's own default.",
                ),
                "size": integer(
                    640,
                    64,
                    4096,
                    "Longest side, in pixels, at which the detector looks. Larger finds smaller faces and takes "
                    "longer.",
                    32,
                ),
                "smallest": integer(0, 0, 8192, "Faces with a shorter side than this many pixels are left out."),
                "retry": switch(
                    True,
                    "Where nothing is found, look again with a border around the picture and turned by 90° each way.",
                ),
                "landmarks": choice(
                    [*landmarks.choices(here), NONE],
                    "Dense points. The mesh (468) is what masks, the geometric swapper and the expression score "
                    "work on.",
                    "mesh",
                ),
                "attributes": choice(
                    [NONE, *attributes.choices(here)],
                    "Guess age and gender, to select by. Needs a model that does it.",
                    NONE,
                ),
            }
        }

    def run(
        self,
        image: Tensor,
        detector: str,
        minimum_confidence: float,
        size: int,
        smallest: int,
        retry: bool,
        landmarks: str,
        attributes: str,
    ) -> dict[str, Any]:
        look = Look(detector, minimum_confidence, size, smallest, retry, landmarks, attributes)
        faces = analysing.analyse(image, look, host=host())
        shown = overlay.draw(as_image(image), faces)
        return {
            "ui": preview(shown, [described(faces)]),
            "result": (faces, faces.count, as_json(as_records(faces))),
        }


class SelectFaces:
    CATEGORY = f"{CATEGORY}/faces"
    DESCRIPTION = (
        "Keeps some of the faces: by order and number, size, confidence, age, gender, track, or because they are "
        "a certain "
        "person. Says what to do with a picture in which none is left."
    )
    RETURN_TYPES = (FACES, "IMAGE", "BOOLEAN", "STRING")
    RETURN_NAMES = ("faces", "image", "found", "details")
    OUTPUT_IS_LIST = (False, False, True, False)
    OUTPUT_TOOLTIPS = (
        "The faces that were kept.",
        "The pictures, in step with the faces: fewer with *skip*, black where nothing was found with *blank*.",
        "Per picture that came in: whether a face was kept.",
        "The kept faces as JSON.",
    )
    FUNCTION = "run"
    SHOWS = ("images", "text")
    SEARCH_ALIASES = ["filter faces", "face index", "reference face", "gender", "who"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The pictures in which the faces were found."),
                "faces": socket(FACES, "From Detect Faces."),
                "order": choice(list(select.ORDERS), "How the faces of a picture are ordered before they are counted."),
                "indices": text(
                    "",
                    "Which of them, in that order, from 0: `0`, `0,2`, `1-3`, `-1` for the last. Empty: all.",
                ),
                "no_face": choice(
                    select.POLICIES,
                    "What to do with a picture in which no face is left: stop with an error, leave the picture out, "
                    "let it pass without a face, or hand on a black picture.",
                    "error",
                ),
            },
            "optional": {
                "identity": socket(IDENTITY, "Keep only faces that are this person (or one of these)."),
                "similarity": number(
                    0.36,
                    -1.0,
                    1.0,
                    0.01,
                    "With an identity: least cosine. SFace calls two faces one person from 0.36 on.",
                ),
                "margin": number(
                    0.0,
                    0.0,
                    1.0,
                    0.01,
                    "With several people in the identity: how far the best must be ahead of the next.",
                ),
                "tracks": text("", "Only people with these track numbers (Track Faces), written like indices."),
                "smallest": integer(0, 0, 16384, "Least size of a face: its longer side in pixels."),
                "largest": integer(0, 0, 16384, "Greatest size in pixels; 0: no limit."),
                "confidence": number(0.0, 0.0, 1.0, 0.01, "Least confidence of the detector."),
                "youngest": integer(0, 0, 120, "In years; 0: no limit. Needs attributes from Detect Faces."),
                "oldest": integer(0, 0, 120, "In years; 0: no limit. Needs attributes from Detect Faces."),
                "gender": choice(select.GENDERS, "Needs attributes from Detect Faces."),
            },
        }

    def run(
        self,
        image: Tensor,
        faces: Faces,
        order: str,
        indices: str,
        no_face: str,
        identity: Identity | None = None,
        similarity: float = 0.36,
        margin: float = 0.0,
        tracks: str = "",
        smallest: int = 0,
        largest: int = 0,
        confidence: float = 0.0,
        youngest: int = 0,
        oldest: int = 0,
        gender: str = "any",
    ) -> dict[str, Any]:
        image = as_image(image)
        check_faces(image, faces)
        if identity is not None:
            faces = analysing.with_embeddings(image, faces, identity.contract, host=host())
        kept = select.select(
            faces,
            order=order,
            indices=indices,
            smallest=smallest,
            largest=largest,
            confidence=confidence,
            youngest=youngest,
            oldest=oldest,
            gender=gender,
            tracks=tracks,
            identity=identity,
            threshold=similarity,
            margin=margin,
        )
        found = select.settle(kept, no_face)
        faces_out, image_out = self.obey(no_face, image, kept)
        return {
            "ui": preview(overlay.draw(image, kept), [described(kept)]),
            "result": (faces_out, image_out, list(found), as_json(as_records(kept))),
        }

    @staticmethod
    def obey(policy: str, image: Tensor, faces: Faces) -> tuple[Any, Any]:
        """Faces and pictures after the no-face policy."""
        if policy == "skip":
            stay = [n for n, found in enumerate(faces) if found]
            if not stay:
                return host().blocker(None), host().blocker(None)
            return faces.at(stay), image[stay]
        if policy == "blank":
            empty = torch.tensor([not found for found in faces])
            return faces, torch.where(empty[:, None, None, None], torch.zeros(()), image)
        return faces, image


class TrackFaces:
    CATEGORY = f"{CATEGORY}/faces"
    DESCRIPTION = (
        "Follows each person through a batch of frames and gives everybody a number that stays, also over frames "
        "in which "
        "the face is hidden. Looks at who it is (embedding) and where it is (overlap)."
    )
    RETURN_TYPES = (FACES, "INT", "STRING")
    RETURN_NAMES = ("faces", "people", "details")
    OUTPUT_TOOLTIPS = (
        "The same faces with track numbers.",
        "How many different people there are.",
        "Per person: in which frames.",
    )
    FUNCTION = "run"
    SHOWS = ("images", "text")
    SEARCH_ALIASES = ["video", "frames", "face tracking"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        from ..face import embed

        return {
            "required": {
                "image": socket("IMAGE", "The frames, in order."),
                "faces": socket(FACES, "From Detect Faces on the same frames."),
                "embedder": choice(
                    [*embed.choices(host()), NONE],
                    "Which network tells people apart. *none* follows by position only.",
                    "sface",
                ),
                "gap": integer(8, 0, 1000, "Frames that a person may be missing for and still be the same."),
                "fill": switch(
                    False,
                    "Put the face back, on a straight line between its neighbours, into the frames where it was "
                    "missed. "
                    "Not for films that cut away and back.",
                ),
            }
        }

    def run(self, image: Tensor, faces: Faces, embedder: str, gap: int, fill: bool) -> dict[str, Any]:
        from ..face import embed

        contract = None
        if embedder != NONE:
            faces = embed.embed(as_image(image), faces, embedder, host=host())
            contract = embed.contract(embedder, host())
        tracked = track.track(faces, contract=contract, gap=gap, fill=fill)
        frames: dict[int, list[int]] = {}
        for i, _, face in analysing.flat(tracked, lambda f: f.track is not None):
            frames.setdefault(face.track or 0, []).append(i)
        lines = [f"person {k}: {len(v)} frames, {v[0]} to {v[-1]}" for k, v in sorted(frames.items())]
        return {
            "ui": preview(overlay.draw(as_image(image), tracked), lines or ["nobody to follow"]),
            "result": (tracked, len(frames), as_json(frames)),
        }


class FaceMasks:
    CATEGORY = f"{CATEGORY}/faces"
    DESCRIPTION = "Masks of faces or of their parts, one per picture, with growth and feather in pixels."
    RETURN_TYPES = ("MASK", "MASK")
    RETURN_NAMES = ("mask", "per_face")
    OUTPUT_TOOLTIPS = (
        "One mask per picture, all its faces together; black without a face.",
        "One mask per face, in the order of pictures and faces; one black mask if there is none.",
    )
    FUNCTION = "run"
    SHOWS = ("images",)
    SEARCH_ALIASES = ["face segmentation", "inpaint mask", "eyes", "mouth", "lips", "skin"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The pictures in which the faces were found."),
                "faces": socket(FACES, "From Detect Faces or Select Faces."),
                "area": choice(list(masks.KINDS), "What to mask. *parts* takes the parts named below.", "hull"),
                "parts": text(
                    "eyes, brows, nose, lips, mouth",
                    f"With *parts*, any of: {', '.join(masks.PARTS)}; commas between.",
                ),
                "grow": integer(0, -256, 256, "Pixels by which the edge moves outwards; negative: inwards."),
                "feather": integer(0, 0, 256, "Width, in pixels, of the soft edge."),
            }
        }

    def run(self, image: Tensor, faces: Faces, area: str, parts: str, grow: int, feather: int) -> dict[str, Any]:
        image = as_image(image)
        check_faces(image, faces)
        if not all(masks.drawable(face, area) for _, _, face in analysing.flat(faces)):
            faces = analysing.with_mesh(image, faces, host=host())
        named = [part.strip() for part in parts.split(",") if part.strip()]
        each = masks.mask_each(faces, area, named, grow=grow, feather=feather, strict=False)
        whole = masks.mask(faces, area, named, grow=grow, feather=feather, strict=False)
        height, width = image.shape[1:3]
        shown = image * (0.35 + 0.65 * whole[..., None])
        left = analysing.flat(faces, lambda face: not masks.drawable(face, area))
        notes = [f"not masked, no landmarks (cut off or unclear): face {j + 1} of picture {i + 1}" for i, j, _ in left]
        return {
            "ui": preview(shown, notes),
            "result": (whole, each if len(each) else torch.zeros(1, height, width)),
        }


class CropFaces:
    CATEGORY = f"{CATEGORY}/faces"
    DESCRIPTION = (
        "Cuts every face out, upright if wanted, to work on it at full size. Uncrop Faces puts the result back; "
        "outside its "
        "mask the picture stays as it was, bit for bit."
    )
    RETURN_TYPES = ("IMAGE", FACE_CROPS, FACES, "MASK")
    RETURN_NAMES = ("crops", "crop_info", "faces", "mask")
    OUTPUT_TOOLTIPS = (
        "One picture per face.",
        "Where the crops were cut: for Uncrop Faces.",
        "The same faces, in pixels of the crops.",
        "Per crop, where the face's box lies.",
    )
    FUNCTION = "run"
    SHOWS = ("images",)
    SEARCH_ALIASES = ["face crop", "align", "detailer", "ffhq"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The pictures in which the faces were found."),
                "faces": socket(FACES, "From Detect Faces or Select Faces."),
                "template": choice(
                    list(crop.TEMPLATES),
                    "*box*: the box with a margin. *arcface*, *ffhq*: as recognisers and restorers are trained, "
                    "no margin.",
                ),
                "margin": number(
                    0.5, 0.0, 3.0, 0.05, "Space on each side of the box, in parts of its longer side (*box*)."
                ),
                "upright": switch(False, "Turn the crop so that the eyes are level (*box*; the others always do)."),
                "size": integer(512, 0, 8192, "Side of the crops in pixels; 0: the picture's own scale.", 8),
            }
        }

    def run(
        self, image: Tensor, faces: Faces, template: str, margin: float, upright: bool, size: int
    ) -> dict[str, Any]:
        image = as_image(image)
        check_faces(image, faces)
        crops = crop.crop(image, faces, margin=margin, size=size, align=upright, template=template)
        if not len(crops):
            # No face is a legal value, an empty batch is none: a black picture goes the way of the crops.
            black, side = torch.zeros(1, crops.size, crops.size, 3), (crops.size, crops.size)
            note = "no face to crop: a black picture stands in, and Uncrop Faces changes nothing"
            return {"ui": preview(black, [note]), "result": (black, crops, Faces(((),), (side,)), black[..., 0])}
        return {"ui": preview(crops.images), "result": (crops.images, crops, crops.faces, crops.masks)}


class UncropFaces:
    CATEGORY = f"{CATEGORY}/faces"
    DESCRIPTION = (
        "Puts edited crops back where Crop Faces cut them. Pixels outside the mask stay as they were, bit for bit."
    )
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The whole pictures, with the crops in their places.",)
    FUNCTION = "run"
    SHOWS = ("images",)
    SEARCH_ALIASES = ["paste face", "stitch", "face detailer"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The pictures from which the crops were cut."),
                "crops": socket("IMAGE", "The edited crops, in the order in which they came."),
                "crop_info": socket(FACE_CROPS, "From the Crop Faces that cut them."),
                "feather": integer(16, 0, 512, "Width, in pixels of the crop, over which its border fades out."),
                "blend": choice(
                    list(crop.BLENDS),
                    "*replace* puts the edited pixels in; *change* adds only what was edited, so that detail "
                    "finer than the "
                    "crop survives.",
                ),
            },
            "optional": {"mask": socket("MASK", "Which part of each crop to put back; else the whole crop.")},
        }

    def run(
        self,
        image: Tensor,
        crops: Tensor,
        crop_info: crop.Crops,
        feather: int,
        blend: str,
        mask: Tensor | None = None,
    ) -> dict[str, Any]:
        whole = crop.uncrop(as_image(image), crop_info, crops, mask, feather=feather, blend=blend)
        return {"ui": preview(whole), "result": (whole,)}


class DrawFaces:
    CATEGORY = f"{CATEGORY}/faces"
    DESCRIPTION = "Draws what was found onto the pictures: boxes, points, mesh, names, track numbers, confidence, age."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The pictures with the drawing on them.",)
    FUNCTION = "run"
    SHOWS = ("images",)
    SEARCH_ALIASES = ["overlay", "bounding box", "debug", "label"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The pictures in which the faces were found."),
                "faces": socket(FACES, "What to draw."),
                "boxes": switch(True, "Draw the boxes."),
                "points": switch(True, "Draw the five points."),
                "mesh": switch(False, "Draw the dense points as a net of thin lines."),
                "labels": switch(
                    True, "Write name, track number, confidence, age and gender, as far as they are known."
                ),
            }
        }

    def run(self, image: Tensor, faces: Faces, boxes: bool, points: bool, mesh: bool, labels: bool) -> dict[str, Any]:
        drawn = overlay.draw(as_image(image), faces, boxes=boxes, points=points, landmarks=mesh, labels=labels)
        return {"ui": preview(drawn), "result": (drawn,)}


class FaceKeypointsImage:
    CATEGORY = f"{CATEGORY}/faces"
    DESCRIPTION = "The five points drawn as coloured limbs on black, as InstantID's IdentityNet wants them."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("One picture per picture, black where there is no face.",)
    FUNCTION = "run"
    SHOWS = ("images",)
    SEARCH_ALIASES = ["instantid", "kps", "controlnet", "face pose"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "faces": socket(FACES, "The first face of every picture is drawn."),
                "every_face": switch(False, "Draw all faces of a picture, not only the first."),
            }
        }

    def run(self, faces: Faces, every_face: bool) -> dict[str, Any]:
        drawn = keypoints.draw(faces if every_face else analysing.largest(faces))
        return {"ui": preview(drawn), "result": (drawn,)}


NODES = [DetectFaces, SelectFaces, TrackFaces, FaceMasks, CropFaces, UncropFaces, DrawFaces, FaceKeypointsImage]
