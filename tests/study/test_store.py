"""What the store promises, whoever else writes to it."""

import dataclasses
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sql

from allometry.study import Store, StoreError
from allometry.study import runs as runs_module
from allometry.study.database import run_table
from allometry.study.owner import Owner


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Every promise is kept on both."""
    if request.param == "sqlite":
        opened = Store(tmp_path / "store.db")
    else:
        opened = Store(request.getfixturevalue("fresh_schema")(), directory=tmp_path)
    with opened:
        yield opened


def test_study_imports_without_torch() -> None:
    code = "import allometry.study.execute, allometry.study.store, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestPlans:
    def test_digest_depends_on_kind_and_content_alone(self, store: Store) -> None:
        first = store.put_plan("forecast", {"a": 1}, {"x": 1, "y": 2.0})
        assert store.put_plan("forecast", {"a": 2}, {"y": 2.0, "x": 1}) == first
        assert store.put_plan("study", {"a": 1}, {"x": 1, "y": 2.0}) != first

    def test_a_request_keeps_its_first_plan(self, store: Store) -> None:
        first = store.put_plan("forecast", {"budget": 1e15, "corpus": "a"}, {"widths": [64]})
        again = store.put_plan("forecast", {"corpus": "a", "budget": 1e15}, {"widths": [96]})
        assert again == first
        found = store.find_plan("forecast", {"corpus": "a", "budget": 1e15})
        assert found is not None
        assert found.content == {"widths": [64]}
        assert found.digest == first
        assert found.environment["python"].startswith("3.")
        assert store.find_plan("forecast", {"corpus": "a", "budget": 1000000000000000}) is None

    def test_a_plan_is_found_by_its_first_digits(self, store: Store) -> None:
        digest = store.put_plan("forecast", {"a": 1}, {"b": math.inf})
        assert store.plan(digest[:8]).content == {"b": math.inf}
        assert store.plan(digest[:8]).request == {"a": 1}
        with pytest.raises(ValueError, match="no plan begins"):
            store.plan("0" * 64)
        with pytest.raises(ValueError, match="first digits"):
            store.plan("%")

    def test_an_ambiguous_prefix_is_refused(self, store: Store) -> None:
        digests = [
            store.put_plan("kind", {"n": n}, {"n": n}) for n in range(17)
        ]  # 17 digests, 16 first digits
        firsts = [digest[0] for digest in digests]
        double = next(first for first in firsts if firsts.count(first) > 1)
        with pytest.raises(ValueError, match="plans begin"):
            store.plan(double)

    def test_deleting_takes_runs_records_and_request_along(self, store: Store) -> None:
        keep, lose = (store.put_plan("kind", {"n": n}, {"n": n}) for n in range(2))
        for plan in (keep, lose):
            run = store.start_run(plan, "run", {})
            store.add_record(plan, "run", "a", {"v": 1})
            assert run is not None
            store.finish_run(run)
        store.delete_plan(lose)
        assert store.find_plan("kind", {"n": 1}) is None
        assert store.records()["plan"].tolist() == [keep]
        assert store.plans()["digest"].tolist() == [keep]

    def test_a_plan_in_use_is_not_deleted(self, store: Store) -> None:
        plan = store.put_plan("kind", {}, {})
        store.start_run(plan, "run", {})
        with pytest.raises(ValueError, match=f"process {os.getpid()} trains 'run'"):
            store.delete_plan(plan)


class TestRecords:
    @pytest.fixture
    def plan(self, store: Store) -> str:
        digest = store.put_plan("kind", {}, {})
        store.start_run(digest, "run", {"width": 64, "seed": 5}, seed=5)
        return digest

    def test_numbers_come_back_bit_for_bit(self, store: Store, plan: str) -> None:
        values = {
            "a": 0.1 + 0.2,
            "b": 5e-324,
            "c": math.nan,
            "d": -math.inf,
            "e": 2**70,
            "f": [1.5, math.inf],
        }
        store.add_record(plan, "run", "odd", values)
        row = store.records(plan).iloc[0]
        assert row["a"] == 0.1 + 0.2
        assert row["b"] == 5e-324
        assert math.isnan(row["c"])
        assert row["d"] == -math.inf
        assert row["e"] == 2**70
        assert row["f"] == [1.5, math.inf]

    def test_the_same_again_changes_nothing(self, store: Store, plan: str) -> None:
        assert store.add_record(plan, "run", "a", {"x": math.nan, "y": 1.0}, timing={"seconds": 1.0})
        assert not store.add_record(plan, "run", "a", {"y": 1.0, "x": math.nan}, timing={"seconds": 2.0})
        frame = store.records(plan)
        assert len(frame) == 1
        assert frame["seconds"].tolist() == [1.0]

    @pytest.mark.parametrize("other", [{"x": 1.0000000000000002}, {"x": 1}, {"x": 1.0, "y": None}, {}])
    def test_other_values_are_an_error_that_names_the_field(
        self, store: Store, plan: str, other: dict[str, float]
    ) -> None:
        store.add_record(plan, "run", "a", {"x": 1.0})
        with pytest.raises(ValueError, match=r"record 'a' of run 'run'.*'[xy]' was"):
            store.add_record(plan, "run", "a", other)
        assert store.records(plan)["x"].tolist() == [1.0]

    def test_a_record_needs_its_run(self, store: Store, plan: str) -> None:
        with pytest.raises(ValueError, match="has no run 'other'"):
            store.add_record(plan, "other", "a", {})

    def test_values_that_are_named_as_columns_keep_both(self, store: Store, plan: str) -> None:
        store.add_record(plan, "run", "a", {"seed": 7, "loss": 1.0})
        row = store.records(plan).iloc[0]
        assert (row["seed"], row["value.seed"], row["spec.seed"], row["spec.width"]) == (5, 7, 5, 64)

    def test_selections(self, store: Store, plan: str) -> None:
        other = store.start_run(plan, "other", {})
        assert other is not None
        store.add_record(plan, "run", "a", {"v": 1})
        store.add_record(plan, "other", "a", {"v": 2})
        store.add_record(plan, "other", "b", {"v": 3})
        store.finish_run(other)
        assert store.records(plan, run="other")["v"].tolist() == [2, 3]
        assert store.records(plan, name="a")["v"].tolist() == [1, 2]
        assert store.records(status="running")["v"].tolist() == [1]
        assert store.records("f" * 64).empty
        assert store.record_names(plan, ["other"]) == {("other", "a"), ("other", "b")}
        assert store.runs(plan, status="done")["run"].tolist() == ["other"]

    def test_records_of_many_writers_all_arrive_once(self, store: Store, plan: str) -> None:
        def write(writer: int) -> int:
            with Store(store.url) as own:
                return sum(own.add_record(plan, "run", f"r{n}", {"n": n}) for n in range(25))

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(write, range(4))) == 25
        assert sorted(store.records(plan)["n"]) == list(range(25))


class TestClaims:
    @pytest.fixture
    def plan(self, store: Store) -> str:
        return store.put_plan("kind", {}, {})

    def test_of_many_claims_one_wins(self, store: Store, plan: str) -> None:
        for n in range(10):
            store.add_run(plan, f"run{n}", {})

        def take(_: int) -> list[str]:
            with Store(store.url) as own:
                return [f"run{n}" for n in range(10) if own.claim(plan, [f"run{n}"])]

        with ThreadPoolExecutor(4) as pool:
            won = [key for keys in pool.map(take, range(4)) for key in keys]
        assert sorted(won) == sorted(f"run{n}" for n in range(10))

    def test_all_or_none(self, store: Store, plan: str) -> None:
        for key in "abc":
            store.add_run(plan, key, {})
        assert store.claim(plan, ["b"])
        assert store.claim(plan, ["a", "b", "c"]) is None
        assert [run.status for run in store.run_list(plan)] == ["pending", "running", "pending"]

    def test_ended_runs_are_not_claimed_and_failed_ones_are(self, store: Store, plan: str) -> None:
        runs = {key: store.start_run(plan, key, {}) for key in ("done", "diverged", "failed")}
        assert all(runs.values())
        store.finish_run(runs["done"])  # type: ignore[arg-type]
        store.fail_run(runs["diverged"], "loss is nan", "diverged", step=12)  # type: ignore[arg-type]
        store.fail_run(runs["failed"], "out of\nspace")  # type: ignore[arg-type]
        claimed = store.claim(plan, list(runs))
        assert claimed is not None
        assert [(run.key, run.attempts) for run in claimed] == [("failed", 2)]
        table = store.runs(plan).set_index("run")
        assert table.loc["diverged", ["status", "step", "reason"]].tolist() == ["diverged", 12, "loss is nan"]

    def test_a_dead_process_is_taken_over_and_its_late_word_refused(self, store: Store, plan: str) -> None:
        dead = dataclasses.replace(
            Owner.here(), birth="0"
        )  # our number, another's birth: a number used again
        store.add_run(plan, "run", {})
        (old,) = store.claim(plan, ["run"], owner=dead) or []
        (new,) = store.claim(plan, ["run"]) or []
        assert new.attempts == 2
        assert not store.beat([old])
        with pytest.raises(StoreError, match="taken over"):
            store.finish_run(old)
        assert store.beat([new], {"run": 7})
        store.finish_run(new)
        assert store.runs(plan)["step"].tolist() == [7]

    def test_no_clock_takes_a_run_from_a_living_process(self, store: Store, plan: str) -> None:
        store.start_run(plan, "run", {})
        engine = sql.create_engine(store.url)
        for moment in (0.0, time.time() + 1e9):  # a heartbeat from long ago, and one from the future
            with engine.begin() as connection:
                connection.execute(run_table.update().values(heartbeat=moment))
            assert store.claim(plan, ["run"]) is None
        engine.dispose()

    def test_elsewhere_the_lease_decides(
        self, store: Store, plan: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere = Owner("another machine", os.getpid(), "0")
        store.add_run(plan, "run", {})
        assert store.claim(plan, ["run"], owner=elsewhere)
        assert store.claim(plan, ["run"]) is None
        monkeypatch.setattr(runs_module, "LEASE", -1.0)
        assert store.claim(plan, ["run"])

    def test_release_gives_back(self, store: Store, plan: str) -> None:
        run = store.start_run(plan, "run", {})
        assert run is not None
        assert store.start_run(plan, "run", {}) is None
        assert [r.key for r in store.release_owner(plan, Owner.here())] == ["run"]
        assert store.runs(plan)["status"].tolist() == ["pending"]
        store.finish_run(run)
        store.release(run)
        assert store.runs(plan)["status"].tolist() == ["done"]

    def test_one_key_one_spec(self, store: Store, plan: str) -> None:
        store.add_run(plan, "run", {"width": 64}, seed=1)
        store.add_run(plan, "run", {"width": 64}, seed=1)
        with pytest.raises(ValueError, match="another spec"):
            store.add_run(plan, "run", {"width": 65}, seed=1)
        with pytest.raises(ValueError, match="another spec"):
            store.add_run(plan, "run", {"width": 64}, seed=2)
        with pytest.raises(ValueError, match="no plan"):
            store.add_run("f" * 64, "run", {})
        with pytest.raises(ValueError, match="no run 'other'"):
            store.claim(plan, ["run", "other"])


class TestOpening:
    def test_path_and_url_open_one_store_from_any_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with Store("deep/er/store.db") as store:
            digest = store.put_plan("kind", {}, {})
            assert store.directory == tmp_path / "deep" / "er"
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        for target in (store.url, f"sqlite:///{tmp_path}/deep/er/store.db"):
            with Store(target) as again:
                assert again.plan(digest).kind == "kind"
                assert again.directory == store.directory

    def test_many_processes_may_make_it_at_once(self, tmp_path: Path) -> None:
        path = str(tmp_path / "new.db")
        code = f"from allometry.study import Store; print(Store({path!r}).put_plan('k', {{}}, {{}}))"
        children = [
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        assert len({child.communicate()[0] for child in children}) == 1
        assert [child.returncode for child in children] == [0, 0, 0]

    def test_commits_wait_for_the_disk_in_write_ahead_mode(self, tmp_path: Path) -> None:
        with Store(tmp_path / "store.db") as store, store._database.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2

    def test_many_may_make_the_tables_of_a_server_at_once(self, fresh_schema: Callable[[], str]) -> None:
        for _ in range(3):
            url = fresh_schema()

            def put(_: int, url: str = url) -> str:
                with Store(url) as store:
                    return store.put_plan("kind", {}, {})

            with ThreadPoolExecutor(6) as pool:
                assert len(set(pool.map(put, range(6)))) == 1

    def test_a_server_that_is_not_there_is_one_sentence_without_the_password(self) -> None:
        pytest.importorskip("psycopg")
        with pytest.raises(StoreError, match=r"cannot be reached \(.*refused") as caught:
            Store("postgresql://me:secret@127.0.0.1:1/db")
        assert "secret" not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
    def test_a_file_that_is_no_database(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "store.db"
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"store\.db is (not a store|damaged)") as caught:
            Store(path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == content

    def test_a_store_with_a_torn_page(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        with Store(path) as store:
            plan = store.put_plan("kind", {}, {"filler": "x" * 20000})
            store.start_run(plan, "run", {})
        content = bytearray(path.read_bytes())
        content[4096:] = b"\xab" * (len(content) - 4096)
        path.write_bytes(content)
        with pytest.raises(StoreError, match="damaged"), Store(path) as store:
            store.put_plan("kind", {"a": 1}, {})

    def test_another_programs_database(self, tmp_path: Path) -> None:
        path = tmp_path / "places.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE bookmarks (x)")
        connection.close()
        with pytest.raises(StoreError, match=r"something else \(it holds 'bookmarks'\)"):
            Store(path)

    def test_a_store_of_another_version(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        Store(path).close()
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE allometry_about SET value = '999'")
        connection.close()
        with pytest.raises(StoreError, match=r"version 999, this one reads 1"):
            Store(path)

    @pytest.mark.parametrize("place", ["folder", "file", "closed"])
    def test_a_place_that_cannot_be_written(self, place: str) -> None:
        code = """
