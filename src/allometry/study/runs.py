"""The runs of a store: rows that processes add, claim, keep alive and end.

A run is one training trajectory with a status. Claiming it is one conditional update that compares the
attempt number: of two processes exactly one wins, on SQLite and PostgreSQL alike, and the late word of a
process whose run was taken over finds no row that is its own.

Whether an owner on another machine lives is told by its heartbeat, and by no clock that people or servers
set: who wants the run watches until the heartbeat has stood still for a whole lease by the watcher's own
monotonic clock. An hour's jump of any wall clock takes no run from the living and keeps none for the dead.
(The price: a resumed job waits for one lease where the former owner was another machine.)
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from allometry.study.canonical import canonical
from allometry.study.database import Database, StoreError, run_table, where
from allometry.study.owner import Owner
from allometry.study.rows import Plan, Run, name_of, run_frame, run_of

if TYPE_CHECKING:
    import pandas

ENDED = ("done", "diverged")  # nothing is left to train; a failed run is tried again by the next call
LEASE = 90.0  # seconds of watching without a heartbeat after which an owner elsewhere is taken for dead
BEAT = 15.0  # seconds between heartbeats


_forsaken: set[tuple[str, int, int]] = set()  # (database, run, attempt) that this process gave up untold


class Runs:
    """What a :class:`~allometry.study.store.Store` does with runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # What was last seen of runs held elsewhere: run -> (attempt, heartbeat), and since when, monotonic.
        self._watched: dict[int, tuple[tuple[int, float | None], float]] = {}

    def add_run(self, plan: Plan | str, key: str, spec: Mapping[str, Any], *, seed: int | None = None) -> Run:
        """Make a run's row, ``pending``; a row that is there with the same spec and seed stays as it is.

        Raises
        ------
        ValueError
            If the run is there with another spec or seed, or the plan is not there.
        """
        if not 0 < len(key) <= 200:
            raise ValueError(f"a run's key has 1 to 200 characters, not {len(key)}: {key[:60]!r}")
        text = canonical(dict(spec), place="spec")
        present = self.run(plan, key)
        if present is None:
            try:
                with self._database.writing() as connection:
                    connection.execute(
                        run_table.insert().values(
                            plan=name_of(plan), key=key, spec=text, seed=seed, status="pending", attempts=0
                        )
                    )
            except sql.exc.IntegrityError:  # made by another process meanwhile, or the plan is missing
                pass
            present = self.run(plan, key)
            if present is None:
                raise ValueError(f"no plan {name_of(plan)[:12]} in {where(self._database.url)}; put it first")
        if canonical(present.spec) != text or present.seed != seed:
            raise ValueError(
                f"run {key!r} of plan {present.plan[:12]} is stored with another spec or seed "
                f"({canonical(present.spec)[:120]}, seed {present.seed}); give it another key"
            )
        return present

    def run(self, plan: Plan | str, key: str) -> Run | None:
        """One run, or None if it was never added."""
        found = self.run_list(plan, keys=[key])
        return found[0] if found else None

    def run_list(
        self, plan: Plan | str, *, keys: Collection[str] | None = None, status: str | None = None
    ) -> list[Run]:
        """The runs of a plan in the order in which they were added."""
        query = sql.select(run_table).where(run_table.c.plan == name_of(plan)).order_by(run_table.c.id)
        if keys is not None:
            query = query.where(run_table.c.key.in_(list(keys)))
        if status is not None:
            query = query.where(run_table.c.status == status)
        with self._database.reading() as connection:
            return [run_of(row) for row in connection.execute(query)]

    def start_run(
        self, plan: Plan | str, key: str, spec: Mapping[str, Any], *, seed: int | None = None
    ) -> Run | None:
        """Add a run if it is not there, and claim it for this process.

        Returns
        -------
        Run or None
            None if it has ended already or a living process holds it.
        """
        self.add_run(plan, key, spec, seed=seed)
        claimed = self.claim(plan, [key])
        return claimed[0] if claimed else None

    def claim(self, plan: Plan | str, keys: Sequence[str], *, owner: Owner | None = None) -> list[Run] | None:
        """Take those of the runs that have not ended, all or none, in one transaction.

        A running run whose owner is dead is taken over: on this machine the kernel says whether the owner
        lives; an owner elsewhere is dead once this store, asked again and again, has seen the same heartbeat
        for :data:`LEASE` seconds.

        Returns
        -------
        list of Run or None
            The claimed runs, ``running`` and one attempt older (empty if all have ended); None if a living
            process holds one of them.

        Raises
        ------
        ValueError
            If a key names no run of the plan.
        """
        owner = owner or Owner.here()
        claimed: list[Run] = []
        with self._database.writing() as connection:
            now = self._database.clock(connection)
            query = sql.select(run_table).where(
                run_table.c.plan == name_of(plan), run_table.c.key.in_(list(keys))
            )
            runs = [run_of(row) for row in connection.execute(query.order_by(run_table.c.id))]
            missing = set(keys) - {run.key for run in runs}
            if missing:
                raise ValueError(f"plan {name_of(plan)[:12]} has no run {sorted(missing)[0]!r}; add it first")
            for run in runs:
                if run.status in ENDED:
                    continue
                if run.status == "running" and self._lives(run):
                    connection.rollback()
                    return None
                # The attempt number changes at every claim: where it still is what we read, nobody else
                # has claimed the run since. A server lets one such update pass and the other find no row.
                taken = connection.execute(
                    run_table.update()
                    .where(run_table.c.id == run.id)
                    .where(run_table.c.attempts == run.attempts, run_table.c.status == run.status)
                    .values(
                        status="running",
                        attempts=run.attempts + 1,
                        machine=owner.machine,
                        pid=owner.pid,
                        birth=owner.birth,
                        heartbeat=now,
                        started=run.started if run.started is not None else time.time(),
                        finished=None,
                        reason=None,
                    )
                )
                if taken.rowcount != 1:
                    connection.rollback()
                    return None
                claimed.append(run)
            if claimed:
                query = sql.select(run_table).where(run_table.c.id.in_([run.id for run in claimed]))
                claimed = [run_of(row) for row in connection.execute(query.order_by(run_table.c.id))]
        return claimed

    def forsake(self, *runs: Run) -> None:
        """Give up claimed runs when the store cannot be told: this process finds them free when it can again.

        Any other process finds them free once this one has ended.
        """
        _forsaken.update((str(self._database.url), run.id, run.attempts) for run in runs)

    def _owned(self, run: Run) -> bool | None:
        """Whether its owner lives and has it in hand; None if the owner is on another machine."""
        if run.owner is None or (str(self._database.url), run.id, run.attempts) in _forsaken:
            return False
        return run.owner.alive()

    def _lives(self, run: Run) -> bool:
        owned = self._owned(run)
        if owned is not None:
            return owned
        seen, now = (run.attempts, run.heartbeat), time.monotonic()
        before, since = self._watched.get(run.id, (None, now))
        if seen != before:
            since = now
        self._watched[run.id] = (seen, since)
        return now - since < LEASE

    def _holds(self, run: Run) -> bool:
        """Whether it is in use, for one who asks once and cannot watch: elsewhere the clock must do."""
        owned = self._owned(run)
        if owned is not None:
            return owned
        with self._database.reading() as connection:
            return run.heartbeat is not None and self._database.clock(connection) - run.heartbeat < LEASE

    def beat(self, runs: Iterable[Run], steps: Mapping[str, int] | None = None) -> bool:
        """Tell that the owner of these runs lives, and how far each has come (run key -> step).

        Returns
        -------
        bool
            False if one of them has been taken over by another process.
        """
        kept = True
        with self._database.writing() as connection:
            now = self._database.clock(connection)
            for run in sorted(runs, key=lambda run: run.id):
                values: dict[str, Any] = {"heartbeat": now}
                if steps and run.key in steps:
                    values["step"] = steps[run.key]
                told = connection.execute(self._mine(run).values(**values))
                kept = kept and told.rowcount == 1
        return kept

    @staticmethod
    def _mine(run: Run) -> sql.Update:
        # As long as the attempt is ours the row is ours: a takeover counts it up.
        return run_table.update().where(run_table.c.id == run.id, run_table.c.attempts == run.attempts)

    def _end(self, connection: Connection, run: Run, **values: Any) -> None:
        if connection.execute(self._mine(run).values(**values)).rowcount != 1:
            raise StoreError(f"run {run.key!r} was taken over by another process while it was held here")

    def finish_run(self, *runs: Run) -> None:
        """Mark claimed runs ``done``, all in one transaction."""
        with self._database.writing() as connection:
            for run in sorted(runs, key=lambda run: run.id):
                self._end(connection, run, status="done", finished=time.time(), reason=None)

    def fail_run(self, run: Run, reason: str, status: str = "failed", step: int | None = None) -> None:
        """Mark a claimed run ``failed`` or ``diverged``, with its reason in one line and the step if known.

        Diverged is a result and final; a failed run is tried again by the next call.
        """
        if status not in ("failed", "diverged"):
            raise ValueError(f"a run fails as 'failed' or 'diverged', not {status!r}")
        line = " ".join(reason.split()) or "no reason given"
        values: dict[str, Any] = {"status": status, "reason": line, "finished": time.time()}
        if step is not None:
            values["step"] = step
        with self._database.writing() as connection:
            self._end(connection, run, **values)

    def release(self, *runs: Run) -> None:
        """Give claimed runs back, ``pending``, so that the next process need not wait."""
        with self._database.writing() as connection:
            for run in sorted(runs, key=lambda run: run.id):
                connection.execute(
                    self._mine(run).where(run_table.c.status == "running").values(status="pending")
                )

    def release_owner(self, plan: Plan | str, owner: Owner) -> list[Run]:
        """Give back whatever a dead process still holds in a plan; returns those runs, ``pending``."""
        held = [run for run in self.run_list(plan, status="running") if run.owner == owner]
        self.release(*held)
        return self.run_list(plan, keys=[run.key for run in held]) if held else []

    def runs(self, plan: Plan | str | None = None, *, status: str | None = None) -> "pandas.DataFrame":
        """One row a run, in the order in which they were added.

        Returns
        -------
        DataFrame
            Columns ``plan, run, status, seed, attempts, step, reason, started, finished, machine, pid``, then
            the spec as ``spec.<field>``. ``started`` and ``finished`` are times in UTC.
        """
        wanted = {run_table.c.status: status}
        if plan is not None:
            wanted[run_table.c.plan] = name_of(plan)
        with self._database.reading() as connection:
            return run_frame(connection, wanted)
