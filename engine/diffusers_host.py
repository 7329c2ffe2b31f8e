"""Identity adapters on diffusers: on the engine's models, and on a pipeline for people who use no graph at all.

    import likeness
    likeness.apply("ip-adapter-faceid_sd15.bin", identity, pipe, strength=0.8)
    pipe("a portrait, laughing").images[0].save("portrait.png")
    likeness.remove(pipe)

Nothing of the U-Net is replaced. Two hooks at each cross-attention layer listen: to the query as it leaves ``to_q``,
and to the attention's output as it enters ``to_out``, where the identity's share is added. So whatever attention
processor the user has chosen stays, and taking the hooks out leaves the network as it was.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor

from ..face import adapters
from ..face.adapters import IdAdapter
from ..face.adapters._evidence import Encoder
from ..face.applying import Options, tokens_for
from ..face.attention import (
    MARKS,
    Applied,
    Call,
    Roles,
    Tokens,
    check_mask,
    prepare,
    roles_of,
    usual,
)
from ..face.attention import apply as put_together
from ..face.attention.sites import Layout, Site
from ..face.errors import BadInput
from ..face.host import STANDALONE, Host
from ..face.types import Identity
from .diffusion.model import LowRank, Model, WeightPatch
from .diffusion.vision import CLIPVision

LAST_TIMESTEP = 999.0
"""SD's models were trained on timesteps 0 to 999; a fraction p of the sampling is timestep 999 (1 - p)."""

_SITE = re.compile(r"((down|mid|up)_blocks?(?:\.(\d+))?\.attentions\.\d+)\.transformer_blocks\.\d+\.attn2")
_FORWARD = ("down", "mid", "up")


def layout_of(unet: Any) -> tuple[Layout, list[str]]:
    """The cross-attention layers of a diffusers U-Net, and their names, in the order of adapter files.

    Raises BadInput for a network without any.
    """
    # diffusers enumerates down, up, mid: that is where the files' order comes from.
    found = [m for name in unet.attn_processors if (m := _SITE.fullmatch(name.removesuffix(".processor")))]
    if not found:
        raise BadInput(
            f"this {type(unet).__name__} has no cross-attention as SD1.5 and SDXL have it, so an identity adapter of "
            "this kind cannot act on it"
        )
    order = sorted(dict.fromkeys((_FORWARD.index(m[2]), m[1]) for m in found), key=lambda pair: pair[0])
    number = {name: n for n, (_, name) in enumerate(order)}
    downs = [int(bool(block.downsamplers)) for block in unet.down_blocks]
    ups = [int(bool(block.upsamplers)) for block in unet.up_blocks]
    sites: list[Site] = []
    context = 0
    for match in found:
        part, block = match[2], int(match[3] or 0)
        level = sum(downs[:block]) if part == "down" else sum(downs) - (sum(ups[:block]) if part == "up" else 0)
        attention: Any = unet.get_submodule(match[0])
        sites.append(Site(part, number[match[1]], level, int(attention.to_q.weight.shape[0])))
        context = int(attention.to_k.weight.shape[1])
    entrance = unet.encoder_hid_proj if isinstance(unet.encoder_hid_proj, torch.nn.Linear) else None
    return Layout(tuple(sites), context, entrance), [match[0] for match in found]


FUSED = (
    "this adapter changes single projections of the model's attention, but they are fused: call the pipeline's "
    "unfuse_qkv_projections() first"
)


def fused(attention: Any) -> bool:
    """Whether an attention layer computes by fused projections. Its own mark stays on when they are unfused again."""
    return type(attention.processor).__name__.startswith("Fused")


