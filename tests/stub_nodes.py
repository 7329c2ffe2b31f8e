"""Nodes that do next to nothing, for the engine's tests; what ran is in ``RAN``."""

import asyncio
import threading

import torch
from likeness.engine.core import CORE
from likeness.engine.host import Blocker
from likeness.nodes.host import host

RAN = []
"""Class name and input of every call since it was cleared."""

STARTED = threading.Event()
"""Set by Slow when it begins."""


class Stub:
    CATEGORY = "test"
    FUNCTION = "go"
    RETURN_TYPES = ("INT",)
    INPUTS = {"required": {}}

    @classmethod
    def INPUT_TYPES(cls):
        return cls.INPUTS

    def ran(self, *what):
        RAN.append((type(self).__name__, *what))


class Number(Stub):
    INPUTS = {"required": {"value": ("INT", {"default": 1, "min": 0, "max": 100})}}

    def go(self, value):
        self.ran(value)
        return (value,)


class Add(Stub):
    INPUTS = {"required": {"a": ("INT", {}), "b": ("INT", {})}}

    def go(self, a, b):
        self.ran(a, b)
        return (a + b,)


class Add2(Add):
    """The same with an extra output and options."""

    RETURN_TYPES = ("INT", "STRING")
    INPUTS = {
        "required": {
            "a": ("INT", {}),
            "mode": (["up", "down"],),
            "many": ([f"option {i}" for i in range(30)],),
            "scale": ("FLOAT", {"default": 1.0, "min": 0.5, "max": 2.0}),
            "flag": ("BOOLEAN", {"default": False}),
        },
        "optional": {"note": ("STRING", {"default": "", "multiline": True}), "seed": ("INT", {"default": 0})},
    }

    def go(self, a, mode, many, scale, flag, note="", seed=0):
        self.ran(a, mode, many, scale, flag, note, seed)
        return (a, note)


class Show(Stub):
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    INPUTS = {"required": {"value": ("*", {})}}

    def go(self, value):
        self.ran(value)
        return {"ui": {"text": [str(value)]}}


class Checked(Stub):
    INPUTS = {"required": {"value": ("INT", {"min": 0, "max": 3}), "other": ("INT", {"max": 3})}}

    @classmethod
    def VALIDATE_INPUTS(cls, value):
        if value == 13:
            raise ValueError("unlucky")
        return True if value != 7 else "seven is not for sale"

    def go(self, value, other):
        return (value + other,)


class Lazy(Stub):
    INPUTS = {"required": {"left": ("BOOLEAN", {}), "a": ("INT", {"lazy": True}), "b": ("INT", {"lazy": True})}}

    def check_lazy_status(self, left, a=None, b=None):
        name, value = ("a", a) if left else ("b", b)
        return [name] if value is None else []

    def go(self, left, a=None, b=None):
        self.ran(left, a, b)
        return (a if left else b,)


class Greedy(Lazy):
    def check_lazy_status(self, **_):
        return ["nothing"]


class Several(Stub):
    OUTPUT_IS_LIST = (True,)
    INPUTS = {"required": {"count": ("INT", {})}}

    def go(self, count):
        self.ran(count)
        return (list(range(count)),)


class Total(Stub):
    INPUT_IS_LIST = True
    INPUTS = {"required": {"values": ("INT", {}), "start": ("INT", {})}}

    def go(self, values, start):
        self.ran(values, start)
        return (sum(values) + start[0],)


class Changing(Stub):
    ANSWER = "same"

    @classmethod
    def IS_CHANGED(cls):
        if isinstance(cls.ANSWER, Exception):
            raise cls.ANSWER
        return cls.ANSWER

    def go(self):
        self.ran()
        return (1,)


class Named(Stub):
    INPUTS = {"required": {}, "hidden": {"me": "UNIQUE_ID", "whole": "PROMPT", "png": "EXTRA_PNGINFO"}}

    def go(self, me, whole, png):
        self.ran(me, sorted(whole), png)
        return (int(me),)


class Stop(Stub):
    INPUTS = {"required": {"value": ("INT", {}), "message": ("STRING", {"default": ""})}}

    def go(self, value, message):
        self.ran(value)
        return (Blocker(message or None),)


class Fail(Stub):
    INPUTS = {"required": {"value": ("INT", {})}}

    def go(self, value):
        raise ValueError(f"cannot take {value}")


class Swallows(Stub):
    """Asks for the interrupt inside a careless ``except Exception``."""

    def go(self):
        for _ in range(2000):
            try:
                STARTED.set()
                host().check_interrupt()
                threading.Event().wait(0.005)
            except Exception:
                pass
        return (0,)


class Slow(Stub):
    """Works through a batch, five milliseconds each."""

    INPUTS = {"required": {"steps": ("INT", {"default": 2000})}}

    def go(self, steps):
        progress = host().progress(steps)
        for step in range(steps):
            STARTED.set()
            threading.Event().wait(0.005)
            progress.update()
            self.ran(step)
        return (steps,)


class Waits(Stub):
    INPUTS = {"required": {"value": ("INT", {})}}

    async def go(self, value):
        await asyncio.sleep(0)
        return (value * 2,)


class Expands(Stub):
    def go(self):
        return {"result": (1,), "expand": {}}


class Short(Stub):
    RETURN_TYPES = ("INT", "INT")

    def go(self):
        return (1,)


class Speechless(Stub):
    """Cannot say what it takes."""

    @classmethod
    def INPUT_TYPES(cls):
        raise OSError("the folder is gone")


class Mode(Stub):
    """Whether the run is in inference mode."""

    def go(self):
        return (int(torch.is_inference_mode_enabled()),)


class Tells(Stub):
    def go(self):
        from PIL import Image

        host().send_text("half way", None)
        progress = host().progress(2)
        progress.update(1, Image.new("RGB", (8, 8)))
        progress.update()
        return (1,)


class Peek(Stub):
    """Shows its value and passes it on."""

    INPUTS = {"required": {"value": ("INT", {})}}

    def go(self, value):
        self.ran(value)
        return {"ui": {"text": [f"peek {value}"]}, "result": (value,)}


class SwapStub(Stub):
    MARK = "edited: faces swapped"
    RETURN_TYPES = ("IMAGE",)
    INPUTS = {"required": {"image": ("IMAGE",)}}

    def go(self, image):
        return (image,)


STUBS = {
    name: value
    for name, value in globals().items()
    if isinstance(value, type) and issubclass(value, Stub) and value is not Stub
}
KNOWN = {**CORE, **STUBS}


def graph(**nodes):
    """A prompt in short: ``a=("Number", {"value": 1})``."""
    return {name: {"class_type": kind, "inputs": dict(inputs)} for name, (kind, inputs) in nodes.items()}
