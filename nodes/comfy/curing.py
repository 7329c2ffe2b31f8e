"""The cure's hooks (``face.cure.run``) on a ComfyUI model.

A model with hooks carries, in its transformer options: the hooks (``HOOKS``), one ``SelfPatch`` at every self-attention
layer and one ``WordPatch`` at every cross-attention layer that a hook wants, and four wrappers: around the sampling,
around the sampler, around each of its questions, and around each call of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4
from weakref import ref

import torch
from torch import Tensor

from ...face.attention import Area
from ...face.cure.layers import SelfLayers, self_layers
from ...face.cure.run import Blending, Curing, Hook, Now, Recording, Run, Writing, chained
from ...face.cure.tape import NONE, Plan, Tape, digest
from ...face.errors import BadInput
from ..host import Way
from .patching import area_of, attention_function, frames, layout_of

KEY = "likeness_cure"
HOOKS, SESSION, NOW = "likeness_hooks", "likeness_session", "likeness_now"
"""In the transformer options: the hooks, this sampling, and what the network is being asked."""


def layers_of(model: Any) -> tuple[SelfLayers, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The self-attention layers of a MODEL in call order, ComfyUI's key of each, and the keys of the cross-attention
    layers in the order of adapter files. Raises BadInput for a model that is no U-Net."""
    layout, keys = layout_of(model)
    layers = self_layers(layout)
    return layers, [keys[layer.site] for layer in layers.layers], keys


