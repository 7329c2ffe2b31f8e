"""Hard and wrong input as a user meets it: real nodes run by the engine with the default models on photographs.

What single files and functions do with bad input is tested beside them; here every node that takes a kind of value is
asked, by its declared inputs, so that a node added later is asked too.
"""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from likeness.engine.core import CORE
from likeness.engine.execution import Executor, Record
from likeness.engine.graph import validate
from likeness.engine.host import EngineHost, Silent
from likeness.face import errors
from likeness.face.cache import ANALYSES, MODELS
from likeness.face.host import STANDALONE
from likeness.face.identity_file import W600K_R50
from likeness.face.image import load_picture
from likeness.face.models import catalogue, status
from likeness.face.types import Faces, Person
from likeness.nodes import NODE_CLASS_MAPPINGS as NODES
from likeness.nodes import host as hosts

from .stub_nodes import Stub, graph

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "workflows" / "photos"

pytestmark = pytest.mark.weights

VALUES, KEPT = {}, {}


class Given(Stub):
    """Hands out a value that a test made."""

    RETURN_TYPES = ("*",)
    INPUTS = {"required": {"key": ("STRING", {})}}

    def go(self, key):
        return (VALUES[key],)


class Keep(Stub):
    """Keeps what a node answered, as the list of items that travelled on the link."""

    INPUT_IS_LIST, OUTPUT_NODE, RETURN_TYPES = True, True, ()
    INPUTS = {"required": {"key": ("STRING", {}), "value": ("*", {})}}

    def go(self, key, value):
        KEPT[key[0]] = value
        return ()


KNOWN = {**CORE, **NODES, "Given": Given, "Keep": Keep}


@dataclass(frozen=True)
class Played:
    """What came of one node."""

    record: Record
    out: dict
    """By the output's name: the value, or the list of values of a list output. A blocked output is not there."""

    @property
    def error(self):
        return self.record.message("execution_error")

    def good(self):
        assert self.error is None, self.error
        return self.out


def declared(node):
    spec = NODES[node].INPUT_TYPES()
    return {**spec.get("required", {}), **spec.get("optional", {})}


def play(node, *, executor=None, listener=None, stop=None, **values):
    """Run one node by its id through the engine: widgets at their defaults, ``values`` into the rest."""
    VALUES.clear()
    KEPT.clear()
    inputs, nodes = {}, {}
    for name, (kind, options) in declared(node).items():
        if name in values and isinstance(kind, str) and kind.isupper() and "default" not in options:
            VALUES[name] = values[name]
            nodes[name] = ("Given", {"key": name})
            inputs[name] = [name, 0]
        elif name in values or options.get("default") is not None:
            inputs[name] = values.get(name, options.get("default"))
    outputs = NODES[node].RETURN_NAMES
    for slot, name in enumerate(outputs):
        nodes[f"keep {name}"] = ("Keep", {"key": name, "value": ["node", slot]})
    prompt = graph(node=(node, inputs), **nodes)
    verdict = validate(prompt, KNOWN)
    assert verdict.ok, (verdict.error, verdict.node_errors)
    record = (executor or Executor(KNOWN)).run(prompt, verdict.outputs, listener=listener, stop=stop)
    lists = getattr(NODES[node], "OUTPUT_IS_LIST", (False,) * len(outputs))
    out = {n: KEPT[n] if several else KEPT[n][0] for n, several in zip(outputs, lists, strict=True) if n in KEPT}
    return Played(record, out)


def says(played, words, kind=errors.LikenessError):
    """The node failed, with one of our own errors and a sentence."""
    error = played.error
    assert error is not None, "nothing was said"
    name = error["exception_type"].rpartition(".")[2]
    assert issubclass(getattr(errors, name, type(None)), kind), error
    assert re.search(words, error["exception_message"]), error["exception_message"]


