"""The small networks that look at the lab's pictures, each trained apart, on renders alone.

``judge`` reads attributes and traits, ``parts`` says which part every pixel shows and where the five points are,
``recogniser`` makes the vector that adapters are given, ``recogniser_judge``, of another seed and width, the one that
likeness is measured with. All are plain chains of convolutions, so that they go into an ONNX file as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ..face.geometry import arcface_template, similarity
from . import onnx_file
from .fit import Task, fit, seeded
from .text import words
from .world import ATTRIBUTES, PARTS, SIDE, TRAITS, Values, chances, draw, people, wishes

Tensor = torch.Tensor
Pixels = NDArray[np.uint8]

NAMES = ("judge", "parts", "recogniser", "recogniser_judge")
VECTOR = 128
"""Numbers of a recogniser's vector."""
SCALE = 4
"""Pixels of a picture's side for each of the portrait's."""
CROP = 112
NOISE = 20 / 255
"""The networks are trained with up to so much noise: generated pictures have some."""
HEADS: dict[str, tuple[str, ...]] = {**ATTRIBUTES, **TRAITS}
EYES = ("eyes", "iris", "brow", "gap")


def tensor(pixels: Pixels) -> Tensor:
    """(N, 3, 32, 32) in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def points(who: Values) -> NDArray[np.float32]:
    """(N, 5, 2): eyes, tip of the nose, corners of the mouth of ``who``, in pixels of a picture of 128."""
    count = len(who["gap"])
    found = np.zeros((count, 5, 2), np.float32)
    eye, mouth = who["gap"] + 2.5, who["lips"] + 1.5
    for place, (side, away, row) in enumerate(
        ((-1, eye, 14.5), (1, eye, 14.5), (0, eye, 18.0), (-1, mouth, 21.0), (1, mouth, 21.0))
    ):
        found[:, place, 0] = 15.5 + side * away
        found[:, place, 1] = row
    # The middle of an art pixel lies one and a half of its four pixels from its first.
    return found * SCALE + (SCALE - 1) / 2


def visible(what: Values) -> dict[str, NDArray[np.bool_]]:
    """(N,) by trait: whether attributes leave it to be seen. Sunglasses hide eyes, a beard the jaw, hair the ears."""
    style, glasses, beard = (what[n] for n in ("style", "glasses", "beard"))
    dark, full, hidden = glasses == 2, beard == 1, np.isin(style, (1, 2))
    shown = {trait: np.ones(len(style), bool) for trait in TRAITS}
    for trait in EYES:
        shown[trait] = ~dark
    shown["jaw"] = ~full
    shown["ears"] = ~hidden
    shown["marks"] = ~full
    # A moustache or beard begins right under the nose, and an open mouth is narrow whoever opens it.
    shown["nose"] = beard == 0
    shown["lips"] = what["expression"] != ATTRIBUTES["expression"].index("surprised")
    return shown


@lru_cache(maxsize=4096)
def _matrix(places: tuple[float, ...]) -> NDArray[np.float64]:
    return similarity(np.array(places).reshape(5, 2), arcface_template(CROP))


def crops(pixels: Pixels, places: NDArray[Any]) -> Tensor:
    """(N, 3, 112, 112): portraits (N, 32, 32, 3), drawn four times as large, aligned by ``places`` (N, 5, 2) as
    ``face.embed.align`` does it."""
    side = SIDE * SCALE
    large = F.interpolate(tensor(pixels), scale_factor=SCALE, mode="nearest")
    thetas: list[NDArray[np.float64]] = []
    for face in places:
        matrix = _matrix(tuple(np.asarray(face, np.float64).round(3).reshape(-1)))
        back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
        # From pixels with whole numbers in their middle to [-1, 1] over the areas, on either side.
        to_picture = np.array([[2 / side, 0, 1 / side - 1], [0, 2 / side, 1 / side - 1], [0, 0, 1]])
        from_crop = np.array([[CROP / 2, 0, CROP / 2 - 0.5], [0, CROP / 2, CROP / 2 - 0.5], [0, 0, 1]])
        thetas.append((to_picture @ back @ from_crop)[:2])
    theta = torch.from_numpy(np.stack(thetas)).float()
    grid = F.affine_grid(theta, [len(pixels), 3, CROP, CROP], align_corners=False)
    return F.grid_sample(large, grid, align_corners=False)


def _conv(wide: int, out: int, stride: int = 1, size: int = 3, apart: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(wide, out, size, stride, size // 2 * apart, apart), nn.ReLU()]


class Judge(nn.Module):
    """(N, 3, 32, 32) to odds by attribute and trait."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(3, 24), *_conv(24, 40, 2), *_conv(40, 40), *_conv(40, 56, 2), *_conv(56, 56), *_conv(56, 40, 2),
            nn.Flatten(), nn.Linear(40 * 16, 128), nn.ReLU(), nn.Linear(128, sum(map(len, HEADS.values()))),
        )  # fmt: skip

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(HEADS, self.body(x * 2 - 1).split([len(v) for v in HEADS.values()], -1), strict=True))


