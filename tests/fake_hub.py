"""A Hugging Face hub of a test's own on loopback: the few routes that a download takes."""

import contextlib
import hashlib

from fastapi import FastAPI, Response
from servers import serve

MAIN = "main"


class Hub:
    """Repositories by name, each with files by commit; what was downloaded; whose terms hold."""

    def __init__(self):
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []
        self.broken = False  # it lists files, and fails to send them
        self.url = ""

    def put(self, repo: str, files: dict[str, bytes]) -> str:
        """Make these files the newest commit of a repository; returns the commit."""
        of_repo = self.commits.setdefault(repo, {})
        commit = hashlib.sha1(f"{repo} {len(of_repo)}".encode()).hexdigest()
        of_repo[commit] = files
        return commit

    def _commit(self, repo: str, revision: str) -> str:
        return list(self.commits[repo])[-1] if revision == MAIN else revision

    def refusal(self, repo: str, revision: str) -> Response | None:
        """Return the hub's way of saying no, by a header; None where it has what is asked for."""
        refuse = lambda status, code: Response("no", status, headers={"X-Error-Code": code})
        if repo not in self.commits:
            return refuse(401, "RepoNotFound")
        if repo in self.gated:
            return refuse(403, "GatedRepo")
        if self._commit(repo, revision) not in self.commits[repo]:
            return refuse(404, "RevisionNotFound")
        return None

    def app(self) -> FastAPI:
        api = FastAPI()

        @api.get("/api/models/{org}/{name}/revision/{revision}")
        def info(org: str, name: str, revision: str):
            repo = f"{org}/{name}"
            if no := self.refusal(repo, revision):
                return no
            return {"id": repo, "sha": self._commit(repo, revision), "siblings": []}

        @api.get("/api/models/{org}/{name}/tree/{revision}")
        def tree(org: str, name: str, revision: str):
            repo = f"{org}/{name}"
            if no := self.refusal(repo, revision):
                return no
            return [
                {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
                for path, content in self.commits[repo][revision].items()
            ]

        @api.api_route("/{org}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
        def resolve(org: str, name: str, revision: str, path: str):
            repo = f"{org}/{name}"
            if no := self.refusal(repo, revision):
                return no
            if self.broken:
                return Response("out of order", 500)
            commit = self._commit(repo, revision)
            content = self.commits[repo][commit][path]
            self.fetched.append(path)
            headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": commit}
            return Response(content, headers=headers, media_type="application/octet-stream")

        return api


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def running():
    """Serve a hub without repositories; its `url` is what HF_ENDPOINT must say."""
    hub = Hub()
    with serve(hub.app()) as hub.url:
        yield hub
