"""FreeCure: give back the attributes of the prompt that an identity adapter suppresses (Cai et al., arXiv 2411.15277).

``words`` finds the attributes in a prompt, ``masks`` their places in a picture, ``judge`` whether they are there.
``tape`` records a run without the identity, ``attention`` lets a run with it read from there.
"""
