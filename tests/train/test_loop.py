"""The loop: branches are runs of their own, resuming is not having stopped, and bad steps do no harm."""

import contextlib
import copy
import itertools
import math
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from allometry.optim.adamw import AdamWIndependent
from allometry.optim.ema import AveragedWeights
from allometry.optim.schedules import WSD, cosine, linear
from allometry.train.checkpoint import Checkpointer, CheckpointError
from allometry.train.divergence import DivergenceRule
from allometry.train.loop import fit, segments
from allometry.train.meter import Meter

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, fused=False),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.02, fused=True),
    "independent": lambda p: AdamWIndependent(p, 0.02, weight_decay=0.003),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
}
SCHEDULE = WSD(warmup=2, decay=0.4)
HORIZONS = (5, 9, 14)  # branches at 3, 5 and 8


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Thousands of checkpoints; none of these tests cuts the power of the machine itself."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Interrupted(BaseException):
    """Like a keyboard interrupt."""


class Data:
    """Batches as a function of the step."""

    def __init__(self, size=6):
        self.size = size

    def batch(self, step):
        x = torch.randn(self.size, 4, generator=torch.Generator().manual_seed(1000 + step))
        return x, torch.sin(2 * x).sum(1, keepdim=True)


def network():
    first, second = nn.utils.skip_init(nn.Linear, 4, 8), nn.utils.skip_init(nn.Linear, 8, 1)
    model = nn.Sequential(first, nn.Tanh(), second)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.5, generator=generator)
    return model


def squared_error(model, inputs, targets):
    return ((model(inputs) - targets) ** 2).mean()


def weights(model):
    return {name: value.tolist() for name, value in model.state_dict().items()}


@dataclass
class Trial:
    """One process: everything made anew, trained, and looked at."""

    optimizer: str = "adamw"
    horizons: Any = HORIZONS
    schedule: Any = SCHEDULE
    averaged: bool = False
    noisy: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, folder=None, *, before_step=None, **more):
        self.model = network()
        made = OPTIMIZERS[self.optimizer](self.model.parameters())
        noise = torch.Generator().manual_seed(11)
        average = AveragedWeights(self.model, decay=0.8) if self.averaged else None
        self.told, calls = [], itertools.count()

        def objective(model, inputs, targets):
            if before_step is not None:
                before_step(next(calls))
            if self.noisy:
                inputs = inputs + 0.3 * torch.randn(inputs.shape, generator=noise)
            return squared_error(model, inputs, targets)

        settings = {"validate": weights, "log_every": 1, "meter": Meter(24, 7.0), **self.settings, **more}
        log = fit(
            self.model, Data(), optimizer=made, horizons=self.horizons, schedule=self.schedule,
            objective=objective, average=average, generators={"noise": noise},
            checkpointer=None if folder is None else Checkpointer(folder, every=0.0),
            on_horizon=lambda record: self.told.append(copy.deepcopy(record)), **settings,
        )  # fmt: skip
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        return Outcome(log, state, made.state_dict()["state"], average, noise.get_state())


@dataclass
class Outcome:
    log: Any
    state: dict[str, torch.Tensor]
    optimizer: dict[int, dict[str, Any]]
    average: AveragedWeights | None
    noise: torch.Tensor

    def assert_equal(self, other):
        """Bit for bit, all but the seconds."""
        assert self.log.status == other.log.status
        assert self.log.steps == other.log.steps
        assert self.log.horizons == other.log.horizons
        assert (self.log.skipped, self.log.diverged) == (other.log.skipped, other.log.diverged)
        mine, theirs = ({k: v for k, v in x.log.meter.items() if k != "seconds"} for x in (self, other))
        assert mine == theirs
        assert all(torch.equal(self.state[name], value) for name, value in other.state.items())
        assert torch.equal(self.noise, other.noise)
        for index, entries in other.optimizer.items():
            for name, value in entries.items():
                found = self.optimizer[index][name]
                assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
        if other.average is not None:
            assert self.average.updates == other.average.updates
            assert all(torch.equal(self.average.state[k], v) for k, v in other.average.state.items())


