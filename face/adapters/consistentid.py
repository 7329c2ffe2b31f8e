"""ConsistentID: FaceID-Plus' attention and LoRA, and parts of the face fused into the words of a standing caption.

JackAILab/ConsistentID e234008 (Huang et al. 2024, arXiv 2404.16771): attention.py: FacialEncoder, functions.py:
AttentionMLP and the caption's making, pipline_StableDiffusion_ConsistentID.py and pipline_StableDiffusionXL_….py. The
first steps see the text and the identity's tokens but not the parts (``start_merge_step``). The two versions differ in
more than their sizes: see ``Version``.

One thing is not taken over: the authors' SDXL script does not tell its second tokeniser the marker that stands behind a
part's word, so that the second encoder reads the marker as words. In their training it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import BadInput
from ..prompt import LENGTH, TextEncoder, Written, encode, length_of
from . import Evidence, Feature, IdAdapter, Recogniser, formats
from ._checkpoint import Checkpoint
from ._layers import KEYS, LOW_RANK, keys_and_values, low_rank
from ._net import Net
from ._projectors import fuse, resampler
from .faceid import PROJECTOR
from .faceid_plus import PERCEIVER, PlusProjector
from .plus_face import RESAMPLER

START = 0.6
"""30 of 50 steps in the authors' scripts."""

CAPTION = (
    ("The person has one face", "face"),
    ("two ears", "ears"),
    ("two eyes", "eyes"),
    ("one nose", "nose"),
    ("and one mouth", "mouth"),
)
"""The authors' caption, "The person has one face, one nose, two eyes, two ears, and one mouth.", after they have
reordered it by part; each phrase's last word stands for the part."""

REGIONS = (
    ("face", ("skin",)),
    ("eyes", ("left eye", "right eye")),
    ("ears", ("left ear", "right ear")),
    ("nose", ("nose",)),
    ("mouth", ("upper lip", "lower lip")),
)
"""The labels of each part, the first that is there being cut out, in the order in which the authors hand the parts
over: by label. The caption's order is another, so eyes and ears change places there. It was trained that way, and stays
so here."""

IGNORED = "unet"
"""A file saved from training may hold the base model, too; the authors' loader passes it over."""


@dataclass(frozen=True)
class Version:
    """In what SD1.5's and SDXL's pipeline differ."""

    shortcut: bool
    """Whether the vector's own tokens are added to what CLIP answered, as in FaceID-Plus v2."""
    front: str
    """What stands between the prompt and the caption."""
    mouth: str
    """The last phrase of the caption."""
    early: bool
    """Whether the first steps go without the caption and without the negative side's parts, too."""


SDXL_SITES = 70
"""Cross-attention layers by which a file of SDXL's version is known."""
SD15 = Version(shortcut=False, front="Detail:", mouth="and one mouth", early=False)
SDXL = Version(shortcut=True, front="; Detail:", mouth="and a mouth", early=True)


def parts(net: Net, regions: Tensor) -> Tensor:
    """(K, D): one token for what the encoder sees of each region, ``regions`` (K, T, C)."""
    return resampler(net.under("visual_projection"), regions)[:, 0]


