from __future__ import annotations

import http.server
import threading

import pytest

from restool import files
from restool.core.errors import DataError
from restool.data import fetch
from restool.data.fetch import Fetcher, Published, Unreachable

CONTENT = b"published content\n" * 50
FILE = Published("part/file.json", "deep/folder/file.json", files.git_blob_id(CONTENT))
NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once


class _Server:
    """Serves a queue of (status, body, declared length) answers on a local port."""

    def __init__(self):
        self.answers: list[tuple[int, bytes, int]] = []
        self.requests: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                status, body, length = outer.answers.pop(0)
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"

    def answer(self, body: bytes, status: int = 200, length: int | None = None) -> None:
        self.answers.append((status, body, len(body) if length is None else length))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = _Server()
    yield server
    server.httpd.shutdown()
    server.httpd.server_close()


def _fetcher(tmp_path, *, mirror=None, url=NOWHERE, attempts=2):
    return Fetcher(mirror, tmp_path / "cache", lambda line: None, base_url=url, attempts=attempts)


@pytest.mark.parametrize("layout", [FILE.name, FILE.upstream])
def test_a_mirror_of_either_layout_comes_before_the_network(tmp_path, server, layout):
    (tmp_path / "mirror" / layout).parent.mkdir(parents=True)
    (tmp_path / "mirror" / layout).write_bytes(CONTENT)
    fetcher = _fetcher(tmp_path, mirror=tmp_path / "mirror", url=server.url)
    assert fetcher.get(FILE) == CONTENT
    assert server.requests == []
    assert fetcher.sources[FILE.name]["origin"] == f"mirror: {layout}"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"", CONTENT.replace(b"p", b"q")], ids=["cut", "empty", "altered"])
def test_a_damaged_file_in_the_mirror_is_refused_with_both_hashes(tmp_path, damaged):
    path = tmp_path / FILE.name
    path.parent.mkdir()
    path.write_bytes(damaged)
    with pytest.raises(DataError) as caught:
        _fetcher(tmp_path, mirror=tmp_path).get(FILE)
    message = str(caught.value)
    assert not isinstance(caught.value, Unreachable)
    assert FILE.blob in message
    assert files.git_blob_id(damaged) in message
    assert str(path) in message
    assert "\n" not in message


def test_a_download_is_verified_kept_and_not_asked_for_again(tmp_path, server):
    server.answer(CONTENT)
    assert _fetcher(tmp_path, url=server.url).get(FILE) == CONTENT
    assert server.requests == ["/deep/folder/file.json"]
    again = _fetcher(tmp_path)
    assert again.get(FILE) == CONTENT
    assert again.sources[FILE.name]["origin"].endswith(FILE.upstream)


def test_an_altered_download_is_refused_and_not_kept(tmp_path, server):
    server.answer(b"a proxy's login page")
    with pytest.raises(DataError, match=f"expected git blob id {FILE.blob}, found"):
        _fetcher(tmp_path, url=server.url).get(FILE)
    assert not (tmp_path / "cache" / FILE.name).exists()


def test_passing_faults_are_tried_again(tmp_path, server):
    server.answer(b"busy", status=503)
    server.answer(CONTENT[:10], length=len(CONTENT))  # the connection breaks off
    server.answer(CONTENT)
    assert _fetcher(tmp_path, url=server.url, attempts=3).get(FILE) == CONTENT
    assert len(server.requests) == 3


def test_a_file_that_is_not_there_is_not_asked_for_twice(tmp_path, server):
    server.answer(b"", status=404)
    with pytest.raises(Unreachable, match="HTTP status 404"):
        _fetcher(tmp_path, url=server.url, attempts=3).get(FILE)
    assert len(server.requests) == 1


def test_a_damaged_copy_in_the_cache_is_fetched_anew(tmp_path, server):
    (tmp_path / "cache" / "part").mkdir(parents=True)
    (tmp_path / "cache" / FILE.name).write_bytes(CONTENT[:-1])
    server.answer(CONTENT)
    assert _fetcher(tmp_path, url=server.url).get(FILE) == CONTENT
    assert (tmp_path / "cache" / FILE.name).read_bytes() == CONTENT


@pytest.mark.parametrize("mirror", [None, "absent", "empty"])
def test_neither_mirror_nor_network_gives_one_line_naming_both(tmp_path, server, mirror):
    (tmp_path / "empty").mkdir()
    folder = tmp_path / mirror if mirror else None
    fetcher = _fetcher(tmp_path, mirror=folder)
    with pytest.raises(Unreachable) as caught:
        fetcher.get(FILE)
    message = str(caught.value)
    assert f"{NOWHERE}/{FILE.upstream}" in message
    assert (str(folder) if folder else "RESTOOL_MIRROR or data.mirror") in message
    assert "\n" not in message
    with pytest.raises(Unreachable, match="refused"):  # remembered, with its reason
        fetcher.get(FILE)