TRIALS = {
    "plain": Trial(),
    "fused": Trial("adamw fused"),
    "momentum": Trial("sgd momentum"),
    "no state": Trial("sgd"),
    "accumulated": Trial(settings={"accumulate": 2}),
    "averaged": Trial("independent", averaged=True),
    "noisy": Trial(noisy=True),
    "all": Trial("adamw fused", averaged=True, noisy=True, settings={"accumulate": 3, "clip": 0.1}),
    "one cosine": Trial(horizons=8, schedule=cosine, averaged=True, noisy=True),
    "early branches": Trial(horizons=(2, 3, 4, 8), schedule=WSD(decay=1.0), noisy=True),
    "no decay": Trial(horizons=(3, 6), schedule=WSD(decay=0.0), noisy=True),
}
each_trial = pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
# resuming at every place takes seconds a trial; the hardest are always done
each_interrupted_trial = pytest.mark.parametrize(
    "trial",
    [
        pytest.param(trial, id=name, marks=() if name in ("all", "one cosine") else pytest.mark.slow)
        for name, trial in TRIALS.items()
    ],
)


# ---------------------------------------------------------------- against a loop written by hand


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_one_horizon_is_the_loop_that_anyone_would_write(optimizer, clip):
    outcome = Trial(optimizer, horizons=12, schedule=cosine, settings={"clip": clip})()
    model = network()
    made = OPTIMIZERS[optimizer](model.parameters())
    peak = made.param_groups[0]["lr"]
    for step in range(12):
        made.param_groups[0]["lr"] = peak * cosine(step, 12)
        made.zero_grad()
        loss = squared_error(model, *Data().batch(step))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip)
        made.step()
        row = outcome.log.steps[step]
        assert row["loss"] == loss.item()
        assert row["gradient_norm"] == norm.item()
        assert row["rate"] == cosine(step, 12)
        assert (row["step"], row["tokens"]) == (step, 24 * (step + 1))
    assert all(torch.equal(outcome.state[name], value) for name, value in model.state_dict().items())
    assert outcome.log.status == "done"


def test_every_group_keeps_its_own_peak():
    model = network()
    groups = [
        {"params": [model[0].weight, model[0].bias], "lr": 0.1},
        {"params": [model[2].weight, model[2].bias], "lr": 0.001},
    ]
    optimizer = torch.optim.SGD(groups)
    seen = []

    def look(model, inputs, targets):
        seen.append([group["lr"] for group in optimizer.param_groups])
        return squared_error(model, inputs, targets)

    for _ in range(2):  # and a second run starts from the peaks again
        fit(model, Data(), optimizer=optimizer, horizons=6, schedule=linear, objective=look)
    expected = [[0.1 * linear(s, 6), 0.001 * linear(s, 6)] for s in range(6)]
    assert seen == expected * 2


# ---------------------------------------------------------------- trunk and branches


@each_trial
def test_a_branch_is_a_run_of_that_horizon_alone(trial):
    together = trial()
    lengths = [trial.horizons] if isinstance(trial.horizons, int) else trial.horizons
    assert [record["horizon"] for record in together.log.horizons] == sorted(lengths)
    for record in together.log.horizons:
        alone = Trial(
            trial.optimizer, record["horizon"], trial.schedule, trial.averaged, trial.noisy, trial.settings
        )()
        assert alone.log.horizons == [record]
        assert weights_of(record) == {name: value.tolist() for name, value in alone.state.items()}
        rows = {row["step"]: row for row in alone.log.steps}
        branch = [row for row in together.log.steps if row["horizon"] == record["horizon"]]
        assert all(rows[row["step"]] == row for row in branch)
    assert together.log.horizons == trial.told
    alone.assert_equal(
        Outcome(alone.log, together.state, together.optimizer, together.average, together.noise)
    )


def weights_of(record):
    return {k: v for k, v in record.items() if k in ("0.weight", "0.bias", "2.weight", "2.bias")}


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("horizons", [(7,), (4, 8, 16), (10, 11, 12), (1, 2, 3, 100)])
def test_segments_tile_every_horizon(decay, horizons):
    """Trunk pieces join up without gap or overlap, and each branch starts where the trunk stands."""
    at, ends = 0, []
    for segment in segments(horizons, WSD(decay=decay)):
        assert segment.start == at
        assert segment.end >= segment.start
        if segment.branch:
            assert segment.total == segment.end
            ends.append(segment.end)
        else:
            at = segment.end
    assert tuple(ends) == horizons


