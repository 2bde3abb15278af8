"""Debian packages of any suite and architecture, through the machine's own package configuration.

Mirror, keys, proxies and credentials are the machine's. Lists, packages and state are the cache's: the machine itself
stays as it is.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from testbed import cache
from testbed.say import give_up, note

FRESH_FOR_S = 7 * 24 * 3600
"""Package lists as old as this are fetched again, and with them come newer kernels."""

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
RELEASES = ("bullseye", "bookworm", "trixie", "forky")
"""Whichever of them the machine has: its mirror has the others beside it."""

ARCHITECTURES = ("amd64", "arm64")

NOT_OURS = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::DEP-11;
"""
"""The machine's hooks would work on the machine."""


@dataclass(frozen=True)
class Package:
    """One package file, as apt's `--print-uris` describes it."""

    file: str
    size: int
    digest: str

    @property
    def name(self) -> str:
        """The package's name."""
        return self.file.split("_", 1)[0]

    @property
    def version(self) -> str:
        """The package's version."""
        return self.file.split("_")[1].replace("%3a", ":")

    @property
    def architecture(self) -> str:
        """The package's architecture."""
        return self.file.removesuffix(".deb").rsplit("_", 1)[1]


class Archive:
    """A Debian release and its backports, for this machine's architecture and for arm64."""

    _tried: ClassVar[set[str]] = set()
    """The releases whose lists couldn't be fetched in this run: once is enough."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.place = cache.folder() / "apt" / release

    def plan(self, *names: str, backports: bool = False) -> list[Package]:
        """The packages that an empty machine needs for `names`; with `backports`, those first."""
        with cache.locked("apt"):
            self._update()
            remembered = self.place / "plans" / f"{cache.key(names, backports)}.json"
            if remembered.is_file():
                return [Package(*fields) for fields in json.loads(remembered.read_text())]
            nothing = self.place / "nothing"
            (nothing / "partial").mkdir(parents=True, exist_ok=True)
            target = [f"--target-release={self.release}-backports"] if backports else []
            told = self._apt(
                "install", "--print-uris", "--yes", "--no-install-recommends", *target, *names, archives=nothing
            )
            packages = []
            for line in told.splitlines():
                if line.startswith("'"):
                    _, file, size, digest = line.split(" ", 3)
                    packages.append(Package(file, int(size), digest))
            packages.sort(key=lambda package: package.file)
            remembered.parent.mkdir(exist_ok=True)
            remembered.write_text(json.dumps([(p.file, p.size, p.digest) for p in packages]))
            return packages

    def unpack(self, packages: list[Package], into: Path) -> None:
        """Download the packages and unpack them into the folder `into`. No script of theirs runs."""
        note(f"fetching {len(packages)} packages of {self.release}, {sum(p.size for p in packages) / 1e6:.0f} MB")
        scratch = into.with_name(into.name + ".debs")
        scratch.mkdir()
        try:
            named = [f"{p.name}:{p.architecture}={p.version}" for p in packages]
            with cache.locked("apt"):
                self._apt("download", *named, capture=False, cwd=scratch)
            for deb in sorted(scratch.glob("*.deb")):
                subprocess.run(["dpkg-deb", "--extract", deb, into], check=True)
        finally:
            cache.remove(scratch)

    def source(self, package: str, member: str) -> Path:
        """One file of the package's own source, by its path in it."""
        with cache.locked("apt"):
            self._update()

        def fill(place: Path) -> None:
            note(f"fetching the source of {package} of {self.release}")
            with cache.locked("apt"):
                self._apt("source", "--tar-only", "--download-only", package, capture=False, cwd=place)
            (archive,) = place.glob("*.orig.tar.*")
            extract = ("tar", "--extract", "--strip-components=1", "--wildcards", f"*/{member}", "--file", archive.name)
            subprocess.run(extract, check=True, cwd=place)
            archive.unlink()

        return cache.made("source", cache.key(self.release, package, member), fill) / member

    def _update(self) -> None:
        """Fetch the package lists, unless they are there and fresh."""
        stamp = self.place / "updated"
        sources = self._sources()
        there = stamp.is_file() and stamp.read_text() == sources
        if there and (self.release in self._tried or time.time() - stamp.stat().st_mtime < FRESH_FOR_S):
            return
        for part in ("etc.d", "state/lists/partial", "archives/partial"):
            (self.place / part).mkdir(parents=True, exist_ok=True)
        (self.place / "status").touch()
        (self.place / "sources.list").write_text(sources)
        (self.place / "apt.conf").write_text(NOT_OURS)
        note(f"fetching the package lists of {self.release}")
        try:
            self._apt("update", "--error-on=any", capture=False)
        except subprocess.CalledProcessError:
            if not there:
                raise
            self._tried.add(self.release)
            note(f"going on with the package lists of {self.release} from {time.ctime(stamp.stat().st_mtime)}")
            return
        if (self.place / "plans").is_dir():
            cache.remove(self.place / "plans")
        stamp.write_text(sources)

    def _sources(self) -> str:
        """The lines of sources.list, all derived from what the machine has of Debian."""
        main, security = mirrors()
        keys = f"[signed-by={KEYS}] " if KEYS.is_file() else ""
        lines = [f"deb {keys}{main} {suite} main" for suite in (self.release, f"{self.release}-backports")]
        lines.append(f"deb-src {keys}{main} {self.release} main")
        if security:
            lines.append(f"deb {keys}{security} {self.release}-security main")
        return "\n".join(lines) + "\n"

    def _apt(self, *arguments: str, capture: bool = True, archives: Path | None = None, cwd: Path | None = None) -> str:
        """Run apt-get on this archive; gives what it printed, where that is captured."""
        place = self.place
        options = {
            "APT::Architecture": ARCHITECTURES[0],
            "APT::Default-Release": self.release,
            "APT::Get::List-Cleanup": "true",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Dir::Cache::archives": archives or place / "archives",
            "Dir::Cache::pkgcache": place / "pkgcache.bin",
            "Dir::Cache::srcpkgcache": place / "srcpkgcache.bin",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": place / "etc.d",
            "Dir::Etc::sourcelist": place / "sources.list",
            "Dir::Etc::sourceparts": place / "etc.d",
            "Dir::State": place / "state",
            "Dir::State::status": place / "status",
        }
        # On a terminal it shows a bar; elsewhere a line for each of hundreds of files says nothing.
        quiet = [] if sys.stderr.isatty() else ["-qq"]
        command = ["apt-get", *quiet, "--config-file", str(place / "apt.conf")]
        for option, value in options.items():
            command += ["-o", f"{option}={value}"]
        for architecture in ARCHITECTURES:
            command += ["-o", f"APT::Architectures::={architecture}"]
        done = subprocess.run(
            [*command, *arguments], check=True, text=True, cwd=cwd, stdout=subprocess.PIPE if capture else sys.stderr
        )
        return done.stdout or ""


