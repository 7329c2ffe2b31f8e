"""PhotoMaker: the person's pictures, fused into the token of the word that stands before the trigger, and a LoRA.

TencentARC/PhotoMaker 060b4fc (Li et al. 2023, arXiv 2312.04461): photomaker/model.py (v1: CLIP's pooled answer, one
token a picture), photomaker/model_v2.py (v2: the identity vector asks CLIP's tokens, two a picture),
photomaker/pipeline.py. The first steps are taken without the person, which leaves the composition to the text
(``start_merge_step``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput, BadModelFile
from ..prompt import TextEncoder, Written, encode, last_token_of, repeated, without_trigger
from . import Choices, Evidence, IdAdapter, LowRank, Recogniser, formats
from ._checkpoint import Checkpoint
from ._clip import vision
from ._net import Net
from ._projectors import fuse, perceiver

TRIGGER = "img"
START = 0.2
"""The authors' style strength: so much of the sampling goes without the person; at most 0.3 in their demo."""
QFORMER_HEAD = 128

TOWER = (
    r"vision_model\.embeddings\.(?:class_embedding|(?:patch|position)_embedding\.weight)",
    r"vision_model\.embeddings\.position_ids",
    r"vision_model\.(?:pre_layrnorm|post_layernorm)\.(?:weight|bias)",
    r"vision_model\.encoder\.layers\.\d+\.(?:layer_norm[12]|self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])\.(?:weight|bias)",
    r"visual_projection(?:_2)?\.weight",
    r"fuse_module\.(?:layer_norm|mlp[12]\.(?:layernorm|fc[12]))\.(?:weight|bias)",
)
QFORMER = (
    r"qformer_perceiver\.(?:token_proj\.[02]|token_norm)\.(?:weight|bias)",
    r"qformer_perceiver\.perceiver_resampler\.(?:proj_in|proj_out|norm_out)\.(?:weight|bias)",
    r"qformer_perceiver\.perceiver_resampler\.layers\.\d+\.0\.(?:norm[12]\.(?:weight|bias)|to_(?:q|kv|out)\.weight)",
    r"qformer_perceiver\.perceiver_resampler\.layers\.\d+\.1\.(?:0\.(?:weight|bias)|[13]\.weight)",
)


def tokens(net: Net, pixels: Tensor, vectors: Tensor) -> Tensor:
    """(R, T, D): identity tokens of each picture, ``pixels`` (R, 3, S, S); v2 also takes ``vectors`` (R, V)."""
    last, pooled = vision(net.under("vision_model"), pixels)
    if "qformer_perceiver.token_norm.weight" not in net:
        both = [net.linear(pooled, name) for name in ("visual_projection", "visual_projection_2")]
        return torch.cat(both, -1)[:, None]
    qformer = net.under("qformer_perceiver")
    width = qformer["token_norm.weight"].shape[0]
    x = qformer.linear(F.gelu(qformer.linear(vectors, "token_proj.0")), "token_proj.2")
    x = qformer.norm(x.reshape(len(vectors), -1, width), "token_norm")
    return x + perceiver(qformer.under("perceiver_resampler"), x, last, QFORMER_HEAD)


def merged(net: Net, prompt: Tensor, places: Tensor, identity: Tensor) -> Tensor:
    """``prompt`` (1, L, D) with the tokens at ``places`` (L, bool) fused with ``identity`` (K, D), one each."""
    out = prompt.float().clone()
    out[0, places] = fuse(net.under("fuse_module"), out[0, places], identity)
    return out.to(prompt.dtype)