def test_a_trunk_is_paid_for_once():
    """Branches at 3, 5 and 8 of horizons 5, 9 and 14: 8 trunk steps and 2 + 4 + 6 of decay."""
    outcome = Trial()()
    assert outcome.log.meter["steps"] == 20
    assert outcome.log.meter["tokens"] == 20 * 24
    assert outcome.log.meter["flops"] == 20 * 24 * 7.0
    assert outcome.log.meter["seconds"] > 0
    assert [record["tokens"] for record in outcome.log.horizons] == [5 * 24, 9 * 24, 14 * 24]
    assert len(outcome.log.table) == 20


def test_order_and_repeats_of_horizons_do_not_matter():
    numpy = pytest.importorskip("numpy")
    plain = Trial()()
    for horizons in ([14, 5, 9, 5], numpy.array([9, 14, 5]), (h for h in HORIZONS)):
        Trial(horizons=horizons)().assert_equal(plain)


# ---------------------------------------------------------------- resuming


@each_interrupted_trial
def test_stopped_after_any_step_and_resumed_is_never_stopped(trial, tmp_path):
    whole = trial()
    records = list(trial.told)
    for stop in range(100):
        folder = tmp_path / str(stop)
        calls = itertools.count()
        first = trial(folder, should_stop=lambda calls=calls, stop=stop: next(calls) == stop)
        if first.log.status == "done":
            break
        assert first.log.status == "stopped"
        told = trial.told
        second = trial(folder)
        second.assert_equal(whole)
        # told again from the start, so that a listener that was cut off misses nothing
        assert trial.told == records
        assert told == records[: len(told)]
    assert stop > 5


@each_interrupted_trial
def test_stopped_after_every_step_and_resumed_each_time(trial, tmp_path):
    whole = trial()
    pieces = 0
    outcome = trial(tmp_path, should_stop=lambda: True)
    while outcome.log.status == "stopped":
        pieces += 1
        outcome = trial(tmp_path, should_stop=lambda: True)
    outcome.assert_equal(whole)
    assert pieces >= whole.log.meter["steps"] - 2


@each_interrupted_trial
def test_an_exception_at_any_step_loses_nothing(trial, tmp_path):
    whole = trial()
    for broken in range(0, 40, 3):
        folder = tmp_path / str(broken)

        def interrupt(call, broken=broken):
            if call == broken:
                raise Interrupted

        with contextlib.suppress(Interrupted):
            trial(folder, before_step=interrupt)
        trial(folder).assert_equal(whole)


@pytest.mark.slow
@pytest.mark.parametrize("trial", [TRIALS["all"], TRIALS["early branches"]], ids=["all", "early branches"])
def test_a_crash_at_any_file_operation_loses_nothing(trial, tmp_path, monkeypatch):
    whole = trial()
    operation, done = 0, False
    while not done:
        folder, log = tmp_path / str(operation), itertools.count()

        def cut(function, operation=operation, log=log):
            def counted(*args, **kwargs):
                if next(log) == operation:
                    raise Interrupted
                return function(*args, **kwargs)

            return counted

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut(Path.replace))
            patch.setattr(Path, "unlink", cut(Path.unlink))
            patch.setattr(os, "fsync", cut(os.fsync))
            try:
                trial(folder)
                done = True
            except Interrupted:
                pass
        trial(folder).assert_equal(whole)
        operation += 1
    assert operation > 40


def test_many_random_interruptions_of_one_run(tmp_path):
    trial, generator, count = TRIALS["all"], random.Random(4), 0
    whole = trial()
    for attempt in range(5):
        folder, done = tmp_path / str(attempt), False
        while not done:
            left = generator.randrange(1, 12)

            def interrupt(call, left=left):
                if call == left:
                    raise Interrupted

            try:
                outcome = trial(folder, before_step=interrupt)
                done = True
            except Interrupted:
                count += 1
        outcome.assert_equal(whole)
    assert count > 20


