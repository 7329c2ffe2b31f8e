"""Identities: combining, comparing, refusing, and keeping them on disk."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from likeness.face.combine import METHODS, combine_vectors
from likeness.face.embed import embed, network
from likeness.face.embed.arcface import preprocessing
from likeness.face.errors import BadIdentityFile, BadInput, ContractMismatch, MissingModel, NoFace
from likeness.face.host import StandaloneHost
from likeness.face.identity import REFERENCE_SIDE, combine, head_crop, identify, merge, nearest
from likeness.face.identity_file import W600K_R50, listing, load, load_named, safe_name, save, save_named
from likeness.face.types import Contract, Embedding, Face, Faces, Identity, Person, cosine, normalised
from likeness.tests.photos import SHA256, found, picture
from likeness.tests.test_embed import write_recogniser
from safetensors.numpy import save as to_bytes

CONTRACT = Contract("toy", "ab" * 32, 8, False, "arcface-112 RGB 0..255")
OTHER = replace(CONTRACT, digest="cd" * 32)


def vectors(n, seed=0, spread=0.3):
    """n vectors of one person, lengths 5 to 15."""
    rng = np.random.default_rng(seed)
    person = rng.standard_normal(8)
    rows = normalised(person / np.linalg.norm(person) + spread / 3 * rng.standard_normal((n, 8)))
    return (rows * rng.uniform(5, 15, (n, 1))).astype(np.float32)


def someone(name="anna", seed=0, contract=CONTRACT, n=1):
    return Identity(contract, (Person(name, vectors(n, seed)),))


def embedded_batch(n=3, side=96):
    image = torch.rand(n, side, side, 3, generator=torch.Generator().manual_seed(1))
    faces = []
    for i, vector in enumerate(vectors(n)):
        box = np.array([20 + i, 25, 60 + i, 70], np.float32)
        points = np.array([[30, 40], [50, 40], [40, 50], [32, 60], [48, 60]], np.float32)
        dense = {468: np.full((468, 3), 40, np.float32)}
        faces.append((Face(box, points, 0.9, dense, embeddings=(Embedding(vector, CONTRACT),)),))
    return image, Faces(tuple(faces), ((side, side),) * n)


# Combining


@pytest.mark.parametrize("method", METHODS)
def test_combining_one_vector_changes_nothing(method):
    one = vectors(1)
    assert np.allclose(combine_vectors(one, method), one, rtol=1e-5)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "concat"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 9))
def test_the_order_of_the_pictures_does_not_matter_and_the_result_is_near_all(method, seed, n):
    rows = vectors(n, seed)
    combined = combine_vectors(rows, method)
    assert combined.shape == (1, 8) and combined.dtype == np.float32
    assert np.allclose(combined, combine_vectors(rows[::-1], method), atol=1e-4)
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths.min() * 0.999 <= np.linalg.norm(combined) <= lengths.max() * 1.001
    assert normalised(rows) @ normalised(combined)[0] == pytest.approx(1, abs=0.7)


def test_the_mean_is_of_directions_with_the_mean_length():
    rows = np.array([[10, 0], [0, 1]], np.float32)
    combined = combine_vectors(rows, "mean")[0]
    assert combined == pytest.approx(np.array([1, 1]) / np.sqrt(2) * 5.5, abs=1e-5)


def test_quality_leans_towards_the_longer_vector_and_given_weights_towards_theirs():
    rows = np.array([[10, 0], [0, 1]], np.float32)
    assert combine_vectors(rows, "quality")[0] @ [1, -1] > 0
    assert combine_vectors(rows, "mean", [1, 9])[0] @ [1, -1] < 0
    assert np.allclose(combine_vectors(rows, "mean", [0, 1]), [[0, 1]])


@pytest.mark.parametrize("method", ["median", "nfc"])
def test_a_stranger_among_the_pictures_moves_median_and_nfc_less_than_the_mean(method):
    rows = np.concatenate([vectors(6, spread=0.2), 12 * normalised(-vectors(1) + np.eye(8, dtype=np.float32)[:1] * 9)])
    person = normalised(combine_vectors(rows[:6], "mean"))[0]
    off = {m: 1 - cosine(combine_vectors(rows, m)[0], person) for m in ("mean", method)}
    assert off[method] < off["mean"] / 2


def test_nfc_drops_whoever_is_nobodys_neighbour():
    angles = np.radians([0, 10, 20, 25, 90])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1)
    angle = np.degrees(np.arctan2(*combine_vectors(rows, "nfc")[0][::-1]))
    assert 5 < angle < 22.5


def test_concat_keeps_every_vector_as_it_is():
    assert np.array_equal(combine_vectors(vectors(3), "concat"), vectors(3))


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("nan")]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(BadInput, match="weights"):
        combine_vectors(vectors(2), "mean", weights)


def test_unknown_methods_and_empty_vectors_are_refused():
    with pytest.raises(BadInput, match="mean, median, quality, nfc, concat"):
        combine_vectors(vectors(2), "average")
    with pytest.raises(BadInput, match="at least one"):
        combine_vectors(np.zeros((0, 8), np.float32))
    for method in METHODS:
        with pytest.raises(BadInput, match="no direction"):
            combine_vectors(np.zeros((2, 8), np.float32), method)


def test_combining_counts_every_person_once_and_merging_keeps_them_apart():
    a, b = someone("anna", 0, n=3), someone("ben", 1)
    both = combine([a, b])
    assert both.names == ("anna",)
    once = combine([combine([a]), b])
    assert cosine(both.people[0].vectors[0], once.people[0].vectors[0]) > 0.97
    merged = merge([a, b, someone("anna", 2)])
    assert merged.names == ("anna", "ben", "anna 2")
    assert np.array_equal(merged.people[0].vectors, a.people[0].vectors)


def test_vectors_of_different_networks_are_never_mixed():
    image, faces = embedded_batch()
    for refuse in (
        lambda: combine([someone(), someone(contract=OTHER)]),
        lambda: merge([someone(), someone(contract=OTHER)]),
        lambda: nearest(Embedding(vectors(1)[0], OTHER), someone()),
        lambda: identify(image, faces, contract=OTHER),
    ):
        with pytest.raises(ContractMismatch, match="toy"):
            refuse()


# Comparing


def test_the_nearest_person_and_how_far_the_second_is():
    crowd = merge([someone("anna", 0, n=3), someone("ben", 1), someone("cleo", 2)])
    seen = Embedding(crowd.people[0].vectors[1] * 3, CONTRACT)
    person, similarity, margin = nearest(seen, crowd)
    assert person.name == "anna" and similarity == pytest.approx(1, abs=1e-6)
    others = max(cosine(seen.vector, crowd.people[i].vectors[0]) for i in (1, 2))
    assert margin == pytest.approx(similarity - others, abs=1e-6)
    assert nearest(seen, someone())[2] == 2
    with pytest.raises(BadInput, match="nobody"):
        nearest(seen, Identity(CONTRACT, ()))


# From pictures


def test_one_person_is_made_of_all_faces_given():
    image, faces = embedded_batch(3)
    identity = identify(image, faces, contract=CONTRACT, name="anna")
    assert identity.names == ("anna",) and identity.people[0].vectors.shape == (1, 8)
    assert len(identity.people[0].references) == 3
    assert identify(image, faces, contract=CONTRACT, references=False).people[0].references == ()
    assert identify(image, faces, contract=CONTRACT, combine="concat").people[0].vectors.shape == (3, 8)


def test_nobody_to_identify_is_a_sentence():
    image, faces = embedded_batch(2)
    with pytest.raises(NoFace, match="no face in any of the 2 pictures of 'anna'"):
        identify(image, faces.with_images(((), ())), contract=CONTRACT, name="anna")
    with pytest.raises(BadInput, match="from 2 pictures"):
        identify(image[:1], faces, contract=CONTRACT)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (100, 100, (30, 30, 70, 70)),
        (100, 100, (-10, -5, 30, 40)),
        (100, 100, (80, 60, 120, 110)),
        (900, 1400, (300, 200, 800, 800)),
        (700, 700, (-100, -100, 600, 650)),
    ],
)
def test_a_reference_shows_the_same_pixels_at_the_moved_coordinates(height, width, box):
    """The picture's colours are its coordinates, so that the crop tells where every pixel came from."""
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([xs / 2000, ys / 2000, torch.ones(height, width)], -1).float()
    x1, y1, x2, y2 = box
    inside = np.random.default_rng(0).uniform(0.2, 0.8, (5, 2)) * [x2 - x1, y2 - y1] + [x1, y1]
    points = np.clip(inside, 4, [width - 5, height - 5]).astype(np.float32)
    face = Face(np.array(box, np.float32), points, 0.9, {68: np.repeat(points, 14, 0)[:68]})
    reference = head_crop(image, face)
    h, w, _ = reference.image.shape
    assert h == w <= REFERENCE_SIDE
    scale = reference.face.width / (x2 - x1)
    for before, after in zip(points, reference.face.points, strict=True):
        x, y = round(float(after[0])), round(float(after[1]))
        came_from = reference.image[y, x] * 2000
        assert abs(float(came_from[0]) - before[0]) < 0.5 / scale + 0.6
        assert abs(float(came_from[1]) - before[1]) < 0.5 / scale + 0.6
    assert np.allclose(reference.face.landmarks[68], np.repeat(reference.face.points, 14, 0)[:68])


