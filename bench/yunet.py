"""YuNet through us against OpenCV's FaceDetectorYN on the same file, one thread each."""

from pathlib import Path

from _measure import interleaved, package, row, skip

package()

from dataclasses import replace  # noqa: E402

import torch  # noqa: E402
from likeness.face.detect import network  # noqa: E402
from likeness.face.errors import MissingModel  # noqa: E402
from likeness.face.host import STANDALONE  # noqa: E402
from likeness.face.image import from_uint8, load_picture  # noqa: E402

SIZES = (320, 640)


def main() -> None:
    try:
        import cv2
        import insightface
    except ImportError as error:
        return skip("yunet", f"{error}; the peers are opencv-python and, for its picture of six faces, insightface")
    try:
        net = network("yunet", STANDALONE)
    except MissingModel as error:
        return skip("yunet", str(error))
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    group, _ = load_picture(Path(insightface.__file__).parent / "data" / "images" / "t1.jpg")
    once = replace(net, closer=False)
    for size in SIZES:
        height = size * 886 // 1280 // 32 * 32
        frame = cv2.resize((group[0].numpy()[..., ::-1] * 255).round().astype("uint8"), (size, height))
        image = from_uint8(frame[..., ::-1].copy())[None]
        peer = cv2.FaceDetectorYN.create(str(net.model.path), "", (size, height), 0.8, 0.3)
        taken = interleaved(
            {
                "ours": lambda image=image, size=size: once.find(image, size, 0.8),
                "twice": lambda image=image, size=size: net.find(image, size, 0.8),
                "peer": lambda peer=peer, frame=frame: peer.detect(frame),
            },
            rounds=31,
        )
        (ours,) = once.find(image, size, 0.8)
        theirs = peer.detect(frame)[1]
        same = len(ours) == len(theirs) and max(
            min(abs(box[:2] - other[:2]).max() for other in theirs) for box in ours.boxes
        )
        row(f"yunet {size}x{height}, {len(ours)} faces", taken["ours"] * 1e3, peer=taken["peer"] * 1e3, target=">= 1.5")
        row("  the same and a closer look at each small face", taken["twice"] * 1e3, peer=taken["peer"] * 1e3)
        print(f"  boxes differ by {same:.2f} px at most" if len(ours) == len(theirs) else "  NOT the same faces")


if __name__ == "__main__":
    main()