@dataclass(eq=False)
class Listening:
    """The hooks of one network, and what was prepared for the model call that is running."""

    unet: Any
    call: Call | None = None
    changed: bool = False
    """Whether an adapter changes the network's own layers."""
    _names: list[str] = field(default_factory=list)
    _hooked: dict[int, tuple[Any, Any, list[Any]]] = field(default_factory=dict)
    """Per site the two modules that are listened to, and how to stop."""
    _queries: dict[int, Tensor] = field(default_factory=dict)

    def listen(self) -> None:
        """Put the hooks on every cross-attention layer; where a layer has been exchanged since, on the new one.

        Raises BadInput where projections are fused whose weights an adapter changes: they would be passed by.
        """
        self._names = self._names or layout_of(self.unet)[1]
        for site, name in enumerate(self._names):
            attention: Any = self.unet.get_submodule(name)
            if self.changed and fused(attention):
                raise BadInput(FUSED)
            query, output = attention.to_q, attention.to_out[0]
            if site in self._hooked:
                known_query, known_output, handles = self._hooked[site]
                if known_query is query and known_output is output:
                    continue
                for handle in handles:
                    handle.remove()
            self._hooked[site] = (
                query,
                output,
                [
                    query.register_forward_hook(self._query(site)),
                    output.register_forward_pre_hook(self._output(site, attention.heads)),
                ],
            )

    def stop(self) -> None:
        """Take out every hook."""
        for _, _, handles in self._hooked.values():
            for handle in handles:
                handle.remove()
        self._hooked.clear()
        self._queries.clear()
        self.call = None

    def _query(self, site: int) -> Any:
        def keep(module: Any, inputs: Any, output: Tensor) -> None:
            if self.call is not None:
                self._queries[site] = output

        return keep

    def _output(self, site: int, heads: int) -> Any:
        def add(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self.call is None:
                return None
            return (self.call.add(site, self._queries.pop(site), inputs[0], heads), *inputs[1:])

        return add


def acting(applied: Sequence[Applied], timestep: float) -> tuple[Applied, ...]:
    """Those of ``applied`` in whose window of the sampling ``timestep`` lies."""

    def inside(one: Applied) -> bool:
        return one.always or LAST_TIMESTEP * (1 - one.end) <= timestep <= LAST_TIMESTEP * (1 - one.start)

    return tuple(one for one in applied if inside(one))


class Run:
    """What the engine's sampler tells before every model call."""

    def __init__(
        self, listening: Listening, applied: tuple[Applied, ...], guides: Sequence[Sequence[Any]], dtype: torch.dtype
    ) -> None:
        self._listening, self._applied, self._dtype = listening, applied, dtype
        self._usual = usual(applied, [[entry.get(MARKS, {}) for entry in entries] for entries in guides])
        self._known = frozenset(one.mark for one in applied if one.mark is not None)

    def begin(self, chunks: Sequence[Any], sigma: float, timestep: float, latent_shape: Sequence[int]) -> None:
        """``chunks``: the batch's conditionings in order, each with ``entry``, ``index``, ``size``, and ``area``."""
        now = acting(self._applied, timestep)
        if not now:
            self._listening.call = None
            return
        marks = [{**self._usual[chunk.index], **chunk.entry.get(MARKS, {})} for chunk in chunks]
        roles = roles_of(now, marks, [chunk.index for chunk in chunks], self._known)
        latent = int(latent_shape[-2]), int(latent_shape[-1])
        device = next(self._listening.unet.parameters()).device
        areas = tuple(chunk.area for chunk in chunks)
        self._listening.call = prepare(now, roles, tuple(range(chunks[0].size)), latent, device, self._dtype, areas)


@contextmanager
def attention_run(
    unet: Any,
    attention: Sequence[Applied],
    model: Any,
    conditionings: Sequence[Sequence[Mapping[str, Any]]],
    shape: Any,
) -> Generator[Run]:
    """For the engine's sampler: ``unet`` with the adapters acting, as long as the run lasts.

    ``conditionings``: per guide its entries; ``shape``: the latent's. Raises BadInput for a mask of other proportions.
    """
    applied = tuple(attention)
    for one in applied:
        check_mask(one, int(shape[-2]), int(shape[-1]))
    listening = Listening(unet)
    if applied:
        listening.listen()
    try:
        yield Run(listening, applied, conditionings, model.dtype)
    finally:
        listening.stop()
        for one in applied:
            one.forget()


# The engine's models


def change_weights(model: Model, adapter: IdAdapter, strength: float) -> Model:
    """Another model, with the adapter's changes of its weights. Raises BadInput where they do not fit."""
    found = {**dict(_changes(adapter, layout_of(model.unet)[1])), **adapter.lora}
    deltas = {path: LowRank(change.up, change.down) for path, change in found.items()}
    return model.with_lora(WeightPatch(deltas, strength, adapter.title))


def encoder(clip_vision: CLIPVision) -> Encoder:
    """The engine's CLIP_VISION as an image encoder."""

    @torch.no_grad()
    def look(pixels: Tensor) -> Tensor:
        first = next(clip_vision.net.parameters())
        _, penultimate, _ = clip_vision.net(pixels.to(first.device, first.dtype))
        return penultimate.float().cpu()

    return Encoder(look, clip_vision)


# Pipelines


@dataclass(eq=False)
class _Attached:
    """Everything that was put on a pipeline."""

    listening: Listening
    applied: list[Applied] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)

    def remove(self) -> None:
        self.listening.stop()
        while self.handles:
            self.handles.pop().remove()
        for one in self.applied:
            one.forget()


