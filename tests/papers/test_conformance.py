"""What every entry owes its readers; adding a file to `allometry.papers` puts it under all of these."""

import functools
import hashlib
import importlib
import inspect
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from allometry.papers import entries
from allometry.study.cells import load, place_of
from allometry.study.definitions import reached_of
from allometry.study.evidence import keep, read
from allometry.study.report import page
from allometry.study.running import missing_extras
from allometry.study.sources import counts, origin
from allometry.study.study import Cell

HERE = Path(__file__).parent
EVIDENCE = HERE.parents[1] / "evidence"
PAPERS = [load(HERE / "sample_entry.py").paper, *entries()]
STUDIES = [study for paper in PAPERS for study in paper.studies]
CLOCK = ["seconds"]
TINY_SECONDS = 3.0  # what an entry's tiny profile may take in all on a quiet core
LOADED = 2.5  # how much more processor time the same work takes where other programs share caches and cores

every_paper = pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.slug)
every_study = pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)


@functools.cache
def folder():
    """A folder for the stores and artefacts of this run."""
    made = tempfile.TemporaryDirectory(prefix="conformance-")
    os.environ["ALLOMETRY_ARTEFACTS"] = str(Path(made.name) / "artefacts")
    return made


@functools.cache
def tiny(study, attempt=1, seed=0):
    """The tiny profile's result in a store of its own, and the processor time that it took."""
    if any(name in ("train", "hub") for name in study.requires) or study.home[0].startswith("allometry"):
        pytest.importorskip("torch")
    lacking = missing_extras(study)
    if lacking:
        pytest.skip(f"{study.name} needs the extra {lacking[0]}")
    store = Path(folder().name) / f"{study.name.replace('/', '-')}-{attempt}-{seed}.db"
    start = time.process_time()
    result = study.run("tiny", seed=seed, store=store, workers=0, display=None)
    return result, time.process_time() - start


# --- what is told -------------------------------------------------------------------------------------------
@every_paper
def test_the_entry_says_what_it_is(paper):
    assert paper.title
    assert paper.authors
    assert "et al" not in paper.authors
    assert 1900 < paper.year <= time.localtime().tm_year
    assert paper.url.startswith("https://")
    assert len(paper.summary.split()) >= 40
    assert paper.studies
    assert len({study.name for study in paper.studies}) == len(paper.studies)


@every_paper
def test_its_parts_are_public_names(paper):
    for part in paper.parts:
        room, _, name = part.rpartition(".")
        module = importlib.import_module(room)
        assert name in module.__all__, f"{part} is not among the public names of {room}"
        assert getattr(module, name) is not None


@every_study
def test_claims_have_their_place_and_their_rule(study):
    assert study.question.endswith("?")
    assert study.claims
    for claim in study.claims:
        assert claim.sentence.endswith(".")
        assert claim.where, f"where does the paper say {claim.sentence!r}?"
        assert claim.threshold, f"which rule judges {claim.sentence!r}?"
    assert {"tiny", "quick", "full"} <= set(study.profiles)


def test_listing_all_entries_needs_no_torch_and_no_time():
    seen = """
import sys, time
start = time.process_time()
from allometry.papers import entries
found = entries()
heavy = {"torch", "pandas", "scipy", "matplotlib"} & set(sys.modules)
print(time.process_time() - start, len(found), *heavy)
"""
    told = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
        seconds, _, *heavy = done.stdout.split()
        assert heavy == []
        told.append(float(seconds))
    assert min(told) < 1.0


# --- what runs ----------------------------------------------------------------------------------------------
@every_study
def test_a_tiny_run_is_whole_and_repeats_itself(study):
    one, two = tiny(study)[0], tiny(study, attempt=2)[0]
    assert one.complete, one.table.loc[~one.table["status"].isin(["done", "diverged"]), "reason"].tolist()
    loose = [*CLOCK, *(study.measures if study.exclusive else ())]  # what a clock says is no number of ours
    first, second = (result.table.drop(columns=loose, errors="ignore") for result in (one, two))
    assert first.equals(second)
    assert one.tuned == two.tuned


