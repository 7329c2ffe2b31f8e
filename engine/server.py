"""ComfyUI's HTTP and websocket API, as far as running workflows needs it.

Loopback by default; requests that a foreign web page could have made are refused, and no path leads out of the
input, output and temporary folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import logging
import math
import mimetypes
import platform
import signal
import struct
import sys
import tempfile
import uuid
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.typedefs import Handler, Middleware

from .. import __version__
from ..face.errors import BadInput
from .execution import Executor
from .files import annotated, contained, store
from .graph import error, validate
from .host import EngineHost
from .jobs import Job, Jobs
from .local import made
from .registry import Classes, describe, display_names, object_info

log = logging.getLogger(__name__)

MAX_UPLOAD = 100 << 20
"""Bytes that a request may bring: a picture, or a prompt."""

JPEG, PREVIEW, TEXT = 1, 1, 3
"""Image format, and the types of binary websocket frames, all big-endian uint32."""

PASSIVE_TYPES = ("image/", "video/", "audio/", "text/plain", "application/json")
"""What a browser may show; anything else is served as bytes, so that an uploaded page cannot run scripts here."""


def dumps(value: Any) -> str:
    """JSON that browsers read: NaN and infinities become null, unknown objects their text."""
    try:
        return json.dumps(value, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(json.loads(json.dumps(value, default=str))))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def answer(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status, dumps=dumps)


def _is_loopback(name: str | None) -> bool:
    if name == "localhost":
        return True
    try:
        return name is not None and ip_address(name).is_loopback
    except ValueError:
        return False


def guard(listen: str) -> Middleware:
    """Middleware: refuse what another web site's page sends (foreign Origin, or a name rebound to this machine)."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        try:
            host, place = urlsplit(f"//{request.host}").hostname, urlsplit(origin or "").netloc
        except ValueError:
            raise web.HTTPBadRequest(text="Host or Origin is no address") from None
        if _is_loopback(listen) and not _is_loopback(host):
            raise web.HTTPForbidden(text=f"this server answers on this machine only, not as {request.host}")
        if origin is not None and place.lower() != request.host.lower():
            raise web.HTTPForbidden(text=f"requests from {origin} are refused")
        if origin is None and request.headers.get("Sec-Fetch-Site") == "cross-site":
            raise web.HTTPForbidden(text="requests from another web site are refused")
        return await handler(request)

    return check


class Client:
    """A websocket client's listener; the worker's messages are handed to the loop's thread in order."""

    def __init__(self, server: Server, client_id: str | None) -> None:
        self.server, self.client_id = server, client_id

    def event(self, name: str, data: dict[str, Any]) -> None:
        if name == "executing":
            self.server.last_node = data.get("node")
        if self.client_id in self.server.outboxes:
            # Written out here, in the worker's thread: the data may change once the run goes on.
            self.server.send(self.client_id, dumps({"type": name, "data": data}))

    def preview(self, node_id: str, picture: Any) -> None:
        if self.client_id in self.server.outboxes:
            small = picture.convert("RGB")
            small.thumbnail((512, 512))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=90)
            self.server.send(self.client_id, struct.pack(">II", PREVIEW, JPEG) + buffer.getvalue())

    def text(self, node_id: str, text: str) -> None:
        name = node_id.encode()
        self.server.send(self.client_id, struct.pack(">II", TEXT, len(name)) + name + text.encode("utf-8", "replace"))