_attached: WeakKeyDictionary[Any, _Attached] = WeakKeyDictionary()


def apply(
    adapter: IdAdapter | Path | str,
    identity: Identity,
    pipe: Any,
    strength: float | None = None,
    *,
    format: str = adapters.AUTO,
    lora_strength: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
    mask: Tensor | None = None,
    weight_type: str = "linear",
    layer_weights: str = "",
    options: Options | None = None,
    image_encoder: Any = None,
    host: Host = STANDALONE,
) -> IdAdapter:
    """Make ``pipe``, a StableDiffusion(XL)(ControlNet)Pipeline, draw the ``identity``; answers the loaded adapter.

    ``adapter``: a loaded one or its file; ``strength``: None is what its authors recommend, 0 changes nothing; ``mask``
    (h, w) or (P, h, w) in [0, 1], where it acts; ``image_encoder``: a transformers CLIP vision model, for formats that
    look at the person's pictures (the pipeline's own by default). May be called several times: identities add up.
    InstantID's tokens also go to the pipeline's ControlNet. Nothing is put on where it raises BadInput,
    ContractMismatch or BadModelFile.
    """
    if not hasattr(pipe, "unet"):
        raise BadInput(f"a {type(pipe).__name__} has no U-Net; give a StableDiffusionPipeline or its SDXL sibling")
    if not isfinite(lora_strength):
        raise BadInput(f"the LoRA's strength must be a number; got {lora_strength}")
    loaded = adapter if isinstance(adapter, IdAdapter) else adapters.load(Path(adapter), format)
    strength = loaded.strength if strength is None else strength
    settings = options or Options()
    layout, names = layout_of(pipe.unet)
    if loaded.text is not None and not loaded.keys:
        raise BadInput(
            f"{loaded.title} acts through the prompt, which a pipeline encodes by itself. Use it in a workflow (node "
            "Identity Prompt), or encode the prompt with face.adapters' PromptWriter and pass prompt_embeds."
        )
    loaded.check(identity, settings.any_recogniser)
    if len(identity.people) != 1:
        raise BadInput(
            f"the identity holds {', '.join(identity.names)}: apply them one by one, each with a mask of its own, or "
            "blend them first"
        )
    if strength == 0:
        return loaded
    encoder = _encoder(image_encoder if image_encoder is not None else getattr(pipe, "image_encoder", None))
    tokens = tokens_for(loaded, identity, identity.people[0], encoder, settings, host)
    mode, zeros = settings.mode_of(loaded)
    one = put_together(
        f"{loaded.title} ({identity.people[0].name})",
        tokens,
        layout,
        strength=strength,
        weight_type=weight_type,
        layer_weights=layer_weights,
        start=start,
        end=end,
        mask=None if mask is None else torch.as_tensor(mask),
        scaling=settings.scaling,
        mode=mode,
        zeros=zeros,
    )
    reader = _identity_net(pipe, loaded)
    changes = dict(_changes(loaded, names)) if lora_strength else {}
    if changes and any(fused(pipe.unet.get_submodule(name)) for name in names):
        raise BadInput(FUSED)
    for path, change in changes.items():
        _fits(pipe.unet.get_submodule(path), change, loaded)
    attached = _attached.get(pipe)
    if attached is None:
        attached = _attached[pipe] = _Attached(Listening(pipe.unet))
        attached.listening.listen()
        before = pipe.unet.register_forward_pre_hook(_beginner(pipe, attached), with_kwargs=True)
        attached.handles.append(before)
    attached.applied.append(one)
    if reader is not None:
        attached.handles.append(reader.register_forward_pre_hook(_instead_of_text(pipe, tokens), with_kwargs=True))
    if changes:
        attached.listening.changed = True
        attached.handles += _low_rank(pipe.unet, changes, lora_strength)
    return loaded