def taking(socket):
    """(node, input) for every input of every node that takes this kind of value and works without a diffusion model."""
    needed = {node: [kind for kind, _ in NODES[node].INPUT_TYPES()["required"].values()] for node in NODES}
    nodes = [
        node for node in NODES if not any(kind in needed[node] for kind in ("MODEL", "CONDITIONING", "ID_ADAPTER"))
    ]
    found = [(node, name) for node in nodes for name, (kind, _) in declared(node).items() if kind == socket]
    hosts.use(None)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A host with the default models, whose folders are thrown away."""
    if missing := [c.name for c in catalogue.select("default") if status(c, STANDALONE) == "missing"]:
        pytest.skip(f"the models {', '.join(missing)} are not fetched: likeness models fetch default")
    work = tmp_path_factory.mktemp("work")
    return EngineHost([PHOTOS], work / "out", work / "temp")


@pytest.fixture(autouse=True)
def _used(world):
    hosts.use(world)
    yield
    hosts.use(None)


def photo(name="obama"):
    return load_picture(PHOTOS / f"{name}.jpg")[0]


def scaled(image, height, width):
    return F.interpolate(image.permute(0, 3, 1, 2), (height, width), mode="area").permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def kit(world):
    """A value for every socket, all of one photograph, made by the nodes themselves."""
    hosts.use(world)
    image = photo()
    faces = play("LikenessDetectFaces", image=image).good()["faces"]
    cut = play("LikenessCropFaces", image=image, faces=faces, size=256).good()
    identity = play("LikenessEmbedIdentity", image=image, faces=faces).good()["identity"]
    return {
        "IMAGE": image,
        "FACES": faces,
        "IDENTITY": identity,
        "FACE_SCORE": play("LikenessScoreFaces", image=image, faces=faces).good()["scores"],
        "VERDICTS": play("LikenessJudgeAttributes", image=image, faces=faces).good()["verdicts"],
        "FACE_CROPS": cut["crop_info"],
        "MASK": cut["mask"],
        "crops": cut["crops"],
    }


@pytest.fixture(scope="module")
def ardern(world):
    """Another person's identity."""
    hosts.use(world)
    return play("LikenessEmbedIdentity", image=photo("ardern")).good()["identity"]


def sockets(node, kit):
    """A good value for every socket that the node cannot do without."""
    required = NODES[node].INPUT_TYPES()["required"]
    values = {name: kit.get(name, kit.get(kind)) for name, (kind, _) in required.items() if isinstance(kind, str)}
    return {name: value for name, value in values.items() if value is not None}


# Pictures


@pytest.mark.parametrize(("node", "name"), taking("IMAGE"))
def test_nan_in_a_picture_is_refused_by_whoever_takes_it(node, name, kit):
    values = {"identity": kit["IDENTITY"], **sockets(node, kit)} if name == "references" else sockets(node, kit)
    bad = kit.get(name, kit["IMAGE"]).clone()
    bad[0, 5, 5, 1] = float("nan")
    says(play(node, **values | {name: bad}), "holds 1 values that are NaN .* decode in float32", errors.BadImage)


@pytest.mark.parametrize(("node", "name"), taking("IMAGE"))
def test_alpha_and_half_precision_are_taken_by_whoever_takes_a_picture(node, name, kit):
    image = kit.get(name, kit["IMAGE"])
    play(node, **sockets(node, kit) | {name: torch.cat([image, image[..., :1]], -1).half()}).good()


def test_faces_are_the_same_in_any_layout_and_precision(kit):
    image, found = kit["IMAGE"], kit["FACES"][0]
    rgba = torch.cat([image, torch.zeros_like(image[..., :1])], -1)
    grey = image.mean(-1, keepdim=True)
    pairs = [(rgba, image), (image[0], image), (image.half(), image), (grey, grey.expand(-1, -1, -1, 3))]
    for given, same in pairs:
        faces = play("LikenessDetectFaces", image=given).good()["faces"]
        expected = found if same is image else play("LikenessDetectFaces", image=same).good()["faces"][0]
        assert len(faces) == 1 and len(faces[0]) == len(expected) == 1
        np.testing.assert_allclose(faces[0][0].box, expected[0].box, atol=0.5)


EVERYTHING = graph(
    given=("Given", {"key": "image"}),
    who=("Given", {"key": "identity"}),
    size=("Given", {"key": "size"}),
    detect=(
        "LikenessDetectFaces",
        {
            "image": ["given", 0],
            "detector": "yunet",
            "minimum_confidence": 0.0,
            "size": ["size", 0],
            "smallest": 0,
            "retry": True,
            "landmarks": "mesh",
            "attributes": "none",
        },
    ),
    select=(
        "LikenessSelectFaces",
        {
            "image": ["given", 0],
            "faces": ["detect", 0],
            "order": "large-small",
            "indices": "",
            "no_face": "pass through",
        },
    ),
    masks=(
        "LikenessFaceMasks",
        {
            "image": ["select", 1],
            "faces": ["select", 0],
            "area": "parts",
            "parts": "oval",
            "grow": 4,
            "feather": 8,
        },
    ),
    draw=(
        "LikenessDrawFaces",
        {
            "image": ["select", 1],
            "faces": ["select", 0],
            "boxes": True,
            "points": True,
            "mesh": True,
            "labels": True,
        },
    ),
    score=(
        "LikenessScoreFaces",
        {
            "image": ["select", 1],
            "judge": "sface",
            "driver": "nothing",
            "similarity": 0.0,
            "quality": 0.5,
            "identity": ["who", 0],
            "faces": ["select", 0],
            "target": ["select", 0],
        },
    ),
    drawn=("Keep", {"key": "drawn", "value": ["draw", 0]}),
    masked=("Keep", {"key": "masked", "value": ["masks", 0]}),
    scored=("Keep", {"key": "scored", "value": ["score", 1]}),
    count=("Keep", {"key": "count", "value": ["detect", 1]}),
)