@pytest.mark.parametrize("cut", ["current", "trunk"])
def test_damaged_checkpoints_are_gone_round_or_named(tmp_path, cut):
    """A damaged state falls back to the one before; another branch's trunk is never taken for this one's."""
    trial, good, said = Trial(noisy=True), 0, []
    whole = trial()
    for stop in range(19):
        folder = tmp_path / str(stop)
        calls = itertools.count()
        trial(folder, should_stop=lambda calls=calls, stop=stop: next(calls) == stop)
        path = folder / f"{cut}.safetensors"
        if not path.exists():
            continue
        path.write_bytes(path.read_bytes()[:100])
        fallen_back = cut == "current" and (folder / "current.previous.safetensors").exists()
        try:
            outcome = trial(folder)
        except CheckpointError as error:
            said.append(str(error))
            outcome = None
        assert not (fallen_back and outcome is None)
        if outcome is not None:
            outcome.assert_equal(whole)
            good += 1
    assert good > 3
    assert said or cut == "current"  # the first state of all has none before it, and is then named
    assert all("delete" in sentence and "\n" not in sentence for sentence in said)


def test_a_lost_trunk_is_named_and_never_replaced_by_the_branch(tmp_path):
    trial = Trial()
    calls = itertools.count()
    trial(tmp_path, should_stop=lambda: next(calls) == 3)  # one step into the first branch
    for path in tmp_path.glob("trunk*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"trunk's state at step 3 is not to be found.*delete"):
        trial(tmp_path)


def test_a_finished_run_returns_at_once(tmp_path):
    trial = TRIALS["all"]
    whole = trial(tmp_path)
    records = list(trial.told)

    def never(*_):
        raise AssertionError("trained or validated again")

    again = trial(tmp_path, before_step=never, validate=never)
    again.assert_equal(whole)
    assert trial.told == records
    assert {path.name for path in tmp_path.iterdir()} == {"final.safetensors"}
    assert again.log.meter == whole.log.meter


def test_a_finished_run_reads_no_data(tmp_path):
    def run(batches):
        model = network()
        return fit(
            model, batches, optimizer=torch.optim.SGD(model.parameters(), 0.1), horizons=5, schedule=linear,
            objective=squared_error, checkpointer=Checkpointer(tmp_path),
        )  # fmt: skip

    run([Data().batch(step) for step in range(5)])

    def unread():
        raise AssertionError("read")
        yield

    assert run(unread()).status == "done"


def test_progress_counts_to_the_end_and_on_from_where_it_was(tmp_path):
    seen = []
    report = {"progress": lambda done, total, **_: seen.append((done, total))}
    Trial()(**report)
    assert seen == [(step, 20) for step in range(1, 21)]
    seen.clear()
    calls = itertools.count()
    Trial()(tmp_path, should_stop=lambda: next(calls) == 11, **report)
    Trial()(tmp_path, **report)
    assert seen == [(step, 20) for step in range(1, 21)]


# ---------------------------------------------------------------- refusals


def test_several_horizons_need_a_trunk():
    with pytest.raises(ValueError, match="3 horizons need a schedule with a constant trunk"):
        Trial(schedule=cosine)()


@pytest.mark.parametrize("horizons", [0, [], [5, -1]])
def test_horizons_without_a_step_are_refused(horizons):
    with pytest.raises(ValueError, match="at least one step"):
        Trial(horizons=horizons)()


def test_a_branch_inside_the_warm_up_is_refused():
    with pytest.raises(ValueError, match="a run of 5 steps starts to decay at 3, inside its warm-up of 4"):
        Trial(schedule=WSD(warmup=4, decay=0.4))()


OTHERS = {
    "horizons": Trial(horizons=(5, 9, 15)),
    "schedule": Trial(schedule=WSD(warmup=1, decay=0.4)),
    "optimizer settings": Trial("independent"),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("finished", [False, True])
def test_another_runs_folder_is_refused(tmp_path, what, finished):
    Trial()(tmp_path, should_stop=None if finished else lambda: True)
    with pytest.raises(ValueError, match=f"holds a run of other .*{what}.*a folder of its own"):
        OTHERS[what](tmp_path)


def test_another_schedule_of_the_same_length_is_refused(tmp_path):
    Trial(horizons=8, schedule=cosine)(tmp_path)
    with pytest.raises(ValueError, match="holds a run of other schedule"):
        Trial(horizons=8, schedule=linear)(tmp_path)


def test_another_rate_is_refused(tmp_path):
    """Or a sweep over rates in one folder would be the first rate's run again and again."""
    Trial("sgd")(tmp_path)
    model = network()
    with pytest.raises(ValueError, match="other optimizer settings"):
        fit(
            model, Data(), optimizer=torch.optim.SGD(model.parameters(), lr=0.051), horizons=HORIZONS,
            schedule=SCHEDULE, objective=squared_error, checkpointer=Checkpointer(tmp_path),
        )  # fmt: skip


def test_another_model_is_refused_in_one_sentence(tmp_path):
    Trial("sgd")(tmp_path)
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1))
    with pytest.raises(ValueError, match=r"another model, optimizer or average.*size mismatch") as caught:
        fit(
            model, Data(), optimizer=OPTIMIZERS["sgd"](model.parameters()), horizons=HORIZONS,
            schedule=SCHEDULE, objective=squared_error, checkpointer=Checkpointer(tmp_path),
        )  # fmt: skip
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["accumulate", "log_every"])
def test_counts_of_nothing_are_refused(setting):
    with pytest.raises(ValueError, match="must be at least 1"):
        Trial()(**{setting: 0})