def remove(pipe: Any) -> None:
    """Take everything that ``apply`` put on ``pipe`` off again; nothing happens where there is nothing."""
    attached = _attached.pop(pipe, None)
    if attached is not None:
        attached.remove()


def _sides(pipe: Any) -> list[int]:
    """The places of the conditionings in a pipeline's batch: with guidance the negative one comes first."""
    # A pipeline that has not run yet does not know; then somebody asks its U-Net directly.
    guided = bool(getattr(pipe, "do_classifier_free_guidance", False))
    # Perturbed attention guidance asks for the positive one twice.
    twice = bool(getattr(pipe, "do_perturbed_attention_guidance", False))
    return [1] * guided + [0] * (1 + twice)


def _pictures(rows: int, places: Sequence[int]) -> int:
    """How many pictures a batch holds. Raises BadInput where its rows are not all ``places`` of each."""
    if rows % len(places):
        raise BadInput(
            f"the pipeline shows its network {rows} rows where {len(places)} belong to each picture, so that the "
            "prompt's cannot be told from the negative prompt's. Call the pipeline itself, or take the adapter off."
        )
    return rows // len(places)


def _identity_net(pipe: Any, adapter: IdAdapter) -> Any:
    """The pipeline's ControlNet (the first of several) if the adapter has one to it. BadInput for another family's."""
    control = getattr(pipe, "controlnet", None)
    if adapter.format != "instantid" or control is None:
        return None
    first = control.nets[0] if hasattr(control, "nets") else control
    width = first.config.cross_attention_dim
    if width != adapter.context_width:
        raise BadInput(
            f"the pipeline's ControlNet reads text {width} wide, {adapter.title}'s tokens are {adapter.context_width}: "
            "it is one of another family. Load InstantID's IdentityNet (its ControlNetModel)."
        )
    return first


def _fits(layer: Any, change: adapters.LowRank, adapter: IdAdapter) -> None:
    """Raise BadInput unless ``change`` is one of ``layer``."""
    if tuple(layer.weight.shape) != (change.up.shape[0], change.down.shape[1]):
        raise BadInput(
            f"{adapter.title} changes a layer of {change.up.shape[0]}×{change.down.shape[1]} weights, which this model "
            f"has as {'×'.join(map(str, layer.weight.shape))}. Use the base model that the adapter was trained on."
        )


