"""Put a person into a diffusion model: load an adapter, apply it, drive IdentityNet, write the person into the
prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4
from weakref import ref

import torch
from torch import Tensor

from ..face import adapters, applying
from ..face.adapters import AUTHORS, AUTO, IdAdapter
from ..face.adapters._evidence import evidence
from ..face.applying import DEFAULT, Options
from ..face.attention import NEGATIVE, POSITIVE, SCALINGS, Tokens, marked
from ..face.attention import apply as put_together
from ..face.attention.weighting import WEIGHT_TYPES
from ..face.errors import BadInput, MissingModel
from ..face.image import as_image
from ..face.prompt import Written
from ..face.types import Identity, Person
from .form import CATEGORY, ID_ADAPTER, IDENTITY, choice, number, socket, switch, text
from .host import Control, host
from .saving import DRAWN

MIX, EACH = "together", "one a picture"
PEOPLE = (MIX, EACH)
MODES = (DEFAULT, "fidelity", "style", "plain")
PERSON, NOBODY = "the person", "nobody"
SHOWN = (PERSON, NOBODY)
"""Whom IdentityNet shows."""

_STRENGTH = (
    "How strongly the person is drawn. 0 changes nothing, 1 is what most adapters were trained at; InstantID, PuLID "
)
_OPTIONS = {
    "recipe": choice(
        adapters.RECIPES,
        "What the unconditional side gets. *authors*: exactly what the adapter's own pipeline gives it. *popular*: "
        "what the most used node packs give it instead (a black picture, noise). *nothing*: no identity there.",
    ),
    "mode": choice(
        MODES,
        "PuLID only. *default* is its authors' choice; *fidelity* is nearer to the person, *style* nearer to the "
        "prompt, *plain* adds without orthogonalising.",
    ),
    "structure": number(
        1.0, 0.0, 5.0, 0.05, "FaceID-Plus v2 only: how strongly the picture's own face counts beside the vector."
    ),
    "any_recogniser": switch(
        False,
        "Let identities through that another recognition network made, if the vectors have the right size. The person "
        "will not be recognisable; for experiments and adapters that were trained on other vectors.",
    ),
}
_WINDOW = {
    "start": number(0.0, 0.0, 1.0, 0.01, "From which part of the sampling on, as a fraction."),
    "end": number(1.0, 0.0, 1.0, 0.01, "Up to which part of the sampling."),
}
_CONDITIONINGS = {
    "positive": socket(
        "CONDITIONING",
        "Comes out marked as the one that shows the person. Wire it on to the sampler; if it is wired past this "
        "node, the sampler's positive side counts.",
    ),
    "negative": socket("CONDITIONING", "Comes out marked as the unconditional side."),
}
_VISION = socket(
    "CLIP_VISION",
    "The image encoder that looks at the person's pictures, for adapters that need one: CLIP ViT-H for the Plus and "
    "ConsistentID files, CLIP ViT-L-336 for Kolors. The others take none.",
)


def _everybody(
    adapter: IdAdapter, identity: Identity, people: tuple[Person, ...], vision: Any, options: Options, each: bool
) -> Tokens:
    """Tokens of several people: one after the other for all pictures, or each for a picture of its own."""
    here = host()
    encoder = here.encoder(vision) if vision is not None else None
    parts = [applying.tokens_for(adapter, identity, person, encoder, options, here) for person in people]
    if len(parts) == 1:
        return parts[0]
    dim = 0 if each else 1
    negatives = [part.negative for part in parts if part.negative is not None]

    def joined() -> tuple[Tensor, Tensor | None]:
        return torch.cat([part.positive for part in parts], dim), torch.cat(negatives, dim) if negatives else None

    source = None if vision is None else ref(vision)
    return adapter.tokens(identity, (people, each, options.recipe, options.structure, source), joined)


def _what(adapter: IdAdapter, people: tuple[Person, ...]) -> str:
    return f"{adapter.title} ({', '.join(person.name for person in people)})"


class LoadIdentityAdapter:
    CATEGORY = f"{CATEGORY}/adapter"
    DESCRIPTION = (
        "Opens an identity adapter: IP-Adapter FaceID and its relatives, InstantID, PuLID, PhotoMaker, Arc2Face, "
        "ConsistentID. The file tells by its tensors what it is; a file is held once however many nodes load it."
    )
    RETURN_TYPES = (ID_ADAPTER, "STRING")
    RETURN_NAMES = ("id_adapter", "details")
    OUTPUT_TOOLTIPS = ("The adapter.", "What it is, what it needs, and what its authors recommend.")
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["ipadapter", "faceid", "instantid", "pulid", "photomaker", "arc2face", "consistentid"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "adapter": choice(
                    sorted(adapters.files(host())),
                    "A file in models/likeness/adapters, or in the folders of other packs: ipadapter, instantid, "
                    "pulid, photomaker.",
                ),
                "format": choice(
                    adapters.choices(),
                    "Settles what the tensors cannot tell: FaceID-Plus or its second version, InstantID or "
                    "Portrait-unnorm. *auto* asks if it matters.",
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, adapter: str | None) -> bool | str:
        # A linked name is not known before the run. The list alone would not say where adapters come from.
        try:
            return adapter is None or adapters.find(adapter, host()).is_file()
        except MissingModel as error:
            return str(error)

    @classmethod
    def IS_CHANGED(cls, adapter: str, format: str = AUTO) -> str:
        state = adapters.find(adapter, host()).stat()
        return f"{format} {state.st_mtime_ns} {state.st_size}"

    def run(self, adapter: str, format: str) -> dict[str, Any]:
        loaded = adapters.load(adapters.find(adapter, host()), format)
        details = described(loaded)
        return {"ui": {"text": [details]}, "result": (loaded, details)}


def described(adapter: IdAdapter) -> str:
    """An adapter in a few lines."""
    lines = [f"{adapter.title}, for {adapter.base}, {adapter.nbytes / 2**20:.0f} MB"]
    if adapter.recogniser is not None:
        kind = "at length 1" if adapter.recogniser.unit else "as the network answers"
        pack = f" of {adapter.recogniser.pack}" if adapter.recogniser.pack else ""
        lines.append(f"vector: {adapter.recogniser.model}{pack}, {kind}")
    if adapter.feature is not None:
        lines.append(f"pictures: {adapter.feature.encoder}, {adapter.feature.size} pixels, {adapter.feature.crop}")
    if adapter.low_rank or adapter.lora:
        lines.append(f"changes {len(adapter.low_rank) + len(adapter.lora)} weights of the model")
    if adapter.text is not None:
        lines.append("writes into the prompt: use Identity Prompt")
    lines.append(f"recommended strength {adapter.strength:g}")
    return "\n".join(lines)


class ApplyIdentityAdapter:
    CATEGORY = f"{CATEGORY}/adapter"
    DESCRIPTION = (
        "Makes a model draw a person. Several can be chained, with each other and with other packs' adapters, LoRAs "
        "and ControlNets; the model that comes in stays as it is, and no weight is ever duplicated."
    )
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("model", "positive", "negative", "details")
    OUTPUT_TOOLTIPS = (
        "The model with the adapter.",
        "The positive conditioning, marked.",
        "The negative conditioning, marked.",
        "What was applied.",
    )
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["ipadapter advanced", "apply instantid", "apply pulid", "faceid", "face adapter"]
    MARK = DRAWN

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": socket("MODEL", "A model of the base that the adapter was made for."),
                "id_adapter": socket(ID_ADAPTER, "From Load Identity Adapter."),
                "identity": socket(
                    IDENTITY, "Who to draw, embedded with the recogniser that the adapter names in its details."
                ),
                "strength": number(1.0, -1.0, 5.0, 0.05, _STRENGTH + "and Kolors recommend 0.8."),
                "lora_strength": number(
                    1.0,
                    0.0,
                    2.0,
                    0.05,
                    "FaceID, FaceID-Plus, ConsistentID and PhotoMaker bring changes of the model's weights in their "
                    "file: how much of them is applied.",
                ),
                **_WINDOW,
                "weight_type": choice(
                    WEIGHT_TYPES, "Where in the network it acts, as known from IPAdapter: all of it, or parts."
                ),
                "layer_weights": text(
                    "",
                    "Weights by block, e.g. `3:2.5, 6:1`; others get none. Replaces the weight type. SD1.5: 0–15, "
                    "SDXL: 0–10.",
                ),
                "embeds_scaling": choice(
                    SCALINGS, "Where the strength goes in: onto the result, or into keys and values."
                ),
                "people": choice(
                    PEOPLE,
                    "With several people in the identity: *together* mixes them; *one a picture* draws person 1 in the "
                    "first picture of the batch, person 2 in the second, and so on, as animations need it.",
                ),
                **_OPTIONS,
            },
            "optional": {
                **_CONDITIONINGS,
                "mask": socket(
                    "MASK", "Where in the picture it acts: white fully, black not at all. One, or one a picture."
                ),
                "clip_vision": _VISION,
            },
        }

    def run(
        self,
        model: Any,
        id_adapter: IdAdapter,
        identity: Identity,
        strength: float,
        lora_strength: float,
        start: float,
        end: float,
        weight_type: str,
        layer_weights: str,
        embeds_scaling: str,
        people: str,
        recipe: str,
        mode: str,
        structure: float,
        any_recogniser: bool,
        positive: Any = None,
        negative: Any = None,
        mask: Tensor | None = None,
        clip_vision: Any = None,
    ) -> dict[str, Any]:
        here, options = host(), Options(recipe, structure, embeds_scaling, mode, any_recogniser)
        id_adapter.check(identity, any_recogniser)
        if not id_adapter.keys and not id_adapter.lora:
            raise BadInput(
                f"{id_adapter.title} does not act on the model's attention but through the prompt: give it to Identity "
                "Prompt, and leave this node out."
            )
        what = _what(id_adapter, identity.people)
        if strength == 0:
            return _answer(model, positive, negative, f"{what}: strength 0, nothing is changed")
        changed = model
        if id_adapter.keys:
            tokens = _everybody(id_adapter, identity, identity.people, clip_vision, options, people == EACH)
            kind, zeros = options.mode_of(id_adapter)
            mark, positive, negative = _marked(positive, negative)
            applied = put_together(
                what,
                tokens,
                here.layout(model),
                strength=strength,
                weight_type=weight_type,
                layer_weights=layer_weights,
                start=start,
                end=end,
                mask=mask,
                scaling=embeds_scaling,
                mode=kind,
                zeros=zeros,
                mark=mark,
            )
            changed = here.apply_identity(changed, applied)
        if lora_strength and (id_adapter.low_rank or id_adapter.lora):
            changed = here.change_weights(changed, id_adapter, lora_strength)
        return _answer(changed, positive, negative, f"{what} at {strength:g}, steps {start:g} to {end:g}")


def _marked(positive: Any, negative: Any) -> tuple[str | None, Any, Any]:
    """A new mark, and the conditionings that came in with it; no mark where none came, for then places tell."""
    if positive is None and negative is None:
        return None, None, None
    mark = uuid4().hex
    positive = None if positive is None else marked(positive, mark, POSITIVE)
    negative = None if negative is None else marked(negative, mark, NEGATIVE)
    return mark, positive, negative


def _answer(model: Any, positive: Any, negative: Any, details: str) -> dict[str, Any]:
    # What did not come in cannot go out; only who wires that output has to know.
    missing = host().blocker(
        "this output passes on a conditioning, but none was connected to the input of the same name: connect it, or "
        "wire the sampler to the conditioning directly"
    )
    sides = (side if side is not None else missing for side in (positive, negative))
    return {"ui": {"text": [details]}, "result": (model, *sides, details)}


class IdentityControlNet:
    CATEGORY = f"{CATEGORY}/adapter"
    DESCRIPTION = (
        "Drives InstantID's IdentityNet: the ControlNet gets the identity's tokens instead of the text, and the five "
        "points as its picture. Its place and pose come from the points, not from the person's picture."
    )
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ("Positive, with the ControlNet.", "Negative, with the ControlNet.")
    FUNCTION = "run"
    SEARCH_ALIASES = ["instantid controlnet", "identitynet"]
    MARK = DRAWN

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": socket("CONDITIONING", "The positive side."),
                "negative": socket("CONDITIONING", "The negative side."),
                "control_net": socket("CONTROL_NET", "InstantID's ControlNet, from Load ControlNet Model."),
                "id_adapter": socket(ID_ADAPTER, "InstantID's adapter."),
                "identity": socket(IDENTITY, "Who to draw."),
                "image": socket(
                    "IMAGE", "The five points on black, from Face Keypoints Image, in the picture's proportions."
                ),
                "strength": number(0.8, 0.0, 10.0, 0.05, "How strictly place and pose are kept."),
                **_WINDOW,
                "recipe": _OPTIONS["recipe"],
                "any_recogniser": _OPTIONS["any_recogniser"],
            },
            "optional": {
                "mask": socket("MASK", "Where the ControlNet acts."),
                "vae": socket("VAE", "Only for ControlNets that look at latents."),
                "who": choice(
                    SHOWN,
                    "*nobody* gives the ControlNet what the authors give it for a vector of zeros: place and pose "
                    "without the person, for the run of Foundation Pass.",
                ),
            },
        }

    def run(
        self,
        positive: Any,
        negative: Any,
        control_net: Any,
        id_adapter: IdAdapter,
        identity: Identity,
        image: Tensor,
        strength: float,
        start: float,
        end: float,
        recipe: str,
        any_recogniser: bool,
        mask: Tensor | None = None,
        vae: Any = None,
        who: str = PERSON,
    ) -> tuple[Any, Any]:
        if id_adapter.format != "instantid":
            raise BadInput(
                f"IdentityNet takes the tokens of InstantID's adapter; this one is {id_adapter.title}. Load "
                "InstantID's ip-adapter.bin, with the format instantid."
            )
        if start > end:
            raise BadInput(f"start must not be after end; got {start:g} and {end:g}")
        here, options = host(), Options(recipe, any_recogniser=any_recogniser)
        image = as_image(image)
        tokens = _everybody(id_adapter, identity, identity.people, None, options, each=False)
        if not bool((image > 0).any()):
            raise BadInput(
                "the picture for IdentityNet is black: no face was found in the picture that its points come from. "
                "Give one with a face, or leave this node out."
            )
        if strength == 0:
            return positive, negative
        if who == NOBODY:
            # What the projector answers to zeros, which is what the authors' foundation run has (YIYANGCAI/FreeCure,
            # InstantID/infer.py), whatever the recipe gives the negative side.
            tokens = _everybody(
                id_adapter, identity, identity.people, None, replace(options, recipe=AUTHORS), each=False
            )
            nothing = torch.zeros_like(tokens.positive) if tokens.negative is None else tokens.negative
            shown = {POSITIVE: nothing, NEGATIVE: nothing}
        else:
            negative_tokens = tokens.positive if tokens.negative is None else tokens.negative
            shown = {POSITIVE: tokens.positive, NEGATIVE: negative_tokens}
        control = Control(control_net, _masked(image, mask), strength, start, end, vae)
        sides = here.with_control(positive, negative, control, id_adapter.context_width)
        return tuple(
            [[t, {**entry, "cross_attn_controlnet": shown[side]}] for t, entry in conditioning]
            for side, conditioning in zip((POSITIVE, NEGATIVE), sides, strict=True)
        )  # pyright: ignore[reportReturnType]


def _masked(image: Tensor, mask: Tensor | None) -> Tensor:
    """``image`` (B, H, W, 3), black where ``mask`` is 0."""
    if mask is None:
        return image
    (height, width), shown = image.shape[1:3], _masks(mask)
    if abs(shown.shape[1] * width / (shown.shape[2] * height) - 1) > 0.05:
        raise BadInput(
            f"the mask has {shown.shape[2]}×{shown.shape[1]} pixels, but the picture of the points {width}×{height}: "
            "draw it on a picture of the same proportions"
        )
    sized = torch.nn.functional.interpolate(shown[:, None], (height, width), mode="bilinear")[:, 0, :, :, None]
    # One mask serves all pictures, and one picture all masks.
    many = max(len(image), len(sized))
    return image[torch.arange(many) % len(image)] * sized[torch.arange(many) % len(sized)]


def _masks(mask: Tensor) -> Tensor:
    """A MASK, (h, w) or (P, h, w), as (P, h, w) with something in it."""
    masks = mask[None] if mask.ndim == 2 else mask
    if masks.ndim != 3 or not masks.numel() or not bool(torch.isfinite(masks).all()):
        raise BadInput(
            f"a mask must have the shape (pictures, height, width), with numbers in it; got {tuple(mask.shape)}"
            + ("" if bool(torch.isfinite(mask).all()) else " with NaN or infinite values")
        )
    return masks


class RegionalIdentities:
    CATEGORY = f"{CATEGORY}/adapter"
    DESCRIPTION = (
        "Several people in one picture: each person of the identity acts inside a mask of its own, so that faces do "
        "not bleed into each other. Person 1 has the first mask, person 2 the second, and so on."
    )
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("model", "positive", "negative", "details")
    OUTPUT_TOOLTIPS = ApplyIdentityAdapter.OUTPUT_TOOLTIPS
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["regional ipadapter", "multiple faces", "two people", "attention mask"]
    MARK = DRAWN

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": socket("MODEL", "A model of the base that the adapter was made for."),
                "id_adapter": socket(ID_ADAPTER, "From Load Identity Adapter."),
                "identity": socket(IDENTITY, "The people, from Combine Identities with *several people*."),
                "mask_1": socket("MASK", "Where the first person is; or the masks of all, as a batch in their order."),
                "strength": number(1.0, -1.0, 5.0, 0.05, _STRENGTH + "recommend 0.8."),
                "lora_strength": number(1.0, 0.0, 2.0, 0.05, "As in Apply Identity Adapter; applied once."),
                "overlap": choice(
                    ["share", "add"],
                    "Where masks lie over each other: *share* divides the strength among them, *add* gives it to each.",
                ),
                **_WINDOW,
                **_OPTIONS,
            },
            "optional": {
                **{f"mask_{n}": socket("MASK", "Where the next person is.") for n in range(2, 9)},
                **_CONDITIONINGS,
                "clip_vision": _VISION,
            },
        }

    def run(
        self,
        model: Any,
        id_adapter: IdAdapter,
        identity: Identity,
        mask_1: Tensor,
        strength: float,
        lora_strength: float,
        overlap: str,
        start: float,
        end: float,
        recipe: str,
        mode: str,
        structure: float,
        any_recogniser: bool,
        positive: Any = None,
        negative: Any = None,
        clip_vision: Any = None,
        **more: Tensor | None,
    ) -> dict[str, Any]:
        here, options = host(), Options(recipe, structure, mode=mode, any_recogniser=any_recogniser)
        id_adapter.check(identity, any_recogniser)
        if not id_adapter.keys:
            raise BadInput(
                f"{id_adapter.title} acts through the prompt, which has no regions; use another adapter here."
            )
        masks = _together([mask_1, *(more[name] for name in sorted(more))])
        if len(masks) != len(identity.people):
            raise BadInput(
                f"the identity holds {len(identity.people)} people ({', '.join(identity.names)}), but {len(masks)} "
                "masks came with them; each needs one, in the same order."
            )
        if strength == 0:
            return _answer(model, positive, negative, "strength 0, nothing is changed")
        shares = masks / masks.sum(0, keepdim=True).clamp_min(1.0) if overlap == "share" else masks
        kind, zeros = options.mode_of(id_adapter)
        mark, positive, negative = _marked(positive, negative)
        layout, changed = here.layout(model), model
        for person, mask in zip(identity.people, shares, strict=True):
            tokens = _everybody(id_adapter, identity, (person,), clip_vision, options, each=False)
            applied = put_together(
                _what(id_adapter, (person,)),
                tokens,
                layout,
                strength=strength,
                start=start,
                end=end,
                mask=mask,
                mode=kind,
                zeros=zeros,
                mark=mark,
            )
            changed = here.apply_identity(changed, applied)
        if lora_strength and id_adapter.low_rank:
            changed = here.change_weights(changed, id_adapter, lora_strength)
        return _answer(changed, positive, negative, f"{_what(id_adapter, identity.people)}, each in its mask")


def _together(masks: Sequence[Tensor | None]) -> Tensor:
    """Masks (h, w) or (P, h, w), those that are connected, as one (sum of P, h, w)."""
    given = [_masks(mask) for mask in masks if mask is not None]
    sizes = {f"{mask.shape[-1]}×{mask.shape[-2]}" for mask in given}
    if len(sizes) > 1:
        raise BadInput(
            f"the masks must have one size; these have {', '.join(sorted(sizes))}. Scale them to the picture."
        )
    return torch.cat(given)


class IdentityPrompt:
    CATEGORY = f"{CATEGORY}/adapter"
    DESCRIPTION = (
        "Writes the person into the prompt, for PhotoMaker, ConsistentID and Arc2Face. PhotoMaker: put the trigger "
        "word behind the word for the person (*a photo of a man img*). ConsistentID: an ordinary prompt. Arc2Face: "
        "none."
    )
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("positive", "negative", "details")
    OUTPUT_TOOLTIPS = ("The prompt with the person in it.", "The negative prompt.", "What was written.")
    FUNCTION = "run"
    SHOWS = ("text",)
    SEARCH_ALIASES = ["photomaker encode", "arc2face", "consistentid", "trigger word"]
    MARK = DRAWN

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "id_adapter": socket(ID_ADAPTER, "PhotoMaker, ConsistentID or Arc2Face."),
                "identity": socket(IDENTITY, "Who to draw."),
                "prompt": text("a photo of a person img", "What to draw.", multiline=True),
                "negative_prompt": text("", "What not to draw.", multiline=True),
                "trigger": text("img", "PhotoMaker only: the word that marks where the person is."),
                "start": number(
                    -1.0,
                    -1.0,
                    1.0,
                    0.01,
                    "From which part of the sampling on the person is in the prompt; before it the text alone "
                    "settles the composition. -1 is what the authors recommend (PhotoMaker 0.2, ConsistentID 0.6).",
                ),
                "recipe": _OPTIONS["recipe"],
                "any_recogniser": _OPTIONS["any_recogniser"],
            },
            "optional": {
                "clip": socket("CLIP", "The text encoder of the base model. Arc2Face brings its own."),
                "clip_vision": _VISION,
            },
        }

    def run(
        self,
        id_adapter: IdAdapter,
        identity: Identity,
        prompt: str,
        negative_prompt: str,
        trigger: str,
        start: float,
        recipe: str,
        any_recogniser: bool,
        clip: Any = None,
        clip_vision: Any = None,
    ) -> dict[str, Any]:
        writer = id_adapter.text
        if writer is None:
            raise BadInput(
                f"{id_adapter.title} does not write into the prompt: use Apply Identity Adapter, and CLIP Text Encode "
                "for the prompt"
            )
        here = host()
        id_adapter.check(identity, any_recogniser)
        if len(identity.people) != 1:
            raise BadInput(
                f"a prompt has room for one person; the identity holds {', '.join(identity.names)}. Select one, or "
                "blend them with Combine Identities."
            )
        encoder = here.encoder(clip_vision) if clip_vision is not None and id_adapter.feature is not None else None
        known = evidence(id_adapter, identity.people[0], encoder, recipe=recipe, host=here)
        begin = writer.start if start < 0 else start
        positive, negative = writer.write(clip, prompt, negative_prompt, known, begin, trigger)
        details = f"{_what(id_adapter, identity.people)}, from {begin:g} of the sampling on"
        return {"ui": {"text": [details]}, "result": (_entries(positive), _entries(negative), details)}


def _entries(written: list[Written]) -> list[list[Any]]:
    """Conditionings as ComfyUI has them; one that does not count all the time says when."""
    entries: list[list[Any]] = []
    for one in written:
        entry: dict[str, Any] = {} if one.pooled is None else {"pooled_output": one.pooled}
        if one.start > 0 or one.end < 1:
            entry |= {"start_percent": one.start, "end_percent": one.end}
        entries.append([one.text, entry])
    return entries


NODES = [LoadIdentityAdapter, ApplyIdentityAdapter, IdentityControlNet, RegionalIdentities, IdentityPrompt]
