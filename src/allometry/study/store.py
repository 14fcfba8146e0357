"""The store: every plan, every run and every record, each there for good the moment it exists.

- A **plan** is what was decided before anything ran: its digest is the SHA-256 of its kind and content, it
  never changes, and a request that has a plan keeps it. So a resumed job goes on with the plan it began with,
  although a new planning might time the machine differently.
- A **run** is one training trajectory, one row, with a status; how processes claim it and let go of it stands
  in :mod:`allometry.study.runs`.
- A **record** is what a run has told, by name. Telling the same again changes nothing; telling something
  else is an error, for the same inputs must give the same numbers. What a clock measured is kept apart
  (``timing``): it is stored once and never compared.

No other state decides what is left to do: a process may be killed between any two instructions.
"""

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from allometry.study.canonical import canonical, digest, restore
from allometry.study.database import (
    Database,
    StoreError,
    plan_table,
    record_table,
    request_table,
    run_table,
    where,
)
from allometry.study.provenance import code_version, environment
from allometry.study.rows import Plan, Run, name_of, plan_frame, record_frame
from allometry.study.runs import BEAT, ENDED, LEASE, Runs

if TYPE_CHECKING:
    import pandas

__all__ = ["BEAT", "ENDED", "LEASE", "Plan", "Run", "Store"]