def _beginner(pipe: Any, attached: _Attached) -> Any:
    # Weak, or the pipeline would hold itself by its U-Net's hooks.
    of = ref(pipe)

    def begin(module: Any, inputs: tuple[Any, ...], more: dict[str, Any]) -> None:
        sample: Tensor = inputs[0] if inputs else more["sample"]
        timestep: Any = inputs[1] if len(inputs) > 1 else more["timestep"]
        now = tuple(attached.applied)
        attached.listening.listen()
        if not all(one.always for one in now):
            # Only a window costs a look at the device, once a model call.
            value = timestep.reshape(-1)[0] if isinstance(timestep, Tensor) else timestep
            now = acting(now, float(value))
        if not now:
            attached.listening.call = None
            return
        places = _sides(of())
        roles: Roles = roles_of(now, [{}] * len(places), places, ())
        latent = int(sample.shape[-2]), int(sample.shape[-1])
        for one in now:
            check_mask(one, *latent)
        pictures = tuple(range(_pictures(len(sample), places)))
        attached.listening.call = prepare(now, roles, pictures, latent, sample.device, sample.dtype)

    return begin


def _instead_of_text(pipe: Any, tokens: Tokens) -> Any:
    """InstantID's ControlNet reads the identity's tokens where others read the text."""
    of = ref(pipe)

    def swap(module: Any, inputs: tuple[Any, ...], more: dict[str, Any]) -> tuple[Any, Any]:
        text: Tensor = inputs[2] if len(inputs) > 2 else more["encoder_hidden_states"]
        sides = {0: tokens.positive, 1: tokens.positive if tokens.negative is None else tokens.negative}
        # Guessing without a prompt it is shown the positive rows alone.
        places = [0] if more.get("guess_mode") else _sides(of())
        rows = [sides[place].expand(_pictures(len(text), places), -1, -1) for place in places]
        shown = torch.cat(rows).to(text)
        if len(inputs) > 2:
            return (*inputs[:2], shown, *inputs[3:]), more
        return inputs, {**more, "encoder_hidden_states": shown}

    return swap


def _changes(adapter: IdAdapter, names: Sequence[str]) -> Generator[tuple[str, adapters.LowRank]]:
    """The adapter's changes of single layers, by the layer's path; ``names`` are the cross-attention layers'."""
    for (layer, which), change in adapter.low_rank.items():
        if layer // 2 >= len(names):
            raise BadInput(f"{adapter.title} is made for {adapter.base}, which has more layers than this model")
        attention = names[layer // 2] if layer % 2 else names[layer // 2].removesuffix("attn2") + "attn1"
        yield f"{attention}.to_{which}{'.0' if which == 'out' else ''}", change


def _low_rank(unet: Any, changes: Mapping[str, adapters.LowRank], strength: float) -> list[Any]:
    """Hooks that add the changes to what the layers at their paths answer; the weights stay as they are."""
    handles: list[Any] = []
    for path, change in changes.items():
        kept: dict[Any, tuple[Tensor, Tensor]] = {}

        def add(
            module: Any, inputs: tuple[Tensor, ...], output: Tensor, change: Any = change, kept: Any = kept
        ) -> Tensor:
            x = inputs[0]
            if (x.device, x.dtype) not in kept:
                kept.clear()
                kept[x.device, x.dtype] = change.down.to(x), (change.up.float() * strength).to(x)
            down, up = kept[x.device, x.dtype]
            return output + F.linear(F.linear(x, down), up)

        # Before the hook that listens to the query: what it hears is the changed layer's answer.
        handles.append(unet.get_submodule(path).register_forward_hook(add, prepend=True))
    return handles


def _encoder(model: Any) -> Encoder | None:
    """A transformers CLIP vision model as what evidence is gathered with."""
    if model is None:
        return None

    def look(pixels: Tensor) -> Tensor:
        first = next(model.parameters())
        with torch.no_grad():
            answer = model(pixels.to(first.device, first.dtype), output_hidden_states=True)
        return answer.hidden_states[-2].float().cpu()

    return Encoder(look, model)
