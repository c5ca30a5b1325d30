"""What a run says about itself: its ends, what is expected of it, and what a check refuses."""

import pytest

from srmir_lib.artifacts import write_jsonl
from srmir_lib.conversations import user_message
from srmir_lib.evaluation.training_report import (
    answers_of,
    both_ends,
    check_grpo,
    cost_rows,
    ends,
    grpo_metrics,
    pleases,
    rises,
    rising,
    side_by_side,
    well_behaved,
)
from srmir_lib.policies.reward import MONITOR


def run(steps: int = 10, **changed) -> list[dict]:
    """A run whose reward is its step, whose KL is a hundredth of it, and whose answers keep their length."""
    made = {"reward": float, "kl": lambda step: (step - 1) / 1000, "completions/mean_length": lambda step: 20.0}
    made = {"step": int, "seconds": lambda step: 0.5} | made | changed
    return [{key: value(step) for key, value in made.items()} for step in range(1, steps + 1)]


def test_the_ends_are_means_over_a_fifth():
    assert ends(run(10), "reward") == (1.5, 9.5)
    assert ends(run(3), "reward") == (1.0, 3.0), "a short run has at least one update at each end"
    history = run(10)
    for row in history[1:]:
        del row["kl"]
    assert ends(history, "kl") == (0.0, 0.0), "an update that logged nothing counts for nothing"


def test_metrics_hold_both_ends_of_what_was_logged():
    found = grpo_metrics({"policy": run(10)})
    assert found["seconds_policy"] == 5 and (found["reward_start_policy"], found["reward_end_policy"]) == (1.5, 9.5)
    assert set(both_ends(run(10))) == {"reward", "kl", "completions/mean_length"}, "nobody looked at the coherence"


def test_a_healthy_run_and_three_sick_ones():
    assert all(well_behaved(run()).values())
    for name, changed in {
        "reward rose": {"reward": lambda step: -float(step)},
        "KL never at 0.1": {"kl": lambda step: step / 50},
        "length within a fifth": {"completions/mean_length": lambda step: 20.0 + 2 * step},
    }.items():
        assert [key for key, held in well_behaved(run(**changed)).items() if not held] == [name]


def test_a_reward_rises_where_its_slope_is_told_from_none():
    assert rises([1.0, 2.0, 3.0]) is True and rises([3.0, 2.0, 1.0]) is False
    assert rises([0.0, 1.0]) is None, "a line goes through any two"
    noise = [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert rises(noise) is None and rises([value + step for step, value in enumerate(noise)]) is True
    assert well_behaved(run(2))["reward rose"] is None


def test_a_monitored_model_rises_by_its_own_looks():
    history = run(4)
    for step, up, down in ((0, 1.0, 1.0), (3, 2.0, 0.5)):
        history[step] |= {MONITOR + "insult": up, MONITOR + "crimes": down}
    assert rising(history, ["insult", "crimes", "privacy"]) == 1, "privacy was not looked at"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"step": lambda step: step + 1}, "steps are missing"),
        ({"kl": lambda step: step / 100}, "must start as its own reference"),
        ({"kl": lambda step: 0.0}, "did not move"),
        ({"kl": lambda step: 2.0 * (step - 1)}, "ran away"),
        ({"seconds": lambda step: 0.6}, "the saved history differs"),
    ],
)
def test_a_bad_run_is_refused_by_name(changed, message, tmp_path):
    folder = tmp_path / "policy_gold"
    write_jsonl(folder / "history.jsonl", run())
    check_grpo(run(), folder, 10)
    with pytest.raises(AssertionError, match=f"policy_gold: .*{message}"):
        check_grpo(run(**changed), folder, 10)


def test_a_run_that_learned_nothing_is_a_result_and_no_error(tmp_path):
    falling = run(reward=lambda step: -float(step**2))
    write_jsonl(tmp_path / "policy" / "history.jsonl", falling)
    check_grpo(falling, tmp_path / "policy", 10)
    assert not well_behaved(falling)["reward rose"]


def test_who_pleases_more_is_said_only_where_it_is_told_apart():
    one = [1.0, 2.0, 1.5, 2.5] * 5
    assert pleases(one, [value - 0.5 for value in one], seed=0) is True
    assert pleases([value - 0.5 for value in one], one, seed=0) is False
    assert pleases(one, one[::-1], seed=0) is None


def test_what_a_policy_cost_counts_its_start_its_samples_and_its_training():
    started = [{"seconds": 1.0, "num_tokens": 30}, {"seconds": 1.0, "num_tokens": 70}]
    paid = [{"seconds": 2.0, "num_tokens": 100, "reward": 0.1}, {"seconds": 2.0, "num_tokens": 100}]
    runs = {"base": [], "best_of_n": [started, started], "grpo": [started, paid]}
    scores = {name: {"seven": [1.0, 1.0], "single": [0.0, 3.0]} for name in runs}
    base, best, grpo = cost_rows(runs, scores, 8, {"best_of_n": (24, 10.0)}, seed=0)
    earned = {"reward": 1.0, "low": 1.0, "high": 1.0, "single": 1.5}
    cost = {"updates": 4, "sequences": 32, "sampled": 24, "tokens": 140, "seconds": 14.0}
    assert best == {"name": "best_of_n"} | cost | earned
    assert grpo == {"name": "grpo"} | cost | {"sampled": 8, "tokens": 170, "seconds": 6.0} | earned, (
        "an update without a reward draws nothing anew"
    )
    assert base == {"name": "base"} | dict.fromkeys(cost, 0) | earned


def test_answers_stand_beside_their_prompts_and_are_hidden_unless_they_may_be_shown():
    examples = {"insult": user_message("a"), "crimes": user_message("b")}
    shown = side_by_side(examples, {"before": ["one two", "x"], "after": ["y", "z"]}, show_text=True)
    first, second = {"prompt": "a", "before": "one two", "after": "y"}, {"prompt": "b", "before": "x", "after": "z"}
    assert shown == [first, second]
    assert "two" not in side_by_side(examples, {"before": ["one two", "x"]}, show_text=False)[0]["before"]


def test_policies_answer_with_the_same_dice(trunk):
    prompts, how = [user_message("a"), "b"], {"max_new_tokens": 4, "temperature": 1.0, "seed": 2}
    found = answers_of(trunk, {"base": None, "again": None}, prompts, **how)
    assert found["base"] == found["again"] and len(found["base"]) == 2
