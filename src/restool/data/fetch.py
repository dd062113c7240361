"""Published data files, from a mirror or the network, verified by git blob id.

A git blob id (sha1 of ``blob <size>\\0<content>``) is what the pinned commit itself says of a file, so it verifies a
copy from anywhere. Order: mirror, earlier verified downloads, network. A copy with another id is refused.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from restool import files
from restool.core.errors import DataError

REPOSITORY = "qiancheng0/ToolRL"
COMMIT = "8cee13ec0ca72f0461da372a93a6fd8140dbb840"
UPSTREAM = f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}"
_TIMEOUT_S = 20
_FIRST_WAIT_S = 0.5


class Unreachable(DataError):
    """Neither the mirror nor the network has the file. (A corrupt file is a plain :class:`DataError`.)"""


@dataclass(frozen=True)
class Published:
    """A file of the pinned commit."""

    name: str
    """Path in a mirror and in the cache."""
    upstream: str
    """Path in the repository; a mirror may have that layout too."""
    blob: str


def _api_bank(level: int, blob: str) -> Published:
    name = f"level-{level}-api_processed.json"
    return Published(f"api_bank/{name}", f"benchmarks/API-Bank/{name}", blob)


TRAIN = Published("rlla_4k/train.parquet", "dataset/rlla_4k/train.parquet", "0ddc730c556e4d26449dbdb55a1b28be824a8bfe")
TEST = Published("rlla_4k/test.parquet", "dataset/rlla_4k/test.parquet", "ccdac1cc0112fb54dd68cbc88d9abfe28ce3d749")
RL_JSON = Published(
    "rlla_4k/rlla_rl.json", "dataset/rlla_4k_raw/rlla_rl.json", "1827b67d516cca98f58541c8d218a038d13321e3"
)
SFT_JSON = Published(
    "rlla_4k/rlla_sft.json", "dataset/rlla_4k_raw/rlla_sft.json", "7264a450b031b23b6b54dae109bc81b7ff7b929f"
)
API_BANK = {
    1: _api_bank(1, "cea552d0ea2215754c26039376eff04ae5d87624"),
    2: _api_bank(2, "630e6ff5e5e5b3482ac7041a83880261a247a195"),
    3: _api_bank(3, "5d80fb964e2d04ad71673d3d621933ab33f97c2d"),
}


@dataclass
class Fetcher:
    """Gets published files; remembers where each came from (:attr:`sources`, for the manifest)."""

    mirror: Path | None
    cache: Path | None
    report: Callable[[str], None]
    base_url: str = UPSTREAM
    attempts: int = 4
    offline: str | None = None
    """Why the network cannot be reached, once that is known: the next file does not wait for it again."""

    def __post_init__(self) -> None:
        self.sources: dict[str, dict[str, str]] = {}

    def get(self, file: Published) -> bytes:
        """The verified content of ``file``.

        Raises :class:`Unreachable` naming the mirror and the address that were tried, and :class:`DataError` naming
        the expected and the found hash if a copy is truncated or altered.
        """
        content = self._from_mirror(file) or self._from_cache(file)
        if content is None:
            content = self._from_network(file)
        return content

    def local(self, file: Published) -> bytes | None:
        """The verified content if the mirror or the cache has it; the network is not asked."""
        return self._from_mirror(file) or self._from_cache(file)

    def has(self, file: Published) -> bool:
        """Whether mirror or cache have a copy, verified or not; nothing is read."""
        paths = [self.mirror / name for name in (file.name, file.upstream)] if self.mirror else []
        return any(path.is_file() for path in [*paths, *([self.cache / file.name] if self.cache else [])])

    def _from_mirror(self, file: Published) -> bytes | None:
        for name in (file.name, file.upstream) if self.mirror else ():
            path = self.mirror / name
            if path.is_file():
                content = verified(_read(path), file, str(path), "replace it or unset the mirror")
                return self._note(file, content, f"mirror: {name}")
        return None

    def _from_cache(self, file: Published) -> bytes | None:
        path = self.cache / file.name if self.cache else None
        if path is None or not path.is_file():
            return None
        content = _read(path)
        if files.git_blob_id(content) != file.blob:  # our own copy, damaged since: fetch it anew
            self.report(f"{path} was damaged after its download; fetching it again")
            path.unlink()
            return None
        return self._note(file, content, self._url(file))

    def _from_network(self, file: Published) -> bytes:
        url = self._url(file)
        if self.offline is None:
            self.report(f"fetching {url}")
            try:
                content = verified(_download(url, self.attempts), file, url, "run the command again")
            except urllib.error.HTTPError as error:
                raise self._unreachable(file, f"HTTP status {error.code}") from None
            except (OSError, http.client.HTTPException) as error:
                self.offline = str(getattr(error, "reason", error)) or type(error).__name__
            else:
                if self.cache:
                    files.write_bytes(self.cache / file.name, content)
                return self._note(file, content, url)
        raise self._unreachable(file, self.offline)

    def _unreachable(self, file: Published, why: str) -> Unreachable:
        if self.mirror is None:
            mirror = "no mirror is set (RESTOOL_MIRROR or data.mirror)"
        elif self.mirror.is_dir():
            mirror = f"the mirror {self.mirror} does not have it"
        else:
            mirror = f"the mirror {self.mirror} does not exist"
        return Unreachable(f"cannot get {file.name}: {mirror}, and {self._url(file)} failed ({why})")

    def _url(self, file: Published) -> str:
        return f"{self.base_url}/{file.upstream}"

    def _note(self, file: Published, content: bytes, origin: str) -> bytes:
        self.sources[file.name] = {
            "file": file.name, "origin": origin, "git_blob": file.blob, "bytes": str(len(content)),
            "upstream": f"github.com/{REPOSITORY}@{COMMIT}:{file.upstream}",
        }  # fmt: skip
        return content


def mirror_folder(chosen: str | None) -> Path | None:
    """``data.mirror`` if set, else the environment's RESTOOL_MIRROR, else None."""
    name = chosen or os.environ.get("RESTOOL_MIRROR")
    return Path(name).expanduser() if name else None


def verified(content: bytes, file: Published, where: str, remedy: str) -> bytes:
    """``content`` if it is the published file; else a :class:`DataError` naming both hashes."""
    found = files.git_blob_id(content)
    if found != file.blob:
        raise DataError(
            f"{where} is truncated or altered: expected git blob id {file.blob}, found {found} "
            f"({len(content)} bytes); {remedy}"
        )
    return content


def _download(url: str, attempts: int) -> bytes:
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    def is_passing(error: BaseException) -> bool:
        if isinstance(error, urllib.error.HTTPError):
            return error.code >= 500 or error.code == 429
        return isinstance(error, OSError | http.client.HTTPException)

    retrying = Retrying(
        retry=retry_if_exception(is_passing),
        stop=stop_after_attempt(attempts),
        wait=wait_exponential(_FIRST_WAIT_S, max=8),
        reraise=True,
    )
    return retrying(_read_url, url)


def _read_url(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "restool"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        return response.read()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
