"""How good is it, which is best, is it good enough, and a sheet that says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..face import embed, report
from ..face import score as scoring
from ..face.errors import BadInput
from ..face.image import as_image, to_uint8
from ..face.score import Limits
from ..face.types import Contract, Faces, FaceScore, Identity
from .form import CATEGORY, FACE_SCORE, FACES, IDENTITY, as_json, choice, integer, number, socket, text
from .host import host
from .saving import SWAPPED, numbered

NOTHING, THE_IDENTITY = "nothing", "the identity"


@dataclass(frozen=True)
class Scores:
    """What travels on a FACE_SCORE socket: the records, and by what they were judged."""

    records: tuple[FaceScore, ...]
    pictures: int
    limits: Limits
    drivers: tuple[Contract, ...] = ()
    judge: Contract | None = None

    def as_json(self) -> str:
        """Everything that was measured, and by whom."""
        record = report.to_json(self.records, judge=self.judge, drivers=self.drivers, limits=self.limits)
        return as_json(record)


def told(scores: Scores) -> str:
    """One line per face."""
    return "\n".join(
        f"picture {r.image + 1}: "
        + (
            f"{'passed' if r.passed else 'failed'}, score {r.score:.2f}"
            + (f", similarity {r.similarity:.2f} to {r.person} ({r.judge})" if r.similarity is not None else "")
            + (f", quality {r.quality:.2f}" if r.quality is not None else "")
            + (f" [{', '.join(r.flags)}]" if r.flags else "")
            if r.face is not None
            else "no face"
        )
        for r in scores.records
    )


def _value(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def picked(scores: Scores, pictures: Sequence[int]) -> Scores:
    """The scores of these pictures, renumbered in that order."""
    records = [replace(r, image=new) for new, old in enumerate(pictures) for r in scores.records if r.image == old]
    return replace(scores, records=tuple(records), pictures=len(pictures))


def same_batch(image: Tensor, scores: Scores) -> Tensor:
    """``image`` as an image, once it is certain that ``scores`` speak of as many pictures; BadInput otherwise."""
    image = as_image(image)
    if len(image) != scores.pictures:
        raise BadInput(
            f"the scores are those of {scores.pictures} picture{'s' * (scores.pictures != 1)}, but the image has "
            f"{len(image)}. Connect the image that was scored."
        )
    return image


class ScoreFaces:
    CATEGORY = f"{CATEGORY}/score"
    DESCRIPTION = (
        "Measures every face: how like the person it is (by a recogniser that did not make the picture, if one is "
        "there), "
        "how good a picture it is, and how much pose and expression changed against a target. A picture without a "
        "face "
        "scores 0; it is no error."
    )
    RETURN_TYPES = (FACE_SCORE, "FLOAT", "BOOLEAN", "STRING")
    RETURN_NAMES = ("scores", "score", "passed", "details")
    OUTPUT_IS_LIST = (False, True, True, False)
    OUTPUT_TOOLTIPS = (
        "For Best Of, Gate By Score and Score Report.",
        "Per picture the score of its best face, 0 to 1.",
        "Per picture whether a face passed.",
        "Everything that was measured, as JSON.",
    )
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["similarity", "face distance", "quality", "likeness", "evaluate"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The pictures to judge."),
                "judge": choice(
                    [scoring.AUTO, *embed.choices(host())],
                    "The recogniser that judges. *auto* takes one that neither drove the edit nor made the "
                    "identity, if one "
                    "is installed.",
                ),
                "driver": choice(
                    [NOTHING, THE_IDENTITY],
                    "Did the identity's own vectors drive the picture (adapters, learned swappers)? Then a judge "
                    "of the same "
                    "network is flagged: it marks its own work. The geometric swapper is driven by nothing.",
                ),
                "similarity": number(
                    0.0, 0.0, 1.0, 0.01, "Least similarity to pass; 0: the judge's own published threshold."
                ),
                "quality": number(0.5, 0.0, 1.0, 0.01, "Least quality to pass."),
            },
            "optional": {
                "identity": socket(IDENTITY, "Who it should be; without it only quality is measured."),
                "faces": socket(FACES, "Which faces, if they are known; else all are looked for."),
                "target": socket(FACES, "The faces before the edit: pose and expression are compared with them."),
                "references": socket(
                    "IMAGE",
                    "Further pictures of the person, not used for the edit: they show copying (copy-paste measure).",
                ),
            },
        }

    def run(
        self,
        image: Tensor,
        judge: str,
        driver: str,
        similarity: float,
        quality: float,
        identity: Identity | None = None,
        faces: Faces | None = None,
        target: Faces | None = None,
        references: Tensor | None = None,
    ) -> dict[str, Any]:
        drivers = (identity.contract,) if identity is not None and driver == THE_IDENTITY else ()
        limits = Limits(similarity=similarity or None, quality=quality)
        records = scoring.score_images(
            image,
            identity,
            faces=faces,
            embedder=judge,
            target_faces=target,
            drivers=drivers,
            references=references,
            limits=limits,
            host=host(),
        )
        appointed = scoring.appointed(identity, judge, drivers, host=host())
        scores = Scores(tuple(records), len(as_image(image)), limits, drivers, appointed)
        each = [value or 0.0 for value in scoring.per_picture(records, pictures=scores.pictures)]
        passed = list(scoring.gate(records, key=scoring.PASSED, pictures=scores.pictures).mask)
        lines = [told(scores)]
        faced = [record for record in records if record.face is not None]
        if target is not None and target.count and faced and all(r.expression_error is None for r in faced):
            lines.append(
                "expression not compared: the target's faces carry no mesh. Set their landmarks to mesh; a face that "
                "is cut off or unclear gets none"
            )
        return {"ui": {"text": lines}, "result": (scores, each, passed, scores.as_json())}


class BestOf:
    CATEGORY = f"{CATEGORY}/score"
    DESCRIPTION = "Keeps the best pictures of a batch, best first; equals keep their order."
    RETURN_TYPES = ("IMAGE", FACE_SCORE, "INT", "STRING")
    RETURN_NAMES = ("image", "scores", "index", "details")
    OUTPUT_TOOLTIPS = (
        "The best pictures, best first.",
        "Their scores.",
        "Number of the best picture in the batch that came in, from 0.",
        "The order of the whole batch, as JSON.",
    )
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["rank", "pick best", "top k", "best of n"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The batch that was scored."),
                "scores": socket(FACE_SCORE, "From Score Faces on the same batch."),
                "by": choice(scoring.KEYS, "What to rank by."),
                "count": integer(1, 1, 4096, "How many to keep."),
            }
        }

    def run(self, image: Tensor, scores: Scores, by: str, count: int) -> dict[str, Any]:
        image = same_batch(image, scores)
        order = scoring.best_of(scores.records, len(image), by, pictures=len(image))
        kept = order[:count]
        values = scoring.per_picture(scores.records, by, pictures=len(image))
        lines = [f"{place}. picture {i + 1}: {_value(values[i])}" for place, i in enumerate(kept, 1)]
        details = as_json([{"image": i, by: values[i]} for i in order])
        return {"ui": {"text": ["\n".join(lines)]}, "result": (image[kept], picked(scores, kept), kept[0], details)}


class GateByScore:
    CATEGORY = f"{CATEGORY}/score"
    DESCRIPTION = (
        "Divides a batch into pictures that are good enough and those that are not. A side without pictures stops "
        "what hangs "
        "on it, silently: wire a second try to *failed*."
    )
    RETURN_TYPES = ("IMAGE", "IMAGE", "BOOLEAN", "STRING")
    RETURN_NAMES = ("passed", "failed", "all_passed", "details")
    OUTPUT_TOOLTIPS = (
        "The pictures that are good enough, in order.",
        "The others, in order.",
        "Whether every picture passed.",
        "Which passed, as JSON.",
    )
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["threshold", "filter", "quality gate"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The batch that was scored."),
                "scores": socket(FACE_SCORE, "From Score Faces on the same batch."),
                "by": choice(
                    [scoring.PASSED, *scoring.KEYS],
                    "*passed* asks for all the limits of Score Faces at once; else one value against the threshold.",
                ),
                "threshold": number(
                    0.5,
                    -1.0,
                    90.0,
                    0.01,
                    "At least this; for pose error, expression error and copy-paste at most this.",
                ),
            }
        }

    def run(self, image: Tensor, scores: Scores, by: str, threshold: float) -> dict[str, Any]:
        image = same_batch(image, scores)
        gate = scoring.gate(scores.records, threshold, by, pictures=len(image))
        passed, failed = (image[list(side)] if side else host().blocker(None) for side in (gate.passed, gate.failed))
        line = f"{len(gate.passed)} of {len(image)} passed"
        return {
            "ui": {"text": [line]},
            "result": (passed, failed, not gate.failed, as_json({"passed": gate.passed, "failed": gate.failed})),
        }


class ScoreReport:
    CATEGORY = f"{CATEGORY}/score"
    DESCRIPTION = (
        "Draws a contact sheet with a bar for every measure and writes it, with the same numbers as JSON, to the "
        "output "
        "folder. The sheet is marked as showing edited pictures if faces were swapped before, or a target is given."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("sheet", "json")
    OUTPUT_TOOLTIPS = ("The contact sheet.", "All scores as JSON.")
    FUNCTION = "run"
    SHOWS = ("images", "text")
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["contact sheet", "compare", "score card"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The pictures that were scored."),
                "scores": socket(FACE_SCORE, "From Score Faces on the same batch."),
                "title": text("", "Stands above the sheet."),
                "filename_prefix": text(
                    "likeness/report", "Where in the output folder; a number and the ending are added."
                ),
            },
            "optional": {
                "source": socket("IMAGE", "Whose face it is: one picture, or one per result."),
                "target": socket("IMAGE", "Before the edit: one picture, or one per result."),
            },
        }

    def run(
        self,
        image: Tensor,
        scores: Scores,
        title: str,
        filename_prefix: str,
        source: Tensor | None = None,
        target: Tensor | None = None,
    ) -> dict[str, Any]:
        rows = report.rows(scores.records, same_batch(image, scores), source=source, target=target)
        sheet = report.sheet(rows, title=title, limits=scores.limits)
        record = scores.as_json()
        mark = host().mark() or (SWAPPED if target is not None else None)
        saved = self.write(sheet, record, filename_prefix, mark)
        return {"ui": {"images": [saved], "text": [told(scores)]}, "result": (sheet, record)}

    @staticmethod
    def write(sheet: Tensor, record: str, prefix: str, mark: str | None) -> dict[str, str]:
        """The sheet as PNG and the record as JSON beside it; answers the ``ui`` entry of the picture."""
        path, subfolder = numbered(prefix, ".png")
        marks = PngInfo()
        marks.add_text("Likeness", json.dumps({"mark": mark, "scores": json.loads(record)}))
        Image.fromarray(to_uint8(sheet[0])).save(path, pnginfo=marks, compress_level=4)
        path.with_suffix(".json").write_text(record + "\n", encoding="utf-8")
        return {"filename": path.name, "subfolder": subfolder, "type": "output"}


NODES = [ScoreFaces, BestOf, GateByScore, ScoreReport]
