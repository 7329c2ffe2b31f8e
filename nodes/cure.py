"""FreeCure: a run without the person, and a run with it that gets back what the prompt asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..face.cure import guidance
from ..face.cure.attention import ADDITIVE, MODES, MULTIPLICATIVE
from ..face.cure.layers import AUTHORS, CHOICES, PAPER_OMEGA, SelfLayers
from ..face.cure.run import BLEND, BLEND_FROM, Blending, Curing, Recording, check_proportions, refuse_cured
from ..face.cure.tape import ANSWERS, FULL, KEEPS, NONE, Tape, evaluations, predicted_bytes
from ..face.errors import BadInput
from .form import CATEGORY, TAPE, choice, integer, number, socket, switch, text
from .host import Sampling, Way, host

ATTENTION, BLENDING = "attention", "noise blending"
METHODS = (ATTENTION, BLENDING)
GUIDANCE = "guidance"
"""What the loop can do in place of them: every attribute as if it had no place."""
OWN = -1.0
"""A number's way of saying: what the authors have."""
MAX_SEED = 0xFFFFFFFFFFFFFFFF


def sampler_inputs() -> dict[str, Any]:
    """The widgets of a sampler, as KSampler has them."""
    samplers, schedulers = host().samplers()
    seed = {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}
    return {
        "seed": ("INT", {**seed, "tooltip": "The seed of the noise. The run with the person must have the same."}),
        "steps": integer(20, 1, 10000, "The number of steps."),
        "cfg": number(8.0, 0.0, 100.0, 0.1, "How strongly the prompt guides."),
        "sampler_name": choice(samplers, "The sampler; any with fixed steps, also ancestral ones."),
        "scheduler": choice(schedulers, "How the noise is taken away."),
    }


KEPT = {
    "keep": choice(
        KEEPS,
        "What the tape holds, in main memory. *keys and values*: exact. *… in 8 bit*: half of it or less, nearly so. "
        "*latents only*: next to nothing, but the run with the person computes the rest again, half as long once more. "
        "*answers only*: for noise blending, on any model.",
    ),
    "layers": text(
        AUTHORS,
        f"Which self-attention layers: {', '.join(CHOICES)}, or numbers such as 50-69. *authors* are the last 20 of "
        "SDXL's 70 and the last 6 of SD1.5's 16.",
    ),
    "budget": number(
        8.0, 0.1, 1024.0, 0.1, "How many gigabytes the tape may take. Refused before the run if it needs more."
    ),
}


def known_layers(model: Any, keep: str) -> SelfLayers:
    """A model's self-attention layers; none where only its answers are kept, which works for every model."""
    return SelfLayers((), "model") if keep == ANSWERS else host().self_layers(model)


def planned(
    model: Any,
    positive: Any,
    latent: Any,
    sampling: Sampling,
    keep: str,
    layers: str,
    budget: float,
    mask: Tensor | None = None,
) -> tuple[SelfLayers, tuple[int, ...], str]:
    """A tape before it is made: the model's layers, those chosen, and how large it will be. Raises BadInput if that is
    more than the budget."""
    shape = latent_shape(latent)
    known = known_layers(model, keep)
    chosen = known.choose(layers) if known.layers else ()
    mask = _beforehand(mask, keep, shape)
    asked = evaluations(sampling.sampler, max(len(host().sigmas(model, sampling)) - 1, 0))

    def size(keep: str) -> int:
        return predicted_bytes(known, chosen, shape, asked, host().dtype(model), keep, mask, len(positive))

    # Parts of a prompt that act for a time, or in an area, have less.
    most = "at most " if len(positive) > 1 and size(keep) else ""
    said = f"{most}{_gigabytes(size(keep))} for {len(chosen)} layers of {known.name}, {asked} evaluations, {keep}"
    if size(keep) > budget * 2**30:
        raise BadInput(
            f"the tape would take {said}, more than the budget of {budget:g} GB. Smaller are: {KEEPS[1]} "
            f"({_gigabytes(size(KEEPS[1]))}); a mask that is known beforehand; fewer layers, steps or pictures; "
            f"{NONE} (next to nothing, computed again). Or raise the budget."
        )
    return known, chosen, said


