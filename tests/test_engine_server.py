"""ComfyUI's HTTP and websocket API: the loop of a client, two clients at once, interrupts, and what is kept out."""

import asyncio
import functools
import inspect
import io
import json
import os
import shutil
import struct
import subprocess
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from likeness.engine import registry
from likeness.engine.host import EngineHost
from likeness.engine.server import MAX_UPLOAD, Server, dumps
from likeness.nodes import host as nodes_host
from PIL import Image

from . import stub_nodes as stubs
from .stub_nodes import KNOWN, RAN, graph

own_kind = inspect.Parameter.POSITIONAL_OR_KEYWORD


@asynccontextmanager
async def served(folder):
    """A client of a server whose input, output and temp lie in ``folder``."""
    for kind in ("input", "output", "temp"):
        (folder / kind).mkdir(exist_ok=True)
    RAN.clear()
    stubs.STARTED.clear()
    host = EngineHost([folder / "input"], folder / "output", folder / "temp")
    nodes_host.use(host)
    server = Server(KNOWN, host)
    client = TestClient(TestServer(server.app))
    try:
        await client.start_server()
        yield client
    finally:
        await client.close()
        nodes_host.use(None)


def scenario(test):
    """Run an async test in a loop of its own, with a time limit."""

    @functools.wraps(test)
    def run(tmp_path, **arguments):
        async def limited():
            async with served(tmp_path) as client:
                await asyncio.wait_for(test(client, tmp_path, **arguments), 60)

        asyncio.run(limited())

    # What pytest reads to know the fixtures: client and folder come from here, the rest are parameters.
    own = [p for name, p in inspect.signature(test).parameters.items() if name not in ("client", "folder")]
    run.__signature__ = inspect.Signature([inspect.Parameter("tmp_path", own_kind), *own])
    return run


SUM = graph(a=("Number", {"value": 2}), c=("Add", {"a": ["a", 0], "b": 3}), s=("Show", {"value": ["c", 0]}))


EMPTY = ("EmptyImage", {"width": 8, "height": 8, "batch_size": 1, "color": 0})


async def post(client, prompt, **more):
    async with client.post("/prompt", json={"prompt": prompt, **more}) as response:
        return response.status, await response.json()


async def follow(socket, prompt_id):
    """Messages until the prompt is done; binary frames as ("binary", bytes)."""
    seen = []
    async for message in socket:
        if message.type == aiohttp.WSMsgType.BINARY:
            seen.append(("binary", message.data))
            continue
        event = json.loads(message.data)
        seen.append((event["type"], event["data"]))
        if event["type"] == "executing" and event["data"]["node"] is None and event["data"]["prompt_id"] == prompt_id:
            return seen
    raise AssertionError("the server closed the socket")


async def finished(client, prompt, **more):
    async with client.ws_connect("/ws?clientId=helper") as socket:
        _, reply = await post(client, prompt, client_id="helper", **more)
        await follow(socket, reply["prompt_id"])
    async with client.get(f"/history/{reply['prompt_id']}") as response:
        return (await response.json())[reply["prompt_id"]]


