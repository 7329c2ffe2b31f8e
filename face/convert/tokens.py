"""A checkpoint whose text encoder was trained on few words gets CLIP's whole table of tokens.

The table of 49,408 rows would be half of a small checkpoint, and all but zero: it is passed on without the rows that
mean nothing. ``tokens`` in the file's metadata lists the places of those that it has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..errors import BadModelFile

TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
ROWS = 49408


def convert(files: Sequence[bytes]) -> bytes:
    """The safetensors file with the whole table. Raises BadModelFile."""
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    try:
        tensors = load(files[0])
        header = json.loads(files[0][8 : 8 + int.from_bytes(files[0][:8], "little")])
        metadata = dict(header["__metadata__"])
        places = json.loads(metadata.pop("tokens"))
        small = tensors[TABLE]
        if (
            small.ndim != 2
            or not isinstance(places, list)
            or len(set(places)) != len(places)
            or len(places) != len(small)
        ):
            raise ValueError(f"a table {tuple(small.shape)}, and places that are not as many, or not different")
        if not all(isinstance(place, int) and 0 <= place < ROWS for place in places):
            raise ValueError(f"places that are no numbers below {ROWS}")
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BadModelFile(
            f"the checkpoint has no table of tokens with places that fit it ({error}): get it again, as a whole"
        ) from error
    whole = small.new_zeros(ROWS, small.shape[1])
    whole[places] = small
    return save({**tensors, TABLE: whole}, metadata)