def test_a_record_that_cannot_be_kept_is_refused_by_name():
    with pytest.raises(TypeError, match=r"records hold numbers.* not a Linear"):
        Trial()(validate=lambda model: {"layer": model[0]})


# ---------------------------------------------------------------- batches from an iterable


@pytest.mark.parametrize("schedule", [cosine, SCHEDULE], ids=["cosine", "wsd"])
def test_an_iterable_serves_one_horizon(schedule, tmp_path):
    def run(batches, folder=None, **more):
        model = network()
        log = fit(
            model, batches, optimizer=OPTIMIZERS["adamw"](model.parameters()), horizons=10, schedule=schedule,
            objective=squared_error, log_every=1,
            checkpointer=None if folder is None else Checkpointer(folder), **more,
        )  # fmt: skip
        return log.steps, model.state_dict()

    listed = [Data().batch(step) for step in range(10)]
    steps, state = run(Data())
    for batches in (listed, iter(listed), (pair for pair in listed)):
        assert run(batches)[0] == steps
    calls = itertools.count()
    run(iter(listed), tmp_path, should_stop=lambda: next(calls) == 4)
    resumed = run(iter(listed), tmp_path)
    assert resumed[0] == steps
    assert all(torch.equal(resumed[1][name], value) for name, value in state.items())


def test_an_iterable_cannot_serve_several():
    model = network()
    with pytest.raises(ValueError, match="several horizons read some steps twice"):
        fit(
            model, [Data().batch(step) for step in range(20)], horizons=HORIZONS, schedule=SCHEDULE,
            optimizer=torch.optim.SGD(model.parameters(), 0.1), objective=squared_error,
        )  # fmt: skip


@pytest.mark.parametrize("schedule", [cosine, SCHEDULE], ids=["cosine", "wsd"])
def test_batches_that_end_early_are_named(schedule):
    model = network()
    with pytest.raises(ValueError, match="ended at step 7, before the horizon of 10 steps"):
        fit(
            model, [Data().batch(step) for step in range(7)], horizons=10, schedule=schedule,
            optimizer=torch.optim.SGD(model.parameters(), 0.1), objective=squared_error,
        )  # fmt: skip


# ---------------------------------------------------------------- parts of a batch, clipping, precision


@pytest.mark.parametrize("parts", [2, 3, 4, 5, 6, 7])
def test_a_batch_in_parts_is_a_batch(parts):
    """Also where the parts are not of one size: 6 in 4 parts is 2 + 2 + 2, in 5 too."""
    whole = Trial("sgd momentum")()
    divided = Trial("sgd momentum", settings={"accumulate": parts})()
    for name, value in whole.state.items():
        assert torch.allclose(divided.state[name], value, atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(divided.log.steps, whole.log.steps, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-5)


def test_parts_of_different_sizes_weigh_what_they_hold():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    fives = Data(size=5)
    settings = {"optimizer": optimizer, "horizons": 1, "schedule": linear, "objective": squared_error}
    one = fit(model, fives, **settings).steps[0]
    two = fit(model, fives, accumulate=2, **settings).steps[0]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-6)


