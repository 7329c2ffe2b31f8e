"""ComfyUI as the host: its folders, device, memory, progress bar and interrupt.

This package is the only place that imports ComfyUI, and only inside functions or when ComfyUI has loaded it.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management as memory
import comfy.utils
import folder_paths
import torch

from ...face.adapters import IdAdapter
from ...face.adapters._evidence import Encoder
from ...face.attention import Applied
from ...face.attention.sites import Layout
from ...face.cache import MODELS
from ...face.cure.layers import SelfLayers
from ...face.cure.run import Hook
from ...face.host import ADAPTER_FOLDERS, Progress
from ..host import Control, Sampling, Way
from ..saving import mark_of
from . import curing, lab, patching

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
PROVIDERS: dict[str, tuple[str, ...]] = {
    "cuda": ("CUDAExecutionProvider", "DmlExecutionProvider"),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    "privateuseone": ("DmlExecutionProvider",),
    "mps": ("CoreMLExecutionProvider",),
    "xpu": ("OpenVINOExecutionProvider",),
    "npu": ("CANNExecutionProvider",),
}
"""What onnxruntime calls the devices on which ComfyUI may run, by the torch device's type, the best first."""

IDENTITY_FILES = {".safetensors", ".ipadpt"}


def _register(key: str, default: Path, extensions: set[str]) -> None:
    """Make ``key`` a model folder of ComfyUI, behind those that ``extra_model_paths.yaml`` already named.

    ComfyUI reads that file before it loads packs, and gives a key it did not know an empty set of extensions, which
    would list every file.
    """
    folder_paths.add_model_folder_path(key, str(default))
    paths, known = folder_paths.folder_names_and_paths[key]
    folder_paths.folder_names_and_paths[key] = (paths, set(known) | extensions)


def _named(key: str) -> list[Path]:
    """The folders of a key that the user or another pack may have added."""
    return [Path(p) for p in folder_paths.get_folder_paths(key)] if key in folder_paths.folder_names_and_paths else []