class Server:
    """One engine behind HTTP. Make it inside a running loop; ``app`` is the aiohttp application."""

    def __init__(self, known: Classes, host: EngineHost, listen: str = "127.0.0.1") -> None:
        self.known, self.host = known, host
        self.loop = asyncio.get_running_loop()
        self.outboxes: dict[str | None, asyncio.Queue[str | bytes]] = {}
        self.last_node: str | None = None
        self.jobs = Jobs(Executor(known), self._tell_status)
        self._numbers = itertools.count()
        self.app = web.Application(middlewares=[guard(listen)], client_max_size=MAX_UPLOAD)
        self.app.on_shutdown.append(self._shut_down)
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/prompt", self.get_prompt),
            ("POST", "/prompt", self.post_prompt),
            ("GET", "/queue", self.get_queue),
            ("POST", "/queue", self.post_queue),
            ("GET", "/history", self.get_history),
            ("POST", "/history", self.post_history),
            ("GET", "/history/{prompt_id}", self.get_history),
            ("POST", "/interrupt", self.interrupt),
            ("GET", "/object_info", self.get_object_info),
            ("GET", "/object_info/{name}", self.get_object_info),
            ("GET", "/view", self.view),
            ("POST", "/upload/image", self.upload),
            ("POST", "/upload/mask", self.upload_mask),
            ("GET", "/system_stats", self.system_stats),
            ("GET", "/features", self.features),
            ("POST", "/free", self.free),
            ("GET", "/extensions", self.nothing),
            ("GET", "/embeddings", self.nothing),
            ("GET", "/models", self.nothing),
            ("GET", "/ws", self.websocket),
        ]
        for method, path, handler in routes:
            self.app.router.add_route(method, path, handler)
            self.app.router.add_route(method, f"/api{path}", handler)
        self.app.router.add_get("/", self.home)

    async def _shut_down(self, _: web.Application) -> None:
        for outbox in self.outboxes.values():
            outbox.put_nowait(b"")
        await asyncio.to_thread(self.jobs.close)

    # Messages

    def send(self, client_id: str | None, message: str | bytes) -> None:
        """Queue a message for one client, from any thread."""
        self.loop.call_soon_threadsafe(self._post, client_id, message)

    def _post(self, client_id: str | None, message: str | bytes) -> None:
        if (outbox := self.outboxes.get(client_id)) is not None:
            outbox.put_nowait(message)

    def _status(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": self.jobs.remaining()}}

    def _tell_status(self) -> None:
        message = dumps({"type": "status", "data": {"status": self._status()}})
        for client_id in list(self.outboxes):
            self.send(client_id, message)

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(heartbeat=30)
        await socket.prepare(request)
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        outbox = self.outboxes[client_id] = asyncio.Queue()
        greeting = {"type": "status", "data": {"status": self._status(), "sid": client_id}}
        outbox.put_nowait(dumps(greeting))
        running = self.jobs.running
        if running is not None and running.client_id == client_id and self.last_node is not None:
            # Somebody who comes back is told where their prompt is.
            event = {"node": self.last_node, "display_node": self.last_node, "prompt_id": running.prompt_id}
            outbox.put_nowait(dumps({"type": "executing", "data": event}))
        writer = asyncio.create_task(self._write(socket, outbox))
        try:
            async for message in socket:
                if message.type == WSMsgType.TEXT and "feature_flags" in message.data:
                    outbox.put_nowait(dumps({"type": "feature_flags", "data": self._features()}))
        finally:
            writer.cancel()
            if self.outboxes.get(client_id) is outbox:
                del self.outboxes[client_id]
        return socket

    @staticmethod
    async def _write(socket: web.WebSocketResponse, outbox: asyncio.Queue[str | bytes]) -> None:
        while message := await outbox.get():
            try:
                await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))
            except (ConnectionError, RuntimeError):
                return
        await socket.close(code=WSCloseCode.GOING_AWAY)

    # Prompts

    async def get_prompt(self, request: web.Request) -> web.Response:
        return answer(self._status())

    async def post_prompt(self, request: web.Request) -> web.Response:
        body = await _json(request)
        if "prompt" not in body:
            missing = error("no_prompt", "No prompt provided", "No prompt provided")
            return answer({"error": missing, "node_errors": {}}, 400)
        prompt, targets = body["prompt"], body.get("partial_execution_targets")
        targets = None if targets is None else _list(targets)
        # In a thread: a node's own checks may read files.
        verdict = await asyncio.to_thread(validate, prompt, self.known, targets)
        if verdict.error is not None:
            log.warning("invalid prompt: %s", verdict.error)
            return answer({"error": verdict.error, "node_errors": verdict.node_errors}, 400)
        number = next(self._numbers)
        try:
            number = float(body["number"]) if "number" in body else -number if body.get("front") else number
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            # A queue with NaN in it is in no order at all.
            raise web.HTTPBadRequest(text="number must be a number")
        extra = body.get("extra_data")
        extra = dict(extra) if isinstance(extra, dict) else {}
        client_id = body.get("client_id") if isinstance(body.get("client_id"), str) else None
        if client_id:
            extra["client_id"] = client_id
        prompt_id = str(body.get("prompt_id") or uuid.uuid4())
        job = Job(number, prompt_id, prompt, verdict.outputs, extra, Client(self, client_id), client_id)
        self.jobs.submit(job)
        return answer({"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors})

    async def get_queue(self, request: web.Request) -> web.Response:
        running = self.jobs.running
        return answer(
            {
                "queue_running": [running.as_json()] if running else [],
                "queue_pending": [job.as_json() for job in self.jobs.pending()],
            }
        )

    async def post_queue(self, request: web.Request) -> web.Response:
        body = await _json(request)
        if body.get("clear"):
            self.jobs.delete(None)
        if "delete" in body:
            self.jobs.delete({str(prompt_id) for prompt_id in _list(body["delete"])})
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        history = dict(self.jobs.history)
        prompt_id = request.match_info.get("prompt_id")
        if prompt_id is not None:
            return answer({prompt_id: history[prompt_id]} if prompt_id in history else {})
        count = request.query.get("max_items", "")
        return answer(dict(list(history.items())[-int(count) :]) if count.isdecimal() and int(count) else history)

    async def post_history(self, request: web.Request) -> web.Response:
        body = await _json(request)
        if body.get("clear"):
            self.jobs.history.clear()
        for prompt_id in _list(body.get("delete", [])):
            self.jobs.history.pop(str(prompt_id), None)
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        body = await _json(request) if request.can_read_body else {}
        prompt_id = body.get("prompt_id")
        self.jobs.interrupt(str(prompt_id) if prompt_id else None)
        return web.Response()

    async def free(self, request: web.Request) -> web.Response:
        body = await _json(request) if request.can_read_body else {}
        if body.get("free_memory"):
            self.jobs.between_prompts(self.jobs.executor.forget)
        if body.get("unload_models") or body.get("free_memory"):
            self.jobs.between_prompts(_free_models)
        return web.Response()

    # What there is

    async def get_object_info(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name")
        if name is None:
            return answer(await asyncio.to_thread(object_info, self.known))
        if name not in self.known:
            return answer({})
        return answer({name: describe(name, self.known[name], display_names().get(name))})

    async def system_stats(self, request: web.Request) -> web.Response:
        import torch

        devices = [{"name": "cpu", "type": "cpu", "index": 0}]
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            devices.append({"name": name, "type": "cuda", "index": index, "vram_total": total, "vram_free": free})
        system = {
            "os": platform.system(),
            "comfyui_version": f"likeness {__version__}",
            "python_version": sys.version,
            "pytorch_version": torch.__version__,
            "embedded_python": False,
            "argv": [],
        }
        return answer({"system": system, "devices": devices})

    def _features(self) -> dict[str, Any]:
        return {"supports_preview_metadata": False, "max_upload_size": MAX_UPLOAD}

    async def features(self, request: web.Request) -> web.Response:
        return answer(self._features())

    async def nothing(self, request: web.Request) -> web.Response:
        return answer([])

    async def home(self, request: web.Request) -> web.Response:
        return web.Response(text=f"Likeness {__version__}: ComfyUI's API without its editor. Start at /object_info.\n")

    # Files

    def _folder(self, kind: str) -> Path:
        if kind not in ("input", "output", "temp"):
            raise web.HTTPBadRequest(text=f"type must be input, output or temp; got {kind!r}")
        return self.host.folders(kind)[0]

    async def view(self, request: web.Request) -> web.StreamResponse:
        name, kind = annotated(request.query.get("filename", ""), request.query.get("type", "output"))
        if not name:
            raise web.HTTPBadRequest(text="filename is missing")
        try:
            path = contained(self._folder(kind), request.query.get("subfolder", ""), name)
        except BadInput as refused:
            raise web.HTTPForbidden(text=str(refused)) from refused
        if not path.is_file():
            raise web.HTTPNotFound(text=f"there is no file {name}")
        guessed = mimetypes.guess_type(path.name)[0] or ""
        passive = guessed.startswith(PASSIVE_TYPES) and guessed != "image/svg+xml"
        headers = {
            "Content-Type": guessed if passive else "application/octet-stream",
            "Content-Disposition": f'inline; filename="{path.name.translate({34: 39, 10: 32, 13: 32})}"',
            "X-Content-Type-Options": "nosniff",
        }
        return web.FileResponse(path, headers=headers)

    async def upload(self, request: web.Request) -> web.Response:
        try:
            form = await request.post()
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"the body is no form that can be read ({error})") from error
        picture = form.get("image")
        if not isinstance(picture, web.FileField) or not picture.filename:
            raise web.HTTPBadRequest(text="the form must have a file named image")
        kind, subfolder = str(form.get("type") or "input"), str(form.get("subfolder") or "")
        root = self._folder(kind)
        try:
            path = contained(root, subfolder, picture.filename)
            if path.parent != contained(root, subfolder):
                raise BadInput(f"{picture.filename!r} is not a plain file name; say the folder in subfolder")
        except BadInput as refused:
            raise web.HTTPBadRequest(text=str(refused)) from refused
        data = picture.file.read()
        overwrite = str(form.get("overwrite", "")).lower() in ("true", "1")
        try:
            path = await asyncio.to_thread(store, path, data, overwrite)
        except OSError as error:
            why = error.strerror or error
            raise web.HTTPBadRequest(text=f"{picture.filename!r} cannot be stored in {subfolder!r}: {why}") from error
        return answer({"name": path.name, "subfolder": subfolder, "type": kind})

    async def upload_mask(self, request: web.Request) -> web.Response:
        raise web.HTTPNotImplemented(text="painting masks needs ComfyUI's editor; upload a picture with alpha instead")


def _free_models() -> None:
    from ..face.cache import ANALYSES, MODELS
    from .diffusion.shelf import SHELF

    MODELS.free()
    ANALYSES.clear()
    SHELF.free()


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise web.HTTPBadRequest(text="the body must be JSON") from None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body must be a JSON object")
    return body


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


async def _told_to_stop() -> None:
    """Wait for Ctrl-C, or to be ended politely."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows has no signal handlers in the loop; there Ctrl-C arrives as KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


async def _serve(listen: str, port: int, host: EngineHost) -> None:
    from ..nodes import host as nodes_host
    from .registry import classes

    nodes_host.use(host)
    server = Server(classes(), host, listen)
    runner = web.AppRunner(server.app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, listen, port)
        await site.start()
        address = runner.addresses[0]
        name = f"[{address[0]}]" if ":" in address[0] else address[0]
        sys.stderr.write(f"listening on http://{name}:{address[1]}\n")
        sys.stderr.flush()
        await _told_to_stop()
    finally:
        await runner.cleanup()
        nodes_host.use(None)


def serve(listen: str, port: int, inputs: Path, output: Path) -> None:
    """Serve until interrupted. ``temp`` pictures live in a folder that is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="likeness-") as temp:
        host = EngineHost([made(inputs)], made(output), Path(temp).resolve())
        try:
            asyncio.run(_serve(listen, port, host))
        except OSError as failed:
            raise BadInput(f"cannot listen on {listen}:{port}: {failed.strerror or failed}") from failed