def _beforehand(mask: Tensor | None, keep: str, shape: Sequence[int]) -> Tensor | None:
    """The mask by which a tape is shortened; none where nothing of it would be kept anyway."""
    mask = None if mask is None else _as_mask(mask, shape)
    return None if keep in (NONE, ANSWERS) else mask


def _as_mask(mask: Any, shape: Sequence[int]) -> Tensor:
    """A user's mask as (P, H, W), for latents of ``shape`` (B, C, h, w). Raises BadInput for one that cannot be."""
    if not isinstance(mask, Tensor) or mask.ndim < 2 or 0 in mask.shape:
        came = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise BadInput(f"a mask must be (pictures, height, width), with a picture at least; got {came}")
    found = mask.reshape(-1, *mask.shape[-2:]).float().cpu()
    check_proportions(found, shape)
    return found


def latent_shape(latent: Any) -> tuple[int, ...]:
    """Of a LATENT's samples (B, C, h, w). Raises BadInput for what is none."""
    samples = latent.get("samples") if isinstance(latent, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if not isinstance(samples, Tensor) or samples.ndim != 4 or 0 in samples.shape:
        came = tuple(samples.shape) if isinstance(samples, Tensor) else "none"
        raise BadInput(
            f"a LATENT must hold samples (pictures, channels, height, width), one picture at least; got {came}. Begin "
            "with Empty Latent Image, or with VAE Encode."
        )
    return tuple(samples.shape)


def foundation(
    model: Any,
    positive: Any,
    negative: Any,
    latent: Any,
    sampling: Sampling,
    *,
    keep: str = FULL,
    layers: str = AUTHORS,
    budget: float = 8.0,
    words: bool = True,
    mask: Tensor | None = None,
    node_id: str | None = None,
) -> tuple[Any, Tape, str]:
    """The run without the person: LATENT, tape, and what to say of it. Raises BadInput before the first step."""
    here = host()
    mask = _beforehand(mask, keep, latent_shape(latent))
    known, chosen, said = planned(model, positive, latent, sampling, keep, layers, budget, mask)
    here.send_text(f"tape: {said}", node_id)
    recording = Recording(chosen, known, keep, mask, words and bool(known.layers))
    out = here.sample(here.with_hook(model, recording), positive, negative, latent, sampling)
    if not recording.done:
        raise BadInput("nothing was sampled, so there is no tape: give at least one step and a denoise above 0.")
    tape = recording.done[-1]
    if keep == NONE:
        tape.source = (model, positive, negative)
    return out, tape, f"{said}; {_gigabytes(tape.nbytes)} held"


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.2f} GB" if size >= 2**28 else f"{size / 2**20:.1f} MB"


