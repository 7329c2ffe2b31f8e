"""Running one workflow file on a real ComfyUI (or on another engine), for the command line."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp

from . import workflow
from .convert import to_api
from .files import annotated, contained, store
from .graph import Prompt
from .local import Invalid, Line, Outcome, RunFailed, made, picture_folders, pictures

POLL = 5.0
"""Seconds without a message after which the history is asked, in case the last message got lost."""


def run(server: str, file: Path, settings: list[str], out: Path, inputs: Path | None) -> Outcome:
    """Send a workflow file with its pictures to ``server``, follow it, and fetch what it made into ``out``."""
    url = (server if "://" in server else f"http://{server}").rstrip("/")
    out = made(out)
    try:
        return asyncio.run(_run(url, file, settings, out, picture_folders(file, inputs)))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise RunFailed(f"the server at {url} could not be used: {error or type(error).__name__}") from error


async def _run(url: str, file: Path, settings: list[str], out: Path, folders: list[Path]) -> Outcome:
    data = workflow.read(file)
    client_id = uuid.uuid4().hex
    async with aiohttp.ClientSession(base_url=f"{url}/") as session:
        info = await _get(session, "object_info")
        prompt = to_api(data, info) if workflow.is_editor(data) else data
        workflow.apply_settings(prompt, settings, info)
        await _upload_pictures(session, prompt, info, folders)
        began = time.perf_counter()
        async with session.ws_connect(f"ws?clientId={client_id}", max_msg_size=0) as socket:
            extra = {"extra_pnginfo": {"workflow": data}} if workflow.is_editor(data) else {}
            body = {"prompt": prompt, "client_id": client_id, "extra_data": extra}
            async with session.post("prompt", json=body) as response:
                if response.status == 403:
                    raise RunFailed(f"the server refused: {await response.text()}")
                reply = await response.json(content_type=None)
            if "prompt_id" not in reply:
                raise Invalid(workflow.readable(reply.get("node_errors") or {}, reply.get("error"), prompt))
            try:
                history = await _follow(session, socket, reply["prompt_id"], prompt)
            except asyncio.CancelledError:
                await session.post("queue", json={"delete": [reply["prompt_id"]]})
                await session.post("interrupt", json={"prompt_id": reply["prompt_id"]})
                raise
        _raise_failure(history, prompt)
        files = [await _download(session, item, out) for item in pictures(history["outputs"], "output")]
    if reply.get("node_errors"):
        # The good outputs have run; the file is still not right.
        raise Invalid(workflow.readable(reply["node_errors"], None, prompt))
    return Outcome(files, history["outputs"], [], time.perf_counter() - began)


async def _get(session: aiohttp.ClientSession, path: str) -> Any:
    async with session.get(path) as response:
        response.raise_for_status()
        return await response.json()


async def _upload_pictures(
    session: aiohttp.ClientSession, prompt: Prompt, info: dict[str, Any], folders: list[Path]
) -> None:
    """Send every picture that lies here; a name that is found nowhere here is left for the server to know."""
    for node_id, name, value in list(workflow.picture_inputs(prompt, info)):
        if annotated(value)[1] != "input":
            continue
        bare = annotated(value)[0]
        path = next((p for p in (*(folder / bare for folder in folders), Path(bare).expanduser()) if p.is_file()), None)
        if path is None:
            continue
        form = aiohttp.FormData()
        form.add_field("image", path.read_bytes(), filename=path.name)
        async with session.post("upload/image", data=form) as response:
            response.raise_for_status()
            there = await response.json()
        prompt[node_id]["inputs"][name] = "/".join(part for part in (there["subfolder"], there["name"]) if part)


async def _follow(session: aiohttp.ClientSession, socket: Any, prompt_id: str, prompt: Prompt) -> dict[str, Any]:
    """Show progress until the prompt is in the server's history; that record, with every failure that was told."""
    line = Line(prompt)
    failures: list[Any] = []
    try:
        while True:
            try:
                message = await socket.receive(timeout=POLL)
            except asyncio.TimeoutError:
                message = None
            if message is not None and message.type == aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                data = event.get("data") or {}
                if data.get("prompt_id") != prompt_id:
                    continue
                line.event(event["type"], data)
                if event["type"] == "execution_error":
                    # ComfyUI tells of a blocker with a message here only.
                    failures.append([event["type"], data])
                if not (event["type"] == "executing" and data.get("node") is None):
                    continue
            elif message is not None and message.type == aiohttp.WSMsgType.BINARY:
                continue
            history = await _get(session, f"history/{prompt_id}")
            if prompt_id in history:
                history[prompt_id]["status"]["messages"] += failures
                return history[prompt_id]
            if socket.closed:
                await asyncio.sleep(POLL)
    finally:
        line.end()


def _raise_failure(history: dict[str, Any], prompt: Prompt) -> None:
    for name, data in history["status"]["messages"]:
        if name == "execution_interrupted":
            raise RunFailed("the run was interrupted on the server")
        if name == "execution_error":
            where = f"{workflow.title(prompt, data['node_id'])} (node {data['node_id']})"
            raise RunFailed(f"{where}: {data['exception_message'].strip()}", "".join(data["traceback"]))


async def _download(session: aiohttp.ClientSession, item: dict[str, str], out: Path) -> Path:
    path = contained(out, item.get("subfolder", ""), item["filename"])
    async with session.get(
        "view", params={key: item.get(key, "") for key in ("filename", "subfolder", "type")}
    ) as response:
        response.raise_for_status()
        return store(path, await response.read())
