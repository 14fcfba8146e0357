"""What a store hands out: plans, runs, and tables of all three kinds as data frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection, Row

from allometry.study.canonical import restore
from allometry.study.database import plan_table, record_table, run_table
from allometry.study.owner import Owner

if TYPE_CHECKING:
    import pandas

STATUSES = ("pending", "running", "done", "failed", "diverged")
Wanted = Mapping[sql.Column[Any], Any]  # column -> the value that it must have; None: any


@dataclass(frozen=True)
class Plan:
    """What was decided before anything ran.

    Attributes
    ----------
    digest : str
        SHA-256 over kind and content, 64 hexadecimal digits.
    kind : str
        What sort of job it plans, such as ``"forecast"``.
    request : dict
        What was asked for when it was made.
    content : dict
        The plan itself.
    created : float
        Seconds since 1970, UTC.
    environment : dict
        Python, machine and package versions where it was made.
    code_version : str
        Version of allometry and a hash of its sources.
    """

    digest: str
    kind: str
    request: dict[str, Any]
    content: dict[str, Any]
    created: float
    environment: dict[str, Any]
    code_version: str


@dataclass(frozen=True)
class Run:
    """One training trajectory as it stood when it was read.

    ``attempts`` counts how often it has been claimed; ``started`` and ``finished`` are seconds since 1970.
    """

    id: int
    plan: str
    key: str
    spec: dict[str, Any]
    seed: int | None
    status: str
    attempts: int
    owner: Owner | None
    heartbeat: float | None
    started: float | None
    finished: float | None
    step: int | None
    reason: str | None


def run_of(row: Row[Any]) -> Run:
    """The run that a row of the run table holds."""
    owner = None if row.pid is None else Owner(row.machine, row.pid, row.birth)
    return Run(
        row.id, row.plan, row.key, restore(row.spec), row.seed, row.status, row.attempts, owner,
        row.heartbeat, row.started, row.finished, row.step, row.reason,
    )  # fmt: skip


def name_of(plan: Plan | str) -> str:
    """The whole digest, of a plan or of itself."""
    return plan.digest if isinstance(plan, Plan) else plan


def _filtered(query: sql.Select[Any], wanted: Wanted) -> sql.Select[Any]:
    return query.where(*(column == value for column, value in wanted.items() if value is not None))


def plan_frame(connection: Connection, kind: str | None) -> "pandas.DataFrame":
    """One row a plan, newest first, with its number of runs by status."""
    import pandas

    leading = ["digest", "kind", "created", "code_version"]
    query = sql.select(*(plan_table.c[column] for column in leading)).order_by(plan_table.c.created.desc())
    tally = sql.select(run_table.c.plan, run_table.c.status, sql.func.count()).group_by(
        run_table.c.plan, run_table.c.status
    )
    rows = [dict(row._mapping) for row in connection.execute(_filtered(query, {plan_table.c.kind: kind}))]
    counts = {(plan, status): number for plan, status, number in connection.execute(tally)}
    for row in rows:
        row["created"] = pandas.Timestamp(row["created"], unit="s", tz="UTC")
        row.update({status: counts.get((row["digest"], status), 0) for status in STATUSES})
    return pandas.DataFrame(rows, columns=[*leading, *STATUSES])


def run_frame(connection: Connection, wanted: Wanted) -> "pandas.DataFrame":
    """One row a run, its spec's fields as ``spec.<field>``."""
    import pandas

    leading = ["plan", "run", "status", "seed", "attempts", "step", "reason", "started", "finished"]
    leading += ["machine", "pid"]
    query = sql.select(run_table, run_table.c.key.label("run")).order_by(run_table.c.id)
    rows = []
    for row in connection.execute(_filtered(query, wanted)):
        flat = {column: row._mapping[column] for column in leading}
        flat.update({f"spec.{field}": value for field, value in restore(row.spec).items()})
        rows.append(flat)
    frame = pandas.DataFrame(rows) if rows else pandas.DataFrame(columns=leading)
    for column in ("started", "finished"):
        frame[column] = pandas.to_datetime(frame[column].astype(float), unit="s", utc=True)
    return frame


def record_frame(connection: Connection, wanted: Wanted) -> "pandas.DataFrame":
    """One row a record with its run's columns and spec; of two equal names the value's is ``value.*``."""
    import pandas

    leading = ["plan", "run", "name", "status", "seed", "attempts", "reason"]
    query = sql.select(
        run_table.c.plan,
        run_table.c.key.label("run"),
        record_table.c.name,
        *(run_table.c[column] for column in ("status", "seed", "attempts", "reason", "spec")),
        record_table.c["values"].label("told"),  # a row has a method of that name
        record_table.c.timing,
    ).join(run_table, record_table.c.run == run_table.c.id)
    rows = []
    for row in connection.execute(_filtered(query, wanted).order_by(record_table.c.id)):
        flat = {column: row._mapping[column] for column in leading}
        flat.update({f"spec.{field}": value for field, value in restore(row.spec).items()})
        for field, value in {**restore(row.told), **restore(row.timing)}.items():
            flat[f"value.{field}" if field in flat else field] = value
        rows.append(flat)
    return pandas.DataFrame(rows) if rows else pandas.DataFrame(columns=leading)