def put(model: Any, hook: Hook) -> Any:
    """A clone of ``model`` with one more hook; the model that came in stays as it was."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

    clone = model.clone()
    options = dict(clone.model_options.get("transformer_options", {}))
    options[HOOKS] = (*options.get(HOOKS, ()), hook)
    if hook.layers or hook.sites:
        _, own, cross = layers_of(model)
        replaced = {name: dict(patches) for name, patches in options.get("patches_replace", {}).items()}
        depth = {key[:2]: 1 + max(k[2] for k in cross if k[:2] == key[:2]) for key in cross}
        wanted = (("attn1", SelfPatch, own, hook.layers), ("attn2", WordPatch, cross, hook.sites))
        for name, kind, keys, numbers in wanted:
            patches = replaced.setdefault(name, {})
            for number in sorted(numbers):
                key, pair = keys[number], keys[number][:2]
                # ComfyUI looks for the key with the index first. One block deep, packs use the key without it.
                place = pair if depth[pair] == 1 and key not in patches else key
                found = patches.get(place, patches.get(pair))
                if not isinstance(found, kind):
                    patches[place] = kind(number, found)
        options["patches_replace"] = replaced
    options["wrappers"] = {kind: dict(named) for kind, named in options.get("wrappers", {}).items()}
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _around_sampling),
        (WrappersMP.SAMPLER_SAMPLE, _around_steps),
        (WrappersMP.PREDICT_NOISE, _around_question),
        (WrappersMP.APPLY_MODEL, _around_call),
    ):
        options["wrappers"].setdefault(kind, {})[KEY] = []
        add_wrapper_with_key(kind, KEY, wrapper, options)
    clone.model_options["transformer_options"] = options
    before = clone.model_options.get("sampler_pre_cfg_function", [])
    clone.model_options["sampler_pre_cfg_function"] = [*(one for one in before if one is not _answered), _answered]
    return clone


@dataclass(eq=False)
class Session:
    """The hooks of a model during one sampling."""

    hooks: tuple[Hook, ...]
    runs: list[Run]
    guider: Any
    number: int = -1
    """The sampler's question, from 0."""
    sigma: float = math.inf
    ordinals: dict[Any, int] = field(default_factory=dict)
    """Of the positive conditionings that act now, by uuid."""
    sides: dict[Any, str] = field(default_factory=dict)
    areas: dict[Any, tuple[Area, tuple[int, int]]] = field(default_factory=dict)
    answers: int = 0
    """How many questions were answered before the eyes of the runs."""
    again: _Again | None = None

    def __deepcopy__(self, memo: Any) -> Session:
        return self

    def now(self, options: Mapping[str, Any], x: Tensor) -> Now:
        """What a call of the network with a batch ``x`` (B, C, h, w) holds."""
        uuids = options.get("uuids") or [None] * len(options.get("cond_or_uncond", [0]))
        latent = int(x.shape[-2]), int(x.shape[-1])
        found = [self.areas.get(uuid) for uuid in uuids]
        areas = tuple(None if one is None or one[1] != latent else one[0] for one in found)
        shown = frames(options)
        pictures = tuple(range(len(x) // len(uuids)) if shown is None else shown)
        ordinals = tuple(self.ordinals.get(uuid) for uuid in uuids)
        return Now(self.number, self.sigma, ordinals, pictures, latent, areas)

    def acting(self, layer: int) -> list[Run]:
        return [run for hook, run in zip(self.hooks, self.runs, strict=True) if layer in hook.layers]

    def hearing(self, site: int) -> list[Run]:
        return [run for hook, run in zip(self.hooks, self.runs, strict=True) if site in hook.sites]


class _Patch:
    """What stands at one layer, before what stood there."""

    def __init__(self, number: int, previous: Any = None) -> None:
        self.number = number
        self.previous = previous

    def to(self, where: Any, *more: Any, **options: Any) -> Any:
        """Hand a move to another device on to the older patch."""
        if not hasattr(self.previous, "to"):
            return self
        return type(self)(self.number, self.previous.to(where, *more, **options))

    def models(self) -> list[Any]:
        """The models that the older patch needs in memory."""
        return self.previous.models() if hasattr(self.previous, "models") else []

    def before(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """The layer's own attention, or the older patch."""
        if self.previous is not None:
            return self.previous(q, k, v, extra_options)
        attention, takes = attention_function()
        more = {"transformer_options": extra_options} if takes else {}
        precision = extra_options.get("attn_precision")
        return attention(q, k, v, extra_options["n_heads"], attn_precision=precision, **more)


class SelfPatch(_Patch):
    """At a self-attention layer: the hooks' answer."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        session: Session | None = extra_options.get(SESSION)
        now: Now | None = extra_options.get(NOW)
        if session is None or now is None:
            return self.before(q, k, v, extra_options)
        runs, heads = session.acting(self.number), extra_options["n_heads"]
        # An older patch wants the whole batch, as its options describe it.
        now = now if self.previous is None else now.whole_batch()

        own = partial(self.before, extra_options=extra_options)
        return chained(runs, self.number, heads, now, own)(q, k, v)


class WordPatch(_Patch):
    """At a cross-attention layer: nothing but an ear."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        session: Session | None = extra_options.get(SESSION)
        now: Now | None = extra_options.get(NOW)
        if session is not None and now is not None:
            for run in session.hearing(self.number):
                run.hear(self.number, q, k, extra_options["n_heads"], now)
        return self.before(q, k, v, extra_options)


def hooks_of(model: Any) -> tuple[Hook, ...]:
    """The hooks that a MODEL carries."""
    return model.model_options.get("transformer_options", {}).get(HOOKS, ())


def plan_of(
    guider: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Tensor | None, seed: int | None
) -> Plan:
    """What a sampling of ComfyUI's is."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
    name = name.removeprefix("sample_").removesuffix("_function")
    plain = {k: v for k, v in getattr(sampler, "extra_options", {}).items() if isinstance(v, bool | int | float | str)}
    told = f" ({', '.join(f'{k} {v}' for k, v in sorted(plain.items()))})" if plain else ""
    marks = digest(noise), digest(latent)
    levels = tuple(map(float, sigmas))
    inpainted = "" if mask is None else digest(mask)
    return Plan(seed, tuple(noise.shape), name + told, levels, *marks, ref(guider.model_patcher.model), inpainted)


def _around_sampling(
    executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Any = None, callback: Any = None,
    disable_pbar: bool = False, seed: int | None = None, **more: Any,
) -> Any:  # fmt: skip
    """Once a sampling: begin it, and end it whatever happens."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    hooks: tuple[Hook, ...] = options[HOOKS]
    plan = plan_of(guider, noise, latent, sampler, sigmas, mask, seed)
    to_sigma = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma
    runs: list[Run] = []
    well = False
    try:
        runs += [hook.begin(plan, to_sigma) for hook in hooks]
        for hook in hooks:
            if isinstance(hook, Curing) and hook.tape.keep == NONE:
                check_again(guider.model_patcher, *hook.tape.source[:2])
        options[SESSION] = session = Session(hooks, runs, guider)
        for side, entries in guider.conds.items():
            session.sides |= {entry["uuid"]: side for entry in entries or ()}
        out = executor(noise, latent, sampler, sigmas, mask, callback, disable_pbar, seed, **more)
        well = True
        return out
    finally:
        options.pop(SESSION, None)
        for run in runs:
            run.end(well)


def _around_steps(executor: Any, guider: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, *rest: Any,
                  **more: Any) -> Any:  # fmt: skip
    """Once a sampling, when ComfyUI knows the conditionings' areas in pixels of the latent."""
    session: Session | None = extra["model_options"]["transformer_options"].get(SESSION)
    if session is not None:
        for side, entries in guider.conds.items():
            for entry in entries or ():
                if session.sides.get(entry["uuid"]) != side:
                    # ComfyUI gives every area of one side a copy on the other, uuid included.
                    entry["uuid"] = uuid4()
                if "area" in entry:
                    session.areas[entry["uuid"]] = area_of(entry["area"], *noise.shape[-2:])
    return executor(guider, sigmas, extra, callback, noise, *rest, **more)


def _around_question(executor: Any, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Any:
    """Before each of the sampler's questions."""
    options = model_options or {}
    session: Session | None = options.get("transformer_options", {}).get(SESSION)
    if session is not None:
        session.number += 1
        session.sigma = float(timestep.max())
        acting = [entry for entry in session.guider.conds.get("positive") or () if _acts(entry, session.sigma)]
        session.ordinals = {entry["uuid"]: number for number, entry in enumerate(acting)}
        if session.again is None:
            session.again = _Again(session.guider, options["transformer_options"].get("sample_sigmas"))
        for run in session.runs:
            run.evaluate(session.number, session.sigma, x, session.again)
    out = executor(x, timestep, options, seed)
    if session is not None:
        check_answered(session)
    return out


def check_answered(session: Session) -> None:
    """Raise BadInput where the guider joined the answers without showing them to those who need them."""
    if session.answers <= session.number and any(isinstance(hook, Blending | Recording) for hook in session.hooks):
        raise BadInput(
            f"{type(session.guider).__name__} does not show its answers before it joins them, so that nothing can be "
            "recorded or blended. Take KSampler or CFGGuider, or cure with the method attention."
        )


def _acts(entry: Mapping[str, Any], sigma: float) -> bool:
    """Whether ComfyUI asks this conditioning at that noise level."""
    start, end = entry.get("timestep_start"), entry.get("timestep_end")
    return (start is None or sigma <= float(start)) and (end is None or sigma >= float(end))


def _around_call(
    executor: Any, x: Tensor, t: Tensor, c_concat: Any, c_crossattn: Any, control: Any, options: Any, **more: Any
) -> Any:
    """Once a call of the network: tell the layers what is in it."""
    session: Session | None = options.get(SESSION)
    now = None if session is None else session.now(options, x)
    return executor(x, t, c_concat, c_crossattn, control, {**options, NOW: now}, **more)


def _answered(told: dict[str, Any]) -> list[Any]:
    """ComfyUI's function before guidance: the answers of both sides."""
    outs: list[Any] = told["conds_out"]
    session: Session | None = told["model_options"].get("transformer_options", {}).get(SESSION)
    if session is None or len(outs) < 2:
        return outs
    session.answers = session.number + 1
    positive, negative = outs[0], outs[1] if told["conds"][1] is not None else None
    for run in session.runs:
        positive, negative = run.answered(session.number, session.sigma, told["input"], positive, negative)
    return [positive, outs[1] if negative is None else negative, *outs[2:]]


@dataclass(eq=False)
class _Again:
    """Asks the foundation model about a latent of its own run once more, its positive side alone."""

    guider: Any
    sigmas: Any
    """Of the whole sampling, as ComfyUI tells them to its model."""
    _inner: Session | None = None
    _conds: Any = None
    _options: Any = None

    def __call__(self, tape: Tape, number: int, sigma: float, latent: Tensor) -> None:
        from comfy.samplers import calc_cond_batch

        model, positive, _ = tape.source
        inner = self._inner or self._prepare(model, positive, frozenset(tape.layers), latent)
        inner.runs[:] = [Writing(tape, layers_of(model)[0])]
        inner.number, inner.sigma = number, sigma
        acting = [entry for entry in self._conds if _acts(entry, sigma)]
        inner.ordinals = {entry["uuid"]: place for place, entry in enumerate(acting)}
        timestep = latent.new_full((len(latent),), sigma)
        calc_cond_batch(self.guider.inner_model, [self._conds], latent, timestep, self._options)
        inner.runs.clear()

    def _prepare(self, model: Any, positive: Any, layers: frozenset[int], latent: Tensor) -> Session:
        """Once a sampling: the conditionings as ComfyUI wants them, and the model with an ear at the layers."""
        from comfy.model_patcher import create_model_options_clone
        from comfy.sampler_helpers import convert_cond
        from comfy.samplers import process_conds

        conds = {"positive": convert_cond(positive)}
        conds = process_conds(self.guider.inner_model, latent, conds, latent.device, None, None, None)
        self._conds = conds["positive"]
        wants = _Wants(layers)
        self._inner = inner = Session((wants,), [], self.guider)
        inner.areas = {e["uuid"]: area_of(e["area"], *latent.shape[-2:]) for e in self._conds if "area" in e}
        self._options = create_model_options_clone(put(model, wants).model_options)
        self._options["transformer_options"] |= {SESSION: inner, "sample_sigmas": self.sigmas}
        return inner


def check_again(model: Any, foundation: Any, positive: Any) -> None:
    """Raise BadInput where the foundation cannot be asked in the middle of the person's run."""
    if model.patches_uuid != foundation.patches_uuid:
        raise BadInput(
            "the tape keeps only latents, so the foundation is asked again in the person's run; but the two models "
            "have different weights (an adapter's own changes, or a LoRA on one side), and ComfyUI holds one set. Let "
            "Foundation Pass keep keys and values, or set the adapter's lora_strength to 0."
        )
    if any(entry.get("control") is not None for _, entry in positive):
        raise BadInput(
            "the tape keeps only latents, and the foundation has a ControlNet, which cannot run twice in one sampling. "
            "Let Foundation Pass keep keys and values."
        )


@dataclass(frozen=True)
class _Wants:
    """The layers at which what is computed again is written."""

    layers: frozenset[int]
    sites: frozenset[int] = frozenset()

    def begin(self, plan: Plan, to_sigma: Callable[[float], float]) -> Run:
        raise BadInput("this hook belongs to no sampling of its own")


def solve(model: Any, positive: Any, negative: Any, latent: Any, way: Way) -> Any:
    """``NodeHost.solve`` by ComfyUI's own sampling, with its progress and previews."""
    import comfy.sample
    import comfy.samplers
    import latent_preview

    method = way.method

    def along(
        denoiser: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> Tensor:
        given = extra_args or {}

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return denoiser(x, sigma * x.new_ones(len(x)), **given)

        def watch(step: int, x: Tensor, denoised: Tensor) -> None:
            if callback is not None:
                callback({"x": x, "i": step, "sigma": sigmas[step], "sigma_hat": sigmas[step], "denoised": denoised})

        assert not isinstance(method, str)
        return method(denoise, x, sigmas, watch, None)

    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    sampler = comfy.samplers.sampler_object(method) if isinstance(method, str) else comfy.samplers.KSAMPLER(along)
    out = comfy.sample.sample_custom(
        model,
        torch.zeros_like(samples),
        way.cfg,
        sampler,
        way.sigmas,
        positive,
        negative,
        samples,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(way.sigmas) - 1),
        disable_pbar=True,
        seed=way.seed,
    )
    return {**latent, "samples": out}