def png(size=(8, 6), color=(255, 0, 0)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


async def upload(client, name, data=None, **fields):
    form = aiohttp.FormData()
    form.add_field("image", png() if data is None else data, filename=name)
    for key, value in fields.items():
        form.add_field(key, value)
    async with client.post("/upload/image", data=form) as response:
        return response.status, await (response.json() if response.status == 200 else response.text())


@scenario
async def test_the_loop_of_a_client_works_pixel_for_pixel(client, folder):
    status, reply = await upload(client, "red.png")
    assert (status, reply) == (200, {"name": "red.png", "subfolder": "", "type": "input"})
    prompt = graph(
        l=("LoadImage", {"image": "red.png"}),
        i=("ImageInvert", {"image": ["l", 0]}),
        s=("SaveImage", {"images": ["i", 0], "filename_prefix": "sub/inverted"}),
    )
    history = await finished(client, prompt, extra_data={"extra_pnginfo": {"workflow": {"nodes": []}}})
    (picture,) = history["outputs"]["s"]["images"]
    assert picture == {"filename": "inverted_00001_.png", "subfolder": "sub", "type": "output"}
    async with client.get("/api/view", params=picture) as response:
        assert response.headers["Content-Type"] == "image/png"
        saved = Image.open(io.BytesIO(await response.read()))
    assert saved.size == (8, 6)
    assert saved.getpixel((0, 0)) == (0, 255, 255)
    assert json.loads(saved.info["prompt"]) == prompt
    assert json.loads(saved.info["workflow"]) == {"nodes": []}
    assert "Likeness" not in saved.info


@scenario
async def test_a_swapped_face_is_told_in_the_file(client, folder):
    prompt = graph(
        e=EMPTY,
        w=("SwapStub", {"image": ["e", 0]}),
        i=("ImageInvert", {"image": ["w", 0]}),
        s=("SaveImage", {"images": ["i", 0], "filename_prefix": "x"}),
        p=("SaveImage", {"images": ["e", 0], "filename_prefix": "plain"}),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "classes", lambda: KNOWN)
        await finished(client, prompt)
    assert Image.open(folder / "output" / "x_00001_.png").info["Likeness"] == "edited: faces swapped"
    assert "Likeness" not in Image.open(folder / "output" / "plain_00001_.png").info


@scenario
async def test_messages_come_in_order(client, folder):
    async with client.ws_connect("/ws?clientId=me") as socket:
        assert json.loads((await socket.receive()).data)["data"]["sid"] == "me"
        _, reply = await post(client, SUM, client_id="me")
        seen = await follow(socket, reply["prompt_id"])
    names = [name for name, _ in seen if name not in ("progress_state",)]
    begin, end = names.index("execution_start"), names.index("execution_success")
    assert names[begin : end + 1] == [
        "execution_start",
        "execution_cached",
        "executing",
        "executing",
        "executing",
        "executed",
        "execution_success",
    ]
    assert names[end + 1 :] == ["status", "executing"]
    assert seen[-1][1] == {"node": None, "prompt_id": reply["prompt_id"]}
    states = [data["nodes"] for name, data in seen if name == "progress_state"]
    assert states[0]["a"]["state"] == "running"
    assert {node["state"] for node in states[-1].values()} == {"finished"}


@scenario
async def test_previews_and_texts_are_binary_frames(client, folder):
    async with client.ws_connect("/ws?clientId=me") as socket:
        prompt = graph(t=("Tells", {}), s=("Show", {"value": ["t", 0]}))
        _, reply = await post(client, prompt, client_id="me")
        frames = [data for name, data in await follow(socket, reply["prompt_id"]) if name == "binary"]
    assert frames[0] == struct.pack(">II", 3, 1) + b"t" + b"half way"
    assert struct.unpack(">II", frames[1][:8]) == (1, 1)
    assert Image.open(io.BytesIO(frames[1][8:])).format == "JPEG"


@scenario
async def test_a_second_run_executes_nothing_and_resends_what_it_shows(client, folder):
    await finished(client, SUM)
    RAN.clear()
    history = await finished(client, SUM)
    assert RAN == []
    assert history["outputs"] == {"s": {"text": ["5"]}}
    assert history["status"]["status_str"] == "success"
    assert history["status"]["completed"] is True
    assert history["prompt"][2] == SUM


@scenario
async def test_two_clients_each_hear_of_their_own_prompt(client, folder):
    async def one(name, value):
        prompt = graph(t=("Slow", {"steps": value}), s=("Show", {"value": ["t", 0]}))
        async with client.ws_connect(f"/ws?clientId={name}") as socket:
            _, reply = await post(client, prompt, client_id=name)
            seen = await follow(socket, reply["prompt_id"])
        ids = {data["prompt_id"] for kind, data in seen if kind not in ("status", "binary")}
        assert ids == {reply["prompt_id"]}
        assert {data["max"] for kind, data in seen if kind == "progress"} == {value}
        return [data["output"] for kind, data in seen if kind == "executed"]

    assert await asyncio.gather(one("a", 11), one("b", 12)) == [[{"text": ["11"]}], [{"text": ["12"]}]]


@scenario
async def test_interrupt_stops_a_running_batch(client, folder):
    async with client.ws_connect("/ws?clientId=me") as socket:
        prompt = graph(t=("Slow", {"steps": 4000}), s=("Show", {"value": ["t", 0]}))
        _, reply = await post(client, prompt, client_id="me")
        assert await asyncio.to_thread(stubs.STARTED.wait, 20)
        async with client.post("/interrupt", json={"prompt_id": "another"}) as response:
            assert response.status == 200
        async with client.get("/queue") as response:
            assert len((await response.json())["queue_running"]) == 1
        async with client.post("/interrupt") as response:
            assert response.status == 200
        seen = await follow(socket, reply["prompt_id"])
    (told,) = [data for name, data in seen if name == "execution_interrupted"]
    assert (told["node_id"], told["node_type"]) == ("t", "Slow")
    assert (await finished(client, SUM))["status"]["completed"]


@scenario
async def test_who_comes_back_is_told_where_their_prompt_is(client, folder):
    prompt = graph(t=("Slow", {"steps": 4000}), s=("Show", {"value": ["t", 0]}))
    _, reply = await post(client, prompt, client_id="me")
    assert await asyncio.to_thread(stubs.STARTED.wait, 20)
    async with client.ws_connect("/ws?clientId=me") as socket:
        first = [json.loads((await socket.receive()).data) for _ in range(2)]
    assert first[0]["data"]["status"]["exec_info"]["queue_remaining"] == 1
    assert first[1]["data"] == {"node": "t", "display_node": "t", "prompt_id": reply["prompt_id"]}


@scenario
async def test_waiting_prompts_can_be_deleted_and_put_in_front(client, folder):
    slow = graph(t=("Slow", {"steps": 4000}), s=("Show", {"value": ["t", 0]}))
    await post(client, slow)
    assert await asyncio.to_thread(stubs.STARTED.wait, 20)
    ids = [(await post(client, SUM, **more))[1]["prompt_id"] for more in ({}, {}, {"front": True})]
    async with client.get("/queue") as response:
        waiting = [job[1] for job in (await response.json())["queue_pending"]]
    assert waiting == [ids[2], ids[0], ids[1]]
    async with client.post("/queue", json={"delete": [ids[0]]}):
        pass
    async with client.get("/prompt") as response:
        assert (await response.json())["exec_info"]["queue_remaining"] == 3
    async with client.post("/queue", json={"clear": True}):
        pass
    async with client.get("/api/prompt") as response:
        assert (await response.json())["exec_info"]["queue_remaining"] == 1


@scenario
async def test_bad_prompts_answer_400_with_their_errors(client, folder):
    async with client.post("/prompt", json={}) as response:
        assert response.status == 400
        expected = {
            "type": "no_prompt",
            "message": "No prompt provided",
            "details": "No prompt provided",
            "extra_info": {},
        }
        assert await response.json() == {"error": expected, "node_errors": {}}
    status, reply = await post(client, graph(a=("Number", {"value": -1}), s=("Show", {"value": ["a", 0]})))
    assert status == 400
    assert reply["error"]["type"] == "prompt_outputs_failed_validation"
    assert reply["node_errors"]["a"]["errors"][0]["type"] == "value_smaller_than_min"
    status, reply = await post(client, graph(a=("SomebodyElses", {})))
    assert (status, reply["error"]["type"]) == (400, "invalid_prompt")
    async with client.post("/prompt", data=b"{nonsense") as response:
        assert response.status == 400


@scenario
async def test_good_outputs_run_though_others_are_bad(client, folder):
    bad = graph(b=("Number", {"value": -1}), t=("Show", {"value": ["b", 0]}))
    status, reply = await post(client, {**SUM, **bad})
    assert status == 200
    assert list(reply["node_errors"]) == ["b"]


@scenario
async def test_a_failing_node_is_in_the_history(client, folder):
    history = await finished(client, graph(f=("Fail", {"value": 1}), s=("Show", {"value": ["f", 0]})))
    assert history["status"]["status_str"] == "error"
    (failure,) = [data for name, data in history["status"]["messages"] if name == "execution_error"]
    assert failure["exception_message"] == "cannot take 1"


@scenario
async def test_history_is_limited_and_forgotten(client, folder):
    for value in (1, 2, 3):
        await finished(client, graph(a=("Number", {"value": value}), s=("Show", {"value": ["a", 0]})))
    async with client.get("/history?max_items=2") as response:
        kept = await response.json()
    assert [entry["outputs"]["s"]["text"] for entry in kept.values()] == [["2"], ["3"]]
    async with client.post("/history", json={"clear": True}):
        pass
    async with client.get("/api/history") as response:
        assert await response.json() == {}


@scenario
async def test_object_info_describes_the_nodes(client, folder):
    async with client.get("/object_info/Add2") as response:
        info = (await response.json())["Add2"]
    assert info["input"]["required"]["mode"] == [["up", "down"]]
    assert info["input_order"] == {"required": ["a", "mode", "many", "scale", "flag"], "optional": ["note", "seed"]}
    assert (info["output"], info["output_name"], info["output_is_list"]) == (["INT", "STRING"],) * 2 + ([False, False],)
    async with client.get("/api/object_info") as response:
        every = await response.json()
    assert set(every) == set(KNOWN) - {"Speechless"}
    assert every["LoadImage"]["python_module"] == "nodes"
    async with client.get("/object_info/Nothing") as response:
        assert await response.json() == {}


@pytest.mark.parametrize("path", ["/system_stats", "/features", "/extensions", "/embeddings", "/models", "/queue"])
@scenario
async def test_small_routes_answer_under_both_prefixes(client, folder, path):
    for prefix in ("", "/api"):
        async with client.get(prefix + path) as response:
            assert response.status == 200
            await response.json()


@scenario
async def test_free_forgets_results(client, folder):
    await finished(client, SUM)
    RAN.clear()
    async with client.post("/free", json={"free_memory": True, "unload_models": True}) as response:
        assert response.status == 200
    await finished(client, SUM)
    assert len(RAN) == 3


@scenario
async def test_equal_uploads_share_a_name_and_different_ones_do_not(client, folder):
    names = [(await upload(client, "a.png", data))[1]["name"] for data in (png(), png(), png(color=(0, 1, 2)))]
    assert names == ["a.png", "a.png", "a (1).png"]
    _, reply = await upload(client, "a.png", png(color=(9, 9, 9)), overwrite="true", subfolder="deep/er")
    assert reply == {"name": "a.png", "subfolder": "deep/er", "type": "input"}
    assert (folder / "input" / "deep" / "er" / "a.png").is_file()


@scenario
async def test_a_huge_upload_is_refused(client, folder):
    status, _ = await upload(client, "big.png", b"\0" * (MAX_UPLOAD + 1))
    assert status == 413
    assert list((folder / "input").iterdir()) == []


ESCAPES = ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png", "C:\\secret.png", "x\0.png"]


@pytest.mark.parametrize("name", ESCAPES)
@scenario
async def test_no_path_leads_out_of_the_folders(client, folder, name):
    (folder / "secret.png").write_bytes(png())
    before = sorted(folder.rglob("*"))
    for kind in ("input", "output", "temp"):
        for query in ({"filename": name}, {"filename": "secret.png", "subfolder": name.rpartition("/")[0] or name}):
            async with client.get("/view", params={**query, "type": kind}) as response:
                assert response.status in (403, 404), await response.text()
    assert (await upload(client, "ok.png", subfolder=name))[0] == 400
    prompt = graph(l=("LoadImage", {"image": name}), s=("PreviewImage", {"images": ["l", 0]}))
    status, reply = await post(client, prompt)
    assert status == 400
    assert "leads out of the folder" in reply["node_errors"]["l"]["errors"][0]["details"]
    if "\0" not in name:
        prompt = graph(
            e=EMPTY,
            s=("SaveImage", {"images": ["e", 0], "filename_prefix": name}),
        )
        history = await finished(client, prompt)
        assert history["status"]["status_str"] == "error"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "raw", ["filename=%2e%2e%2fsecret.png", "filename=..%2Fsecret.png", "filename=secret.png&subfolder=%2E%2E"]
)
@scenario
async def test_encoded_paths_do_not_lead_out_either(client, folder, raw):
    import yarl

    (folder / "secret.png").write_bytes(png())
    url = yarl.URL(f"{client.make_url('/view')}?{raw}&type=input", encoded=True)
    async with client.session.get(url) as response:
        assert response.status == 403


