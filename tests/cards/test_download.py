"""Downloads from a real server on this machine: whole, resumed, broken off, and refused."""

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from robustguide.cards import cards
from robustguide.cards.download import alone, fetch

CONTENT = bytes(range(256)) * 5000


class Server(ThreadingHTTPServer):
    ranges: list
    breaks_after: int | None = None
    content = CONTENT
    understands_ranges = True


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if "missing" in self.path:
            self.send_error(404)
            return
        start = 0
        if asked and self.server.understands_ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.server.content):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        body = self.server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks_after])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = Server(("127.0.0.1", 0), Handler)
    made.ranges = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def of(server, monkeypatch):
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    url = f"http://127.0.0.1:{server.server_port}/adm/64x64_diffusion.pt"
    hash_of = hashlib.sha256(CONTENT).hexdigest()
    return replace(cards()["adm-imagenet64"], url=url, bytes=len(CONTENT), sha256=hash_of)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_only_once(of, server, tmp_path):
    seen = []
    path = fetch(of, tmp_path / "new", progress=lambda *state: seen.append(state))
    assert path.read_bytes() == CONTENT
    assert left(path.parent) == ["64x64_diffusion.pt"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(of, tmp_path / "new") == path
    assert server.ranges == [None]


@pytest.mark.parametrize("understands_ranges", [True, False])
def test_a_download_that_broke_off_goes_on(of, server, tmp_path, understands_ranges):
    server.breaks_after = 300_000
    with pytest.raises(OSError, match=r"could not be downloaded: .*the same command goes on"):
        fetch(of, tmp_path)
    assert left(tmp_path) == [".64x64_diffusion.pt.part"]
    server.breaks_after = None
    server.understands_ranges = understands_ranges
    assert fetch(of, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


def test_a_complete_part_is_only_renamed(of, tmp_path):
    (tmp_path / ".64x64_diffusion.pt.part").write_bytes(CONTENT)
    assert fetch(of, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "the card says 000"),
        ({"bytes": 7}, "expected 7; fetch it again"),
    ],
)
def test_a_file_that_is_not_the_cards_is_not_kept(of, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        fetch(replace(of, **change), tmp_path)
    assert left(tmp_path) == []


def test_a_web_page_is_not_kept(of, server, tmp_path):
    server.content = b"<!DOCTYPE html><html>Sign in</html>"
    with pytest.raises(ValueError, match="gave a web page in place of the file"):
        fetch(replace(of, bytes=None, sha256=None), tmp_path)
    assert left(tmp_path) == []


def test_the_beginning_of_a_hash_is_compared_too(of, tmp_path):
    assert fetch(replace(of, sha256=of.sha256[:8]), tmp_path).is_file()


def test_a_mirror_has_the_files_by_their_names(of, server, tmp_path):
    mirror = f"http://127.0.0.1:{server.server_port}/mirror/"
    path = fetch(replace(of, url=None), tmp_path, mirror=mirror)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"url": None}, ValueError, "No address of 64x64_diffusion.pt is published"),
        ({"url": "file:///etc/passwd"}, ValueError, "not one of http, https or ftp"),
        ({"url": "http://127.0.0.1:9/a"}, OSError, "could not be downloaded"),
    ],
)
def test_addresses_that_do_not_serve(of, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        fetch(replace(of, **change), tmp_path)


def test_a_missing_file_is_told(of, tmp_path):
    with pytest.raises(OSError, match="404"):
        fetch(replace(of, url=of.url + "missing"), tmp_path)


def test_a_job_never_downloads(of, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.raises(ValueError, match="`robustguide fetch adm-imagenet64` on a login node"):
        fetch(of, tmp_path)
    (tmp_path / of.file).touch()
    assert fetch(of, tmp_path) == tmp_path / of.file  # what is there is there


def test_two_processes_do_not_write_one_file(of, tmp_path):
    with alone(tmp_path / ".64x64_diffusion.pt.part"):
        with pytest.raises(OSError, match="is being downloaded by another process"):
            fetch(of, tmp_path)