@functools.cache
def mirrors() -> tuple[str, str | None]:
    """The addresses of Debian and, where the machine uses it, of Debian's security updates.

    From apt itself, which knows every format of its sources. It tells only of what it has fetched, so a machine that
    never did is asked with lists in the cache.
    """
    own = cache.folder() / "apt" / "machine"
    found = _components()
    if not found:
        (own / "partial").mkdir(parents=True, exist_ok=True)
        options = ("-o", f"Dir::State::lists={own}", "-o", "APT::Sandbox::User=root")
        subprocess.run(["apt-get", "--quiet", "update", *options], check=False)
        found = _components(*options)
    main = [found[release] for release in RELEASES if release in found]
    security = [found[f"{release}-security"] for release in RELEASES if f"{release}-security" in found]
    if not main:
        give_up("apt has no Debian archive among its sources, and the testbed's kernels come from one")
    return main[0], security[0] if security else None


def _components(*options: str) -> dict[str, str]:
    """The address of each release whose component "main" apt has fetched."""
    ask = ("indextargets", "--format", "$(RELEASE) $(REPO_URI) $(COMPONENT)", "Created-By: Packages")
    told = subprocess.run(["apt-get", *ask, *options], check=True, text=True, stdout=subprocess.PIPE).stdout
    lines = [line.split(" ") for line in told.splitlines()]
    return {release: address for release, address, component in lines if component == "main"}