LONG = ["a" * 300 + ".png", "ä" * 200 + ".png", "/".join(["deep"] * 1200)]


@pytest.mark.parametrize("name", LONG, ids=["long", "wide", "deep"])
@scenario
async def test_names_that_no_file_can_have_are_refused(client, folder, name):
    async with client.get("/view", params={"filename": name, "type": "input"}) as response:
        assert response.status == 403 and "is too long for a file name" in await response.text()
    assert (await upload(client, "a.png", subfolder=name))[0] == 400
    history = await finished(client, graph(e=EMPTY, s=("SaveImage", {"images": ["e", 0], "filename_prefix": name})))
    (failure,) = [data for kind, data in history["status"]["messages"] if kind == "execution_error"]
    assert failure["exception_type"].endswith("BadInput")


@scenario
async def test_an_upload_into_a_file_or_without_a_form_is_refused(client, folder):
    assert (await upload(client, "a.png"))[0] == 200
    assert (await upload(client, "b.png", subfolder="a.png"))[0] == 400
    for kind in ("multipart/form-data", "multipart/form-data; boundary="):
        async with client.post("/upload/image", data=b"--x", headers={"Content-Type": kind}) as response:
            assert response.status == 400, await response.text()


@pytest.mark.parametrize("headers", [{"Host": "[::1"}, {"Origin": "http://[::1"}, {"Origin": "http://[x]"}])
@scenario
async def test_an_address_that_is_none_is_refused(client, folder, headers):
    async with client.get("/queue", headers=headers) as response:
        assert response.status in (400, 403)


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity", '"x"', "[]", "null"])
@scenario
async def test_a_number_that_has_no_place_in_the_queue_is_refused(client, folder, number):
    body = f'{{"prompt": {json.dumps(SUM)}, "number": {number}}}'
    async with client.post("/prompt", data=body, headers={"Content-Type": "application/json"}) as response:
        assert response.status == 400 and await response.text() == "number must be a number"


