"""Detect and embed through us against the ``insightface`` package, on the same ONNX files wrapped as one of its packs.

One thread each, CPU time; then, in fresh processes, the default threading while another process keeps one core busy
(by the clock, which is what a user waits for), and the cold start with the memory it takes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from _measure import interleaved, package, row, skip

package()

from likeness.face.host import STANDALONE, Host, StandaloneHost  # noqa: E402

ROUNDS = 31
FRESH = 5
PACK = "yunet_sface"


class PackHost(StandaloneHost):
    """The host whose packs lie in ``root``/models."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def folders(self, kind: str) -> list[Path]:
        return [self.root / "models"] if kind == "insightface" else super().folders(kind)


def theirs(root: Path, threads: int | None):
    """insightface's FaceAnalysis on the pack, at 640; ``threads`` None: its default."""
    warnings.simplefilter("ignore")
    import onnxruntime as ort
    from insightface.app import FaceAnalysis

    more = {}
    if threads is not None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        more["sess_options"] = options
    app = FaceAnalysis(PACK, root=str(root), providers=["CPUExecutionProvider"], **more)
    app.prepare(0, det_thresh=0.5, det_size=(640, 640))
    return app


def bare(root: Path, image, faces, host: Host):
    """A call of nothing but the two sessions, one thread, on inputs made ready beforehand."""
    import numpy as np
    import onnxruntime as ort
    from likeness.face.detect._plumbing import canvas
    from likeness.face.detect.scrfd import letterbox
    from likeness.face.embed import align

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    det, rec = (
        ort.InferenceSession(str(root / "models" / PACK / name), options, providers=["CPUExecutionProvider"])
        for name in ("det_yunet.onnx", "rec_sface.onnx")
    )
    blob = (canvas(image, letterbox(*image.shape[1:3], (640, 640)), (640, 640)) - 127.5) / 128
    blob = blob.astype(np.float32)
    crops = [np.ascontiguousarray(align(image[0], [face], 112).numpy() * 255) for face in faces[0]]

    def call() -> None:
        det.run(None, {"rgb": blob})
        for crop in crops:
            rec.run(None, {"data": crop})

    return call


def warm(root: Path, pictures: dict[str, Path]) -> None:
    """One thread each, everything loaded."""
    import numpy as np
    import torch
    from likeness.face.detect import detect
    from likeness.face.embed import embed
    from likeness.face.image import load_picture, to_uint8

    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(1)
    host = PackHost(root)
    app = theirs(root, 1)
    for name, path in pictures.items():
        image, _ = load_picture(path)
        bgr = np.ascontiguousarray(to_uint8(image[0])[..., ::-1])
        faces = detect(image, PACK, host=host)
        taken = interleaved(
            {
                "ours": lambda image=image: embed(image, detect(image, PACK, host=host), PACK, host=host),
                "theirs": lambda bgr=bgr: app.get(bgr),
                "from float": lambda image=image: app.get(
                    np.ascontiguousarray((image[0].numpy() * 255).round().astype(np.uint8)[..., ::-1])
                ),
                "bare": bare(root, image, faces, host),
            },
            ROUNDS,
        )
        ours = taken["ours"] * 1e3
        row(f"detect and embed, {name}; peer: from 8 bit", ours, peer=taken["theirs"] * 1e3)
        row("  the same; peer: from the float picture that we take", ours, peer=taken["from float"] * 1e3, target="> 1")
        over = {side: 100 * (seconds / taken["bare"] - 1) for side, seconds in taken.items()}
        row("  above the bare sessions' own time", over["ours"], "%", target="<= 8 for one face")
        row("    insightface from 8 bit", over["theirs"], "%")
        row("    insightface from the float picture", over["from float"], "%")


def child(side: str, root: Path, path: Path, calls: int) -> dict[str, float]:
    """In a fresh process: seconds to the first face (torch is imported), memory it added, median of further calls."""
    import torch  # noqa: F401

    before, start = resident(), time.perf_counter()
    if side == "ours":
        from likeness.face.detect import detect
        from likeness.face.embed import embed
        from likeness.face.image import load_picture

        host = PackHost(root)
        image, _ = load_picture(path)

        def call() -> None:
            embed(image, detect(image, PACK, host=host), PACK, host=host)
    else:
        app = theirs(root, None)
        import cv2

        bgr = cv2.imread(str(path))

        def call() -> None:
            app.get(bgr)

    call()
    first, added = time.perf_counter() - start, resident() - before
    times: list[float] = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return {"first": first, "added": added, "call": statistics.median(times) if times else 0.0}


def resident() -> float:
    """Megabytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def fresh(side: str, root: Path, path: Path, calls: int) -> dict[str, float]:
    """What ``child`` says in a new process with the default threading of both sides."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    words = [sys.executable, __file__, "child", side, str(root), str(path), str(calls)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def apart(root: Path, path: Path) -> None:
    """Fresh processes: beside a busy core, and cold."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside: dict[str, list[float]] = {"ours": [], "theirs": []}
        for number in range(2 * FRESH):
            side = "theirs" if number % 2 else "ours"
            beside[side].append(fresh(side, root, path, 15)["call"])
    finally:
        busy.kill()
        busy.wait()
    ours, peer = (statistics.median(beside[side]) for side in ("ours", "theirs"))
    row("beside a busy core, default threads, one face (clock)", ours * 1e3, peer=peer * 1e3, target=">= 2")
    cold: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for number in range(FRESH):
        for side in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
            cold[side].append(fresh(side, root, path, 0))
    for key, what, unit, target in (
        ("first", "cold start to the first face, torch imported (clock)", "s", ">= 2"),
        ("added", "memory added by it", "MB", "> 1"),
    ):
        ours, peer = (statistics.median(run[key] for run in cold[side]) for side in ("ours", "theirs"))
        row(what, ours, unit, peer=peer, target=target)


def main() -> None:
    try:
        import cv2  # noqa: F401
        import insightface
    except ImportError as error:
        return skip("detect and embed", f"{error}; the peer is the package insightface 2.1")
    from likeness.tests import photos, tiny

    models = STANDALONE.folders("likeness")[0]
    if reason := photos.missing():
        return skip("detect and embed", reason)
    if not (models / "yunet.onnx").is_file() or not (models / "sface.onnx").is_file():
        return skip("detect and embed", f"no yunet.onnx and sface.onnx in {models}")
    one = photos.path_of("person_a_2")
    six = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tiny.make_pack(root, models, PACK)
        apart(root, one)
        warm(root, {"1 face, 722x899": one, "6 faces, 1280x886": six})


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))))
    else:
        main()