@every_paper
def test_a_tiny_run_is_quick(paper):
    spent = {study.name: min(tiny(study)[1], tiny(study, attempt=2)[1]) for study in paper.studies}
    assert sum(spent.values()) <= TINY_SECONDS * LOADED, spent


@every_study
def test_arms_share_the_data_of_their_seed(study, monkeypatch):
    if study.data_by_arm:
        pytest.skip("its arms are data of their own")
    seen = {arm: first_batches(study, arm, 0, monkeypatch) for arm in study.arms}
    if not any(seen.values()):
        pytest.skip("its trials neither train nor tell a digest of their data")
    assert len(set(map(frozenset, seen.values()))) == 1, "arms with one seed begin with different batches"
    assert seen[study.base].isdisjoint(first_batches(study, study.base, 100, monkeypatch))


def first_batches(study, arm, seed, monkeypatch):
    """What one call's trainings read at their first step, and digests of data that its records tell."""
    seen, axes = set(), [one for one in study.axes if not one.recorded]
    values = [one.values("tiny") if one.name in study.together else one.values("tiny")[:1] for one in axes]
    cells = [Cell(arm, point, seed) for point in itertools.product(*values)]
    place = place_of(cells[0], [one.name for one in axes])
    tuned = tiny(study)[0].tuned
    profile = study.profile("tiny", tuned=tuned.get(place, tuned.get(arm, {})))
    with monkeypatch.context() as patch:
        if "torch" in sys.modules:
            from allometry.train import loop

            def watched(*given, source_of=loop._source):
                source = source_of(*given)

                def batch(step):
                    found = source(step)
                    if step == 0:
                        seen.add(hashlib.sha256(b"".join(x.numpy().tobytes() for x in found)).hexdigest())
                    return found

                return batch

            patch.setattr(loop, "_source", watched)
        records = told(study, cells, profile)
    return seen | {one["data_digest"] for some in records for one in some if "data_digest" in one}


@every_study
def test_a_cell_of_a_stack_is_the_cell_alone(study):
    if not study.together:
        pytest.skip("its cells run one by one")
    tuned, axes = tiny(study)[0].tuned, [one for one in study.axes if not one.recorded]
    values = [one.values("tiny") if one.name in study.together else one.values("tiny")[:1] for one in axes]
    seeds = (0, 1) if "seed" in study.together else (0,)
    for arm in (study.base, list(study.arms)[-1]):
        cells = [Cell(arm, point, seed) for point in itertools.product(*values) for seed in seeds]
        place = place_of(cells[0], [one.name for one in axes])
        profile = study.profile("tiny", tuned=tuned.get(place, tuned.get(arm, {})))
        stacked = told(study, cells, profile)
        for index in {0, len(cells) - 1}:
            (alone,) = told(study, [cells[index]], profile)
            for ours, single in zip(stacked[index], alone, strict=True):
                for measure in study.measures:
                    assert ours.get(measure, math.nan) == pytest.approx(
                        single.get(measure, math.nan), rel=1e-5, abs=1e-9, nan_ok=True
                    ), (cells[index], measure)


def told(study, cells, profile):
    """The records that one call for all of the cells tells of each."""
    axes = [one.name for one in study.axes if not one.recorded]
    point = [
        [cell.point[place] for cell in cells] if name in study.together else cells[0].point[place]
        for place, name in enumerate(axes)
    ]
    seed = [cell.seed for cell in cells] if "seed" in study.together else cells[0].seed
    found = study.call(cells[0].arm, point, seed, profile)
    if inspect.isgenerator(found):  # each time one record a cell
        return [list(records) for records in zip(*found, strict=True)]
    return [list(part) if isinstance(part, list | tuple) else [part] for part in found]


