"""The closed loop: look what is missing, cure only that, look again, and stop by itself.

The loop knows neither networks nor samplers: it is given functions that draw, cure and judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput
from .judge import Verdict, missing, unjudged
from .words import Attribute

Draw = Callable[[], Tensor]
"""Answers the uncured pictures (P, H, W, 3)."""
Cure = Callable[[Sequence[Attribute]], Tensor]
"""Draws the pictures (P, H, W, 3) anew, with these attributes cured."""
Judge = Callable[[Tensor, Sequence[Attribute]], Sequence[Sequence[Verdict]]]
"""Per picture one verdict an attribute, as ``judge.judge_all`` gives them."""
Likeness = Callable[[Tensor], Sequence[float | None]]
"""Per picture how like the person it is; None where that cannot be measured."""


@dataclass(frozen=True, eq=False)
class Round:
    """One look at the pictures."""

    cured: tuple[Attribute, ...]
    """What had been cured in them; nothing in the first round."""
    pictures: Tensor
    """(P, H, W, 3)."""
    verdicts: tuple[tuple[Verdict, ...], ...]
    """Per picture one an attribute."""
    similarity: tuple[float | None, ...]
    """Per picture; None where it was not measured."""

    @property
    def present(self) -> int:
        """Attributes that are present, over all pictures."""
        return sum(verdict.present is True for row in self.verdicts for verdict in row)


@dataclass(frozen=True, eq=False)
class Looped:
    """What became of the pictures."""

    attributes: tuple[Attribute, ...]
    rounds: tuple[Round, ...]
    """Every look, the uncured pictures first."""
    best: tuple[int, ...]
    """Per picture the round it was taken from."""
    stopped: str
    """Why it ended, a sentence."""

    @property
    def pictures(self) -> Tensor:
        """(P, H, W, 3): of every picture its best round."""
        return torch.stack([self.rounds[r].pictures[i] for i, r in enumerate(self.best)])

    @property
    def verdicts(self) -> tuple[tuple[Verdict, ...], ...]:
        """Of ``pictures``."""
        return tuple(self.rounds[r].verdicts[i] for i, r in enumerate(self.best))

    @property
    def similarity_before(self) -> tuple[float | None, ...]:
        """Per picture, uncured."""
        return self.rounds[0].similarity

    @property
    def similarity_after(self) -> tuple[float | None, ...]:
        """Of ``pictures``."""
        return tuple(self.rounds[r].similarity[i] for i, r in enumerate(self.best))

    @property
    def missing(self) -> tuple[Attribute, ...]:
        """What is missing still, in one picture at least."""
        return missing(self.attributes, self.verdicts)

    @property
    def unjudged(self) -> tuple[Attribute, ...]:
        """What nobody could judge, in one picture at least. It was not cured unless that was asked for."""
        return unjudged(self.attributes, self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``: every round's verdicts and similarities."""
        return {
            "attributes": [attribute.text for attribute in self.attributes],
            "stopped": self.stopped,
            "best": list(self.best),
            "missing": [attribute.text for attribute in self.missing],
            "not_judged": [attribute.text for attribute in self.unjudged],
            "similarity": {"before": list(self.similarity_before), "after": list(self.similarity_after)},
            "rounds": [
                {
                    "cured": [attribute.text for attribute in one.cured],
                    "present": one.present,
                    "similarity": list(one.similarity),
                    "pictures": [[verdict.to_json() for verdict in row] for row in one.verdicts],
                }
                for one in self.rounds
            ],
        }


