"""Identity adapters on a ComfyUI model. With ``curing``, the only file that knows block names and ``extra_options``.

A patched model carries, in its transformer options: the adapters (``APPLIED``), one ``SitePatch`` at every
cross-attention layer, and three wrappers. Two run once a sampling: the first refuses what cannot work, the second reads
from the conditionings which of them gets what. The third runs once a model call: it prepares everything the layers
need.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from ...face.adapters import IdAdapter
from ...face.adapters._evidence import Encoder
from ...face.attention import MARKS as KEY
from ...face.attention import Applied, Area, Call, check_mask, prepare, roles_of, usual
from ...face.attention.sites import Layout, Site
from ...face.errors import BadInput

APPLIED, CALL, TOLD = "likeness_applied", "likeness_call", "likeness_told"
"""In the transformer options: the adapters, what was prepared for this model call, what the conditionings say."""

PARTS = {"input": "down", "output": "up", "middle": "mid"}


def layout_of(model: Any) -> tuple[Layout, list[tuple[Any, ...]]]:
    """The cross-attention layers of a MODEL, and ComfyUI's key of each: (part, block, index in its transformer).

    Raises BadInput for a model that is no U-Net with cross-attention.
    """
    net = model.model.diffusion_model
    if not hasattr(net, "input_blocks") or not hasattr(net, "middle_block"):
        raise BadInput(
            f"identity adapters of this kind act on the U-Nets of SD1.5 and SDXL; the model is a {type(net).__name__}. "
            "Use an adapter made for it."
        )
    found: dict[str, list[tuple[Site, tuple[Any, ...]]]] = {"input": [], "output": [], "middle": []}
    level = block = context = 0
    for part, sequences in (
        ("input", list(net.input_blocks)),
        ("middle", [net.middle_block]),
        ("output", list(net.output_blocks)),
    ):
        for number, sequence in enumerate(sequences):
            for module in sequence:
                kind = type(module).__name__
                if kind == "Downsample":
                    level += 1
                elif kind == "Upsample":
                    level -= 1
                elif hasattr(module, "transformer_blocks"):
                    for index, one in enumerate(module.transformer_blocks):
                        if one.attn2 is None:
                            continue
                        width = int(one.attn2.to_q.weight.shape[0])
                        context = int(one.attn2.to_k.weight.shape[1])
                        site = Site(PARTS[part], block, level, width)
                        found[part].append((site, (part, number, index)))
                    block += 1
    # Adapter files count the down blocks first, then the up blocks, the middle last.
    every = [*found["input"], *found["output"], *found["middle"]]
    if not every:
        raise BadInput("this model has no cross-attention for an identity adapter to act on")
    entrance = getattr(net, "encoder_hid_proj", None)
    return Layout(tuple(site for site, _ in every), context, entrance), [key for _, key in every]


@lru_cache(maxsize=1)
def attention_function() -> tuple[Callable[..., Tensor], bool]:
    """ComfyUI's attention function, and whether it takes the transformer options (overrides come in them)."""
    from comfy.ldm.modules.attention import optimized_attention

    parameters = inspect.signature(inspect.unwrap(optimized_attention)).parameters
    takes = any(p.kind is p.VAR_KEYWORD or p.name == "transformer_options" for p in parameters.values())
    return optimized_attention, takes


class SitePatch:
    """What stands at one layer of a patched model: the text's attention, or an older patch, and then the identities.

    Immutable but for ``add``, by which the most used adapter pack puts its own function onto a patch that it finds.
    """

    def __init__(self, site: int, previous: Any = None, added: Sequence[tuple[Any, Mapping[str, Any]]] = ()) -> None:
        self.site = site
        self.previous = previous
        self.added = list(added)

    def __deepcopy__(self, memo: Any) -> SitePatch:
        # What others have added is copied as a list, so that it does not reach the model this was copied from; tensors
        # and networks are shared.
        return SitePatch(self.site, self.previous, self.added)

    def add(self, callback: Any, **settings: Any) -> None:
        """Have ``callback(out, q, k, v, extra_options, **settings)`` added to the output, in its window of sigmas."""
        self.added.append((callback, settings))

    def to(self, where: Any, *more: Any, **options: Any) -> SitePatch:
        """Hand a move to another device on to the older patch."""
        if not hasattr(self.previous, "to"):
            return self
        return SitePatch(self.site, self.previous.to(where, *more, **options), self.added)

    def models(self) -> list[Any]:
        """The models that the older patch needs in memory."""
        return self.previous.models() if hasattr(self.previous, "models") else []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        heads = extra_options["n_heads"]
        call: Call | None = extra_options.get(CALL)
        if self.previous is not None:
            # Should the older patch hold one of ours, it must not add the same identities again.
            out = self.previous(q, k, v, {**extra_options, CALL: None})
        else:
            attention, takes = attention_function()
            more = {"transformer_options": extra_options} if takes else {}
            out = attention(q, k, v, heads, attn_precision=extra_options.get("attn_precision"), **more)
        if call is not None:
            out = call.add(self.site, q, out, heads)
        for callback, settings in self.added:
            sigma = float(extra_options["sigmas"][0]) if "sigma_start" in settings else 0.0
            if settings.get("sigma_start", sigma) >= sigma >= settings.get("sigma_end", sigma):
                out = out + callback(out, q, k, v, extra_options, **settings)
        return out