@pytest.mark.weights
def test_two_photographs_of_one_person_make_an_identity_that_finds_a_third_face():
    try:
        contract = network("sface").contract
    except MissingModel as error:
        pytest.skip(str(error))
    known = [n for n in SHA256 if n not in ("person_a_2", "person_b_2")]
    crowd = merge(
        [identify(picture(n), embed(picture(n), found(n)), contract=contract, name=n, references=False) for n in known]
    )
    for name in ("person_a_2", "person_b_2"):
        face = embed(picture(name), found(name))[0][0]
        person, similarity, margin = nearest(face.embedding(contract), crowd)
        assert person.name == name.replace("2", "1") and similarity > 0.58 and margin > 0.3


# On disk


@pytest.mark.parametrize("references", [False, True])
def test_what_is_saved_is_loaded(tmp_path, references):
    image, faces = embedded_batch()
    identity = merge([identify(image, faces, contract=CONTRACT, name="Änna, the 1st"), someone("ben", 3, n=2)])
    path = save(identity, tmp_path / "new folder" / "both", references=references)
    again = load(path)
    assert again.contract == identity.contract and again.names == identity.names
    for a, b in zip(again.people, identity.people, strict=True):
        assert np.array_equal(a.vectors, b.vectors)
        assert len(a.references) == (len(b.references) if references else 0)
        for x, y in zip(a.references, b.references, strict=references):
            assert float((x.image - y.image).abs().max()) <= 0.5 / 255 + 1e-6
            assert np.array_equal(x.face.points, y.face.points) and x.face.confidence == y.face.confidence
            assert np.array_equal(x.face.landmarks[468], y.face.landmarks[468])