def closed_loop(
    draw: Draw,
    cure: Cure,
    judge: Judge,
    attributes: Sequence[Attribute],
    rounds: int = 2,
    *,
    similarity: Likeness | None = None,
    cure_unjudged: bool = False,
    stronger: float = 1.0,
) -> Looped:
    """Draw, judge, and at most ``rounds`` times cure what is missing and judge again.

    What is cured: the attributes that were judged missing, in any picture of the batch, in this round or an earlier
    one, for every cure begins again from the uncured start and would lose what the last one gave. An attribute that is
    *not judged* is reported so and left alone, unless ``cure_unjudged``. One that is still missing after it was cured
    is cured ``stronger`` times as strongly in the next round.

    It ends when nothing is missing, when a round brings no picture more attributes than the best before, when the next
    round would only repeat the last, or when the rounds are used up; ``stopped`` says which. Of every picture the best
    round is kept: the most attributes present, then the fewest missing, then the highest ``similarity``, then the
    earliest. Raises BadInput for verdicts or pictures of another number than the batch; whatever the functions raise
    passes through.
    """
    wanted = tuple(attributes)
    if rounds < 0:
        raise BadInput(f"the loop runs 0 rounds or more; got {rounds}")
    looks = [_look((), draw(), judge, wanted, similarity)]
    best = [0] * len(looks[0].pictures)
    tried: dict[str, Attribute] = {}
    stopped = ""
    while not stopped:
        now = tuple(looks[r].verdicts[i] for i, r in enumerate(best))
        needed = missing(wanted, now)
        open_ones = unjudged(wanted, now)
        if cure_unjudged:
            needed = tuple(a for a in wanted if a in needed or (a in open_ones and a.text not in tried))
        if not needed:
            stopped = "nothing is missing" if not open_ones else f"nothing was found missing; {_not_judged(open_ones)}"
            break
        if len(looks) > rounds:
            stopped = f"{rounds} round{'s' * (rounds != 1)} used up" if rounds else "no round was allowed"
            break
        before = dict(tried)
        for attribute in needed:
            last = tried.get(attribute.text)
            tried[attribute.text] = attribute if last is None else replace(last, strength=last.strength * stronger)
        if tried == before:
            stopped = "the next round would repeat the last: what is missing has been cured as strongly before"
            break
        cured = tuple(tried[a.text] for a in wanted if a.text in tried)
        look = _look(cured, cure(cured), judge, wanted, similarity)
        if look.pictures.shape != looks[0].pictures.shape:
            raise BadInput(
                f"the cured pictures have the shape {tuple(look.pictures.shape)}, the uncured ones "
                f"{tuple(looks[0].pictures.shape)}: a cure draws the same pictures anew"
            )
        looks.append(look)
        gained = False
        for i, r in enumerate(best):
            gained = gained or _present(look.verdicts[i]) > _present(looks[r].verdicts[i])
            if _worth(look, i) > _worth(looks[r], i):
                best[i] = len(looks) - 1
        if not gained:
            stopped = f"round {len(looks) - 1} gained nothing"
    return Looped(wanted, tuple(looks), tuple(best), stopped)


def _look(
    cured: tuple[Attribute, ...],
    pictures: Tensor,
    judge: Judge,
    wanted: tuple[Attribute, ...],
    similarity: Likeness | None,
) -> Round:
    rows = tuple(tuple(row) for row in judge(pictures, wanted))
    like = tuple(similarity(pictures)) if similarity is not None else (None,) * len(pictures)
    if len(rows) != len(pictures) or len(like) != len(pictures) or any(len(row) != len(wanted) for row in rows):
        raise BadInput(
            f"{len(pictures)} pictures and {len(wanted)} attributes were judged; got verdicts on {len(rows)} pictures "
            f"({', '.join(str(len(row)) for row in rows)}) and {len(like)} similarities"
        )
    return Round(cured, pictures, rows, like)


def _present(row: Sequence[Verdict]) -> int:
    return sum(verdict.present is True for verdict in row)


def _worth(look: Round, i: int) -> tuple[int, int, float]:
    """By what picture ``i`` is compared between rounds; more is better."""
    row, like = look.verdicts[i], look.similarity[i]
    return _present(row), -sum(verdict.present is False for verdict in row), -1.0 if like is None else like


def _not_judged(attributes: Sequence[Attribute]) -> str:
    return f"not judged: {', '.join(attribute.text for attribute in attributes)}"