def look_at(image, identity, size=640):
    """Detect, select, mask, draw and score in one prompt; answers what was kept."""
    VALUES.update(image=image, identity=identity, size=size)
    KEPT.clear()
    verdict = validate(EVERYTHING, KNOWN)
    assert verdict.ok, verdict.node_errors
    record = Executor(KNOWN).run(EVERYTHING, verdict.outputs)
    assert record.status == "success", record.message("execution_error")
    return {name: items if name == "scored" else items[0] for name, items in KEPT.items()}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 20_000), (20_000, 2)])
def test_pictures_that_can_hold_no_face_pass_through_everything(height, width, kit):
    image = torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(0))
    kept = look_at(image, kit["IDENTITY"])
    assert kept["count"] == 0 and kept["scored"] == [0, 0]
    assert torch.equal(kept["drawn"], image)
    assert kept["masked"].shape == (2, height, width) and not kept["masked"].any()


LONG = """
import sys, tempfile
from pathlib import Path
root = Path(sys.argv[1])
import importlib.util
def load(name, path, **more):
    spec = importlib.util.spec_from_file_location(name, path, **more)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
load("conftest", root / "tests" / "conftest.py")
load("tests", root / "tests" / "conftest.py", submodule_search_locations=[str(root / "tests")])
import tests.test_bad_input as here
import torch

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

work = Path(tempfile.mkdtemp())
here.hosts.use(here.EngineHost([here.PHOTOS], work / "out", work / "temp"))
photo = here.photo()
identity = here.play("LikenessEmbedIdentity", image=photo).good()["identity"]
here.look_at(photo, identity)
long = torch.full((1, 20_000, 200, 3), 0.5)
long[:, 9_000:9_200] = here.scaled(photo[:, 80:600, 80:600], 200, 200)
before = memory("VmRSS")
kept = here.look_at(long, identity, 4096)
print(kept["count"], kept["scored"][0], (memory("VmHWM") - before) / long.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure memory")
def test_a_side_of_20000_pixels_takes_memory_for_a_few_copies_of_the_picture(tmp_path):
    # In a process of its own: the peak of this one was reached long before.
    run = subprocess.run(
        [sys.executable, "-P", "-c", LONG, str(ROOT)], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert run.returncode == 0, run.stderr
    count, score, copies = run.stdout.split()
    assert count == "1" and float(score) > 0.5
    assert float(copies) < 6


def test_sixty_faces_in_one_picture_go_through_everything(kit, ardern):
    began = time.monotonic()
    image = scaled(kit["IMAGE"], 92, 80).repeat(1, 6, 10, 1)
    found = play("LikenessDetectFaces", image=image, size=800).good()
    assert found["count"] == 60 and all(468 in face.landmarks for face in found["faces"][0])
    tracked = play("LikenessTrackFaces", image=image, faces=found["faces"]).good()
    assert tracked["people"] == 60
    faces = play("LikenessSelectFaces", image=image, faces=tracked["faces"], identity=kit["IDENTITY"]).good()["faces"]
    assert faces.count == 60
    some = play("LikenessSelectFaces", image=image, faces=faces, order="left-right", indices="-3--1").good()["faces"]
    assert some.count == 3 and min(face.centre[0] for face in some[0]) > 720
    masks = play("LikenessFaceMasks", image=image, faces=faces, area="parts", parts="oval").good()
    assert len(masks["per_face"]) == 60 and all(mask.max() == 1 for mask in masks["per_face"])
    assert not torch.equal(play("LikenessDrawFaces", image=image, faces=faces).good()["image"], image)
    assert len(play("LikenessCropFaces", image=image, faces=faces, size=64).good()["crops"]) == 60
    assert play("LikenessEmbedIdentity", image=image, faces=faces).good()["identity"].people[0].vectors.shape[0] == 1
    named = play("LikenessNameFaces", image=image, faces=faces, identity=kit["IDENTITY"]).good()["faces"]
    assert [face.label for face in named[0]].count("person") == 1, "nobody is twice in one picture"
    scores = play("LikenessScoreFaces", image=image, faces=faces, identity=kit["IDENTITY"], judge="sface").good()
    assert len(scores["scores"].records) == 60 and min(r.similarity for r in scores["scores"].records) > 0.6
    swapped = play("LikenessSwapFaces", image=image, faces=faces, identity=ardern).good()
    redrawn = [bool(swapped["mask"][0, int(f.centre[1]), int(f.centre[0])] > 0.5) for f in faces[0]]
    assert all(redrawn)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("side", ["left", "bottom"])
def test_a_face_cut_by_the_border_goes_through_everything(side, kit, ardern):
    x1, y1, x2, y2 = kit["FACES"][0][0].box
    left, bottom = (int(x1 + 0.35 * (x2 - x1)), None) if side == "left" else (0, int(y2 - 0.3 * (y2 - y1)))
    image = kit["IMAGE"][:, :bottom, left:].contiguous()
    faces = play("LikenessDetectFaces", image=image).good()["faces"]
    box = faces[0][0].box
    assert faces.count == 1 and (box[0] < 0 if side == "left" else box[3] > image.shape[1])
    mask = play("LikenessFaceMasks", image=image, faces=faces, feather=20).good()["mask"]
    x, y = (int(v) for v in faces[0][0].centre)
    # The border is not taken for the face's edge: nothing fades towards it.
    assert (mask[0, y, 0] if side == "left" else mask[0, -1, x]) == 1 and mask.shape == image.shape[:3]
    cut = play("LikenessCropFaces", image=image, faces=faces, upright=True).good()
    back = play("LikenessUncropFaces", image=image, crops=cut["crops"], crop_info=cut["crop_info"], blend="change")
    assert (back.good()["image"] - image).abs().max() < 1e-6
    person = play("LikenessEmbedIdentity", image=image, faces=faces).good()["identity"]
    assert float(person.people[0].unit[0] @ kit["IDENTITY"].people[0].unit[0]) > 0.5
    scores = play("LikenessScoreFaces", image=image, faces=faces, identity=kit["IDENTITY"], judge="sface").good()
    assert scores["scores"].records[0].similarity > 0.5
    swapped = play("LikenessSwapFaces", image=image, faces=faces, identity=ardern).good()
    outside = swapped["mask"] == 0
    assert torch.equal(swapped["image"][outside], image[outside]) and swapped["mask"].max() == 1
    assert torch.isfinite(swapped["image"]).all()


# Faces


def blank(image, faces):
    return not bool(faces["image"].any()) and list(faces["found"]) == [False, False]


def same(image, out):
    return torch.equal(out["image"], image)


NO_FACE = [
    ("SelectFaces", {"no_face": "error"}, "no face left after selecting in image 1 of 2"),
    ("SelectFaces", {"no_face": "pass through"}, same),
    ("SelectFaces", {"no_face": "blank"}, blank),
    ("SelectFaces", {"no_face": "skip"}, lambda image, out: "image" not in out and out["found"] == [False, False]),
    ("TrackFaces", {}, lambda image, out: out["people"] == 0 and len(out["faces"]) == 2),
    ("FaceMasks", {"area": "box"}, lambda image, out: not out["mask"].any() and len(out["mask"]) == 2),
    ("FaceMasks", {"area": "hull"}, lambda image, out: not out["mask"].any() and len(out["per_face"]) == 1),
    ("FaceMasks", {"area": "parts"}, lambda image, out: not out["mask"].any()),
    ("CropFaces", {}, lambda image, out: not out["crops"].any() and len(out["crops"]) == 1 and len(out["faces"]) == 1),
    ("DrawFaces", {"mesh": True}, same),
    ("FaceKeypointsImage", {}, lambda image, out: out["image"].shape == image.shape and not out["image"].any()),
    ("EmbedIdentity", {}, "no face in any of the 2 pictures of 'person'"),
    ("NameFaces", {}, same),
    ("SwapFaces", {"no_face": "error"}, "there is no face in picture 1 of 2"),
    ("SwapFaces", {"no_face": "pass through"}, lambda image, out: same(image, out) and not out["mask"].any()),
    ("AttributeMasks", {"prompt": "blue eyes"}, lambda image, out: not out["mask"].any() and len(out["mask"]) == 2),
    (
        "JudgeAttributes",
        {"attributes": "a man with red hair"},
        lambda image, out: (out["missing"], out["not_judged"], out["all_present"]) == ("", "red hair", False),
    ),
    ("ScoreFaces", {}, lambda image, out: out["score"] == [0, 0] and out["passed"] == [False, False]),
]
"""What every node that takes faces does without any: a check of what it answers, or the sentence it stops with."""


@pytest.mark.parametrize(("node", "settings", "expected"), NO_FACE, ids=[f"{n}-{s}" for n, s, _ in NO_FACE])
def test_no_face_in_any_picture_is_a_legal_value_or_a_sentence(node, settings, expected, kit):
    image = kit["IMAGE"].repeat(2, 1, 1, 1)
    none = Faces(((), ()), (tuple(image.shape[1:3]),) * 2, "yunet, minimum confidence 0.8")
    given = {"image": image, "faces": none, "identity": kit["IDENTITY"]}
    node = f"Likeness{node}"
    played = play(node, **{k: v for k, v in given.items() if k in declared(node)} | settings)
    if isinstance(expected, str):
        says(played, expected, errors.NoFace)
    else:
        assert expected(image, played.good())


def test_crops_of_nobody_go_round_and_change_nothing(kit):
    image = kit["IMAGE"]
    none = Faces(((),), (tuple(image.shape[1:3]),))
    cut = play("LikenessCropFaces", image=image, faces=none).good()
    assert cut["crops"].shape == (1, 512, 512, 3) and cut["mask"].shape == (1, 512, 512) and cut["faces"].count == 0
    back = play("LikenessUncropFaces", image=image, crops=cut["crops"] + 0.5, crop_info=cut["crop_info"]).good()
    assert torch.equal(back["image"], image)


@pytest.fixture(scope="module")
def beheaded(world):
    """A face cut above the eyes, which the detector finds and the mesh network does not, and a whole one."""
    image = photo()
    return torch.cat([image[:, 350:], image[:, 100 : image.shape[1] - 250]])


def test_a_face_that_the_mesh_network_refuses_stays_as_it_is_with_a_note(beheaded, ardern):
    found = play("LikenessDetectFaces", image=beheaded).good()["faces"]
    assert [468 in face.landmarks for faces in found for face in faces] == [False, True]
    swapped = play("LikenessSwapFaces", image=beheaded, faces=found, identity=ardern)
    image, mask = swapped.good()["image"], swapped.out["mask"]
    assert torch.equal(image[0], beheaded[0]) and not mask[0].any() and mask[1].any()
    assert swapped.record.outputs["node"]["text"] == [
        "1 of 2 faces swapped in 2 pictures",
        "unchanged, cannot be drawn over (cut off or unclear): face 1 of picture 1",
    ]
    for area in ("hull", "parts"):
        masked = play("LikenessFaceMasks", image=beheaded, faces=found, area=area)
        per_face = masked.good()["per_face"]
        assert len(per_face) == 2 and not per_face[0].any() and per_face[1].any()
        assert masked.record.outputs["node"]["text"] == [
            "not masked, no landmarks (cut off or unclear): face 1 of picture 1"
        ]


def test_the_note_of_a_swap_counts_the_swapped_faces(kit, ardern):
    image, faces = kit["IMAGE"].repeat(1, 1, 3, 1), kit["FACES"]
    three = play("LikenessDetectFaces", image=image).good()["faces"]
    assert len(three[0]) == 3
    two = play("LikenessCombineIdentities", identity_1=ardern, identity_2=kit["IDENTITY"]).good()["identity"]
    told = play("LikenessSwapFaces", image=image, faces=three, identity=two).record.outputs["node"]["text"]
    assert told == ["2 of 3 faces swapped in 1 picture"]
    still = play("LikenessSwapFaces", image=kit["IMAGE"], faces=faces, identity=ardern, strength=0.0)
    assert still.record.outputs["node"]["text"] == ["0 of 1 face swapped in 1 picture"]


def test_nobody_recognised_means_nobody_swapped_by_identity(kit):
    image = kit["IMAGE"]
    wanted = {"image": image, "identity": kit["IDENTITY"]}
    for similarity, changed in ((0.36, True), (1.0, False)):
        shifted = {**wanted, "image": photo("macron")} if changed is False else wanted
        found = play("LikenessDetectFaces", image=shifted["image"]).good()["faces"]
        named = play("LikenessNameFaces", **shifted, faces=found, similarity=similarity).good()["faces"]
        out = play("LikenessSwapFaces", **shifted, faces=named, mapping="identity").good()
        assert bool(out["mask"].any()) is changed
        unseen = play("LikenessSwapFaces", **shifted, faces=found, mapping="identity").good()
        assert bool(unseen["mask"].any()) is changed


def test_a_target_with_other_landmarks_is_told(kit):
    image, whole = kit["IMAGE"], kit["FACES"]
    sparse = whole.map(lambda _, face: replace(face, landmarks={68: face.landmarks[468][:68, :2]}))
    for target, told in ((whole, 0), (sparse, 1), (whole.map(lambda _, face: replace(face, landmarks={})), 1)):
        lines = play("LikenessScoreFaces", image=image, faces=whole, target=target).record.outputs["node"]["text"]
        assert len([line for line in lines if "expression not compared" in line]) == told


def test_the_scores_name_their_judge_with_its_weights(kit):
    details = json.loads(play("LikenessScoreFaces", image=kit["IMAGE"], identity=kit["IDENTITY"]).good()["details"])
    assert len(details["judge"]["digest"]) == 64 and "settings" not in details
    bare = json.loads(play("LikenessScoreFaces", image=kit["IMAGE"]).good()["details"])
    assert bare["judge"] is None


def test_every_node_that_takes_faces_says_what_it_does_without_one():
    assert {f"Likeness{node}" for node, *_ in NO_FACE} == {node for node, _ in taking("FACES")}


WITH_PICTURES = [(node, name) for node, name in taking("FACES") if (node, "image") in taking("IMAGE")]


@pytest.mark.parametrize("landmarks", [True, False], ids=["mesh", "five points"])
@pytest.mark.parametrize(("node", "name"), WITH_PICTURES)
def test_faces_of_another_batch_are_refused_by_whoever_takes_both(node, name, landmarks, kit):
    image = kit["IMAGE"].repeat(2, 1, 1, 1)
    faces = kit["FACES"] if landmarks else kit["FACES"].map(lambda _, face: replace(face, landmarks={}))
    values = sockets(node, kit)
    for count in (1, 3):
        # One target serves a whole batch.
        if (name, count) != ("target", 1):
            played = play(node, **values | {"image": image, name: faces.at([0] * count)})
            says(played, r"pictures.*(image has|targets)", errors.BadInput)


@pytest.mark.parametrize("landmarks", [True, False], ids=["mesh", "five points"])
@pytest.mark.parametrize(("node", "name"), [(node, name) for node, name in WITH_PICTURES if name != "target"])
def test_faces_of_a_picture_of_another_size_are_refused_by_whoever_takes_both(node, name, landmarks, kit):
    faces = kit["FACES"] if landmarks else kit["FACES"].map(lambda _, face: replace(face, landmarks={}))
    image = scaled(kit["IMAGE"], 300, 260)
    played = play(node, **sockets(node, kit) | {"image": image, name: faces})
    says(played, "found in pictures of 682×785 pixels, but the image has 260×300", errors.BadInput)


@pytest.mark.parametrize("policy", ["skip", "blank", "pass through"])
def test_a_policy_without_faces_does_not_hide_that_the_batch_is_another(policy, kit):
    none = Faces(((), (), ()), (tuple(kit["IMAGE"].shape[1:3]),) * 3)
    played = play("LikenessSelectFaces", image=kit["IMAGE"], faces=none, no_face=policy)
    says(played, "come from 3 pictures, but the image has 1", errors.BadInput)


@pytest.mark.parametrize("node", ["LikenessBestOf", "LikenessGateByScore", "LikenessScoreReport"])
def test_scores_of_another_batch_are_refused_by_whoever_takes_them(node, kit):
    image = kit["IMAGE"].repeat(2, 1, 1, 1)
    values = sockets(node, kit)
    says(play(node, **values | {"image": image}), r"scores .* of 1 picture.* has 2", errors.BadInput)


@pytest.mark.parametrize("shape", [(1, 100, 100), (2, 256, 256), (1, 256, 128)])
def test_a_mask_that_does_not_fit_the_crops_is_refused(shape, kit):
    played = play("LikenessUncropFaces", **sockets("LikenessUncropFaces", kit) | {"mask": torch.ones(shape)})
    says(played, r"mask for the crops must have the shape \(1, 256, 256\).*Scale the mask", errors.BadImage)


# Models


def folder_with(tmp_path, broken):
    """The default models, of which ``broken`` is a file of its own that a test may spoil."""
    models = tmp_path / "models" / "likeness"
    models.mkdir(parents=True)
    for file in STANDALONE.folders("likeness")[0].glob("*.onnx"):
        if file.name == broken:
            shutil.copyfile(file, models / broken)
        else:
            (models / file.name).symlink_to(file)
    if not (models / broken).exists():
        pytest.skip(f"{broken} is not fetched")
    hosts.use(EngineHost([PHOTOS], tmp_path / "out", tmp_path / "temp", tmp_path / "models"))
    return models / broken


STAGES = [
    ("yunet.onnx", "LikenessDetectFaces", {}, "face_mesh.onnx"),
    ("centerface.onnx", "LikenessDetectFaces", {"detector": "centerface"}, "sface.onnx"),
    ("mtcnn_rnet.onnx", "LikenessDetectFaces", {"detector": "mtcnn"}, "sface.onnx"),
    ("face_mesh.onnx", "LikenessDetectFaces", {}, "yunet.onnx"),
    ("landmarks68.onnx", "LikenessDetectFaces", {"landmarks": "landmarks68"}, "yunet.onnx"),
    ("age.onnx", "LikenessDetectFaces", {"attributes": "age-gender"}, "yunet.onnx"),
    ("sface.onnx", "LikenessEmbedIdentity", {}, "yunet.onnx"),
    ("mobilefacenet.onnx", "LikenessEmbedIdentity", {"embedder": "mobilefacenet"}, "face_mesh.onnx"),
]
"""A model file, a node that opens it, the settings for that, and another model to put in its place."""


@pytest.mark.parametrize(("file", "node", "settings", "other"), STAGES, ids=[s[0] for s in STAGES])
def test_another_model_under_a_files_name_is_named_with_the_remedy(file, node, settings, other, tmp_path):
    path = folder_with(tmp_path, file)
    shutil.copyfile(path.with_name(other), path)
    words = rf"{re.escape(file)}.*(([Dd]elete|[Ff]etch|[Cc]opy) it|Choose another file)"
    says(play(node, image=photo(), **settings), words, errors.BadModelFile)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
@pytest.mark.parametrize(("file", "node", "settings", "_"), STAGES, ids=[s[0] for s in STAGES])
def test_a_truncated_model_is_named_with_the_remedy(file, node, settings, _, share, tmp_path):
    path = folder_with(tmp_path, file)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    says(play(node, image=photo(), **settings), rf"{re.escape(file)}.*[Ff]etch or copy it again", errors.BadModelFile)


@pytest.mark.parametrize(("file", "node", "settings", "_"), STAGES, ids=[s[0] for s in STAGES])
def test_a_model_that_the_runtime_does_not_open_is_named_with_the_remedy(file, node, settings, _, tmp_path):
    path = folder_with(tmp_path, file)
    # The outside stays whole; an operator inside gets a name that nobody knows.
    path.write_bytes(path.read_bytes().replace(b"Conv", b"Vonc"))
    says(play(node, image=photo(), **settings), rf"{re.escape(file)}.*[Ff]etch or copy it again", errors.BadModelFile)


# Contracts


@pytest.fixture(scope="module")
def others(world, kit):
    """The photograph's person by another network, and by one that nobody has."""
    hosts.use(world)
    if status(catalogue["mobilefacenet"], STANDALONE) == "missing":
        pytest.skip("mobilefacenet is not fetched")
    second = play("LikenessEmbedIdentity", image=kit["IMAGE"], embedder="mobilefacenet").good()["identity"]
    identity = kit["IDENTITY"]
    unknown = replace(identity, contract=replace(identity.contract, model="w600k_r50", digest="0" * 64))
    return {"second": second, "unknown": unknown}