class _Bar:
    """A ComfyUI progress bar; binds itself to the node that is running."""

    def __init__(self, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(max(total, 1))

    def update(self, steps: int = 1, preview: Any = None) -> None:
        # Newer versions pass on only every tenth of a second, and would look at the stop button as seldom.
        memory.throw_exception_if_processing_interrupted()
        shown = None
        if preview is not None:
            shown = ("JPEG", preview.convert("RGB"), getattr(comfy.cli_args.args, "preview_size", 512))
        self._bar.update_absolute(self._bar.current + steps, None, shown)


def _running_node(server: Any) -> str | None:
    """The id of the node that is running; None where an older ComfyUI does not know it, because no client listens."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return getattr(server, "last_node_id", None)
    context = get_executing_context()
    return None if context is None else context.node_id


class FaceModels(torch.nn.Module):
    """An empty network that stands for our onnxruntime sessions among ComfyUI's models, and in its log."""

    device: torch.device | None = None


class _Tenant:
    """Closes idle sessions when ComfyUI wants its device's memory back: "Unload models", or a model that must fit.

    ComfyUI has no list of callbacks for that, but tells every loaded ``ModelPatcher`` that it is being moved out.
    """

    def __init__(self) -> None:
        self._patcher: Any = None

    def move_in(self) -> None:
        """Be told from now on; called whenever a session is about to be opened."""
        if self._patcher is None:
            try:
                from comfy.model_patcher import ModelPatcher
                from comfy.patcher_extension import CallbacksMP
            except ImportError:
                return  # Older than December 2024: sessions stay until the cache's own budget closes them.
            patcher = ModelPatcher(FaceModels(), memory.get_torch_device(), torch.device("cpu"))
            patcher.add_callback_with_key(CallbacksMP.ON_DETACH, "likeness", self._moved_out)
            self._patcher = patcher
        memory.load_models_gpu([self._patcher])

    def _moved_out(self, patcher: Any, unpatch_all: bool = True) -> None:
        # Without ``unpatch_all`` the entry is only being replaced by itself: another session is opened.
        if unpatch_all and (freed := MODELS.free()):
            log.info("closed face models of %.1f MB, because ComfyUI unloads models", freed / 2**20)


class ComfyHost:
    """``nodes.host.NodeHost`` inside ComfyUI."""

    def __init__(self) -> None:
        models = Path(folder_paths.models_dir)
        _register("likeness", models / "likeness", {*folder_paths.supported_pt_extensions, ".onnx"})
        _register("likeness_identities", models / "likeness" / "identities", IDENTITY_FILES)
        self._tenant = _Tenant()
        self._providers: list[str] | None = None

    def folders(self, kind: str) -> list[Path]:
        models = Path(folder_paths.models_dir)
        if kind == "likeness":
            found = _named("likeness")
        elif kind == "identities":
            found = [*_named("likeness_identities"), models / "reactor" / "faces"]
        elif kind == "insightface":
            # People name either the folder of the packs or the one above it.
            found = [p / "models" if (p / "models").is_dir() else p for p in _named("insightface")]
            found.append(models / "insightface" / "models")
        elif kind == "adapters":
            found = [models / "likeness" / "adapters"]
            for name in ADAPTER_FOLDERS:
                found += [*_named(name), models / name]
        elif kind in ("clip_vision", "checkpoints", "controlnet"):
            found = _named(kind)
        else:
            directories = {
                "input": folder_paths.get_input_directory,
                "output": folder_paths.get_output_directory,
                "temp": folder_paths.get_temp_directory,
            }
            found = [Path(directories[kind]())]
        return list(dict.fromkeys(found))

    def providers(self) -> list[str]:
        """The device ComfyUI runs on, if this onnxruntime can, then the CPU."""
        if self._providers is None:
            import onnxruntime

            device = memory.get_torch_device().type
            wished = PROVIDERS.get("rocm" if device == "cuda" and torch.version.hip else device, ())
            there = onnxruntime.get_available_providers()
            self._providers = [p for p in wished if p in there] + [CPU]
            if wished and self._providers == [CPU]:
                log.info(
                    "face models run on the CPU: ComfyUI runs on %s, but onnxruntime %s offers only %s",
                    device,
                    onnxruntime.__version__,
                    ", ".join(there),
                )
        return list(self._providers)

    def make_room(self, nbytes: int) -> None:
        device = memory.get_torch_device()
        if device.type != "cpu" and self.providers()[0] == CPU:
            return  # The session will lie in main memory; ComfyUI's models need not leave the card for it.
        memory.free_memory(nbytes, device)
        self._tenant.move_in()

    def progress(self, total: int) -> Progress:
        return _Bar(total)

    def check_interrupt(self) -> None:
        memory.throw_exception_if_processing_interrupted()

    def send_text(self, text: str, node_id: str | None) -> None:
        # There is no server when another program uses ComfyUI as a library.
        server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        node = node_id or getattr(server, "last_node_id", None)
        if node is not None and hasattr(server, "send_progress_text"):
            server.send_progress_text(text, node)

    def blocker(self, message: str | None) -> Any:
        from comfy_execution.graph_utils import ExecutionBlocker

        return ExecutionBlocker(message)

    def mark(self) -> str | None:
        from .. import NODE_CLASS_MAPPINGS

        server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        node = _running_node(server)
        # One prompt runs at a time; its entry in the queue is (number, id, prompt, …).
        running = getattr(getattr(server, "prompt_queue", None), "currently_running", {})
        prompts = [entry[2] for entry in running.values()]
        marks = (mark_of(prompt, prompt if node is None else (node,), NODE_CLASS_MAPPINGS) for prompt in prompts)
        return next((mark for mark in marks if mark is not None), None)

    def layout(self, model: Any) -> Layout:
        return patching.layout_of(model)[0]

    def apply_identity(self, model: Any, applied: Applied) -> Any:
        return patching.apply(model, applied)

    def change_weights(self, model: Any, adapter: IdAdapter, strength: float) -> Any:
        return patching.change_weights(model, adapter, strength)

    def encoder(self, clip_vision: Any) -> Encoder:
        return patching.encoder(clip_vision)

    def with_control(self, positive: Any, negative: Any, control: Control, width: int) -> tuple[Any, Any]:
        one, node = control, import_module("nodes").ControlNetApplyAdvanced()
        patching.check_control(one.net, width)
        return node.apply_controlnet(
            positive, negative, one.net, one.image, one.strength, one.start, one.end, vae=one.vae
        )

    def lab_model(self, path: Path) -> tuple[Any, Any, Any]:
        return lab.checkpoint(path)

    def lab_controlnet(self, path: Path) -> Any:
        return lab.controlnet(path)

    def self_layers(self, model: Any) -> SelfLayers:
        return curing.layers_of(model)[0]

    def with_hook(self, model: Any, hook: Hook) -> Any:
        return curing.put(model, hook)

    def hooks(self, model: Any) -> Any:
        return curing.hooks_of(model)

    def dtype(self, model: Any) -> torch.dtype:
        return model.model.manual_cast_dtype or model.model.get_dtype()

    def samplers(self) -> tuple[list[str], list[str]]:
        samplers = import_module("comfy.samplers")
        return list(samplers.KSampler.SAMPLERS), list(samplers.KSampler.SCHEDULERS)

    def sample(self, model: Any, positive: Any, negative: Any, latent: Any, sampling: Sampling) -> Any:
        one = sampling
        (out,) = import_module("nodes").common_ksampler(
            model, one.seed, one.steps, one.cfg, one.sampler, one.scheduler, positive, negative, latent, one.denoise
        )
        return out

    def sigmas(self, model: Any, sampling: Sampling) -> torch.Tensor:
        kind, one = import_module("comfy.samplers").KSampler, sampling
        made = kind(model, one.steps, model.load_device, one.sampler, one.scheduler, one.denoise, model.model_options)
        return made.sigmas.cpu()

    def solve(self, model: Any, positive: Any, negative: Any, latent: Any, way: Way) -> Any:
        return curing.solve(model, positive, negative, latent, way)
