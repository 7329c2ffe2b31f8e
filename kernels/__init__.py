"""The fused attention extension: knows tensors, nothing of faces.

``decoupled_attention`` computes text attention and the attention of any number of identities at once;
``add_identity_attention_`` adds only the latter. Both run anywhere; ``explain`` says by what, and ``use_backend``
forces it. Importing this needs torch alone: Triton is imported when a call on a GPU is fit for it.
"""

from .dispatch import Choice, explain, use_backend
from .errors import BadArguments, NoBackend
from .ops import add_identity_attention_, decoupled_attention

__all__ = [
    "BadArguments",
    "Choice",
    "NoBackend",
    "add_identity_attention_",
    "decoupled_attention",
    "explain",
    "use_backend",
]