@pytest.mark.parametrize("node", ["SelectFaces", "NameFaces", "SwapFaces"])
def test_faces_are_compared_under_the_identitys_own_network(node, kit, others):
    # They carry SFace's vectors, which must not be taken for the other network's.
    faces = play("LikenessTrackFaces", image=kit["IMAGE"], faces=kit["FACES"]).good()["faces"]
    more = {"mapping": "identity"} if node == "SwapFaces" else {}
    given = {"image": kit["IMAGE"], "faces": faces}
    out = play(f"Likeness{node}", **given, identity=others["second"], **more).good()
    if node == "SwapFaces":
        assert out["mask"].max() == 1
    else:
        assert out["faces"][0][0].label == "person"
        assert out["faces"][0][0].embedding(others["second"].contract) is not None
    says(play(f"Likeness{node}", **given, identity=others["unknown"], **more), "w600k_r50.*no embedder here has these")


def test_an_identity_of_a_foreign_network_is_not_blamed_on_a_model_that_is_not_installed(kit, tmp_path):
    # The default installation: the catalogue knows a second embedder, but its file is not there.
    folder_with(tmp_path, "sface.onnx")
    (tmp_path / "models" / "likeness" / "mobilefacenet.onnx").unlink(missing_ok=True)
    foreign = replace(kit["IDENTITY"], contract=W600K_R50, people=(Person("ann", np.ones((1, 512), np.float32)),))
    played = play("LikenessNameFaces", image=kit["IMAGE"], faces=kit["FACES"], identity=foreign)
    says(played, "made with w600k_r50 .* installed: sface. Make the identity again", errors.BadInput)


