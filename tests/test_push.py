"""Uploading, against a small HTTP server that stands in for the hub."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evomerge.errors import ConfigError, ExportError
from evomerge.export import export, push
from evomerge.recipe import Recipe
from tests import models
from tests.test_materialize import open_family, random_recipe


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload needs; keeps what it is sent."""

    calls: list[str]
    created: dict
    files: dict[str, bytes]
    blobs: dict[str, bytes]
    refuse = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).calls.append(self.path)
        base = f"http://{self.headers['Host']}"
        if self.refuse:
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            type(self).created = json.loads(body)
            self.answer({"url": f"{base}/me/merge"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            self.answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{base}/blob/{o['oid']}", "header": {}}}}
                for o in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.blobs[value["oid"]]
            self.answer({"commitUrl": f"{base}/me/merge/commit/1", "commitOid": "1"})
        else:
            self.answer({}, 404)

    def do_PUT(self) -> None:
        self.blobs[self.path.rpartition("/")[2]] = self.rfile.read(
            int(self.headers["Content-Length"])
        )
        self.answer({})

    def do_GET(self) -> None:
        type(self).calls.append(self.path)
        self.answer({"error": "not here"}, 404)

    def answer(self, data: dict, status: int = 200) -> None:
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub():
    handler = type("OneHub", (Hub,), {"calls": [], "created": {}, "files": {}, "blobs": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pool = open_family()
    return export(random_recipe(pool), tmp_path_factory.mktemp("push") / "out", pool=pool)


@pytest.fixture
def online(hub, monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    """huggingface_hub talks to the small server; its settings are read when it is imported."""
    from huggingface_hub import constants

    handler, endpoint = hub
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    return handler


@pytest.mark.parametrize("public", [False, True])
def test_push(public: bool, online: type[Hub], exported: Path) -> None:
    assert push(exported, "me/merge", public=public).endswith("/me/merge")
    assert (online.created["organization"], online.created["name"]) == ("me", "merge")
    assert (online.created.get("visibility") == "private") is not public
    local = {p.relative_to(exported).as_posix(): p for p in exported.rglob("*") if p.is_file()}
    assert online.files.keys() == local.keys()
    place = str(models.family()["base"].parent).encode()
    for name, content in online.files.items():
        assert place not in content, name
        if name not in {"recipe.yaml", "mergekit.yaml"}:
            assert content == local[name].read_bytes(), name
    assert place in local["recipe.yaml"].read_bytes()
    assert Recipe.from_yaml(online.files["recipe.yaml"].decode()).id == read(exported).id
    assert len([path for path in online.calls if "/commit/" in path]) == 1


def read(folder: Path) -> Recipe:
    return Recipe.from_yaml((folder / "recipe.yaml").read_text())


def test_a_hub_that_refuses(online: type[Hub], exported: Path) -> None:
    online.refuse = True
    with pytest.raises(ExportError, match=r"is written, but could not be .*hf auth login"):
        push(exported, "me/merge")
    assert not online.files


def test_nothing_is_sent_without_the_network(exported: Path) -> None:
    with pytest.raises(ExportError, match="could not be uploaded"):
        push(exported, "me/merge")  # HF_HUB_OFFLINE is set for every test


def test_what_cannot_be_pushed(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected USER/NAME, got 'merge'"):
        push(exported, "merge")
    with pytest.raises(ConfigError, match="--push"):
        push(exported, "me/--")
    with pytest.raises(ExportError, match="is no export"):
        push(tmp_path, "me/merge")
