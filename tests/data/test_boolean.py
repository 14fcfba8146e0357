"""Boolean programs against Python's own operators, and tasks whose tests contain one another."""

import itertools

import pytest

torch = pytest.importorskip("torch")

from allometry.data import BooleanPrograms  # noqa: E402


@pytest.fixture(scope="module")
def programs():
    return BooleanPrograms()


def by_python(words, variables):
    """A postfix program's truth table by Python's operators on whole numbers, or None."""
    table = 0
    for row in range(2**variables):
        stack = []
        for word in words:
            if word[0] == "x" and word != "xor":
                stack.append(row >> (int(word[1:]) - 1) & 1)
            elif word == "not" and stack:
                stack.append(1 - stack.pop())
            elif word in ("and", "or", "xor") and len(stack) > 1:
                a, b = stack.pop(), stack.pop()
                stack.append({"and": a & b, "or": a | b, "xor": a ^ b}[word])
            else:
                return None
        if len(stack) != 1:
            return None
        table |= stack[0] << row
    return table


def test_a_batch_of_programs_does_what_python_does(programs):
    generator = torch.Generator().manual_seed(0)
    words = programs.vocabulary[-8:]
    rows, expected = [], []
    for length in (1, 2, 3, 4):  # all short sequences, most of them not well formed
        choices = list(itertools.product(words, repeat=length))
        step = max(1, len(choices) // 300)
        for chosen in choices[::step]:
            rows.append(programs.read(" ".join([*chosen, *["end"] * (11 - length)])))
            expected.append(by_python(chosen, 4))
    drawn = programs.programs(300, generator)
    rows += list(drawn)
    expected += [by_python(programs.write(one).split(), 4) for one in drawn]
    tables, valid = programs.run(torch.stack(rows))
    assert valid.tolist() == [one is not None for one in expected]
    assert tables.tolist() == [one or 0 for one in expected]
    assert 0 < sum(valid.tolist()) < len(rows)
    assert valid[-300:].all()


def test_words_of_prompts_and_what_follows_an_end_are_no_program(programs):
    for text, right in (("x1 0000=1", False), ("start x1", False), ("end x1", False), ("x1 end xor", True)):
        assert bool(programs.run(programs.read(text)[None])[1][0]) is right


@pytest.mark.parametrize(("variables", "leaves", "longest"), [(2, 1, 1), (3, 3, 5), (5, 6, 15)])
def test_random_programs_keep_to_their_length(variables, leaves, longest):
    programs = BooleanPrograms(variables, 3, leaves=leaves, longest=longest)
    drawn = programs.programs(2000, torch.Generator().manual_seed(1))
    tables, valid = programs.run(drawn)
    assert valid.all()
    assert int(tables.max()) < 2 ** (2**variables)
    names = programs.vocabulary[-4 - variables : -4]
    used = [[word for word in programs.write(one).split() if word in names] for one in drawn]
    counts = torch.tensor([len(one) for one in used]).bincount(minlength=leaves + 1)[1:]
    assert len(counts) == leaves
    assert (counts - 2000 / leaves).abs().max() < 4 * (2000 / leaves) ** 0.5  # uniform


def test_prompts_show_rows_of_the_table(programs):
    tasks = programs.tasks(50, torch.Generator().manual_seed(2))
    prompts = programs.prompts(tasks)
    assert prompts.shape == (50, 7)
    assert (prompts[:, -1] == programs.start).all()
    for prompt, table, order in zip(
        prompts.tolist(), tasks.tables.tolist(), tasks.order.tolist(), strict=True
    ):
        for token, row in zip(prompt[:6], order[:6], strict=True):
            assert programs.vocabulary[token] == f"{row:04b}={table >> row & 1}"
        assert sorted(order) == list(range(16))


def test_more_rows_pass_fewer_programs_and_all_rows_only_right_ones(programs):
    generator = torch.Generator().manual_seed(3)
    tasks = programs.tasks(100, generator)
    drawn = programs.programs(500, generator).expand(100, -1, -1)
    passed = [programs.passes(tasks, drawn, rows) for rows in (0, 4, 6, 8, 12, 16)]
    for some, more in itertools.pairwise(passed):
        assert not (more & ~some).any()
        assert more.sum() < some.sum()
    tables = programs.run(drawn)[0]
    assert torch.equal(passed[-1], tables == tasks.tables[:, None])
    assert passed[0].all()
    one = programs.passes(tasks, drawn[:, 7], 6)  # one program a task
    assert torch.equal(one, passed[2][:, 7])


def test_training_reads_programs_behind_their_prompts(programs):
    inputs, targets = programs.batch(5)
    assert inputs.shape == targets.shape == (64, 18)
    assert (targets[:, :6] == -100).all()
    for line, goal in zip(inputs, targets, strict=True):
        kept = goal[goal != -100]
        assert kept[-1] == programs.end
        assert programs.end not in kept[:-1]
        assert torch.equal(line[7 : 6 + len(kept)], kept[:-1])  # each target is the next input
        table = int(programs.run(kept[None])[0][0])
        assert all(programs.vocabulary[t].endswith(str(table >> (int(t) // 2) & 1)) for t in line[:6])


def test_batches_depend_on_seed_and_step_alone(programs):
    again = BooleanPrograms()
    programs.batch(9)
    assert torch.equal(programs.batch(4)[0], again.batch(4)[0])
    assert not torch.equal(again.batch(4)[0], again.batch(5)[0])
    assert not torch.equal(again.batch(4)[0], BooleanPrograms(seed=1).batch(4)[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BooleanPrograms(1), "variables must be 2 to 5"),
        (lambda: BooleanPrograms(6), "variables must be 2 to 5"),
        (lambda: BooleanPrograms(3, 9), "rows must be 1 to 8"),
        (lambda: BooleanPrograms(leaves=4, longest=6), "need programs of 7 tokens"),
        (lambda: BooleanPrograms(batch=0), "at least 1"),
        (lambda: BooleanPrograms().read("x1 x9"), "'x9' is no word"),
        (lambda: BooleanPrograms().passes(BooleanPrograms().tasks(1, torch.Generator()),
                                          torch.zeros(1, 3, dtype=torch.long), 17), "0 to 16"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