@every_study
def test_all_that_runs_is_hashed(study):
    """Evidence is stale when what it reaches by name has changed: nothing else of ours may be executed."""
    tiny(study)
    module, file = study.home
    lines = {}
    for name, nodes in reached_of(file, module).items():
        first = [min([n.lineno, *(one.lineno for one in getattr(n, "decorator_list", ()))]) for n in nodes]
        spans = [range(start, n.end_lineno + 1) for start, n in zip(first, nodes, strict=True)]
        lines[file if name == module else origin(name)] = spans
    called = set()

    def watch(frame, event, _):
        if event == "call":
            called.add(frame.f_code)

    axes = [one for one in study.axes if not one.recorded]
    values = [one.values("tiny") if one.name in study.together else one.values("tiny")[:1] for one in axes]
    tuned = tiny(study)[0].tuned
    for arm in (study.base, list(study.arms)[-1]):
        cells = [Cell(arm, point, 0) for point in itertools.product(*values)]
        place = place_of(cells[0], [one.name for one in axes])
        profile = study.profile("tiny", tuned=tuned.get(place, tuned.get(arm, {})))
        sys.setprofile(watch)
        try:
            told(study, cells, profile)
        finally:
            sys.setprofile(None)
    names = {vars(one).get("__file__"): name for name, one in list(sys.modules.items()) if one is not None}
    missed = [
        f"{names[code.co_filename]}.{code.co_qualname}"
        for code in called
        if str(names.get(code.co_filename)).startswith("allometry.") and counts(names[code.co_filename])
        if code.co_name != "<module>"
        if not any(code.co_firstlineno in span for span in lines.get(code.co_filename, ()))
    ]
    assert not missed


# --- what is judged and shown -------------------------------------------------------------------------------
@every_study
def test_claims_are_judged_from_the_table_alone(study, tmp_path):
    result = tiny(study)[0]
    verdicts = result.verdicts
    for one in verdicts:
        raised = re.match(r"[A-Z]\w*(Error|Exception|Warning|Interrupt)\b", one.test.reason)
        assert raised is None, f"the rule of {one.claim.sentence!r} raised {one.test.reason}"
    keep(result, tmp_path)
    again = read(tmp_path).result(study)
    assert [str(one) for one in again.verdicts] == [str(one) for one in verdicts]


@every_study
def test_its_figure_and_page_are_drawn(study, tmp_path):
    result = tiny(study)[0]
    file = result.report(tmp_path)
    assert (tmp_path / "figure.svg").stat().st_size > 2000
    text = file.read_text()
    assert well_formed(text)
    assert page(result, (tmp_path / "figure.svg").read_text()) == text
    assert max(map(len, str(result).splitlines())) <= 100


def well_formed(text):
    """Whether all elements close in order, and nothing is fetched."""
    void = {"meta", "br", "img", "link", "hr"}

    class Parser(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.right = [], True

        def handle_starttag(self, tag, attributes):
            fetched = [v for name, v in attributes if name in ("src", "href", "xlink:href") and v]
            self.right &= not any(value.startswith(("http", "//")) for value in fetched)
            if tag not in void:
                self.open.append(tag)

        def handle_startendtag(self, tag, attributes):
            pass

        def handle_endtag(self, tag):
            self.right &= bool(self.open) and self.open.pop() == tag

    parser = Parser()
    parser.feed(text)
    parser.close()
    return parser.right and not parser.open


# --- what is kept -------------------------------------------------------------------------------------------
@every_study
def test_evidence_speaks_for_the_study_as_it_is(study):
    if not (EVIDENCE / study.name / "result.json").is_file():
        pytest.skip("there is no evidence of it yet")
    evidence = read(EVIDENCE / study.name)
    again = f"allometry study run {study.name} --profile full --evidence evidence"
    assert evidence.content["profile"] == "full"
    assert not evidence.stale(study), f"{'; '.join(evidence.stale(study))}; make it again: {again}"
    judged = [str(one.outcome) for one in evidence.result(study).verdicts]
    assert judged == evidence.outcomes, f"the rules say otherwise now; make it again: {again}"
    assert (EVIDENCE / study.name / "figure.svg").is_file(), (
        "its figure is missing; allometry.study.report.leave_evidence draws it from the result"
    )
