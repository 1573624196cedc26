"""Globs and URLs: what they mean, and one local copy of each."""

from __future__ import annotations

import functools
import http.server
import os
import sys
import threading
import zipfile

import fsspec
import numpy as np
import pytest

from collapsemeter.activations import open_arrays
from collapsemeter.activations.remote import expand, local_path


@pytest.fixture
def memory():
    """Fsspec's memory, which is global, emptied afterwards."""
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/", recursive=True)


def names(paths):
    return [path.rsplit("/", 1)[-1] for path in paths]


def test_numbers_go_by_value_and_patterns_keep_their_order(tmp_path):
    for name in ("shard-10.npy", "shard-9.npy", "shard-1.npy", "b-2-10.npy", "b-2-9.npy"):
        (tmp_path / name).touch()
    actual = expand([f"{tmp_path}/shard*", f"{tmp_path}/b*"])
    assert names(actual) == [
        "shard-1.npy",
        "shard-9.npy",
        "shard-10.npy",
        "b-2-9.npy",
        "b-2-10.npy",
    ]


def test_folders_below(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.npy").touch()
    assert names(expand([f"{tmp_path}/**/*.npy"])) == ["x.npy"]


def test_brackets_in_a_name_are_its_own(tmp_path):
    (tmp_path / "run[1].npy").touch()
    assert names(expand([f"{tmp_path}/run[1].npy"])) == ["run[1].npy"]


@pytest.mark.parametrize("pattern", ["none.npy", "none*"])
def test_no_match(tmp_path, pattern):
    with pytest.raises(ValueError, match=r"^no file matches '.*none.*': check the path"):
        expand([f"{tmp_path}/{pattern}"])


def test_no_match_of_a_url(memory):
    with pytest.raises(ValueError, match=r"^no file matches 'memory://none\*'"):
        expand(["memory://none*"])


def test_twice(tmp_path):
    (tmp_path / "a.npy").touch()
    with pytest.raises(ValueError, match=r"a\.npy' is given twice: its rows would count twice"):
        expand([f"{tmp_path}/*.npy", f"{tmp_path}/a.npy"])


def test_urls(memory, tmp_path):
    for i in (9, 10):
        memory.pipe(f"/run/shard-{i}.npy", b"content")
    actual = expand(["memory://run/*.npy"])
    assert names(actual) == ["shard-9.npy", "shard-10.npy"]
    assert all(url.startswith("memory://") for url in actual)
    for url in actual:
        assert local_path(url, tmp_path).read_bytes() == b"content"
    assert expand(["memory://run/shard-9.npy"]) == ["memory://run/shard-9.npy"]


def test_members_of_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        archive.writestr("a-10.npy", "ten")
        archive.writestr("a-9.npy", "nine")
    actual = expand([f"zip://*.npy::{tmp_path}/run.zip"])
    cache = tmp_path / "cache"
    assert [local_path(url, cache).read_text() for url in actual] == ["nine", "ten"]
    assert all(local_path(url, cache).suffix == ".npy" for url in actual)


def test_what_is_local_is_itself(tmp_path):
    assert local_path("a/b.npy", tmp_path / "cache").as_posix() == "a/b.npy"
    assert local_path(f"file://{tmp_path}/b.npy", tmp_path / "cache") == tmp_path / "b.npy"
    assert not (tmp_path / "cache").exists()


def test_copied_once(memory, tmp_path):
    memory.pipe("/a.npy", b"first")
    path = local_path("memory://a.npy", tmp_path)
    memory.pipe("/a.npy", b"second")
    assert local_path("memory://a.npy", tmp_path) == path
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == [path.parent.name]
    assert os.listdir(path.parent) == ["a.npy"]


def test_equal_names_in_different_places(memory, tmp_path):
    memory.pipe("/a/x.npy", b"a")
    memory.pipe("/b/x.npy", b"b")
    paths = [local_path(f"memory://{place}/x.npy", tmp_path) for place in "ab"]
    assert [path.read_bytes() for path in paths] == [b"a", b"b"]


def test_a_copy_that_fails_leaves_nothing(memory, tmp_path, monkeypatch):
    memory.pipe("/a.npy", b"content")

    def fail(self, source, target, **options):
        with open(target, "wb") as file:
            file.write(b"con")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(memory), "get_file", fail)
    with pytest.raises(OSError, match="No space left"):
        local_path("memory://a.npy", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_url_without_a_file(memory, tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        local_path("memory://none.npy", tmp_path)
    assert os.listdir(tmp_path) == []


def test_no_fsspec(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(
        ImportError, match=r"memory://a needs fsspec: pip install 'collapsemeter\[audit\]'"
    ):
        local_path("memory://a", tmp_path)


@pytest.fixture
def server(tmp_path):
    """A web server of a folder; it gives the folder and the URL."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_server(tmp_path, server):
    folder, url = server
    np.save(folder / "fc.npy", np.eye(3))
    path = local_path(f"{url}/fc.npy?version=2", tmp_path / "cache")
    with open_arrays(path) as file:
        np.testing.assert_array_equal(file.read("fc", 0, 3), np.eye(3))


@pytest.mark.parametrize(
    ("name", "error"), [("none.npy", FileNotFoundError), ("busy.npy", OSError)]
)
def test_what_a_web_server_does_not_give(tmp_path, server, name, error):
    with pytest.raises(error, match=rf"http://127.*{name}.*") as caught:
        local_path(f"{server[1]}/{name}", tmp_path / "cache")
    assert len(str(caught.value).splitlines()) == 1
    assert os.listdir(tmp_path / "cache") == []


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        """Give a file; "busy" is one that the server fails to give."""
        if "busy" in self.path:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *arguments):
        """Say nothing."""
