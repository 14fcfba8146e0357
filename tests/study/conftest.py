"""Stores of their own: a SQLite file, or a schema on a real PostgreSQL server where its programs are."""

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


@pytest.fixture(scope="session")
def fresh_schema() -> Iterator[Callable[[], str]]:
    """Makes an empty schema on a running server, and tells the URL by which it is all there is."""
    psycopg = pytest.importorskip("psycopg")
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    user = _ordinary_user()
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has at most 107 characters
    if user is not None:
        shutil.chown(folder, user)

    def call(*command: str) -> None:
        done = subprocess.run(command, user=user, cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    data = str(folder / "data")
    call(
        str(programs / "initdb"), "-D", data, "-U", "tester", "-A", "trust", "-N", "-E", "UTF8", "--no-locale"
    )
    settings = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=60"
    log = str(folder / "log.txt")
    call(str(programs / "pg_ctl"), "-D", data, "-l", log, "-o", settings, "-w", "start")
    numbers = itertools.count()

    def make() -> str:
        schema = f"test{next(numbers)}"
        with psycopg.connect(
            host=str(folder), user="tester", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        return f"postgresql://tester@/postgres?host={folder}&options=-csearch_path%3D{schema}"

    try:
        yield make
    finally:
        call(str(programs / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)
