"""The database under a store: five tables, and one sentence for each way in which opening it can fail.

- SQLite by default, in write-ahead mode, so that readers never wait for the writer. ``synchronous=FULL``: a
  commit is on the disk when it returns, also through a power cut. It takes 4-8 ms where NORMAL took 0.6 ms
  (median of 100 commits, a shared virtual disk), and a record has cost seconds to hours of training.
- A writing transaction begins IMMEDIATE: it waits its turn at the start. A transaction that first reads and
  then writes is refused by SQLite at once, timeout or not, when another process wrote in between.
- PostgreSQL by URL through the same statements: conditional updates and plain inserts, no dialect's upsert.
- Values are canonical JSON in text columns: binary JSON types reorder keys and refuse NaN.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import Column, Float, ForeignKey, Integer, String, Table, Text, UniqueConstraint
from sqlalchemy.engine import URL, Connection, Engine, make_url

from allometry.extras import need

SCHEMA_VERSION = 1
_BUSY_SECONDS = 60.0  # how long a writer waits for another process's commit

tables = sql.MetaData()

about_table = Table(
    "allometry_about",
    tables,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

plan_table = Table(
    "allometry_plan",
    tables,
    Column("digest", String(64), primary_key=True),
    Column("kind", String(64), nullable=False),
    Column("content", Text, nullable=False),
    Column("created", Float(53), nullable=False),  # seconds since 1970, UTC, as are all times here
    Column("environment", Text, nullable=False),
    Column("code_version", String(128), nullable=False),
)

request_table = Table(  # several requests may lead to one plan
    "allometry_request",
    tables,
    Column("digest", String(64), primary_key=True),
    Column("request", Text, nullable=False),
    Column("plan", String(64), ForeignKey("allometry_plan.digest", ondelete="CASCADE"), nullable=False),
    Column("created", Float(53), nullable=False),
)

run_table = Table(
    "allometry_run",
    tables,
    Column("id", Integer, primary_key=True),
    Column("plan", String(64), ForeignKey("allometry_plan.digest", ondelete="CASCADE"), nullable=False),
    Column("key", String(200), nullable=False),
    Column("spec", Text, nullable=False),
    Column("seed", Integer),
    Column("status", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("machine", Text),  # the owner while running; who ran it last otherwise
    Column("pid", Integer),
    Column("birth", String(64)),
    Column("heartbeat", Float(53)),  # by the database's clock, one clock for all machines
    Column("started", Float(53)),
    Column("finished", Float(53)),
    Column("step", Integer),
    Column("reason", Text),
    UniqueConstraint("plan", "key"),
)

record_table = Table(
    "allometry_record",
    tables,
    Column("id", Integer, primary_key=True),
    Column("run", Integer, ForeignKey("allometry_run.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("values", Text, nullable=False),
    Column("timing", Text, nullable=False),
    Column("created", Float(53), nullable=False),
    UniqueConstraint("run", "name"),
)


class StoreError(RuntimeError):
    """A store that cannot be opened, read or written; one sentence says why."""


class StoreUnreachable(StoreError):
    """A store on a server that does not answer now, and may later: worth waiting for."""


def where(url: URL) -> str:
    """The database as a person would name it, without its password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string()


def _spoken(url: URL, error: sql.exc.DBAPIError) -> StoreError:
    """The error as a sentence that says what to do."""
    cause = str(error.orig or error).strip().splitlines()[0]
    place = where(url)
    if url.get_backend_name() != "sqlite":
        if "No space left" in cause:
            return StoreError(f"the server of {place} has a full disk ({cause}); free some space and go on")
        if "authentication" in cause or "does not exist" in cause:
            return StoreError(f"the store at {place} cannot be opened ({cause}); look the URL over")
        if error.connection_invalidated or isinstance(error, sql.exc.OperationalError):
            return StoreUnreachable(
                f"the store at {place} cannot be reached ({cause}); what was stored is safe: start the "
                "server and give the same command again"
            )
        return StoreError(f"the store at {place} cannot be used: {cause}")
    if "not a database" in cause:
        return StoreError(f"{place} is not a store: it is not a SQLite database; name another file")
    if "malformed" in cause:
        return StoreError(
            f"{place} is damaged ({cause}); restore it from a copy, or move it away and begin anew"
        )
    if "readonly" in cause or "unable to open" in cause:
        return StoreError(
            f"{place} cannot be written ({cause}); make the file and its folder writable, or name another"
        )
    if "full" in cause:
        return StoreError(f"{place} cannot be written: the disk is full ({cause}); free some space and go on")
    if "disk I/O" in cause:
        return StoreError(
            f"{place} cannot be written or read ({cause}): its disk is full, limited or failing; see to it "
            "and go on"
        )
    if "locked" in cause:
        return StoreError(
            f"{place} stayed locked by another process for {_BUSY_SECONDS:.0f} s; end that process"
        )
    return StoreError(f"the store at {place} cannot be used: {cause}")