class Parts(nn.Module):
    """(N, 3, 32, 32) to odds of the 14 parts (N, 14, 32, 32) and the five points (N, 5, 2) in pixels of 128."""

    def __init__(self) -> None:
        super().__init__()
        # What a dark pixel is, hair, beard or frame, shows only from far around.
        self.map = nn.Sequential(
            *_conv(3, 32), *_conv(32, 40, apart=2), *_conv(40, 40, apart=4), *_conv(40, 40, apart=8),
            *_conv(40, 40), nn.Conv2d(40, len(PARTS), 1),
        )  # fmt: skip
        self.point = nn.Sequential(
            *_conv(3, 24), *_conv(24, 32, 2), *_conv(32, 32), *_conv(32, 24, 2), nn.Flatten(), nn.Linear(24 * 64, 48),
            nn.ReLU(), nn.Linear(48, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * 2 - 1
        return self.map(x), (self.point(x).unflatten(-1, (5, 2)) + 0.5) * SIDE * SCALE


class Recogniser(nn.Module):
    """(N, 3, 112, 112) in [0, 1] to the vector (N, 128); ``odds`` of traits are only for training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 5, 4, 2), nn.ReLU(), *_conv(width, 2 * width, 2), *_conv(2 * width, 2 * width),
            *_conv(2 * width, 2 * width, 2), *_conv(2 * width, 24, 1), nn.Flatten(), nn.Linear(24 * 49, VECTOR),
        )  # fmt: skip
        self.odds = nn.Linear(VECTOR, sum(map(len, TRAITS.values())))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * 2 - 1)


def _started(module: nn.Module) -> nn.Module:
    """With weights that keep a signal's size from layer to layer (He et al. 2015, arXiv 1502.01852): without norms a
    chain of torch's own, which are smaller, hardly begins to learn."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return module


BUILDS: dict[str, Callable[[], nn.Module]] = {
    "judge": lambda: _started(Judge()),
    "parts": lambda: _started(Parts()),
    "recogniser": lambda: _started(Recogniser(32)),
    "recogniser_judge": lambda: _started(Recogniser(28)),
}


def load(folder: Path, name: str) -> Any:
    """A trained network, ready to be asked: of its training, ``name.pt``, or as it comes with the pack."""
    file = folder / f"{name}.pt"
    if not file.is_file():
        return Shipped(folder / FILES[name], name)
    module = BUILDS[name]()
    module.load_state_dict(torch.load(file, weights_only=True))
    return module.requires_grad_(False).eval()


FILES = {name: f"lab_{name}.onnx" for name in NAMES}


class Shipped:
    """An ONNX file that is asked like the network it was made of."""

    def __init__(self, file: Path, name: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.name = name

    def __call__(self, x: Tensor) -> Any:
        answers = [torch.from_numpy(answer) for answer in self.session.run(None, {"image": (x * 2 - 1).numpy()})]
        if self.name == "judge":
            return dict(zip(HEADS, answers[0].split([len(v) for v in HEADS.values()], -1), strict=True))
        return (answers[0], answers[1].unflatten(-1, (5, 2))) if self.name == "parts" else answers[0]


def export(work: Path, weights: Path) -> None:
    """The ONNX files of all networks."""
    for name in NAMES:
        module: Any = load(work, name)
        about = {"likeness": f"lab {name}"}
        if name == "parts":
            # The points in pixels of 128: the last layer takes the scaling.
            chain: Any = nn.Sequential(*module.point)
            last = nn.Linear(chain[-1].in_features, 10)
            last.weight.data = chain[-1].weight * (SIDE * SCALE)
            last.bias.data = (chain[-1].bias + 0.5) * (SIDE * SCALE)
            chain[-1] = last
            outputs = {"parts": (module.map, [len(PARTS), SIDE, SIDE]), "points": (chain, [10])}
            onnx_file.write(weights / FILES[name], SIDE, outputs, {**about, "parts": json.dumps(PARTS)})
        elif name == "judge":
            heads = json.dumps({head: list(values) for head, values in HEADS.items()})
            outputs = {"odds": (module.body, [sum(map(len, HEADS.values()))])}
            onnx_file.write(weights / FILES[name], SIDE, outputs, {**about, "heads": heads})
        else:
            onnx_file.write(weights / FILES[name], CROP, {"vector": (module.body, [VECTOR])}, about)


def tokens(vocabulary: Path) -> list[int]:
    """CLIP's numbers of the small table's rows."""
    table = words(vocabulary)
    return [*table.ids, table.vocabulary.start, table.vocabulary.end]


@dataclass
class NetTask(Task):
    name: str
    steps: int = 1500
    batch: int = 128
    seed: int = 11
    rate: float = 2e-3
    average: float = 0.99

    def build(self) -> nn.Module:
        return BUILDS[self.name]()

    def loss(self, module: Any, count: int, seed: int, step: int) -> Tensor:
        del step
        # A recogniser may not know whom the report will show it; the others know nobody anyway.
        strangers = False if self.name.startswith("recogniser") else None
        who, what = people(count, seeded(seed, 1), strangers), wishes(count, seeded(seed, 2))
        made = draw(who, what, chances(count, seeded(seed, 3)))
        noise = torch.rand(count, 1, 1, 1) * NOISE
        if self.name.startswith("recogniser"):
            places = points(who) + np.random.default_rng(seed).integers(-2, 3, (count, 1, 2))
            pixels = crops(made.pixels, places)
            # Noise as large as the portrait's own pixels are here, not as the crop's are.
            coarse = F.interpolate(torch.randn(count, 3, 24, 24), size=CROP, mode="nearest")
            odds = module.odds(module(pixels + noise * coarse))
            return _cross(dict(zip(TRAITS, odds.split([len(v) for v in TRAITS.values()], -1), strict=True)), who, what)
        x = tensor(made.pixels)
        x = x + noise * torch.randn_like(x)
        if self.name == "judge":
            return _cross(module(x), {**who, **what}, what)
        parts, places = module(x)
        wanted = torch.from_numpy(made.parts).long()
        far = (places - torch.from_numpy(points(who))) / (SIDE * SCALE)
        return F.cross_entropy(parts, wanted) + 20 * far.square().mean()


def _cross(odds: dict[str, Tensor], true: Values, what: Values) -> Tensor:
    """Of everything that can be seen."""
    shown, losses = visible(what), list[Tensor]()
    for name, each in odds.items():
        loss = F.cross_entropy(each, torch.from_numpy(np.ascontiguousarray(true[name])), reduction="none")
        if name in shown:
            loss = loss * torch.from_numpy(shown[name])
        losses.append(loss.mean())
    return torch.stack(losses).sum()


TASKS = {
    "judge": NetTask("judge", steps=2500, seed=11),
    "parts": NetTask("parts", steps=1500, batch=64, seed=12),
    "recogniser": NetTask("recogniser", steps=1200, seed=13),
    "recogniser_judge": NetTask("recogniser_judge", steps=1200, seed=14),
}


def train(name: str, work: Path, processes: int) -> None:
    fit(TASKS[name], work, processes)


def _sampled(count: int, seed: int, strangers: bool | None = True) -> tuple[Values, Values, Pixels, NDArray[np.uint8]]:
    who, what = people(count, seeded(seed, 1), strangers), wishes(count, seeded(seed, 2))
    made = draw(who, what, chances(count, seeded(seed, 3)))
    return who, what, made.pixels, made.parts


def noisy(pixels: Pixels, level: float, seed: int = 0) -> Pixels:
    """Portraits with gaussian noise of ``level`` of 255."""
    noise = np.random.default_rng(seed).normal(0, level, pixels.shape)
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def accuracies(network: Any, name: str, level: float, count: int = 2000, seed: int = 303) -> dict[str, float]:
    """What a network reads of fresh renders of people nobody was trained on, with noise of ``level`` of 255."""
    who, what, pixels, parts = _sampled(count, seed)
    seen, found = visible(what), dict[str, float]()
    pixels = noisy(pixels, level)
    if name == "parts":
        odds, places = network(tensor(pixels))
        guessed = odds.argmax(1).numpy()
        for number, part in enumerate(PARTS):
            union = ((guessed == number) | (parts == number)).sum()
            found[part] = float(((guessed == number) & (parts == number)).sum() / max(union, 1))
        found["points"] = float((places - torch.from_numpy(points(who))).norm(dim=-1).mean())
        return found
    if name == "judge":
        odds = network(tensor(pixels))
    else:
        vectors = network.odds(network(crops(pixels, points(who))))
        odds = dict(zip(TRAITS, vectors.split([len(v) for v in TRAITS.values()], -1), strict=True))
    for head, each in odds.items():
        right = each.argmax(-1).numpy() == {**who, **what}[head]
        found[head] = float(right[seen[head]].mean() if head in seen else right.mean())
    return found


def leak(network: Any, count: int = 6000) -> dict[str, tuple[float, float]]:
    """By attribute how often a linear probe reads it off the recogniser's vector, which was never told of it, and how
    often its commonest value would be right."""
    who, what, pixels, _ = _sampled(count, 404, None)
    vectors = torch.cat(
        [network(crops(pixels[n : n + 500], points(_slice(who, n, n + 500)))) for n in range(0, count, 500)]
    )
    vectors = (vectors - vectors.mean(0)) / vectors.std(0).clamp(min=1e-6)
    cut, found = count * 2 // 3, dict[str, tuple[float, float]]()
    with torch.inference_mode(False), torch.enable_grad():
        x = vectors.clone()
        for name, values in ATTRIBUTES.items():
            y = torch.from_numpy(np.ascontiguousarray(what[name]))
            probe = nn.Linear(VECTOR, len(values))
            optimizer = torch.optim.Adam(probe.parameters(), 0.02)
            for _ in range(150):
                optimizer.zero_grad()
                F.cross_entropy(probe(x[:cut]), y[:cut]).backward()
                optimizer.step()
            right = float((probe(x[cut:]).argmax(-1) == y[cut:]).float().mean())
            found[name] = (round(right, 3), round(float(y[cut:].bincount().max() / len(y[cut:])), 3))
    return found


def _slice(values: Values, first: int, last: int) -> Values:
    return {name: value[first:last] for name, value in values.items()}


def recognised(network: Any, count: int = 256) -> dict[str, float]:
    """Cosine of one person with other attributes and of different people; how often the right one comes first."""
    who, _, pixels, _ = _sampled(count, 505)
    again = draw(who, wishes(count, 506), chances(count, 507)).pixels
    one, two = (F.normalize(network(crops(p, points(who))), dim=-1) for p in (pixels, again))
    cosines = one @ two.T
    other = cosines[~torch.eye(count, dtype=torch.bool)]
    first = (cosines.argmax(1) == torch.arange(count)).float().mean()
    return {
        "same": round(float(cosines.diag().mean()), 3),
        "other": round(float(other.mean()), 3),
        "first": round(float(first), 3),
    }


def gate(name: str, work: Path) -> dict[str, Any]:
    """Figures of a trained network on fresh renders. Raises GateFailed."""
    from .stages import require

    network, figures = load(work, name), dict[str, Any]()
    for level in (0, 10, 20):
        read = accuracies(network, name, level)
        figures[f"noise {level}"] = {head: round(value, 3) for head, value in read.items()}
    clean = figures["noise 10"]
    if name == "parts":
        clean = dict(clean)
        far = clean.pop("points")
        require(far < 2.0, f"the points lie {far:.1f} pixels off, wanted 2", figures)
        cured = min(clean[part] for part in ("hair", "glasses", "hat", "earrings"))
        require(cured > 0.85, f"what a cure masks overlaps by {cured:.2f}, wanted 0.85", figures)
        require(clean["beard"] > 0.6, "beards overlap by less than 0.6", figures)
    elif name == "judge":
        least = {head: clean[head] for head in ATTRIBUTES}
        require(min(least.values()) > 0.97, "an attribute is read right less than 97 times of 100", figures)
    else:
        figures |= {"people": recognised(network), "leak": leak(network)}
        traits = float(np.mean([clean[head] for head in TRAITS]))
        require(traits > 0.85, f"traits are read right {traits:.2f} of the time, wanted 0.85", figures)
    return figures
