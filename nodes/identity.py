"""Make, join, keep and recognise identities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ..face import analyse as analysing
from ..face import embed, identity_file, overlay, select
from ..face import identity as identities
from ..face.analyse import Look
from ..face.combine import METHODS
from ..face.errors import BadIdentityFile
from ..face.image import as_image
from ..face.lab import of_the_lab
from ..face.types import Faces, Identity, normalised
from .faces import as_records, described
from .form import CATEGORY, FACES, IDENTITY, as_json, choice, number, socket, switch, text
from .host import host
from .preview import preview


def agreement(faces: Faces, identity: Identity) -> str:
    """How alike several pictures of one person are: one line, or none for a single picture."""
    found = [face.embedding(identity.contract) for _, _, face in analysing.flat(faces)]
    units = normalised(np.stack([e.vector for e in found if e is not None]))
    if len(units) < 2:
        return ""
    cosines = (units @ units.T)[np.triu_indices(len(units), 1)]
    return f"\nthe {len(units)} faces among themselves: cosine {cosines.min():.2f} to {cosines.max():.2f}"


def summary(identity: Identity) -> str:
    """One line per person."""
    return "\n".join(
        f"{p.name}: {len(p.vectors)} vector{'s' * (len(p.vectors) != 1)} of {identity.contract}, "
        f"{len(p.references) or 'no'} reference picture{'s' * (len(p.references) != 1)}"
        for p in identity.people
    )


def without_pictures(identity: Identity) -> Identity:
    """The same people, without their reference pictures."""
    return replace(identity, people=tuple(replace(person, references=()) for person in identity.people))


class EmbedIdentity:
    CATEGORY = f"{CATEGORY}/identity"
    DESCRIPTION = (
        "Makes an identity from one or several pictures of one person. Without FACES it looks for faces itself "
        "and takes "
        "the largest of each picture."
    )
    RETURN_TYPES = (IDENTITY, "STRING")
    RETURN_NAMES = ("identity", "details")
    OUTPUT_TOOLTIPS = (
        "Who it is. Keeps cut-outs of the head in memory for swappers and image encoders.",
        "What it was made from, and how alike the pictures are among themselves.",
    )
    FUNCTION = "run"
    SHOWS = ("images", "text")
    SEARCH_ALIASES = ["face embedding", "arcface", "face id", "face model"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "One or more pictures of the person."),
                "embedder": choice(
                    embed.choices(host()),
                    "The recognition network. Identities of different networks cannot be compared; adapters state "
                    "which one "
                    "they need.",
                    "sface",
                ),
                "combine": choice(
                    list(METHODS),
                    "How several pictures become one vector. *concat* keeps them apart, for adapters that take "
                    "several.",
                ),
                "name": text("person", "Stands on labels and in saved files."),
            },
            "optional": {"faces": socket(FACES, "Which faces; all of them are taken to be the same person.")},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, embedder: str | None) -> bool | str:
        # A linked name is not known before the run. The list alone would not say where packs come from.
        known = embed.choices(host())
        if embedder is None or embedder in known or embedder in embed.embedders:
            return True
        folders = ", ".join(str(folder) for folder in host().folders("insightface"))
        return (
            f"there is no recognition network {embedder!r} here, but {', '.join(known)}. An InsightFace pack is a "
            f"folder of .onnx files in {folders}; copy it there under this name."
        )

    def run(self, image: Tensor, embedder: str, combine: str, name: str, faces: Faces | None = None) -> dict[str, Any]:
        image, here = as_image(image), host()
        if faces is None:
            look = Look(embedder=embedder) if of_the_lab(embedder) else Look()
            faces = analysing.largest(analysing.analyse(image, look, host=here))
            analysing.require_faces(faces, "an identity needs a face in every picture")
        faces = embed.embed(image, faces, embedder, host=here)
        if not of_the_lab(embedder):
            faces = analysing.with_mesh(image, faces, host=here)
        contract = embed.contract(embedder, here)
        identity = identities.identify(image, faces, contract=contract, name=name.strip() or "person", combine=combine)
        details = summary(identity) + agreement(faces, identity)
        return {"ui": preview(overlay.draw(image, faces), [details]), "result": (identity, details)}


class CombineIdentities:
    CATEGORY = f"{CATEGORY}/identity"
    DESCRIPTION = (
        "Joins identities: *several people* keeps each with its name (to label a group or to map many faces); the "
        "other "
        "methods blend them into one person."
    )
    RETURN_TYPES = (IDENTITY, "STRING")
    RETURN_NAMES = ("identity", "details")
    OUTPUT_TOOLTIPS = ("The joined identity.", "Who is in it.")
    FUNCTION = "run"
    SEARCH_ALIASES = ["blend faces", "average face", "merge identities"]
    SEVERAL = "several people"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "identity_1": socket(IDENTITY, "The first identity."),
                "method": choice([cls.SEVERAL, *METHODS], "How to join them."),
            },
            "optional": {f"identity_{n}": socket(IDENTITY, "One more identity.") for n in range(2, 9)},
        }

    def run(self, identity_1: Identity, method: str, **more: Identity | None) -> tuple[Identity, str]:
        given = [identity_1, *(more[k] for k in sorted(more) if more[k] is not None)]
        parts = [one for one in given if one is not None]
        joined = identities.merge(parts) if method == self.SEVERAL else identities.combine(parts, method)
        return joined, summary(joined)


class SaveIdentity:
    CATEGORY = f"{CATEGORY}/identity"
    DESCRIPTION = (
        "Writes an identity to models/likeness/identities as a safetensors file. An identity vector is biometric "
        "data: keep "
        "the file as you would keep a photograph. Pictures are written only if you ask for it."
    )
    RETURN_TYPES = (IDENTITY, "STRING")
    RETURN_NAMES = ("identity", "path")
    OUTPUT_TOOLTIPS = ("The identity, unchanged.", "Where it was written.")
    FUNCTION = "run"
    SHOWS = ("text",)
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["face model", "store identity"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "identity": socket(IDENTITY, "What to write."),
                "name": text("person", "File name, without an ending: letters, digits, blanks, . _ and -."),
                "overwrite": switch(False, "Replace a file of that name; else a number is added."),
                "with_pictures": switch(
                    False, "Also write the head cut-outs, which swappers and image encoders need. They show the person."
                ),
            }
        }

    def run(self, identity: Identity, name: str, overwrite: bool, with_pictures: bool) -> dict[str, Any]:
        stem = identity_file.safe_name(name)
        folder = host().folders("identities")[0]
        path, copies = folder / f"{stem}{identity_file.SUFFIX}", 1
        while path.exists() and not overwrite:
            copies += 1
            path = folder / f"{stem} {copies}{identity_file.SUFFIX}"
        kept = identity if with_pictures else without_pictures(identity)
        identity_file.save(kept, path, references=True)
        return {"ui": {"text": [f"written: {path.name}\n{summary(kept)}"]}, "result": (identity, str(path))}


class LoadIdentity:
    CATEGORY = f"{CATEGORY}/identity"
    DESCRIPTION = "Reads an identity that Save Identity wrote, or a ReActor face model from models/reactor/faces."
    RETURN_TYPES = (IDENTITY, "STRING")
    RETURN_NAMES = ("identity", "details")
    OUTPUT_TOOLTIPS = ("Who it is.", "Who is in it and which network it was made with.")
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["face model", "reactor", "saved identity"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"file": choice(identity_file.listing(host()), "A saved identity.")}}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None) -> bool | str:
        # A linked name is not known before the run. The list alone would not say where identities come from.
        try:
            return file is None or identity_file.find(file, host()).is_file()
        except BadIdentityFile as error:
            return str(error)

    @classmethod
    def IS_CHANGED(cls, file: str) -> str:
        state = identity_file.find(file, host()).stat()
        return f"{state.st_mtime_ns} {state.st_size}"

    def run(self, file: str) -> dict[str, Any]:
        identity = identity_file.load(identity_file.find(file, host()))
        return {"ui": {"text": [summary(identity)]}, "result": (identity, summary(identity))}


class NameFaces:
    CATEGORY = f"{CATEGORY}/identity"
    DESCRIPTION = (
        "Who is who: gives every face the name of the nearest person of an identity, if it is near enough, and says "
        "how near."
    )
    RETURN_TYPES = (FACES, "IMAGE", "STRING")
    RETURN_NAMES = ("faces", "image", "details")
    OUTPUT_TOOLTIPS = (
        "The faces with names; unknown ones have none.",
        "The pictures with the names written on them.",
        "Per face: name, similarity and the lead over the next person, as JSON.",
    )
    FUNCTION = "run"
    SHOWS = ("images", "text")
    SEARCH_ALIASES = ["face recognition", "label people", "who is who"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The pictures in which the faces were found."),
                "faces": socket(FACES, "From Detect Faces."),
                "identity": socket(IDENTITY, "The people to recognise: Combine Identities, *several people*."),
                "similarity": number(
                    0.36,
                    -1.0,
                    1.0,
                    0.01,
                    "Least cosine to be recognised. SFace: 0.36; ArcFace packs: about 0.3 to 0.4.",
                ),
                "margin": number(0.05, 0.0, 1.0, 0.01, "How far the nearest person must be ahead of the next."),
                "one_each": switch(True, "Nobody is twice in one picture: only the nearest face gets the name."),
            }
        }

    def run(
        self, image: Tensor, faces: Faces, identity: Identity, similarity: float, margin: float, one_each: bool
    ) -> dict[str, Any]:
        image = as_image(image)
        faces = analysing.with_embeddings(image, faces, identity.contract, host=host())
        named = select.name(faces, identity, threshold=similarity, margin=margin, one_each=one_each)
        drawn = overlay.draw(image, named)
        lines = [", ".join(f.label or "unknown" for f in found) or "no face" for found in named]
        records = as_records(named)
        known = select.of_tracks(faces, identity)
        for i, j, face in analysing.flat(named):
            person, near, lead = select.match(face, identity, known)
            records[i][j] |= {"nearest": person.name, "similarity": near, "lead": lead}
        return {"ui": preview(drawn, lines or [described(named)]), "result": (named, drawn, as_json(records))}


NODES = [EmbedIdentity, CombineIdentities, SaveIdentity, LoadIdentity, NameFaces]
