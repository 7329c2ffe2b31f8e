"""ComfyUI-Likeness: keep a person recognisable in generated and edited images.

This file is only the pack's door. ComfyUI asks it for the two mappings, which are looked up when asked for,
so that importing the package loads neither torch nor ComfyUI (and pytest may collect the folder).
"""

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"


def __getattr__(name: str):
    if name in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        from importlib import import_module

        try:
            return getattr(import_module(".nodes", __name__), name)
        except AttributeError as error:
            # Unchanged it would look like "this pack has no nodes", and ComfyUI would skip it without a traceback.
            raise ImportError(f"the nodes of Likeness could not be loaded: {error}") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