def test_saving_an_identity_tells_of_the_pictures_that_were_written(kit, tmp_path):
    hosts.use(EngineHost([PHOTOS], tmp_path / "out", tmp_path / "temp", tmp_path / "models"))
    for kept, told in ((False, "no reference pictures"), (True, "1 reference picture")):
        played = play("LikenessSaveIdentity", identity=kit["IDENTITY"], with_pictures=kept)
        (line,) = played.record.outputs["node"]["text"]
        assert line.endswith(told) and len(played.good()["identity"].people[0].references) == 1


def test_a_judge_needs_pictures_to_see_an_identity_of_another_network(kit, others):
    score = {"image": kit["IMAGE"], "faces": kit["FACES"], "judge": "sface"}
    found = play("LikenessScoreFaces", **score, identity=others["second"]).good()["scores"].records[0]
    assert found.judge == "sface" and found.similarity > 0.9
    bare = {
        name: replace(who, people=tuple(replace(p, references=()) for p in who.people)) for name, who in others.items()
    }
    says(play("LikenessScoreFaces", **score, identity=bare["second"]), "sface cannot judge 'person'.*with references")
    automatic = play("LikenessScoreFaces", image=kit["IMAGE"], identity=bare["unknown"])
    says(automatic, "nothing can judge this identity.*w600k_r50.*Make it again", errors.BadInput)


