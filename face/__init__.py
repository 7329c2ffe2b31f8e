"""The library: image → faces → identity → swap → score, in plain torch, numpy and onnxruntime.

It knows nothing of ComfyUI. The way through it::

    from likeness.face import analyse, image, score, swap, identity, embed
    picture, _ = image.load_picture(path)                           # (1, H, W, 3) RGB in [0, 1]
    faces = analyse.analyse(picture, analyse.Look(embedder="sface"))  # Faces: one tuple of Face a picture
    person = identity.identify(picture, faces, contract=embed.contract("sface"), name="Ada")
    swapped = swap.swap(other, other_faces, person)                 # Swapped(image, mask)
    scores = score.score_images(swapped.image, person, target_faces=other_faces)

``types`` says what flows; ``image`` and ``geometry`` hold the conventions; ``models`` knows the files; ``cache`` holds
what is open. Each stage is a folder with a registry that fills itself from its files.
"""