def apply(model: Any, applied: Applied) -> Any:
    """A clone of ``model`` on which the adapter acts; the model that came in stays as it was."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

    _, keys = layout_of(model)
    clone = model.clone()
    options = dict(clone.model_options.get("transformer_options", {}))
    replaced = {name: dict(patches) for name, patches in options.get("patches_replace", {}).items()}
    attn2 = replaced.setdefault("attn2", {})
    depth = {key[:2]: 1 + max(k[2] for k in keys if k[:2] == key[:2]) for key in keys}
    for site, key in enumerate(keys):
        # ComfyUI looks for the key with the index first. One block deep, packs use the key without it.
        pair = key[:2]
        place = pair if depth[pair] == 1 and key not in attn2 else key
        found = attn2.get(place, attn2.get(pair))
        if not (isinstance(found, SitePatch) and found.site == site):
            attn2[place] = SitePatch(site, found)
    options["patches_replace"] = replaced
    options[APPLIED] = (*options.get(APPLIED, ()), applied)
    options["wrappers"] = {kind: dict(named) for kind, named in options.get("wrappers", {}).items()}
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _around_sampling),
        (WrappersMP.SAMPLER_SAMPLE, _around_steps),
        (WrappersMP.APPLY_MODEL, _around_call),
    ):
        options["wrappers"].setdefault(kind, {})[KEY] = []
        add_wrapper_with_key(kind, KEY, wrapper, options)
    clone.model_options["transformer_options"] = options
    return clone


@dataclass
class Told:
    """What the conditionings of a sampling say, by their uuid."""

    sides: dict[Any, str] = field(default_factory=dict)
    """``positive``, ``negative``, or what else the guider calls it."""
    marks: dict[Any, dict[str, str]] = field(default_factory=dict)
    areas: dict[Any, tuple[Area, tuple[int, int]]] = field(default_factory=dict)
    """Those that act in a part of the picture: which, and the (height, width) of its latent."""


def _around_sampling(executor: Any, noise: Tensor, *rest: Any, **more: Any) -> Any:
    """Once a sampling: refuse a mask of other proportions, and note who carries which mark, before it begins."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    applied: tuple[Applied, ...] = options.get(APPLIED, ())
    for one in applied:
        check_mask(one, *noise.shape[-2:])
    options[TOLD] = told = Told()
    names = sorted(guider.conds, key=lambda side: side != "positive")
    carried = [{entry["uuid"]: entry.get(KEY, {}) for entry in guider.conds[side] or ()} for side in names]
    otherwise = usual(applied, [list(marks.values()) for marks in carried])
    for side, entries, more_marks in zip(names, carried, otherwise, strict=True):
        told.sides |= dict.fromkeys(entries, side)
        told.marks |= {uuid: {**more_marks, **marks} for uuid, marks in entries.items()}
    try:
        return executor(noise, *rest, **more)
    finally:
        for one in applied:
            one.forget()


def _around_steps(executor: Any, guider: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, *rest: Any,
                  **more: Any) -> Any:  # fmt: skip
    """Once a sampling, when ComfyUI knows the conditionings' areas in pixels of the latent."""
    told: Told = extra["model_options"]["transformer_options"].get(TOLD, Told())
    for side, entries in guider.conds.items():
        own = [entry for entry in entries or () if told.sides.get(entry["uuid"]) == side]
        for entry in entries or ():
            if told.sides.get(entry["uuid"]) != side and own:
                # ComfyUI gives every area of one side a conditioning on the other: a copy of that area's entry, uuid
                # and marks included, with another's text. Who lends the text lends what it is told, too.
                text = entry["model_conds"].get("c_crossattn")
                lender = next((o for o in own if o["model_conds"].get("c_crossattn") is text), own[0])["uuid"]
                entry["uuid"] = uuid4()
                told.sides[entry["uuid"]], told.marks[entry["uuid"]] = side, told.marks[lender]
            if "area" in entry:
                told.areas[entry["uuid"]] = area_of(entry["area"], *noise.shape[-2:])
    return executor(guider, sigmas, extra, callback, noise, *rest, **more)


