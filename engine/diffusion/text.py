"""The CLIP socket: a prompt to CONDITIONING, with the methods that code written against ComfyUI's CLIP calls."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...face.errors import BadInput
from . import tokens
from .clip import TextTower
from .model import WeightPatch, check, patched
from .tokens import Token, Vocabulary

Tensor = torch.Tensor
Sections = Sequence[Sequence[Token]]
Tokens = Mapping[str, Sections]
"""{"l": sections, "g": sections}: of 77 tokens each, as ComfyUI's ``tokenize`` gives them."""

FAMILIES: dict[tuple[str, ...], str] = {("l",): "sd15", ("l", "g"): "sdxl"}


class CLIP:
    """Text encoders, which layer is read, and LoRAs. A value: ``clone`` it before ``clip_layer``."""

    def __init__(self, towers: Mapping[str, TextTower], places: Sequence[Path]) -> None:
        """``towers``: ``l`` for SD1.5, ``l`` and ``g`` for SDXL; ``places``: where their vocabulary may lie."""
        self.towers = torch.nn.ModuleDict(dict(towers))
        """Shared; never changed."""
        self.family = FAMILIES[tuple(towers)]
        self.places = tuple(places)
        self.layer_idx: int | None = None
        self.lora: tuple[WeightPatch, ...] = ()

    def clone(self) -> CLIP:
        return copy.copy(self)

    def clip_layer(self, layer_idx: int) -> None:
        """Read the state after this layer, counted from the end: -1 is the last, -2 the one before."""
        self.layer_idx = layer_idx

    def with_lora(self, patch: WeightPatch) -> CLIP:
        """Another CLIP with one more patch; its paths begin with the tower: ``l.text_model.encoder…``."""
        check(self.towers, patch)
        other = self.clone()
        other.lora = (*self.lora, patch)
        return other

    def vocabulary(self) -> Vocabulary:
        """Raises MissingModel if there is none, BadInput if it is not the one the encoders were trained with."""
        found = tokens.vocabulary(self.places)
        for tower in self._towers().values():
            if (len(found), found.start, found.end) != (tower.vocabulary, tower.start, tower.end):
                raise BadInput(
                    f"the vocabulary {found.name} has {len(found)} tokens where the text encoder knows "
                    f"{tower.vocabulary}, the last two being start and end: it belongs to another model. Looked in: "
                    f"{', '.join(map(str, self.places))}"
                )
        return found

    def tokenize(self, text: str, return_word_ids: bool = False, **options: Any) -> dict[str, list[list[Token]]]:
        """{"l": [[(id, weight[, word])…77]…], "g": …}. ``disable_weights=True`` takes brackets as text."""
        vocabulary, found = self.vocabulary(), {}
        # ComfyUI lists g first; SDXL's larger encoder was trained with 0 as padding.
        for name in reversed(self._towers()):
            pad = 0 if name == "g" else vocabulary.end
            sections = tokens.tokenize(vocabulary, text, pad, weights=not options.get("disable_weights", False))
            found[name] = sections if return_word_ids else [[token[:2] for token in part] for part in sections]
        return found

    def encode(self, text: str) -> Tensor:
        return self.encode_from_tokens(self.tokenize(text))

    def encode_from_tokens(self, tokens: Tokens, return_pooled: bool | str = False, return_dict: bool = False) -> Any:
        """The encoded text (1, 77k, D) float32 on the CPU, with the pooled text (1, P) or as a dictionary if asked.

        A token's id may be an embedding vector instead (textual inversion). ``return_pooled="unprojected"`` leaves the
        pooled text as wide as the encoder.
        """
        missing = [name for name in self._towers() if name not in tokens]
        if missing:
            raise BadInput(
                f"this {self.family} text encoder needs tokens for {', '.join(self._towers())} and got those for "
                f"{', '.join(tokens) or 'nothing'}: tokenize the prompt with the same CLIP"
            )
        cond, pooled = self._encode(tokens, unprojected=return_pooled == "unprojected")
        if return_dict:
            return {"cond": cond, "pooled_output": pooled}
        return (cond, pooled) if return_pooled else cond

    def encode_from_tokens_scheduled(
        self, tokens: Tokens, unprojected: bool = False, add_dict: Mapping[str, Any] | None = None, **_: Any
    ) -> list[list[Any]]:
        """CONDITIONING of one entry."""
        cond, pooled = self.encode_from_tokens(tokens, return_pooled="unprojected" if unprojected else True)
        return [[cond, {"pooled_output": pooled, **(add_dict or {})}]]

    def _towers(self) -> dict[str, TextTower]:
        return dict(self.towers.items())  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def _encode(self, tokens: Tokens, unprojected: bool) -> tuple[Tensor, Tensor]:
        towers: Any = patched(self.towers, self.lora) if self.lora else self.towers
        if self.family == "sd15":
            # The last state, or an earlier one, normed either way. SD1.5 never had a projection.
            return _weighted(towers["l"], tokens["l"], self.layer_idx, normed=True, pad=None, projected=False)
        layer = -2 if self.layer_idx is None else self.layer_idx
        small, _ = _weighted(towers["l"], tokens["l"], layer, normed=False, pad=None, projected=False)
        large, pooled = _weighted(towers["g"], tokens["g"], layer, normed=False, pad=0, projected=not unprojected)
        length = min(small.shape[1], large.shape[1])
        return torch.cat([small[:, :length], large[:, :length]], dim=-1), pooled