import os, sys
from allometry.study import Store, StoreError
Store(sys.argv[2]).close()
if os.getuid() == 0:  # the superuser may write anywhere: let an ordinary user try
    os.setuid(65534)
try:
    Store(sys.argv[1])
except StoreError as error:
    print(error)
"""
        with tempfile.TemporaryDirectory() as name:
            outer = Path(name)
            outer.chmod(0o755)
            folder = outer / "locked"
            folder.mkdir()
            path = folder / "store.db"
            if place == "file":
                Store(path).close()
                path.chmod(0o444)
            folder.chmod(0o000 if place == "closed" else 0o555)
            told = subprocess.run(
                [sys.executable, "-c", code, str(path), str(outer / "another.db")],
                capture_output=True,
                text=True,
            )
            folder.chmod(0o755)
        assert "cannot be written" in told.stdout or "cannot be made or entered" in told.stdout, told.stderr
        assert len(told.stdout.splitlines()) == 1

    def test_a_folder_and_a_file_in_the_way(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"is a folder; name a file in it"):
            Store(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match=r"folder .*file cannot be made or entered"):
            Store(tmp_path / "file" / "store.db")

    @pytest.mark.parametrize("target", ["sqlite://", "sqlite:///:memory:", "mysql://here/db", "nonsense://"])
    def test_what_no_store_can_be(self, target: str) -> None:
        with pytest.raises(ValueError):
            Store(target)
