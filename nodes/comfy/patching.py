"""Identity adapters on a ComfyUI model. The only file that knows block names, ``extra_options`` and ``clone()``.

A patched model carries, in its transformer options: the adapters (``APPLIED``), one ``SitePatch`` at every
cross-attention layer, and two wrappers. One runs once a sampling: it reads from the conditionings which of them gets
what, and refuses what cannot work. The other runs once a model call: it prepares everything the layers need.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...face.adapters import IdAdapter
from ...face.adapters._evidence import Encoder
from ...face.attention import MARKS as KEY
from ...face.attention import Applied, Call, check_mask, prepare, roles_of
from ...face.attention.sites import Layout, Site
from ...face.errors import BadInput

APPLIED, CALL, MARKS = "likeness_applied", "likeness_call", "likeness_marks"
"""In the transformer options: the adapters, what was prepared for this model call, marks by conditioning."""

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
def _attention() -> tuple[Callable[..., Tensor], bool]:
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

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        heads = extra_options["n_heads"]
        call: Call | None = extra_options.get(CALL)
        if self.previous is not None:
            # Should the older patch hold one of ours, it must not add the same identities again.
            out = self.previous(q, k, v, {**extra_options, CALL: None})
        else:
            attention, takes = _attention()
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
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _around_sampling), (WrappersMP.APPLY_MODEL, _around_call)):
        options["wrappers"].setdefault(kind, {})[KEY] = []
        add_wrapper_with_key(kind, KEY, wrapper, options)
    clone.model_options["transformer_options"] = options
    return clone


def _around_sampling(executor: Any, noise: Tensor, *rest: Any, **more: Any) -> Any:
    """Once a sampling: note which conditioning gets what, and refuse a mask of other proportions before it begins."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    applied: tuple[Applied, ...] = options.get(APPLIED, ())
    for one in applied:
        check_mask(one, *noise.shape[-2:])
    marks = {entry["uuid"]: dict(entry.get(KEY, {})) for entries in guider.conds.values() for entry in entries or ()}
    known = {mark for carried in marks.values() for mark in carried}
    # Whoever wires only the model gets the usual meaning: the first conditioning is the positive one.
    options[MARKS] = (marks, known)
    try:
        return executor(noise, *rest, **more)
    finally:
        for one in applied:
            one.forget()


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
    marks, known = options.get(MARKS, ({}, set()))
    uuids = options.get("uuids", [None] * len(places))
    carried = [marks.get(uuid, {}) for uuid in uuids]
    roles = roles_of(applied, carried, places, known)
    pictures = len(x) // len(places)
    window = (options.get("ad_params") or {}).get("sub_idxs")
    shown = range(pictures) if window is None else window
    return prepare(applied, roles, tuple(shown), (int(x.shape[-2]), int(x.shape[-1])), x.device, dtype)


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