def _weighted(
    tower: TextTower, sections: Sections, layer: int | None, *, normed: bool, pad: int | None, projected: bool
) -> tuple[Tensor, Tensor]:
    """All sections in a row (1, 77k, width), and the pooled text of the first.

    A token of weight w lies w times as far from where the same place of an empty prompt lies (ComfyUI's weighting).
    """
    wanted = [[token[0] for token in section] for section in sections]
    uneven = any(token[1] != 1.0 for section in sections for token in section)
    if uneven:
        length = max(map(len, wanted))
        wanted.append([tower.start, tower.end, *[tower.end if pad is None else pad] * (length - 2)])
    states, pooled = _run(tower, wanted, layer, normed, projected)
    if uneven:
        empty, states = states[-1], states[:-1]
        weights = [[token[1] for token in section] for section in sections]
        factor = torch.tensor(weights, device=states.device, dtype=states.dtype)[..., None]
        # Where the weight is 1 the state itself, not what rounding makes of it.
        states = torch.where(factor == 1, states, (states - empty) * factor + empty)
    return states.flatten(0, 1)[None].cpu(), pooled[:1].cpu()


def _run(
    tower: TextTower, wanted: list[list[Any]], layer: int | None, normed: bool, projected: bool
) -> tuple[Tensor, Tensor]:
    device = next(tower.parameters()).device
    plain = [[0 if isinstance(token, Tensor) else int(token) for token in section] for section in wanted]
    if len({len(section) for section in plain}) != 1 or len(plain[0]) > tower.positions:
        raise BadInput(
            f"the text encoder reads sections of one length up to {tower.positions} tokens, and got "
            f"{sorted({len(section) for section in plain})}: pass on what `tokenize` gave"
        )
    if (most := max(map(max, plain))) >= tower.vocabulary:
        raise BadInput(
            f"token {most} is beyond the {tower.vocabulary} that the text encoder knows: another vocabulary's"
        )
    embedded = tower.embed(torch.tensor(plain, device=device))
    for row, section in enumerate(wanted):
        for place, token in enumerate(section):
            if isinstance(token, Tensor):
                if token.numel() != tower.width:
                    raise BadInput(
                        f"an embedding of {token.numel()} numbers stands in a prompt for a text encoder {tower.width} "
                        "wide: it was made for another base model"
                    )
                embedded[row, place] = token.to(embedded)
    # The first end token: what follows it is padding. A section without one is read to its last token.
    ends = [section.index(tower.end) if tower.end in section else len(section) - 1 for section in plain]
    # A layer deeper than the encoder means its normed last state, as in ComfyUI.
    beyond = layer is None or abs(layer) > tower.sizes.layers
    last, between, raw, pooled = tower(embedded, torch.tensor(ends, device=device), -1 if beyond else layer)
    states = last if beyond else tower.norm(between) if normed else between
    return states, pooled if projected else raw