@scenario
async def test_an_uploaded_page_is_not_served_as_a_page(client, folder):
    await upload(client, "page.html", b"<script>alert(1)</script>")
    async with client.get("/view?filename=page.html&type=input") as response:
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example:8188"},
        {"Host": "rebound.example", "Origin": "http://rebound.example"},
    ],
)
@scenario
async def test_foreign_pages_are_refused(client, folder, headers):
    for call in (client.get("/queue", headers=headers), client.post("/prompt", json={"prompt": SUM}, headers=headers)):
        async with call as response:
            assert response.status == 403
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await client.ws_connect("/ws", headers=headers)
    assert RAN == []


@scenario
async def test_the_own_origin_is_welcome(client, folder):
    origin = f"http://{client.host}:{client.port}"
    async with client.get("/queue", headers={"Origin": origin}) as response:
        assert response.status == 200


def test_messages_are_json_that_browsers_read():
    value = json.loads(dumps({"a": [float("nan"), float("inf"), 1.5], "b": object}))
    assert value["a"] == [None, None, 1.5]


def comfy_command():
    return os.environ.get("COMFY_CLI") or shutil.which("comfy")


@pytest.mark.slow
@pytest.mark.skipif(
    not comfy_command(), reason="the comfy command is not installed: pip install comfy-cli, or set COMFY_CLI"
)
@scenario
async def test_an_unmodified_comfy_command_runs_a_workflow(client, folder):
    await upload(client, "red.png")
    workflow = folder / "workflow.json"
    workflow.write_text(
        json.dumps(
            graph(**{
                "1": ("LoadImage", {"image": "red.png"}),
                "2": ("ImageInvert", {"image": ["1", 0]}),
                "3": ("SaveImage", {"images": ["2", 0], "filename_prefix": "cli"}),
            })
        )
    )  # fmt: skip
    command = [
        comfy_command(),
        "run",
        "--workflow",
        str(workflow),
        "--wait",
        "--host",
        client.host,
        "--port",
        str(client.port),
    ]
    # It keeps a record of its jobs in the home folder.
    environment = {
        **os.environ,
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "COMFY_CLI_NO_REMOTE_REFRESH": "1",
        "DO_NOT_TRACK": "1",
    }
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cli_00001_.png" in done.stdout
    assert Image.open(folder / "output" / "cli_00001_.png").getpixel((0, 0)) == (0, 255, 255)