def parse(target: str | Path) -> URL:
    """The URL of a store from a path or a URL; PostgreSQL always through psycopg.

    >>> parse("runs/store.db").render_as_string()
    'sqlite:///runs/store.db'
    """
    text = str(target)
    if "://" not in text:
        url = URL.create("sqlite", database=text)
    else:
        try:
            url = make_url(text)
        except sql.exc.ArgumentError:
            raise ValueError(f"{text!r} is not a database URL; give a path or postgresql://...") from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or ":memory:" in url.database or url.database.startswith("file:"):
            raise ValueError(f"a store must be a file that other processes can open, not {text!r}")
        return url.set(database=str(Path(url.database).expanduser()))
    if backend != "postgresql":
        raise ValueError(f"a store is a SQLite file or a PostgreSQL URL, not {backend!r}")
    need("psycopg", extra="postgres", purpose="a store on PostgreSQL")
    return url.set(drivername="postgresql+psycopg")


def _connect_sqlite(url: URL) -> Engine:
    path = Path(str(url.database))
    try:
        if path.is_dir():
            raise StoreError(f"{path} is a folder; name a file in it, such as {path / 'store.db'}")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {path.parent} cannot be made or entered ({error.strerror})") from None
    engine = sql.create_engine(url, connect_args={"timeout": _BUSY_SECONDS})

    @sql.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        for tries in range(100):
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except Exception as error:  # the switch to write-ahead mode does not wait for its turn by itself
                if "locked" not in str(error) or tries == 99:
                    raise
                time.sleep(0.05)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @sql.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


class Database:
    """An open database: transactions whose failures are sentences."""

    def __init__(self, target: str | Path) -> None:
        self.url = parse(target)
        if self.url.get_backend_name() == "sqlite":
            self._engine = _connect_sqlite(self.url)
        else:
            # A connection idle through hours of training may have been cut; it is tried before it is used.
            patience = {} if "connect_timeout" in self.url.query else {"connect_timeout": 10}
            self._engine = sql.create_engine(self.url, pool_pre_ping=True, connect_args=patience)
        self._writer = self._engine.execution_options(writes=True)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the store."""
        with self._sentences(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is on the disk when the block ends, or leaves no trace."""
        with self._sentences(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sql.exc.IntegrityError:
            raise
        except sql.exc.DBAPIError as error:
            raise _spoken(self.url, error) from error

    def clock(self, connection: Connection) -> float:
        """The database's own time, seconds since 1970: one clock for all machines that share the store."""
        moment = connection.scalar(
            sql.select(sql.cast(sql.extract("epoch", sql.func.current_timestamp()), Float))
        )
        return float(moment or 0.0)

    def close(self) -> None:
        self._engine.dispose()

    def _prepare(self) -> None:
        try:
            self._make_tables()
        except (sql.exc.IntegrityError, StoreError):
            if self.url.get_backend_name() == "sqlite":
                raise
            # Of two processes that make the tables at one moment, a server refuses the later one; it finds
            # them made when it looks again.
            self._make_tables()

    def _make_tables(self) -> None:
        with self.writing() as connection:
            present = set(sql.inspect(connection).get_table_names())
            if about_table.name in present:
                version = connection.scalar(
                    sql.select(about_table.c.value).where(about_table.c.name == "schema version")
                )
                if version != str(SCHEMA_VERSION):
                    raise StoreError(
                        f"{where(self.url)} was written by another version of allometry (its tables are "
                        f"version {version}, this one reads {SCHEMA_VERSION}); use that version, or name "
                        "another store"
                    )
                return
            if present and self.url.get_backend_name() == "sqlite":
                raise StoreError(
                    f"{where(self.url)} is not a store: it is a SQLite database of something else (it holds "
                    f"{sorted(present)[0]!r}); name another file"
                )
            tables.create_all(connection)
            connection.execute(about_table.insert().values(name="schema version", value=str(SCHEMA_VERSION)))