class Store(Runs):
    """Plans, runs and records in one database.

    Parameters
    ----------
    target : str or Path
        A path, ``"sqlite:///runs/store.db"``, or a PostgreSQL URL. A missing file and its folder are made.
        SQLite serves any number of processes of one machine; for several machines use a server.
    directory : str or Path, optional
        Where checkpoints and reports lie; by default beside the SQLite file, for a server ``./.allometry``.

    Raises
    ------
    StoreError
        If the file or server cannot be used, with the reason in one sentence.
    ValueError
        If the target names no database that a store can be.

    Examples
    --------
    >>> import tempfile
    >>> store = Store(Path(tempfile.mkdtemp()) / "store.db")
    >>> plan = store.put_plan("forecast", {"budget": 1e15}, {"sizes": [64, 128]})
    >>> run = store.start_run(plan, "width=64", {"width": 64}, seed=0)
    >>> store.add_record(plan, "width=64", "final", {"loss": 1.25})
    True
    >>> store.finish_run(run)
    >>> store.records(plan)[["run", "status", "loss"]].values.tolist()
    [['width=64', 'done', 1.25]]
    >>> store.close()
    """

    def __init__(self, target: str | Path, *, directory: str | Path | None = None) -> None:
        super().__init__(Database(target))
        url = self._database.url
        beside = Path(".allometry")
        if url.get_backend_name() == "sqlite":
            file = Path(str(url.database)).resolve()
            url, beside = url.set(database=str(file)), file.parent
        self.url = url.render_as_string(hide_password=False)  # opens the same store from any folder
        self._directory = Path(beside if directory is None else directory).resolve()

    @property
    def directory(self) -> Path:
        """Where checkpoints and reports lie.

        Two stores should not share a folder: they would share the checkpoints of equal plans.
        """
        return self._directory

    def close(self) -> None:
        """Let go of the database's connections."""
        self._database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({where(self._database.url)!r})"

    # Plans

    def put_plan(self, kind: str, request: Mapping[str, Any], content: Mapping[str, Any]) -> str:
        """Keep a plan for a request and return its digest.

        A request that already has a plan keeps that plan, and its digest is returned: of two processes that
        plan at once, both go on with the first one's. To plan anew, delete the old plan.

        Parameters
        ----------
        kind : str
            What sort of job this plans.
        request, content : dict
            JSON-able; see :func:`allometry.study.canonical.canonical`.

        Returns
        -------
        str
            The stored plan's digest, 64 hexadecimal digits.
        """
        asked = digest({"kind": kind, "request": dict(request)}, place="request")
        made = digest({"kind": kind, "content": dict(content)}, place="content")
        now = time.time()
        for _ in range(2):
            try:
                with self._database.writing() as connection:
                    stands = connection.scalar(
                        sql.select(request_table.c.plan).where(request_table.c.digest == asked)
                    )
                    if stands is not None:
                        return str(stands)
                    if (
                        connection.scalar(sql.select(plan_table.c.digest).where(plan_table.c.digest == made))
                        is None
                    ):
                        connection.execute(
                            plan_table.insert().values(
                                digest=made,
                                kind=kind,
                                content=canonical(dict(content)),
                                created=now,
                                environment=canonical(environment()),
                                code_version=code_version(),
                            )
                        )
                    connection.execute(
                        request_table.insert().values(
                            digest=asked, request=canonical(dict(request)), plan=made, created=now
                        )
                    )
                    return made
            except sql.exc.IntegrityError:
                continue  # another process put it between our look and our insert: look again
        raise StoreError(f"the plan {made[:12]} could not be kept: it appears and vanishes; try again")

    def find_plan(self, kind: str, request: Mapping[str, Any]) -> Plan | None:
        """The plan that a request already has, if any."""
        asked = digest({"kind": kind, "request": dict(request)}, place="request")
        with self._database.reading() as connection:
            found = connection.scalar(sql.select(request_table.c.plan).where(request_table.c.digest == asked))
        return None if found is None else self.plan(str(found))

    def plan(self, digest_prefix: str) -> Plan:
        """The plan whose digest begins so.

        Raises
        ------
        ValueError
            If no plan or more than one begins so.
        """
        if not digest_prefix or set(digest_prefix) - set("0123456789abcdef"):
            raise ValueError(f"a plan is named by the first digits of its digest, not {digest_prefix!r}")
        query = (
            sql.select(plan_table, request_table.c.request)
            .join(request_table, request_table.c.plan == plan_table.c.digest)
            .where(plan_table.c.digest.startswith(digest_prefix))
            .order_by(request_table.c.created.desc())  # of several requests the first one stays in the dict
        )
        with self._database.reading() as connection:
            rows = {row.digest: row for row in connection.execute(query)}
        if len(rows) != 1:
            what = "no plan begins" if not rows else f"{len(rows)} plans begin"
            raise ValueError(f"{what} with {digest_prefix!r} in {where(self._database.url)}")
        (row,) = rows.values()
        return Plan(
            row.digest, row.kind, restore(row.request), restore(row.content), row.created,
            restore(row.environment), row.code_version,
        )  # fmt: skip

    def plans(self, kind: str | None = None) -> "pandas.DataFrame":
        """One row a plan, newest first: digest, kind, created, code_version, and its runs by status."""
        with self._database.reading() as connection:
            return plan_frame(connection, kind)

    def delete_plan(self, plan: Plan | str) -> None:
        """Delete a plan with its runs and records; its files under :attr:`directory` stay.

        Raises
        ------
        ValueError
            If a living process holds one of its runs.
        """
        name = self.plan(name_of(plan)).digest
        for run in self.run_list(name):
            if run.status == "running" and run.owner is not None and self._holds(run):
                raise ValueError(
                    f"plan {name[:12]} is in use: process {run.owner.pid} trains {run.key!r}; end it first"
                )
        with self._database.writing() as connection:
            connection.execute(plan_table.delete().where(plan_table.c.digest == name))

    # Records

    def add_record(
        self,
        plan: Plan | str,
        run: str,
        name: str,
        values: Mapping[str, Any],
        *,
        timing: Mapping[str, Any] | None = None,
    ) -> bool:
        """Keep what a run tells under a name; on the disk when this returns.

        Parameters
        ----------
        plan : Plan or str
            The plan, or its whole digest.
        run, name : str
            The run's key and the record's name, together unique.
        values : dict
            JSON-able; floats come back bit for bit, NaN and the infinities too.
        timing : dict, optional
            What a clock measured, such as seconds or tokens a second: kept from the first time, not compared.

        Returns
        -------
        bool
            True if it is new, False if the same was there.

        Raises
        ------
        ValueError
            If other values are stored under that name, or there is no such run.
        """
        text, clock = canonical(dict(values), place="values"), canonical(dict(timing or {}), place="timing")
        doubled = set(values) & set(timing or {})
        if doubled:
            raise ValueError(f"{sorted(doubled)[0]!r} stands in both values and timing; name it once")
        if not 0 < len(name) <= 200:
            raise ValueError(f"a record's name has 1 to 200 characters, not {len(name)}: {name[:60]!r}")
        owning = sql.select(run_table.c.id).where(run_table.c.plan == name_of(plan), run_table.c.key == run)
        try:
            with self._database.writing() as connection:
                number = connection.scalar(owning)
                if number is None:
                    raise ValueError(f"plan {name_of(plan)[:12]} has no run {run!r}; add it first")
                stored = self._stored(connection, number, name)
                if stored is None:
                    connection.execute(
                        record_table.insert().values(
                            run=number, name=name, values=text, timing=clock, created=time.time()
                        )
                    )
                    return True
        except sql.exc.IntegrityError:  # another process told it between our look and our insert
            with self._database.reading() as connection:
                stored = self._stored(connection, connection.scalar(owning), name)
        if stored == text:
            return False
        before, now = restore(stored or "{}"), restore(text)
        differ = sorted(
            key
            for key in before.keys() | now.keys()
            if canonical(before.get(key)) != canonical(now.get(key)) or (key in before) != (key in now)
        )
        raise ValueError(
            f"record {name!r} of run {run!r} is stored with other values: {differ[0]!r} was "
            f"{before.get(differ[0])!r} and is now {now.get(differ[0])!r}; a run must give the same numbers "
            "again (what a clock measures belongs in timing)"
        )

    @staticmethod
    def _stored(connection: Connection, run: int | None, name: str) -> str | None:
        query = sql.select(record_table.c["values"]).where(
            record_table.c.run == run, record_table.c.name == name
        )
        found = connection.scalar(query)
        return None if found is None else str(found)

    def record_names(self, plan: Plan | str, runs: Collection[str] | None = None) -> set[tuple[str, str]]:
        """The (run key, record name) pairs that are stored."""
        query = (
            sql.select(run_table.c.key, record_table.c.name)
            .join(record_table, record_table.c.run == run_table.c.id)
            .where(run_table.c.plan == name_of(plan))
        )
        if runs is not None:
            query = query.where(run_table.c.key.in_(list(runs)))
        with self._database.reading() as connection:
            return {(key, name) for key, name in connection.execute(query)}

    def records(
        self,
        plan: Plan | str | None = None,
        *,
        run: str | None = None,
        name: str | None = None,
        status: str | None = None,
    ) -> "pandas.DataFrame":
        """One row a record, in the order in which they were stored.

        Returns
        -------
        DataFrame
            Columns ``plan, run, name, status, seed, attempts, reason``, the run's spec as ``spec.<field>``,
            then the record's values and timing under their own names; a value whose name is one of the
            former is called ``value.<name>``.
        """
        wanted = {run_table.c.key: run, record_table.c.name: name, run_table.c.status: status}
        if plan is not None:
            wanted[run_table.c.plan] = name_of(plan)
        with self._database.reading() as connection:
            return record_frame(connection, wanted)
