"""ComfyUI-Likeness: keep a person recognisable in generated and edited images.

This file is only the pack's door. ComfyUI asks it for the two mappings, which are looked up when asked for,
so that importing the package loads neither torch nor ComfyUI (and pytest may collect the folder). People who use
diffusers and no graph find ``apply`` and ``remove`` here.
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
    if name in ("apply", "remove"):
        # For people who use diffusers and no graph: an adapter on their pipeline.
        from importlib import import_module

        return getattr(import_module(".engine.diffusers_host", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