def test_no_picture_is_written_unless_asked_for(tmp_path):
    image, faces = embedded_batch()
    path = save(identify(image, faces, contract=CONTRACT), tmp_path / "a")
    assert path.stat().st_size < 2000 and b"image" not in path.read_bytes()


def test_an_interrupted_save_leaves_the_old_file_and_nothing_half_made(tmp_path, monkeypatch):
    path = save(someone(), tmp_path / "a")
    before = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(someone("ben", 1), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/passwd", "a/../../b", "..\\up", "C:\\x", "nul", "a\x00b", "é.", "x" * 999]
)
def test_a_name_never_leaves_its_folder(tmp_path, name):
    host = StandaloneHost(models=tmp_path)
    folder = host.folders("identities")[0]
    path = save_named(someone(), name, host=host)
    assert path.parent == folder and [p.parent for p in tmp_path.rglob("*") if p.is_file()] == [folder]
    assert safe_name(path.stem) == path.stem and listing(host) == [path.name]
    assert load_named(path.name, host=host).names == ("anna",)


@pytest.mark.parametrize("name", ["", "..", "///", " . "])
def test_a_name_of_nothing_is_refused(name):
    with pytest.raises(BadInput, match="no name"):
        safe_name(name)


def test_only_names_of_the_listing_are_loaded(tmp_path):
    host = StandaloneHost(models=tmp_path)
    save(someone(), tmp_path / "secret")
    save_named(someone("ben", 1), "ben", host=host)
    for name in ("../../secret.safetensors", str(tmp_path / "secret.safetensors"), "nobody.safetensors"):
        with pytest.raises(BadIdentityFile, match=r"Saved are: ben\.safetensors"):
            load_named(name, host=host)


def reactor_model(**change):
    """The tensors that ReActor writes for a face."""
    rng = np.random.default_rng(0)
    shapes = {"bbox": (4,), "kps": (5, 2), "det_score": (), "landmark_3d_68": (68, 3), "pose": (3,)}
    shapes |= {"landmark_2d_106": (106, 2), "embedding": (512,), "gender": (), "age": ()}
    return {k: np.asarray(rng.standard_normal(s), np.float32) for k, s in shapes.items()} | change