class FoundationPass:
    CATEGORY = f"{CATEGORY}/cure"
    DESCRIPTION = (
        "Draws the picture without the person, as KSampler does, and keeps what its layers see: all of the prompt's "
        "attributes are there. Cure Attributes gives them to the run with the person. Wire the plain model and the "
        "plain prompt, and give both samplers the same settings."
    )
    RETURN_TYPES = ("LATENT", TAPE, "STRING")
    RETURN_NAMES = ("latent", "tape", "details")
    OUTPUT_TOOLTIPS = (
        "The picture without the person.",
        "What its layers saw, for Cure Attributes and Attribute Masks.",
        "What the tape holds, and how large it is.",
    )
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["freecure", "foundation", "tape", "ksampler"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": socket("MODEL", "The model without the person: before any identity adapter, with all LoRAs."),
                **sampler_inputs(),
                "positive": socket("CONDITIONING", "The prompt with all its attributes, without the person."),
                "negative": socket("CONDITIONING", "The negative prompt."),
                "latent_image": socket("LATENT", "What to begin with, as for KSampler."),
                "denoise": number(1.0, 0.0, 1.0, 0.01, "As for KSampler."),
                **KEPT,
                "words": switch(
                    True,
                    "Note how strongly every place looks at every word of the prompt: Attribute Masks can then find "
                    "attributes without any further model.",
                ),
            },
            "optional": {
                "mask": socket(
                    "MASK", "Where attributes will be cured, if that is known beforehand: only there keys are kept."
                )
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(
        self,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: Any,
        denoise: float,
        keep: str,
        layers: str,
        budget: float,
        words: bool,
        mask: Tensor | None = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        sampling = Sampling(seed, steps, cfg, sampler_name, scheduler, denoise)
        latent, tape, said = foundation(
            model,
            positive,
            negative,
            latent_image,
            sampling,
            keep=keep,
            layers=layers,
            budget=budget,
            words=words,
            mask=mask,
            node_id=unique_id,
        )
        return {"ui": {"text": [said]}, "result": (latent, tape, said)}


def cured(
    model: Any,
    tape: Tape,
    mask: Tensor,
    *,
    strength: float = 1.0,
    method: str = ATTENTION,
    omega: float = OWN,
    omega_mode: str = ADDITIVE,
    start: float = OWN,
    end: float = 1.0,
) -> tuple[Any, str]:
    """The model that cures, and what to say of it; the model itself where there is nothing to cure. Raises BadInput."""
    mask = _as_mask(mask, tape.plan.shape) * strength
    if method == ATTENTION:
        refuse_cured(host().hooks(model))
    if not bool((mask > 0).any()):
        why = "strength 0" if strength == 0 else "the mask is empty"
        return model, f"{why}: nothing is cured, the picture will be as without this node"
    begin = (BLEND_FROM if method == BLENDING else 0.0) if start < 0 else start
    covered = f"{float((mask > 0).float().mean()) * 100:.0f} % of the picture"
    when = f"steps {begin:g} to {end:g}"
    if method == BLENDING:
        hook = Blending(tape, mask, BLEND, begin, end)
        return host().with_hook(model, hook), f"{method}, {BLEND:g} of the foundation's noise in {covered}, {when}"
    known = host().self_layers(model)
    if omega < 0:
        omega = known.omega if omega_mode == ADDITIVE else PAPER_OMEGA
    hook = Curing(tape, known, mask, omega, omega_mode, begin, end)
    sign = "+" if omega_mode == ADDITIVE else "×"
    return host().with_hook(
        model, hook
    ), f"{method} in {len(tape.layers)} layers, ω {sign}{omega:g} in {covered}, {when}"


METHOD = (
    "*attention*: the person's layers read the foundation's inside the mask (SD1.5, SDXL). *noise blending*: the first "
    "version's way, for models whose attention cannot be reached."
)
CURING = {
    "strength": number(
        1.0, 0.0, 1.0, 0.05, "How much of the foundation's attributes is given back. 0 changes nothing."
    ),
    "method": choice(METHODS, METHOD),
    "omega": number(
        OWN,
        OWN,
        20.0,
        0.1,
        "How strongly the foundation is looked at. -1 is the authors' own: +1.5 for SDXL and +0.5 for SD1.5, or ×2 as "
        "in the paper.",
    ),
    "omega_mode": choice(
        MODES,
        f"*{ADDITIVE}*: as in the authors' code. *{MULTIPLICATIVE}*: as in their paper, which also lets what is "
        "outside the mask through a little.",
    ),
    "start": number(OWN, OWN, 1.0, 0.01, "From which part of the sampling on. -1: 0, and 0.1 for noise blending."),
    "end": number(1.0, 0.0, 1.0, 0.01, "Up to which part of the sampling."),
}


class CureAttributes:
    CATEGORY = f"{CATEGORY}/cure"
    DESCRIPTION = (
        "Gives the prompt's attributes back to a run with a person (FreeCure): its self-attention also reads what the "
        "run without the person saw inside the mask. The person's adapters stay as they are, and nothing is trained."
    )
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "details")
    OUTPUT_TOOLTIPS = (
        "The model that cures, for a sampler with the settings of Foundation Pass.",
        "What will be done.",
    )
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["freecure", "fasa", "prompt consistency", "attribute"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": socket("MODEL", "The model with the person: after all identity adapters."),
                "tape": socket(TAPE, "From Foundation Pass."),
                "mask": socket(
                    "MASK",
                    "Where the attributes are in the foundation's picture, from Attribute Masks or drawn; a value "
                    "between 0 and 1 is how much of it is wanted. One for all pictures, or one a picture.",
                ),
                **CURING,
            }
        }

    def run(
        self,
        model: Any,
        tape: Tape,
        mask: Tensor,
        strength: float,
        method: str,
        omega: float,
        omega_mode: str,
        start: float,
        end: float,
    ) -> dict[str, Any]:
        changed, said = cured(
            model,
            tape,
            mask,
            strength=strength,
            method=method,
            omega=omega,
            omega_mode=omega_mode,
            start=start,
            end=end,
        )
        return {"ui": {"text": [said]}, "result": (changed, said)}