@pytest.mark.parametrize("clip", [1e-3, 0.2, 1e9])
def test_a_step_is_no_longer_than_the_clip(clip):
    model = network()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().double()
    log = fit(
        model, Data(), optimizer=torch.optim.SGD(model.parameters(), 1.0), horizons=1, schedule=linear,
        objective=squared_error, clip=clip,
    )  # fmt: skip
    moved = (nn.utils.parameters_to_vector(model.parameters()).detach().double() - before).norm().item()
    assert moved == pytest.approx(min(clip, log.steps[0]["gradient_norm"]), rel=1e-3)


def test_old_gradients_do_not_count():
    """Neither those from before, nor those of parameters that are not trained."""

    def run(spoilt):
        model = network()
        if spoilt:
            squared_error(model, *Data().batch(77)).backward()
        optimizer = torch.optim.SGD([model[2].weight, model[2].bias], 0.1)
        log = fit(
            model, Data(), optimizer=optimizer, horizons=6, schedule=linear, objective=squared_error,
            log_every=1, clip=0.01,
        )  # fmt: skip
        return log.steps, model

    (clean, model), (spoilt, _) = run(False), run(True)
    assert clean == spoilt
    reference = network()
    for step in range(2):
        reference.zero_grad()
        squared_error(reference, *Data().batch(step)).backward()
        trained = [reference[2].weight, reference[2].bias]
        norm = nn.utils.clip_grad_norm_(trained, 0.01)
        assert clean[step]["gradient_norm"] == norm.item()
        with torch.no_grad():
            for weight in trained:
                weight -= 0.1 * linear(step, 6) * weight.grad
    assert all(weight.grad is None for weight in model.parameters())


def test_bfloat16_trains_to_about_the_same_loss():
    plain, low = (
        Trial(horizons=60, schedule=linear)(),
        Trial(horizons=60, schedule=linear)(dtype=torch.bfloat16),
    )
    assert all(value.dtype == torch.float32 for value in low.state.values())
    losses = [[row["loss"] for row in outcome.log.steps] for outcome in (plain, low)]
    assert losses[0] != losses[1]
    assert max(abs(a - b) / a for a, b in zip(*losses, strict=True)) < 0.05


# ---------------------------------------------------------------- validation


def test_validation_sees_a_model_at_rest():
    seen = []

    def validate(model):
        seen.append((model.training, torch.is_grad_enabled()))
        return {"x": 1.0}

    def objective(model, inputs, targets):
        assert model.training
        return squared_error(model, inputs, targets)

    model = network().eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fit(
        model, Data(), optimizer=optimizer, horizons=HORIZONS, schedule=SCHEDULE, objective=objective,
        validate=validate,
    )  # fmt: skip
    assert seen == [(False, False)] * 3


def test_averaged_weights_are_recorded_beside_the_models_own():
    trial = Trial(averaged=True)
    outcome = trial()
    last = outcome.log.horizons[-1]
    for name, value in outcome.average.state.items():
        assert last[f"averaged_{name}"] == value.tolist()
        assert last[name] == outcome.state[name].tolist() != value.tolist()


def test_tensors_in_records_become_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")

    def validate(model):
        return {
            "a": torch.tensor(1.5),
            "b": numpy.float64(2.5),
            "c": torch.ones(2),
            "d": (1, 2),
            "e": math.inf,
        }

    for folder in (None, tmp_path):
        record = Trial("sgd")(folder, validate=validate).log.horizons[0]
        kept = {name: record[name] for name in "abcde"}
        assert kept == {"a": 1.5, "b": 2.5, "c": [1.0, 1.0], "d": [1, 2], "e": math.inf}
        assert all(type(kept[name]) is float for name in "abe")


# ---------------------------------------------------------------- what is not finite


def spoil(kind, bad):
    """An objective whose loss, or gradient alone, is not a number at the steps ``bad``."""
    calls = itertools.count()

    def objective(model, inputs, targets):
        loss = squared_error(model, inputs, targets)
        if next(calls) not in bad:
            return loss
        if kind == "loss":
            return loss * math.nan
        if kind == "infinite":
            return loss + math.inf
        weight = model[0].weight  # sqrt(0): a value without fault and a derivative without bound
        return loss + (weight - weight.detach()).square().sum().sqrt()

    return objective


