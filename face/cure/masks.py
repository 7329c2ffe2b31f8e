"""Where the attributes of a prompt are in a picture: as a face parser, the mesh or cross-attention shows it.

FreeCure takes the places from the finished foundation picture, not from the personalised one. A parser knows what it
was trained on; the mesh what lies inside a face; the cross-attention of a word anything, but coarsely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import crop as cropping
from .. import filters, geometry, parse
from .. import masks as mesh_masks
from ..errors import BadImage, BadInput
from ..host import STANDALONE, Host
from ..image import as_image, check_faces, from_uint8
from ..lab import of_the_lab
from ..overlay import HALO, PALETTE, Colour, _font
from ..types import Faces
from .words import Attribute

AUTO, PARSER, CROSS_ATTENTION, MESH, USER = "auto", "parser", "cross-attention", "mesh", "user"
SOURCES = (AUTO, PARSER, CROSS_ATTENTION, MESH)

HEAD = (2.0, 3.0)
"""Parsers get a square of so many sides of a face's box: a head, as in the pictures of CelebA-HQ; within these limits
as large as the picture allows, so that long hair is in it."""

EXPRESSION_LABELS = ("left brow", "right brow", "left eye", "right eye", "mouth", "upper lip", "lower lip")
EXPRESSION_PARTS = ("brows", "eyes", "lips", "mouth")
"""Where an expression shows, for those who want a mask for it all the same."""


@dataclass(frozen=True, eq=False)
class Masked:
    """Attributes and their places in a batch of P pictures."""

    attributes: tuple[Attribute, ...]
    masks: Tensor
    """(A, P, H, W) float32 in [0, 1], at the pictures' size; zeros where there is none."""
    sources: tuple[str, ...]
    """Per attribute what showed it: a parser's name, ``mesh``, ``cross-attention``, ``user``; empty if nothing did."""
    reasons: tuple[str, ...]
    """Per attribute why it has no mask, as a sentence; empty where it has one."""

    def areas(self) -> list[float]:
        """Per attribute the part of the pictures that its mask covers, in percent."""
        return [float(mask.mean()) * 100 if mask.numel() else 0.0 for mask in self.masks]

    def union(self) -> Tensor:
        """(P, H, W): all masks together, each as strong as its attribute."""
        return union(self.masks, [attribute.strength for attribute in self.attributes])


def union(masks: Tensor, strengths: Sequence[float]) -> Tensor:
    """(P, H, W): the largest of ``masks`` (A, P, H, W) times their ``strengths`` (A); zeros if A is 0."""
    if len(strengths) != len(masks):
        raise BadInput(f"{len(masks)} masks came with {len(strengths)} strengths; each needs one")
    if not len(masks):
        return torch.zeros(masks.shape[1:])
    return (masks * torch.tensor(list(strengths), dtype=masks.dtype)[:, None, None, None]).amax(0)


# Cross-attention