def merged(net: Net, prompt: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """``prompt`` (1, L, D) with the words at ``places`` (L, bool) fused with ``tokens``, one each."""
    out = prompt.float().clone()
    out[0, places] = fuse(net.under("fuse_module"), out[0, places], tokens)
    return out.to(prompt.dtype)


def captioned(clip: TextEncoder, prompt: str, seen: Sequence[str], version: Version = SD15) -> tuple[str, list[int]]:
    """The prompt with the caption of the ``seen`` parts, and the places of their words in its first chunk."""
    phrases = [version.mouth if part == "mouth" else phrase for phrase, part in CAPTION if part in seen]
    caption = " ".join(f"{phrase}," for phrase in phrases)
    front, tail = f"{prompt}{version.front}", ""
    first, *others = next(iter(clip.tokenize(f"{front}{caption}").values()))
    # The authors count with a marker behind each phrase.
    if others or length_of(first) + len(phrases) > LENGTH:
        # Too long together: the caption goes first, and the prompt is cut off.
        front, tail = version.front, f" Caption:{prompt}"
    places: list[int] = []
    text = front
    for phrase in phrases:
        text = f"{text}{phrase}"
        chunk = next(iter(clip.tokenize(text).values()))[0]
        places.append(length_of(chunk) - 2)
        text = f"{text}, "
    return f"{front}{caption}{tail}", places


@dataclass(frozen=True)
class ConsistentIDText:
    """How the parts get into the prompt; the identity's tokens go the usual way, beside it."""

    tensors: Mapping[str, Tensor]
    version: Version = SD15
    start: float = START
    trigger: str = ""
    needs_pictures: bool = True
    needs_clip: bool = True

    def write(
        self, clip: TextEncoder | None, prompt: str, negative: str, evidence: Evidence, start: float, trigger: str
    ) -> tuple[list[Written], list[Written]]:
        """Conditionings for the positive and the negative side. Raises BadInput."""
        if clip is None:
            raise BadInput("ConsistentID writes parts of the face into the prompt: connect the CLIP that reads it")
        if evidence.unseen is None:
            raise ValueError("ConsistentID needs the encoder's view of nothing")
        net = Net(self.tensors)
        seen = [part for part, _ in REGIONS if part in evidence.regions]
        text, places = captioned(clip, prompt, seen, self.version)
        embedded, pooled = encode(clip, text)
        width = net["fuse_module.layer_norm.weight"].shape[0]
        if embedded.shape[-1] != width:
            raise BadInput(
                f"this ConsistentID writes tokens of {width} numbers, but this CLIP's text has {embedded.shape[-1]}. "
                f"Use the CLIP of {'an SD1.5' if width == 768 else 'an SDXL'} checkpoint."
            )
        if embedded.shape[1] > LENGTH:
            embedded = embedded[:, :LENGTH]
        chosen = torch.zeros(embedded.shape[1], dtype=torch.bool)
        chosen[places] = True
        opposite, opposite_pooled = encode(clip, negative)
        opposite = opposite[:, :LENGTH]
        if not seen:
            return [Written(embedded, pooled)], [Written(opposite, opposite_pooled)]
        shown = parts(net, torch.stack([evidence.regions[part] for part in seen]))
        nothing = parts(net, evidence.unseen.expand(len(seen), -1, -1))
        late = Written(merged(net, embedded, chosen, shown.to(embedded.device)), pooled, start, 1.0)
        against = Written(merged(net, opposite, chosen, nothing.to(opposite.device)), opposite_pooled)
        if start <= 0:
            return [late], [against]
        if not self.version.early:
            return [Written(embedded, pooled, 0.0, start), late], [against]
        plain, plain_pooled = encode(clip, prompt)
        return (
            [Written(plain[:, :LENGTH], plain_pooled, 0.0, start), late],
            [Written(opposite, opposite_pooled, 0.0, start), replace(against, start=start)],
        )


@dataclass(frozen=True)
class _ConsistentID:
    title: str = "ConsistentID"

    def claims(self, file: Checkpoint) -> bool:
        return "FacialEncoder.fuse_module.layer_norm.weight" in file

    def likely(self, file: Checkpoint) -> bool:
        return True

    def load(self, file: Checkpoint) -> IdAdapter:
        file.only_groups(("FacialEncoder", "image_proj", "ip_adapter", IGNORED), self.title)
        file.only("image_proj", (*PROJECTOR, *PERCEIVER), self.title)
        file.only("ip_adapter", (*KEYS, *LOW_RANK), self.title)
        fused = r"fuse_module\.(?:layer_norm|mlp[12]\.(?:layernorm|fc[12]))\.(?:weight|bias)"
        file.only("FacialEncoder", (*(rf"visual_projection\.{p}" for p in RESAMPLER), fused), self.title)
        keys, values = keys_and_values(file)
        version = SDXL if len(keys) == SDXL_SITES else SD15
        return IdAdapter(
            format="consistentid",
            title=self.title,
            path=file.path,
            project=PlusProjector(file.group("image_proj"), version.shortcut),
            keys=keys,
            values=values,
            low_rank=low_rank(file),
            recogniser=Recogniser("w600k_r50", "buffalo_l", True, file.takes("image_proj.proj.0.weight")),
            feature=Feature("clip-h", "head", 224, file.takes("image_proj.perceiver_resampler.proj_in.weight")),
            text=ConsistentIDText(file.group("FacialEncoder"), version),
        )


formats.add("consistentid", _ConsistentID())