def guided(
    model: Any,
    template: Any,
    attribute: Any,
    negative: Any,
    latent: Any,
    sampling: Sampling,
    *,
    gamma: float = guidance.GAMMA,
    refinements: int = 1,
    check: bool = True,
) -> tuple[Any, float | None]:
    """Up to ``gamma`` under the template, and down with the attribute: LATENT, and the inversion's error if checked."""
    here = host()
    down = guidance.levels(here.sigmas(model, replace(sampling, denoise=1.0)), gamma)
    up = Way(guidance.ascending(down), guidance.inversion(refinements), 1.0, sampling.seed)
    inverted = here.solve(model, template, negative, latent, up)
    error: float | None = None
    if check:
        back = here.solve(model, template, negative, inverted, Way(down, "euler", 1.0, sampling.seed))
        error = guidance.error(back["samples"], latent["samples"])
    way = Way(down, sampling.sampler, sampling.cfg, sampling.seed)
    out = here.solve(model, attribute, negative, inverted, way)
    return out, error


GUIDING = {
    "gamma": number(
        guidance.GAMMA,
        0.05,
        1.0,
        0.05,
        "How much of the way back to noise. More changes more; the authors use 0.5 to 0.6.",
    ),
    "refinements": integer(
        1,
        0,
        10,
        "How often each step back is corrected. More is more exact; each costs as much as the steps themselves.",
    ),
}


class AbstractAttributeGuidance:
    CATEGORY = f"{CATEGORY}/cure"
    DESCRIPTION = (
        "For attributes without a place, such as an expression: takes a finished picture part of the way back to noise "
        "under a template prompt, and down again with the attribute. Wire the model without the person: its looks come "
        "from the picture."
    )
    RETURN_TYPES = ("LATENT", "FLOAT", "STRING")
    RETURN_NAMES = ("latent", "round_trip_error", "details")
    OUTPUT_TOOLTIPS = (
        "The picture with the attribute.",
        "How far the way back and forth under the template alone leads from the picture, relative to it; 0 is exact, "
        "-1 not measured.",
        "What was done.",
    )
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["freecure", "apg", "inversion", "expression", "unsampler"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": socket("MODEL", "The model without the person."),
                "latent": socket("LATENT", "The finished picture, cured or not."),
                "template": socket("CONDITIONING", "The prompt without the attribute: a photo of a man."),
                "attribute": socket("CONDITIONING", "The prompt with it: a photo of a man, laughing."),
                "negative": socket("CONDITIONING", "The negative prompt, for the way down."),
                **sampler_inputs(),
                **GUIDING,
                "check": switch(True, "Measure how exact the way back is; costs as much as it once more."),
            }
        }

    def run(
        self,
        model: Any,
        latent: Any,
        template: Any,
        attribute: Any,
        negative: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        gamma: float,
        refinements: int,
        check: bool,
    ) -> dict[str, Any]:
        sampling = Sampling(seed, steps, cfg, sampler_name, scheduler)
        out, error = guided(
            model,
            template,
            attribute,
            negative,
            latent,
            sampling,
            gamma=gamma,
            refinements=refinements,
            check=check,
        )
        measured = "not measured" if error is None else f"{error:.2%}"
        said = f"{gamma:g} of {steps} steps back and forth; round-trip error {measured}"
        return {"ui": {"text": [said]}, "result": (out, -1.0 if error is None else error, said)}


NODES = [FoundationPass, CureAttributes, AbstractAttributeGuidance]
