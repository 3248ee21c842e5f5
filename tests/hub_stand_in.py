"""A local stand-in of the hub: a real HTTP server with the routes that huggingface_hub uses to make a repository, to commit to it
and to read it back. Repositories, commits and large files are kept in memory."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

import yaml

WRITER, READER = "hf_writer", "hf_reader"  # tokens: one may write to "ann", one may only read


class Hub:
    """What the server holds. repositories: by id, each with private, branches (name to commit) and commits (oid to files)."""

    def __init__(self):
        self.repositories, self.large, self.asked = {}, {}, []

    def files(self, name, revision):
        """(commit, files) of a revision, or None."""
        found = self.repositories[name]
        commit = found["branches"].get(revision, revision)
        return (commit, found["commits"][commit]) if commit in found["commits"] else None

    def commit(self, name, branch, files):
        found = self.repositories[name]
        before = dict(found["commits"][found["branches"][branch]])
        oid = hashlib.sha1(f"{name} {branch} {len(found['commits'])}".encode()).hexdigest()
        found["commits"][oid] = before | files
        found["branches"][branch] = oid
        return oid


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    @property
    def token(self):
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status, content=b"", headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code, words):
        self.answer(status, {"error": words}, {"X-Error-Code": code, "X-Error-Message": words} if code else {})

    def may_write(self):
        """Whether the token may write; if not, the answer is given."""
        if self.token not in (WRITER, READER):
            self.refuse(401, None, "Invalid username or password.")
        elif self.token != WRITER:
            self.refuse(403, None, "You don't have the rights to write to this repository.")
        return self.token == WRITER

    def may_read(self, name):
        """As the hub: to a stranger a private repository and none are the same."""
        found = self.hub.repositories.get(name)
        if found is not None and (not found["private"] or self.token in (WRITER, READER)):
            return True
        self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return False

    def do_HEAD(self):
        if self.path == "/":
            self.answer(200)
        else:
            self.do_GET()

    def do_GET(self):
        self.hub.asked.append((self.command, self.path, self.token))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            self.resolve(*map(unquote, match.groups()))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/?]+))?(?:\?.*)?", self.path):
            name, revision = match[1], unquote(match[2] or "main")
            if self.may_read(name):
                found = self.hub.files(name, revision)
                if found is None:
                    self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                else:
                    names = [{"rfilename": file} for file in sorted(found[1])]
                    self.answer(
                        200, {"id": name, "sha": found[0], "siblings": names, "tags": [], "downloads": 0, "likes": 0}
                    )
        else:
            self.refuse(404, None, f"no route {self.path}")

    def resolve(self, name, revision, file):
        if not self.may_read(name):
            return
        found = self.hub.files(name, revision)
        if found is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif file not in found[1]:
            self.refuse(404, "EntryNotFound", "Entry not found")
        else:
            content = found[1][file]
            tag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": found[0]}
            self.answer(200, content, tag)

    def do_PUT(self):
        content = self.body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            self.refuse(400, None, "the content is not of this name")
            return
        self.hub.large[oid] = content
        self.answer(200)

    def do_POST(self):
        content = self.body()
        self.hub.asked.append((self.command, self.path, self.token))
        if self.path == "/api/validate-yaml":
            head = json.loads(content)["content"].split("---\n")[1]
            self.answer(
                200, {"errors": [] if isinstance(yaml.safe_load(head), dict) else [{"message": "bad"}], "warnings": []}
            )
        elif self.may_write():
            self.write(content)

    def write(self, content):
        where = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            given = json.loads(content)
            name = f"{given.get('organization') or 'ann'}/{given['name']}"
            if not name.startswith("ann/"):
                self.refuse(403, None, f"You don't have the rights to create a model under {name}")
            elif name in self.hub.repositories:
                self.answer(409, {"error": "You already created this model repo", "url": f"{where}/{name}"})
            else:
                private = given.get("private") is True or given.get("visibility") == "private"
                start = hashlib.sha1(name.encode()).hexdigest()
                self.hub.repositories[name] = {"private": private, "branches": {"main": start}, "commits": {start: {}}}
                self.answer(200, {"url": f"{where}/{name}", "name": name, "id": name})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/?]+).*", self.path):
            kinds = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".png")) else "regular"}
                for f in json.loads(content)["files"]
            ]
            self.answer(200, {"files": [{**kind, "shouldIgnore": False} for kind in kinds]})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(content)["objects"]
            actions = [{**one, "actions": {"upload": {"href": f"{where}/large/{one['oid']}"}}} for one in objects]
            self.answer(200, {"transfer": "basic", "objects": actions})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/?]+)", self.path):
            branches = self.hub.repositories[match[1]]["branches"]
            status = 409 if match[2] in branches else 200
            branches.setdefault(match[2], branches["main"])
            self.answer(status, {"error": "Reference already exists"} if status == 409 else {})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/?]+).*", self.path):
            self.take_commit(match[1], unquote(match[2]), content, where)
        else:
            self.refuse(404, None, f"no route {self.path}")

    def take_commit(self, name, branch, content, where):
        files = {}
        for line in content.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        oid = self.hub.commit(name, branch, files)
        self.answer(
            200, {"success": True, "commitOid": oid, "commitUrl": f"{where}/{name}/commit/{oid}", "hookOutput": ""}
        )


@contextmanager
def standing_in():
    """(hub, its address) while the server runs on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