def train_spoilt(kind, bad, **more):
    model = network()
    average = AveragedWeights(model)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    states = []

    def keep(*_, **__):
        states.append({name: value.clone() for name, value in model.state_dict().items()})

    log = fit(
        model, Data(), optimizer=optimizer, horizons=12, schedule=linear, objective=spoil(kind, bad),
        log_every=1, average=average, progress=keep, **more,
    )  # fmt: skip
    return log, states, optimizer, average


each_kind = pytest.mark.parametrize("kind", ["loss", "infinite", "gradient"])


@each_kind
def test_a_bad_update_is_skipped_and_the_run_goes_on(kind):
    log, states, optimizer, average = train_spoilt(kind, {4, 5, 9})
    assert log.status == "done"
    assert log.skipped == 3
    assert log.diverged == {}
    for step in range(1, 12):
        same = all(torch.equal(states[step][name], states[step - 1][name]) for name in states[step])
        assert same == (step in (4, 5, 9))
    assert average.updates == 9
    assert {state["step"].item() for state in optimizer.state.values()} == {9}
    assert all(torch.isfinite(value).all() for value in states[-1].values())


@each_kind
def test_a_lasting_fault_ends_the_run_with_its_step(kind):
    log, states, _, _ = train_spoilt(kind, set(range(6, 99)))
    assert log.status == "diverged"
    assert log.diverged == {0: 8}  # the third in a row
    assert len(log.steps) == 9
    assert log.horizons == []
    assert log.meter["steps"] == 9
    assert log.skipped == 3
    assert all(torch.equal(states[-1][name], value) for name, value in states[5].items())


def test_patience_is_the_rules():
    log, *_ = train_spoilt("loss", set(range(6, 99)), divergence=DivergenceRule(patience=1))
    assert log.diverged == {0: 6}


def test_a_climbing_loss_ends_the_run():
    model = network()
    log = fit(
        model, Data(), optimizer=torch.optim.SGD(model.parameters(), lr=3.0), horizons=200, schedule=linear,
        objective=squared_error, clip=None, log_every=1,
    )  # fmt: skip
    assert log.status == "diverged"
    losses = [row["loss"] for row in log.steps]
    step = log.diverged[0]
    assert step == log.steps[-1]["step"]
    assert all(not loss <= 2 * losses[0] for loss in losses[step - 2 : step + 1])


def test_a_diverged_run_diverges_again_when_resumed(tmp_path):
    rule = DivergenceRule(factor=1.2, over="running minimum", patience=2)
    trial = Trial("sgd", horizons=60, schedule=linear, settings={"divergence": rule})
    whole = trial()
    assert whole.log.status == "diverged"
    assert whole.log.diverged[0] >= 3

    def interrupt(call):
        if call == whole.log.diverged[0] - 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        trial(tmp_path, before_step=interrupt)
    trial(tmp_path).assert_equal(whole)
    trial(tmp_path).assert_equal(whole)


def test_a_branch_that_skips_leaves_the_trunk_alone():
    """The fault lies in the first branch only: the second horizon is what it would have been."""
    calls = itertools.count()
    bad = {3}  # the first step of the first branch

    def objective(model, inputs, targets):
        loss = squared_error(model, inputs, targets)
        return loss * math.nan if next(calls) in bad else loss

    model = network()
    log = fit(
        model, Data(), optimizer=OPTIMIZERS["adamw"](model.parameters()), horizons=HORIZONS,
        schedule=SCHEDULE, objective=objective, validate=weights, meter=Meter(24),
    )  # fmt: skip
    assert log.horizons[1:] == Trial()().log.horizons[1:]
    assert log.horizons[0] != Trial()().log.horizons[0]
    assert log.skipped == 0


# ---------------------------------------------------------------- manners


def test_the_global_random_state_is_never_touched(tmp_path):
    before = torch.get_rng_state()
    TRIALS["all"](tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_log_is_as_sparse_as_asked():
    rows = Trial(horizons=20, schedule=linear)(log_every=6).log.steps
    assert [row["step"] for row in rows] == [0, 6, 12, 18, 19]
