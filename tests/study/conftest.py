"""Stores of their own: a SQLite file, or a schema on a real PostgreSQL server where its programs are."""

import contextlib
import glob
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from allometry.study import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "jobs" / "store.db") as opened:
        yield opened


def _programs() -> Path | None:
    """Folder of the server's programs."""
    places = [os.path.dirname(os.path.realpath(found)) for found in [shutil.which("initdb")] if found]
    for place in [*places, *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]:
        if all((Path(place) / name).exists() for name in ("initdb", "postgres", "pg_ctl")):
            return Path(place)
    return None


def _ordinary_user() -> str | None:
    """Whom to run the server as: it refuses the superuser."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("no ordinary user to run PostgreSQL as")


class Server:
    """A PostgreSQL server of its own, which can be stopped and started again."""

    def __init__(self, programs: Path, user: str | None) -> None:
        self._programs, self._user = programs, user
        self._folder = Path(
            tempfile.mkdtemp(prefix="pg")
        )  # short: a socket's path has at most 107 characters
        self._data = str(self._folder / "data")
        self._numbers = itertools.count()
        if user is not None:
            shutil.chown(self._folder, user)
        self._call("initdb", "-U", "tester", "-A", "trust", "-N", "-E", "UTF8", "--no-locale")
        self.start()

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), "-D", self._data, *arguments],
            user=self._user, cwd="/", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        settings = f"-k {self._folder} -c listen_addresses='' -c fsync=off -c max_connections=60"
        self._call("pg_ctl", "-l", str(self._folder / "log.txt"), "-o", settings, "-w", "start")

    def stop(self) -> None:
        """As a power cut would."""
        self._call("pg_ctl", "-m", "immediate", "stop")

    def remove(self) -> None:
        with contextlib.suppress(AssertionError):  # a test may have stopped it
            self.stop()
        shutil.rmtree(self._folder)

    def fresh_schema(self) -> str:
        """Make an empty schema, and tell the URL by which it is all there is."""
        import psycopg

        schema = f"test{next(self._numbers)}"
        with psycopg.connect(
            host=str(self._folder), user="tester", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        return f"postgresql://tester@/postgres?host={self._folder}&options=-csearch_path%3D{schema}"


def _new_server() -> Server:
    pytest.importorskip("psycopg")
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    return Server(programs, _ordinary_user())


@pytest.fixture(scope="session")
def fresh_schema() -> Iterator[Callable[[], str]]:
    """Makes an empty schema on a running server, and tells the URL by which it is all there is."""
    server = _new_server()
    try:
        yield server.fresh_schema
    finally:
        server.remove()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that the test may stop and start."""
    server = _new_server()
    try:
        yield server
    finally:
        server.remove()