def from_maps(maps: Tensor, places: Sequence[int], size: tuple[int, int]) -> Tensor:
    """(P, H, W) float32, 0 or 1: where cross-attention looks at the tokens at ``places``.

    ``maps`` (P, h, w, T): the weights of all T tokens in every place of the picture, averaged over heads, layers and
    steps; of the tokens at ``places`` the mean is taken, which must lie below T (BadInput). ``size`` is (H, W). As in
    FreeCure's first version (YIYANGCAI/FreeCure f9b05a9, PhotoMaker/photomaker/pipeline.py, ``add_semantic_guidance``):
    spread over 1 to 2, to the power of e at ten times that, spread over 0 to 1, enlarged bilinearly, cut to 8 bits,
    and split by Otsu's threshold. A flat map, or one that is not finite, leaves its picture empty.
    """
    if maps.ndim != 4 or not maps.is_floating_point():
        raise BadInput(
            f"cross-attention maps have the shape (pictures, height, width, tokens); got {tuple(maps.shape)}"
        )
    if not places or min(places) < 0 or max(places) >= maps.shape[3]:
        raise BadInput(
            f"the maps hold {maps.shape[3]} tokens, and those at {', '.join(map(str, places)) or 'no place'} were "
            "asked for: the prompt is not the one whose attention was recorded"
        )
    looked = maps.detach().cpu()[..., list(places)].double().mean(-1)
    result = torch.zeros(len(looked), *size)
    for mask, each in zip(result, looked, strict=True):
        if not bool(torch.isfinite(each).all()) or not float(each.max()) > float(each.min()):
            continue
        sharp = _spread(torch.exp(10 * (_spread(each) + 1)))
        large = F.interpolate(sharp[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        levels = (large * 255).clamp(0, 255).to(torch.uint8)
        mask.copy_(levels > otsu(levels))
    return result


def _spread(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low)


def otsu(levels: Tensor) -> int:
    """The grey level (0 to 255) of uint8 ``levels`` above which the brighter class begins.

    The first threshold that makes the variance between both classes largest (Otsu 1979, A Threshold Selection Method
    from Gray-Level Histograms, eq. 18), in whole numbers, so that no rounding decides. 255 where all levels are equal:
    nothing lies above.
    """
    counts = [int(n) for n in torch.bincount(levels.flatten().long(), minlength=256)]
    total, weighted = sum(counts), sum(level * n for level, n in enumerate(counts))
    best, threshold = (0, 1), 255  # a fraction
    below = sum_below = 0
    for level, n in enumerate(counts):
        below, sum_below = below + n, sum_below + level * n
        if not 0 < below < total:
            continue
        # w0 w1 (m0 - m1)^2 = (N s0 - n0 S)^2 / (N^2 n0 n1)
        between = ((total * sum_below - below * weighted) ** 2, below * (total - below))
        if between[0] * best[1] > best[0] * between[1]:
            best, threshold = between, level
    return threshold


# All sources


def attribute_masks(
    image: Any,
    attributes: Sequence[Attribute],
    *,
    faces: Faces | None = None,
    parser: str = AUTO,
    maps: Tensor | None = None,
    places: Sequence[Sequence[int]] | None = None,
    source: str = AUTO,
    grow: int = 0,
    expressions: bool = False,
    host: Host = STANDALONE,
) -> Masked:
    """Where ``attributes`` are in ``image`` (P, H, W, 3); what has no place is told apart with a reason, no error.

    ``source``: ``parser``, a network (``parser`` names it, or the first that is there), which sees a face's head, or
    the whole picture where no face was found; ``mesh``, the parts of ``faces`` with 468 points; ``cross-attention``,
    ``maps`` (P or 1, h, w, T) with the tokens' ``places`` per attribute (see ``words.places``); ``auto``, for each
    attribute the first of a parser, the mesh, cross-attention that can show such a thing. A parser that knows a thing
    and sees none has the last word. Edges move out by ``grow`` pixels. ``expressions`` gives expressions the brows,
    eyes and mouth as their place; else they have none. Raises BadInput for settings that cannot be.
    """
    image = as_image(image)
    if source not in SOURCES:
        raise BadInput(f"there is no source of masks {source!r}; choose one of {', '.join(SOURCES)}")
    if abs(grow) > mesh_masks.FURTHEST:
        raise BadInput(f"a mask grows by -{mesh_masks.FURTHEST} to {mesh_masks.FURTHEST} pixels; got {grow}")
    if faces is not None:
        check_faces(image, faces)
    if maps is not None and (maps.ndim != 4 or len(maps) not in (1, len(image))):
        raise BadInput(
            f"cross-attention maps of shape {tuple(maps.shape)} came with {len(image)} pictures; they must be "
            "(pictures, height, width, tokens), of as many pictures. Connect the tape of the run that made them."
        )
    if parser == MESH and source in (AUTO, PARSER):
        source = MESH if source == PARSER else source
    looking = _Looking(image, faces, parser, maps, host)
    masks = torch.zeros(len(attributes), *image.shape[:3])
    sources, reasons = [""] * len(attributes), [""] * len(attributes)
    for n, attribute in enumerate(attributes):
        host.check_interrupt()
        if attribute.abstract:
            if not (expressions and attribute.kind == "expression"):
                reasons[n] = f"“{attribute.text}” has no place of its own: no mask can hold it; cure it by inversion"
                continue
            attribute = replace(attribute, labels=EXPRESSION_LABELS, parts=EXPRESSION_PARTS, abstract=False)
        tokens = tuple(places[n]) if places is not None and n < len(places) else ()
        mask, sources[n], reasons[n] = looking.find(attribute, source, tokens)
        if mask is None:
            continue
        for target, one in zip(masks[n], mask, strict=True):
            target.copy_(filters.grow(one, grow))
        if not bool(mask.any()):
            sources[n], reasons[n] = "", f"{sources[n]} sees no “{attribute.text}” in the picture"
    return Masked(tuple(attributes), masks, tuple(sources), tuple(reasons))


class _Looking:
    """One batch of pictures, each parsed at most once."""

    def __init__(self, image: Tensor, faces: Faces | None, parser: str, maps: Tensor | None, host: Host) -> None:
        self.image, self.faces, self.maps, self.host = image, faces, maps, host
        networks = parse.automatic(host)
        self.network = (networks[0] if networks else "") if parser == AUTO else "" if parser == MESH else parser
        self._parsed: list[list[tuple[Tensor, np.ndarray[Any, Any] | None]]] | None = None

    def find(self, attribute: Attribute, source: str, tokens: tuple[int, ...]) -> tuple[Tensor | None, str, str]:
        """The mask (P, H, W) or None, its source, and why there is none."""
        reasons: list[str] = []
        for name, look in ((PARSER, self._by_parser), (MESH, self._by_mesh), (CROSS_ATTENTION, self._by_attention)):
            if source not in (AUTO, name):
                continue
            answer = look(attribute, tokens)
            if not isinstance(answer, str):
                return answer, self.network if name == PARSER else name, ""
            reasons.append(answer)
        return None, "", "; ".join(reasons)

    def _by_parser(self, attribute: Attribute, _: tuple[int, ...]) -> Tensor | str:
        labels = attribute.labels
        if of_the_lab(self.network) and attribute.kind == parse.BEARD:
            labels = (parse.BEARD,)
        if not labels:
            return f"a face parser has no label for “{attribute.text}”"
        if not self.network:
            return "no face parser is there (bisenet*.onnx or segface*.onnx in the likeness folder)"
        result = torch.zeros(self.image.shape[:3])
        for picture, parsed in zip(result, self._labels(), strict=True):
            for seen, matrix in parsed:
                _lay(picture, parse.where(seen, labels), matrix)
        return result

    def _by_mesh(self, attribute: Attribute, _: tuple[int, ...]) -> Tensor | str:
        if not attribute.parts:
            return f"the mesh has no part for “{attribute.text}”"
        if self.faces is None or not any(468 in face.landmarks for group in self.faces for face in group):
            return "no face with the 468-point mesh was found"
        return mesh_masks.mask(self.faces, "parts", attribute.parts, strict=False)

    def _by_attention(self, attribute: Attribute, tokens: tuple[int, ...]) -> Tensor | str:
        if self.maps is None:
            return "no cross-attention was recorded (connect a tape with maps, and the CLIP)"
        if not tokens:
            return f"“{attribute.word or attribute.text}” is not in the prompt, so that no attention was paid to it"
        if max(tokens) >= self.maps.shape[3]:
            return f"the tape's {self.maps.shape[3]} tokens end before “{attribute.text}”: its prompt was another"
        height, width = int(self.image.shape[1]), int(self.image.shape[2])
        mask = from_maps(self.maps, tokens, (height, width))
        return mask.expand(len(self.image), height, width)

    def _labels(self) -> list[list[tuple[Tensor, np.ndarray[Any, Any] | None]]]:
        """Per picture what the parser says: labels (S, S) of every head with the matrix from the picture to it, or
        labels (H, W) of the whole picture."""
        if self._parsed is None:
            self._parsed = []
            for n, picture in enumerate(self.image):
                faces = self.faces.at([n]) if self.faces is not None else None
                # The lab's sees whole pictures, as they were drawn.
                if faces is None or not faces.count or of_the_lab(self.network):
                    labels = parse.parse(picture, None, self.network, host=self.host)
                    self._parsed.append([(labels, None)])
                    continue
                heads: list[tuple[Tensor, np.ndarray[Any, Any] | None]] = []
                for face in faces[0]:
                    room = min(picture.shape[:2]) / max(face.width, face.height, 1e-6)
                    margin = (float(np.clip(room, *HEAD)) - 1) / 2
                    head = cropping.crop(picture[None], Faces(((face,),), faces.sizes), margin=margin)
                    labels = parse.parse(head.images[0], head.faces[0][0], self.network, host=self.host)
                    heads.append((labels, head.matrices[0]))
                self._parsed.append(heads)
        return self._parsed


def _lay(picture: Tensor, mask: Tensor, matrix: np.ndarray[Any, Any] | None) -> None:
    """Draw ``mask`` (S, S), seen through ``matrix`` from ``picture`` (H, W) to it, over what is there."""
    height, width = picture.shape
    if matrix is None:
        torch.maximum(picture, mask, out=picture)
        return
    side, back = len(mask), geometry.inverse(matrix)
    seen = geometry.transform(back, np.array([[-0.5, -0.5], [side - 0.5, side - 0.5]]))
    left, top = (int(v) for v in np.clip(np.floor(seen[0]), 0, (width, height)))
    right, bottom = (int(v) for v in np.clip(np.ceil(seen[1]) + 1, 0, (width, height)))
    if right <= left or bottom <= top:
        return
    scale = float(np.hypot(*matrix[:, 0]))
    if scale > 2:
        # Heads larger than in the picture are averaged first, lest warping skip pixels.
        step = int(scale)
        whole = ceil(side / step) * step
        mask = F.avg_pool2d(F.pad(mask[None, None], (0, whole - side, 0, whole - side), mode="replicate"), step)[0, 0]
        matrix = np.column_stack([matrix[:, :2] / step, (matrix[:, 2] + 0.5) / step - 0.5])
        back = geometry.inverse(matrix)
    back[:, 2] -= (left, top)
    drawn = geometry.warp(mask[..., None], back[None], (bottom - top, right - left))[0, 0]
    region = picture[top:bottom, left:right]
    torch.maximum(region, drawn.clamp_(0, 1), out=region)


# The user's own


def given(mask: Any, pictures: int, height: int, width: int, what: str = "the mask") -> Tensor:
    """A user's ``mask`` (h, w) or (N, h, w) at the pictures' size: (N, height, width) in [0, 1], resized if need be.

    Raises BadImage for what is no mask, holds NaN, or has other proportions than the pictures by more than one of its
    pixels.
    """
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or 0 in mask.shape:
        came = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise BadImage(f"{what} must have the shape (batch, height, width); got {came}")
    found = mask.detach().to(device="cpu", dtype=torch.float32)
    found = found[None] if found.ndim == 2 else found
    h, w = int(found.shape[1]), int(found.shape[2])
    scale = (h / height + w / width) / 2
    if abs(h - scale * height) > 1 or abs(w - scale * width) > 1:
        raise BadImage(
            f"{what} has {w}×{h} pixels and the picture {width}×{height}: other proportions. Crop or pad the mask to "
            "those of the picture."
        )
    if not bool(torch.isfinite(found).all()):
        raise BadImage(f"{what} holds NaN or infinite values")
    if (h, w) != (height, width):
        found = F.interpolate(found[:, None], (height, width), mode="bilinear", antialias=True)[:, 0]
    return found.clamp(0, 1)


def with_given(masked: Masked, mask: Any) -> tuple[Masked, Tensor | None]:
    """``masked`` with the user's own masks: (the record, (P, H, W) for the union or None).

    As many masks as attributes: one for each, in their order, for all pictures. Else one for all pictures, or one a
    picture: they belong to no attribute and join the union. Raises BadImage.
    """
    count, pictures, height, width = masked.masks.shape
    found = given(mask, pictures, height, width)
    if count and len(found) == count:
        masks = found[:, None].expand(count, pictures, height, width)
        return replace(masked, masks=masks.clone(), sources=(USER,) * count, reasons=("",) * count), None
    if len(found) not in (1, pictures):
        raise BadImage(
            f"{len(found)} masks came for {count} attributes in {pictures} pictures: give one for each attribute, one "
            "for each picture, or a single one"
        )
    return masked, found.expand(pictures, height, width)


# For people to look at

_INK: Colour = (235, 235, 235)
_NOTHING: Colour = (60, 60, 60)


def coloured(image: Any, masked: Masked, extra: Tensor | None = None) -> Tensor:
    """The pictures (P, H', W, 3) with each attribute in a colour of its own, and below them which is which.

    H' is higher than the pictures by the legend. ``extra`` (P, H, W) is a mask that belongs to no attribute.
    """
    image = as_image(image)
    layers = [(masked.masks[n], _colour(n)) for n in range(len(masked.attributes))]
    if extra is not None:
        layers.append((extra, _INK))
    anywhere = torch.stack([mask for mask, _ in layers]).amax(0) if layers else torch.zeros(image.shape[:3])
    shown = image * (0.6 + 0.4 * anywhere[..., None])
    line = max(1, round(min(image.shape[1:3]) / 500))
    # The largest first, so that eyes show on a smile that spreads over them.
    for mask, colour in sorted(layers, key=lambda layer: -float(layer[0].sum())):
        ink = torch.tensor(colour) / 255
        shown = torch.lerp(shown, ink.expand_as(shown), 0.4 * mask[..., None])
        outside = (mask <= 0.5).float()
        edge = (outside == 0) & (F.max_pool2d(outside[:, None], 2 * line + 1, 1, line)[:, 0] > 0)
        shown[edge] = ink
    lines: list[tuple[Colour, str]] = []
    told = zip(masked.attributes, masked.sources, masked.areas(), strict=True)
    for n, (attribute, source, area) in enumerate(told):
        what = attribute.text if len(attribute.text) <= 60 else f"{attribute.text[:59]}…"
        lines.append(
            (_colour(n) if source else _NOTHING, f"{what}: {f'{source}, {area:.1f} %' if source else 'no mask'}")
        )
    if extra is not None:
        lines.append((_INK, f"your mask: {float(extra.mean()) * 100:.1f} %"))
    if not lines:
        lines.append((_NOTHING, "no attribute"))
    legend = _legend(lines, int(image.shape[2]), int(image.shape[1]))
    return torch.cat([shown.clamp(0, 1), legend.expand(len(image), *legend.shape)], 1)


def _colour(n: int) -> Colour:
    """Colours that differ; after the palette's, the same ones paler."""
    red, green, blue = PALETTE[n % len(PALETTE)]
    pale = 0.5 if n // len(PALETTE) % 2 else 0.0
    return tuple(round(v + (255 - v) * pale) for v in (red, green, blue))  # pyright: ignore[reportReturnType]


def _legend(lines: Sequence[tuple[Colour, str]], width: int, height: int) -> Tensor:
    """(h, width, 3): a coloured square and a text for each line, several in a row where they fit."""
    from PIL import Image, ImageDraw

    size = max(9, round(min(height, width) / 32))
    while True:
        font, pad = _font(size), max(2, size // 3)
        pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        wide = [2 * pad + size + round(pen.textlength(text, font)) + 2 * pad for _, text in lines]
        if max(wide) <= width or size <= 7:
            break
        size = max(7, int(size * 0.9))
    rows: list[list[int]] = [[]]
    for n, one in enumerate(wide):
        if rows[-1] and sum(wide[m] for m in rows[-1]) + one > width:
            rows.append([])
        rows[-1].append(n)
    high = size + 2 * pad
    strip = Image.new("RGB", (width, high * len(rows) + pad), HALO)
    pen = ImageDraw.Draw(strip)
    for y, row in enumerate(rows):
        x, middle = pad, y * high + (high + pad) // 2
        for n in row:
            colour, text = lines[n]
            half = size // 2
            pen.rectangle((x, middle - half, x + size, middle + half), fill=colour)
            pen.text((x + size + pad, middle), text, fill=_INK, font=font, anchor="lm")
            x += wide[n]
    return from_uint8(np.array(strip))