def area_of(area: Sequence[int], height: int, width: int) -> tuple[Area, tuple[int, int]]:
    """ComfyUI's (height, width, …, top, left, …) in a latent: as fractions of it, and its size cut to the latent's."""
    top, left = area[len(area) // 2 :][:2]
    h, w = min(area[0], height - top), min(area[1], width - left)
    return (top / height, left / width, (top + h) / height, (left + w) / width), (h, w)


def _around_call(
    executor: Any, x: Tensor, t: Tensor, c_concat: Any, c_crossattn: Any, control: Any, options: Any, **more: Any
) -> Any:
    """Once a model call: prepare what the layers need, and hand it to them in the options."""
    base = executor.class_obj
    dtype = base.manual_cast_dtype or base.get_dtype()
    return executor(x, t, c_concat, c_crossattn, control, {**options, CALL: call_for(base, options, x, dtype)}, **more)


def call_for(base: Any, options: Mapping[str, Any], x: Tensor, dtype: torch.dtype) -> Call | None:
    """The call for a batch ``x`` (B, C, h, w); None where nothing acts at this step. ``base``: ComfyUI's BaseModel."""
    applied: tuple[Applied, ...] = options.get(APPLIED, ())
    partial = [one for one in applied if not one.always]
    if partial and "sigmas" in options:
        # Only a window costs a look at the device, once a model call.
        sigma = float(options["sigmas"].max())
        percent = base.model_sampling.percent_to_sigma
        applied = tuple(one for one in applied if one.always or percent(one.end) <= sigma <= percent(one.start))
    if not applied:
        return None
    places: list[int] = list(options.get("cond_or_uncond", [0]))
    uuids = options.get("uuids", [None] * len(places))
    told: Told = options.get(TOLD, Told())
    # Guidance of other kinds calls the model with one side alone, which is then the first, whichever it is.
    sides = [told.sides.get(uuid) for uuid in uuids]
    places = [place if side is None else int(side != "positive") for place, side in zip(places, sides, strict=True)]
    known = {one.mark for one in applied if one.mark is not None} if told.sides.keys() & uuids else ()
    roles = roles_of(applied, [told.marks.get(uuid, {}) for uuid in uuids], places, known)
    latent = int(x.shape[-2]), int(x.shape[-1])
    found = [told.areas.get(uuid) for uuid in uuids]
    areas = tuple(None if one is None or one[1] != latent else one[0] for one in found)
    shown = frames(options)
    pictures = tuple(range(len(x) // len(places)) if shown is None else shown)
    return prepare(applied, roles, pictures, latent, x.device, dtype, areas)


def frames(options: Mapping[str, Any]) -> Sequence[int] | None:
    """Which pictures of the batch are in this call, where only a window of a long animation is: the most used
    animation pack's way, and ComfyUI's own."""
    window = options.get("context_window")
    if window is not None and getattr(window, "dim", None) == 0:
        return window.index_list
    return (options.get("ad_params") or {}).get("sub_idxs")


def change_weights(model: Any, adapter: IdAdapter, strength: float) -> Any:
    """A clone of ``model`` with the adapter's changes of its weights, by ComfyUI's own patches."""
    import comfy.lora

    clone = model.clone()
    keys = clone.model.state_dict().keys()
    tensors: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    _, sites = layout_of(model)
    for (layer, which), change in adapter.low_rank.items():
        part, block, index = sites[layer // 2]
        where = "middle_block" if part == "middle" else f"{part}_blocks.{block}"
        attention = f"attn{layer % 2 + 1}.to_{which}{'.0' if which == 'out' else ''}.weight"
        spatial = f"diffusion_model.{where}.1.transformer_blocks.{index}.{attention}"
        name = f"{layer}.{which}"
        places[name] = spatial
        tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"] = change.up, change.down
    known: dict[str, Any] = comfy.lora.model_lora_keys_unet(clone.model, {}) if adapter.lora else {}
    for path, change in adapter.lora.items():
        name = f"lora_unet_{path.replace('.', '_')}"
        if name in known:
            places[name] = known[name]
            tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"] = change.up, change.down
    patches = comfy.lora.load_lora(tensors, places, log_missing=False)
    fitting = [key for key in patches if (key if isinstance(key, str) else key[0]) in keys]
    changes = len(adapter.low_rank) + len(adapter.lora)
    if len(fitting) < changes:
        raise BadInput(
            f"{adapter.title} changes {changes} weights, but the model has only {len(fitting)} of them. It is made "
            f"for {adapter.base}."
        )
    clone.add_patches(patches, strength)
    return clone


def encoder(clip_vision: Any) -> Encoder:
    """A CLIP_VISION as an image encoder: ComfyUI moves it, we hand it pixels that are ready."""
    import comfy.model_management as memory

    def look(pixels: Tensor) -> Tensor:
        memory.load_model_gpu(clip_vision.patcher)
        answer = clip_vision.model(
            pixel_values=pixels.to(clip_vision.load_device, clip_vision.dtype), intermediate_output=-2
        )
        return answer[1].float().cpu()

    return Encoder(look, clip_vision)


def check_control(control_net: Any, width: int) -> None:
    """Raise BadInput for a ControlNet whose text is not ``width`` wide: another base model's, or none of a U-Net."""
    net = getattr(control_net, "control_model", None)
    if net is None:
        return  # Some kinds are only built when the sampler knows the model.
    for sequence in getattr(net, "input_blocks", ()):
        for module in sequence:
            for block in getattr(module, "transformer_blocks", ()):
                found = int(block.attn2.to_k.weight.shape[1])
                if found != width:
                    raise BadInput(
                        f"this ControlNet reads text {found} wide, but the identity's tokens are {width} wide: it "
                        "belongs to another base model. Load InstantID's own ControlNet."
                    )
                return
    raise BadInput(
        "this ControlNet has no cross-attention that could read an identity. Load InstantID's own ControlNet."
    )