@pytest.mark.parametrize("method", ["several people", "mean"])
def test_identities_of_two_networks_are_not_combined(method, kit, others):
    played = play("LikenessCombineIdentities", identity_1=kit["IDENTITY"], identity_2=others["second"], method=method)
    says(played, "sface.*cannot be compared with.*mobilefacenet.*Embed both", errors.ContractMismatch)


# Stops and company


class AtFirstProgress(Silent):
    """Presses stop as soon as a node tells of progress, and notes what it told."""

    def __init__(self, stop=None):
        self.stop, self.told = stop, []

    def event(self, name, data):
        if name == "progress":
            self.told.append((data["value"], data["max"]))
            if self.stop is not None:
                self.stop.set()


def test_an_interrupted_batch_leaves_nothing_and_the_next_run_completes(kit):
    size = (196, 170)
    shades = [scaled(kit["IMAGE"], *size) * (1 - n / 100) for n in range(20)]
    batch, executor = torch.cat(shades), Executor(KNOWN)
    ANALYSES.clear()
    stopped = AtFirstProgress(threading.Event())
    played = play("LikenessDetectFaces", image=batch, executor=executor, listener=stopped, stop=stopped.stop)
    assert played.record.message("execution_interrupted")["node_id"] == "node"
    assert stopped.told == [(8, 20)], "it went on after the stop"
    assert played.out == {} and "node" not in played.record.executed
    again = AtFirstProgress()
    played = play("LikenessDetectFaces", image=batch, executor=executor, listener=again)
    assert [len(found) for found in played.good()["faces"]] == [1] * 20
    assert "node" in played.record.executed and again.told[-1] == (20, 20)


