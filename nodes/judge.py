"""Which of the wanted attributes are in the pictures, and a sheet of what a cure changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..face.cure import judge as judging
from ..face.cure import report
from ..face.cure.judge import Verdict
from ..face.cure.judge.clip import similarity
from ..face.cure.words import Attribute, parse_list, split
from ..face.errors import BadInput
from ..face.image import as_image
from ..face.types import Faces
from .form import CATEGORY, FACE_SCORE, FACES, VERDICTS, as_json, choice, socket, text
from .host import host
from .score import ScoreReport, Scores, same_batch

PROMPT, LIST = "prompt", "list"


@dataclass(frozen=True)
class Verdicts:
    """What travels on a VERDICTS socket."""

    attributes: tuple[Attribute, ...]
    pictures: tuple[tuple[Verdict, ...], ...]
    """Per picture one an attribute."""

    @property
    def missing(self) -> tuple[Attribute, ...]:
        return judging.missing(self.attributes, self.pictures)

    @property
    def unjudged(self) -> tuple[Attribute, ...]:
        return judging.unjudged(self.attributes, self.pictures)

    def as_json(self) -> str:
        """Everything that was said, by whom and why."""
        return as_json(
            {
                "schema": "likeness.verdicts/1",
                "attributes": [{"text": a.text, "kind": a.kind, "strength": a.strength} for a in self.attributes],
                "missing": [a.text for a in self.missing],
                "not_judged": [a.text for a in self.unjudged],
                "pictures": [[verdict.to_json() for verdict in row] for row in self.pictures],
            }
        )


def listed(attributes: tuple[Attribute, ...]) -> str:
    """A list with commas between that ``parse_list`` reads as the same attributes."""
    return ", ".join(
        " ".join(a.text.replace(",", " ").split()) + (f": {a.strength:g}" if a.strength != 1 else "")
        for a in attributes
    )


class JudgeAttributes:
    CATEGORY = f"{CATEGORY}/cure"
    DESCRIPTION = (
        "Says of every attribute of a prompt (curly red hair, glasses, laughing) whether it is in the picture: "
        "present, missing, or not judged where nobody can tell. Face parsers, attribute classifiers, expression "
        "networks and CLIP are asked, whichever are there."
    )
    RETURN_TYPES = (VERDICTS, "STRING", "STRING", "BOOLEAN", "STRING")
    RETURN_NAMES = ("verdicts", "missing", "not_judged", "all_present", "details")
    OUTPUT_TOOLTIPS = (
        "For Attribute Report.",
        "What is missing in at least one picture, with commas between: what to cure.",
        "What nobody could judge, with commas between. It may be there or not.",
        "Whether every attribute was found in every picture. Not judged is not found.",
        "Everything that was said, by whom and why, as JSON.",
    )
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["attributes", "prompt consistency", "classifier", "clip score", "freecure"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": socket("IMAGE", "The pictures to look at."),
                "attributes": text(
                    "", "The prompt, or a list of attributes: one a line, or with commas between.", multiline=True
                ),
                "read_as": choice(
                    [PROMPT, LIST],
                    "*prompt*: the attributes are picked out of a sentence, by a vocabulary. *list*: every entry is "
                    "one.",
                ),
                "judges": choice(
                    judging.choices(host()),
                    "Who is asked. *auto*: everybody who is there, those trained for the one thing first, CLIP last.",
                ),
            },
            "optional": {
                "faces": socket(
                    FACES,
                    "The faces, if they are known; the first of each picture is judged. Else they are looked for.",
                ),
                "clip": socket("CLIP", "With clip_vision: for what no network was trained on. SDXL's, with ViT-bigG."),
                "clip_vision": socket("CLIP_VISION", "The image side of the same CLIP."),
            },
        }

    def run(
        self,
        image: Tensor,
        attributes: str,
        read_as: str,
        judges: str,
        faces: Faces | None = None,
        clip: Any = None,
        clip_vision: Any = None,
    ) -> dict[str, Any]:
        image = as_image(image)
        if (clip is None) != (clip_vision is None):
            given, lacking = ("clip", "clip_vision") if clip_vision is None else ("clip_vision", "clip")
            raise BadInput(f"{given} is connected and {lacking} is not: texts and pictures are compared with both")
        wanted = parse_list(attributes) if read_as == LIST else split(attributes)
        rows = judging.judge_all(
            image,
            wanted,
            faces=faces,
            judges=judges,
            similarity=similarity(clip, clip_vision) if clip is not None and wanted else None,
            host=host(),
        )
        verdicts = Verdicts(wanted, rows)
        everything = all(verdict.present is True for row in rows for verdict in row)
        lines = [report.told(None, report.side(image, rows))]
        if not wanted:
            lines = ["no attribute was found in the text; with read_as set to list, every entry is one"]
        result = (verdicts, listed(verdicts.missing), listed(verdicts.unjudged), everything, verdicts.as_json())
        return {"ui": {"text": lines}, "result": result}


class AttributeReport:
    CATEGORY = f"{CATEGORY}/cure"
    DESCRIPTION = (
        "Draws pictures before and after a cure side by side, with a line for every attribute and the likeness to the "
        "person, and writes the sheet, with the same as JSON, to the output folder."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("sheet", "json")
    OUTPUT_TOOLTIPS = ("The sheet, one picture.", "Everything on it, and why, as JSON.")
    FUNCTION = "run"
    SHOWS = ("images", "text")
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["contact sheet", "before after", "compare", "cure report", "freecure"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "before": socket("IMAGE", "The uncured pictures."),
                "before_verdicts": socket(VERDICTS, "From Judge Attributes on them."),
                "after": socket("IMAGE", "The cured pictures, in the same order."),
                "after_verdicts": socket(VERDICTS, "From Judge Attributes on them."),
                "title": text("", "Stands above the sheet."),
                "filename_prefix": text(
                    "likeness/cure", "Where in the output folder; a number and the ending are added."
                ),
            },
            "optional": {
                "before_scores": socket(FACE_SCORE, "From Score Faces on the uncured pictures: the likeness before."),
                "after_scores": socket(FACE_SCORE, "From Score Faces on the cured pictures: the likeness after."),
            },
        }

    def run(
        self,
        before: Tensor,
        before_verdicts: Verdicts,
        after: Tensor,
        after_verdicts: Verdicts,
        title: str,
        filename_prefix: str,
        before_scores: Scores | None = None,
        after_scores: Scores | None = None,
    ) -> dict[str, Any]:
        sides: list[report.Side] = []
        for image, verdicts, scores in (
            (before, before_verdicts, before_scores),
            (after, after_verdicts, after_scores),
        ):
            image = as_image(image) if scores is None else same_batch(image, scores)
            sides.append(report.side(image, verdicts.pictures, None if scores is None else scores.records))
        sheet = report.sheet(*sides, title=title)
        record = as_json(report.to_json(*sides))
        saved = ScoreReport.write(sheet, record, filename_prefix, host().mark())
        return {"ui": {"images": [saved], "text": [report.told(*sides)]}, "result": (sheet, record)}


NODES = [JudgeAttributes, AttributeReport]