def test_a_reactor_face_model_is_a_buffalo_l_vector(tmp_path):
    tensors = reactor_model()
    path = tmp_path / "Jane.safetensors"
    path.write_bytes(to_bytes(tensors))
    identity = load(path)
    assert identity.names == ("Jane",) and identity.contract == W600K_R50
    assert np.array_equal(identity.people[0].vectors[0], tensors["embedding"])
    for bad in ({"embedding": np.zeros(512, np.float32)}, {"embedding": np.ones(128, np.float32)}):
        path.write_bytes(to_bytes(reactor_model(**bad)))
        with pytest.raises(BadIdentityFile):
            load(path)


def test_the_reactor_contract_is_what_the_packs_recogniser_gets(tmp_path):
    """But for the digest, which is the published file's: one made up here has another."""
    how = preprocessing(write_recogniser(tmp_path / "w600k_r50.onnx"))
    assert W600K_R50.preprocessing == f"arcface-112 {how}"


def test_an_ipadpt_is_read_if_it_holds_a_face_vector_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "anna.ipadpt"
    vector = torch.randn(1, 512, generator=torch.Generator().manual_seed(0))
    torch.save(vector, path)
    assert np.array_equal(load(path).people[0].vectors, vector.numpy())
    torch.save(torch.zeros(1, 257, 1280), path)
    with pytest.raises(BadIdentityFile, match=r"\(1, 257, 1280\)"):
        load(path)
    torch.save({"a": vector}, path)
    with pytest.raises(BadIdentityFile, match="dict"):
        load(path)
    torch.save(vector.clone().requires_grad_(), path)
    assert np.array_equal(load(path).people[0].vectors, vector.numpy())
    for odd in (vector.to_sparse(), vector.to("meta")):
        torch.save(odd, path)
        with pytest.raises(BadIdentityFile, match=r"\(1, 512\).*Embed the person's pictures"):
            load(path)
    torch.save(Danger(), path)
    with pytest.raises(BadIdentityFile, match="refused"):
        load(path)
    assert not (tmp_path / "ran").exists()
    path.write_bytes(b"\x80\x02junk")
    with pytest.raises(BadIdentityFile):
        load(path)


class Danger:
    """What a pickle must never get to do."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def saved_bytes():
    image, faces = embedded_batch(2, side=24)
    small = faces.map(lambda _, f: replace(f, box=np.array([4, 4, 8, 8], np.float32), landmarks={}))
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        return save(identify(image, small, contract=CONTRACT), Path(folder) / "a", references=True).read_bytes()


SAVED = saved_bytes()


def loads_or_refuses(path, data):
    path.write_bytes(data)
    try:
        load(path)
    except BadIdentityFile as error:
        assert path.name in str(error)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, len(SAVED)))
def test_a_truncated_file_raises_nothing_but_a_sentence(tmp_path, cut):
    loads_or_refuses(tmp_path / "cut.safetensors", SAVED[:cut])


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, len(SAVED) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_changed_bytes_raises_nothing_but_a_sentence(tmp_path, edits):
    data = bytearray(SAVED)
    for place, byte in edits:
        data[place] = byte
    loads_or_refuses(tmp_path / "changed.safetensors", bytes(data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["contract", "people", "version", "name", "references", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=JSON, people=JSON, contract=JSON, whole=st.booleans())
def test_any_metadata_raises_nothing_but_a_sentence(tmp_path, record, people, contract, whole):
    if whole:
        record = {"version": 1, "people": people, "contract": contract}
    data = to_bytes({"vectors.0": np.ones((1, 8), np.float32)}, {"likeness": json.dumps(record)})
    loads_or_refuses(tmp_path / "odd.safetensors", data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "not a whole safetensors"),
        (b"PNG....", "not a whole safetensors"),
        (struct.pack("<Q", 1 << 40) + b"{}", "not a whole safetensors"),
        (to_bytes({"w": np.ones(3, np.float32)}), "no identity"),
        (to_bytes({"vectors.0": np.ones((1, 8), np.float32)}, {"likeness": '{"version": 99}'}), "version 99"),
    ],
)
def test_other_files_are_refused_with_what_they_are(tmp_path, data, word):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadIdentityFile, match=word):
        load(path)
    with pytest.raises(BadIdentityFile, match="cannot be read"):
        load(tmp_path / "missing.safetensors")


def test_a_file_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "huge.safetensors"
    with open(path, "wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(BadIdentityFile, match="300 MB"):
        load(path)
