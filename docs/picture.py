"""Draws docs/readme.jpg: what is found in, and masked of, three public-domain portraits; nobody is swapped.

Run from the checkout's environment: python docs/picture.py
"""

from pathlib import Path

import torch
from likeness.face import embed, identity, masks, overlay, report, score, select
from likeness.face.analyse import Look, analyse
from likeness.face.image import load_picture, to_uint8
from likeness.face.types import Faces
from PIL import Image

HERE = Path(__file__).resolve().parent
PHOTOS = HERE.parent / "workflows" / "photos"
COLOURS = {
    "skin": (0.90, 0.62, 0.00),
    "brows": (0.34, 0.71, 0.91),
    "eyes": (0.00, 0.62, 0.45),
    "nose": (0.94, 0.89, 0.26),
    "lips": (0.84, 0.37, 0.00),
    "mouth": (0.80, 0.47, 0.65),
}


def person(name, title):
    image, _ = load_picture(PHOTOS / f"{name}.jpg")
    faces = analyse(image, Look(embedder="sface"))
    return identity.identify(image, faces, contract=embed.contract("sface"), name=title)


def painted(image, faces: Faces):
    for part, colour in COLOURS.items():
        alpha = 0.55 * masks.mask(faces, "parts", (part,), feather=2)[..., None]
        image = image * (1 - alpha) + torch.tensor(colour) * alpha
    return image


def main():
    image, _ = load_picture(PHOTOS / "group.jpg")
    known = identity.merge([person("ardern", "Jacinda"), person("macron", "Emmanuel")])
    faces = analyse(image, Look(size=1280, embedder="sface"))
    named = select.name(faces, known, margin=0.05)
    found = overlay.draw(image, named)
    meshed = overlay.draw(image, named, boxes=False, points=False, landmarks=True, labels=False)
    masked = painted(image, faces)
    height, width = 420, round(420 * image.shape[2] / image.shape[1])
    scores = score.score_images(image, known, faces=faces)
    portrait, _ = load_picture(PHOTOS / "ardern.jpg")
    sheet = report.sheet(report.rows(scores, image, source=portrait, captions=["who is in the group?"]))
    panels = [(found, 0, 0), (masked, 1, 0), (meshed, 0, 1), (sheet, 1, 1)]
    gap = 12
    canvas = Image.new("RGB", (2 * width + gap, 2 * height + gap), "white")
    for panel, column, line in panels:
        picture = Image.fromarray(to_uint8(panel[0]))
        scale = min(width / picture.width, height / picture.height)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
        x, y = column * (width + gap), line * (height + gap)
        canvas.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
    canvas = canvas.resize((canvas.width * 2 // 3, canvas.height * 2 // 3), Image.Resampling.LANCZOS)
    canvas.save(HERE / "readme.jpg", quality=88)


if __name__ == "__main__":
    main()