@dataclass(frozen=True)
class PhotoMakerText:
    """How the person gets into the prompt."""

    tensors: Mapping[str, Tensor]
    start: float = START
    trigger: str = TRIGGER
    needs_pictures: bool = True
    needs_clip: bool = True

    def write(
        self, clip: TextEncoder | None, prompt: str, negative: str, evidence: Evidence, start: float, trigger: str
    ) -> tuple[list[Written], list[Written]]:
        """Conditionings for the positive and the negative side. Raises BadInput."""
        if clip is None:
            raise BadInput("PhotoMaker writes the person into the prompt and needs the CLIP that reads it: connect one")
        before, after = without_trigger(prompt, trigger)
        if evidence.pixels is None:
            raise ValueError("PhotoMaker needs pixels of the person's pictures")
        net = Net(self.tensors)
        vectors = evidence.vectors
        if len(vectors) != len(evidence.pixels):
            vectors = vectors.mean(0, keepdim=True).expand(len(evidence.pixels), -1)
        identity = tokens(net, evidence.pixels, vectors).flatten(0, 1)
        places = last_token_of(clip, before)
        # With the trigger's place marked by a space the rest is tokenised as behind a special token.
        plain = clip.tokenize(f"{before} {after.lstrip()}")
        embedded, pooled = clip.encode_from_tokens(repeated(plain, places, len(identity)), return_pooled=True)
        if embedded.shape[-1] != identity.shape[-1]:
            raise BadInput(
                f"PhotoMaker writes tokens of {identity.shape[-1]} numbers, but this CLIP's text has "
                f"{embedded.shape[-1]}. Use the CLIP of an SDXL checkpoint."
            )
        # SDXL's two encoders count alike: the same place in both.
        place = max(places.values())
        chosen = torch.zeros(embedded.shape[1], dtype=torch.bool)
        chosen[place : place + len(identity)] = True
        shown = merged(net, embedded, chosen, identity.to(embedded.device))
        positive = [Written(shown, pooled, start, 1.0)]
        if start > 0:
            text, text_pooled = encode(clip, f"{before} {after.lstrip()}")
            positive.insert(0, Written(text, text_pooled, 0.0, start))
        return positive, [Written(*encode(clip, negative))]


def _no_tokens(evidence: Evidence, choices: Choices) -> tuple[Tensor, Tensor | None]:
    raise BadInput("PhotoMaker acts through the prompt: use Identity Prompt")


_LORA = re.compile(
    r"(?:unet\.)?(?:base_model\.model\.)?(?P<path>.+?)"
    r"(?:\.lora_(?P<kohya>up|down)|\.lora_(?P<peft>A|B)(?:\.default)?|[._]lora\.(?P<old>up|down))\.weight"
)
"""diffusers wrote the halves of a change in several spellings over the years."""
_DOWN = ("down", "A")


def _lora(file: Checkpoint) -> dict[str, LowRank]:
    """The file's changes of the U-Net by diffusers' path of the layer."""
    halves: dict[str, dict[bool, Tensor]] = {}
    for name, tensor in file.group("lora_weights").items():
        match = _LORA.fullmatch(name)
        if match is None:
            raise BadModelFile(f"{file.path.name} holds a change of the model in an unknown form: lora_weights.{name}")
        path = match["path"].replace(".processor.", ".")
        path += ".0" if path.endswith("to_out") else ""
        is_down = (match["kohya"] or match["peft"] or match["old"]) in _DOWN
        halves.setdefault(path, {})[is_down] = tensor
    cut = [path for path, found in halves.items() if len(found) < 2]
    if cut:
        raise BadModelFile(f"{file.path.name} lacks one half of {len(cut)} changes, such as {cut[0]}; it is cut off")
    return {path: LowRank(found[False], found[True]) for path, found in halves.items()}


@dataclass(frozen=True)
class _PhotoMaker:
    name: str
    title: str
    second: bool

    def claims(self, file: Checkpoint) -> bool:
        return (
            "id_encoder.fuse_module.mlp1.fc1.weight" in file
            and ("id_encoder.qformer_perceiver.token_norm.weight" in file) == self.second
        )

    def likely(self, file: Checkpoint) -> bool:
        return True

    def load(self, file: Checkpoint) -> IdAdapter:
        file.only_groups(("id_encoder", "lora_weights"), self.title)
        file.only("id_encoder", (*TOWER, *QFORMER) if self.second else TOWER, self.title)
        tensors = file.group("id_encoder")
        if not self.second and "visual_projection_2.weight" not in tensors:
            raise BadModelFile(f"{file.path.name} lacks the second projection of PhotoMaker v1; it is cut off")
        recogniser = None
        if self.second:
            dimension = file.takes("id_encoder.qformer_perceiver.token_proj.0.weight")
            recogniser = Recogniser("w600k_r50", "buffalo_l", False, dimension)
        width = file.takes("id_encoder.fuse_module.mlp1.fc1.weight") // 2
        lora = _lora(file)
        return IdAdapter(
            format=self.name,
            title=self.title,
            path=file.path,
            project=_no_tokens,
            lora=lora,
            recogniser=recogniser,
            text=PhotoMakerText(tensors),
            layers=70,
            context=width,
        )


formats.add("photomaker", _PhotoMaker("photomaker", "PhotoMaker v1", second=False))
formats.add("photomaker-v2", _PhotoMaker("photomaker-v2", "PhotoMaker v2", second=True))
