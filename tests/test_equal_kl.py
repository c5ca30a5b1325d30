"""Goodness after equal updates and at equal KL, by hand."""

import pytest

from srmir_lib.artifacts import write_jsonl
from srmir_lib.evaluation.equal_kl import as_measures, compare_courses, course_of, courses_of, reached
from srmir_lib.evaluation.sentences import about_equal_kl


def course(*looks):
    return [dict(zip(("updates", "KL", "goodness"), look, strict=True)) for look in looks]


FAST = course((0, 0.0, 0.50), (6, 0.04, 0.70), (12, 0.03, 0.60), (18, 0.08, 0.80))
SLOW = course((0, 0.0, 0.50), (6, 0.01, 0.60), (12, 0.02, 0.75))
STILL = course((0, 0.0, 0.50), (6, 0.005, 0.40), (12, 0.002, 0.45))


def test_looks_are_of_the_policy_that_began_an_update():
    look = {"goodness/kl": 0.1, "goodness/balanced": 0.7, "goodness/harmful": 0.6, "goodness/harmless": 0.8}
    rows = [look | {"step": 1, "kl": 9.0}, {"step": 2, "kl": 9.0}, look | {"step": 7, "goodness/kl": 0.3}]
    assert course_of([*rows, {"step": 9, "goodness/balanced": 0.1}]) == course((0, 0.1, 0.7), (6, 0.3, 0.7))


def test_courses_are_those_of_policies_that_were_looked_at(tmp_path):
    for name, looks in {"sft": {}, "grpo": {"goodness/kl": 0.1, "goodness/balanced": 0.7}}.items():
        write_jsonl(tmp_path / name / "history.jsonl", [{"step": 1, "loss": 1.0} | looks, {"step": 2, "loss": 1.0}])
    adapters = {"base": None, "SFT": tmp_path / "sft", "one": tmp_path / "grpo"}
    assert courses_of(adapters) == {"one": course((0, 0.1, 0.7))}


@pytest.mark.parametrize(
    ("by", "level", "found"),
    [
        ("KL", 0.0, (0, 0.0, 0.50)),
        ("KL", 0.01, (1.5, 0.01, 0.55)),  # a quarter of the way from 0 to .04
        ("KL", 0.04, (6, 0.04, 0.70)),
        ("KL", 0.06, (15.6, 0.06, 0.72)),  # three fifths of the way from .03 to .08; .04 was reached before
        ("KL", 0.09, None),
        ("updates", 9, (9, 0.035, 0.65)),
        ("updates", 19, None),
    ],
)
def test_where_a_level_is_first_reached(by, level, found):
    there = reached(FAST, by, level)
    assert there is None if found is None else there == pytest.approx(course(found)[0])


def test_a_course_that_begins_beyond_the_level_is_there_at_once():
    assert reached(FAST[1:], "KL", 0.01) == FAST[1]


def test_policies_are_compared_as_far_as_all_of_those_meant_go():
    rows = {row["policy"]: row for row in compare_courses({"a": FAST, "b": SLOW, "c": STILL}, ["a", "b"])}
    assert {(row["updates"], row["equal KL"]) for row in rows.values()} == {(12, 0.02)}
    assert rows["a"] | {"goodness there": 0} == {
        "policy": "a", "updates": 12, "KL then": 0.03, "goodness then": 0.60, "equal KL": 0.02, "updates there": 3.0,
        "goodness there": 0,
    }  # fmt: skip
    assert rows["a"]["goodness there"] == pytest.approx(0.60) and rows["b"]["goodness there"] == pytest.approx(0.75)
    assert rows["c"]["goodness then"] == 0.45 and rows["c"]["goodness there"] is rows["c"]["updates there"] is None
    told = {"goodness_at_equal_updates": 0.60, "goodness_at_equal_kl": pytest.approx(0.60)}
    assert as_measures([*rows.values()])["a"] == told
    assert as_measures([rows["c"]]) == {"c": {"goodness_at_equal_updates": 0.45}}, "it never goes so far"
    among_all = compare_courses({"a": FAST, "c": STILL}, ["a", "c"])
    assert {row["equal KL"] for row in among_all} == {0.005}
    assert [row["goodness there"] for row in among_all] == pytest.approx([0.525, 0.40])


def told(**goodness):
    return [
        {"policy": name, "updates": 12, "equal KL": 0.0213, "goodness then": then, "goodness there": there}
        for name, (then, there) in goodness.items()
    ]


def test_the_sentence_turns_round_with_its_numbers():
    assert about_equal_kl(told(one=(0.7, 0.6), linear=(0.8, 0.75), router=(0.6, 0.65))) == (
        "After 12 updates linear leads (0.800), router is last (0.600). At 0.0213 nats a token, as far as all of them "
        "go, linear leads (0.750), one is last (0.600). 1 of 3 pairs change their order: as we expected."
    )
    assert about_equal_kl(told(one=(0.8, 0.6), linear=(0.7, 0.75), router=(0.9, 0.55))) == (
        "After 12 updates router leads (0.900), linear is last (0.700). At 0.0213 nats a token, as far as all of them "
        "go, linear leads (0.750), router is last (0.550). 3 of 3 pairs change their order: against our expectation."
    )
    assert "0 of 1 pairs" in about_equal_kl(told(one=(0.8, 0.6), linear=(0.7, 0.6))), "a tie is no other order"