def opened():
    """How often each model that is open now was opened since the process began."""
    return {held.name: held.opened for held in MODELS.held()}


def test_two_prompts_at_once_open_each_model_once_and_are_both_right():
    def prompt(name):
        who = {"image": ["picture", 0], "embedder": "sface", "combine": "mean", "name": name}
        return graph(
            picture=("LoadImage", {"image": f"{name}.jpg"}),
            who=("LikenessEmbedIdentity", who),
            keep=("Keep", {"key": name, "value": ["who", 0]}),
        )

    prompts = {name: prompt(name) for name in ("obama", "ardern")}
    gate, records = threading.Barrier(2), {}

    def run(name):
        records[name] = Executor(KNOWN).run(prompts[name], ["keep"])

    def run_beside_the_other(name):
        gate.wait(20)
        run(name)

    def people():
        assert {record.status for record in records.values()} == {"success"}, records
        return {name: KEPT[name][0].people[0] for name in prompts}

    MODELS.free()
    ANALYSES.clear()
    for name in prompts:
        run(name)
    alone, before = people(), opened()
    assert {"yunet.onnx", "face_mesh.onnx", "sface.onnx"} <= set(before)
    MODELS.free()
    ANALYSES.clear()
    assert opened() == {}, "a model is in use although nothing runs"
    workers = [threading.Thread(target=run_beside_the_other, args=(name,)) for name in prompts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert opened() == {name: times + 1 for name, times in before.items()}
    for name, person in people().items():
        assert person.name == name
        np.testing.assert_allclose(person.vectors, alone[name].vectors, rtol=1e-4, atol=1e-4)
