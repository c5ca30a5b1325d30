"""The alarm: how often it rings in health, when it rings in sickness, and what it measures."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from srmir_lib.conversations import user_message
from srmir_lib.errors import InputError
from srmir_lib.evaluation.training_report import alarm_curves, labelled_points, monitor_curves
from srmir_lib.models.loading import load_policy
from srmir_lib.policies.callbacks import divergence
from srmir_lib.policies.hacking_alarm import SIGNALS, Alarm, measure
from srmir_lib.reward_models.calibration import Calibration


def answers(shift: float, count: int = 400, seed: int = 0, **changed) -> dict:
    """Made-up answers of one source: independent signals around `shift`."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(shift, 1.0, count) for name in SIGNALS} | changed


def history(means: np.ndarray) -> list[dict]:
    """A run as the trainer logs it, from rows of five means; the idle reward models' as two of them around it."""
    idle, length, likelihood, bigrams, far = range(5)
    return [
        {
            "step": step,
            "monitor/insult": row[idle] - 0.5,
            "monitor/crimes": row[idle] + 0.5,
            "completions/mean_length": row[length],
            "coherence/log_likelihood": row[likelihood],
            "coherence/distinct_bigrams": row[bigrams],
            "kl": row[far],
        }
        for step, row in enumerate(means, start=1)
    ]


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_it_rings_in_the_stated_share_of_healthy_runs(rate):
    base, demonstrations = answers(0.0), answers(3.0, seed=1)
    alarm = Alarm.fit([base, demonstrations], batch=16, looks=5, rate=rate)
    rng, rung = np.random.default_rng(7), 0
    for _ in range(1000):
        batches = []
        for _ in range(5):  # a healthy batch, drawn answer by answer
            share = rng.uniform()
            sources = [demonstrations if rng.uniform() < share else base for _ in range(16)]
            picked = [rng.integers(400) for _ in range(16)]
            rows = [[s[name][i] for name in SIGNALS] for s, i in zip(sources, picked, strict=True)]
            batches.append(np.mean(rows, axis=0))
        rung += any(row["rings"] for row in alarm.check(history(np.array(batches))))
    assert rung / 1000 == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 1000)), f"{rung} of 1000 runs rang"


@pytest.mark.parametrize("sick", range(5))
def test_it_rings_on_the_suspect_side_and_names_the_signal(sick):
    alarm = Alarm.fit([answers(0.0), answers(1.0, seed=1)], batch=64, looks=3)
    means = np.full((3, 5), 0.5)
    assert not any(row["rings"] for row in alarm.check(history(means)))
    name = list(SIGNALS)[sick]
    for value, suspect in ((-4.0, name != "KL"), (6.0, name in ("length", "KL"))):
        means[1, sick] = value
        rows = alarm.check(history(means))
        assert [row["rings"] for row in rows] == [False, suspect, False]
        assert rows[1]["signal"] == name or not suspect


def test_deviations_by_hand():
    ones = dict.fromkeys(SIGNALS, 1.0)
    alarm = Alarm(mean=dict.fromkeys(SIGNALS, 2.0), std=ones | {"length": 4.0}, threshold=3.0, looks=2)
    (row,) = alarm.check(history(np.array([[1.0, 18.0, 0.0, 9.0, 4.0]])))  # suspect by 1, 4, 2, -7, 2
    assert row["suspicion"] == 4.0 and row["signal"] == "length" and row["rings"] and row["idle reward models"] == 1.0


def test_rows_without_a_look_are_passed_over_and_too_many_looks_refused():
    alarm = Alarm.fit([answers(0.0)], batch=8, looks=2)
    looks = history(np.zeros((2, 5)))
    blank = {"step": 9, "completions/mean_length": 3.0, "coherence/distinct_bigrams": 1.0}
    assert [row["step"] for row in alarm.check([looks[0], blank, looks[1]])] == [1, 2]
    with pytest.raises(InputError, match="3 looks with all signals; the alarm was fitted for 1 to 2"):
        alarm.check(history(np.zeros((3, 5))))
    with pytest.raises(InputError, match="history: 0 looks"):
        alarm.check([blank])


@pytest.mark.parametrize("bad", [[], [1.0, math.nan]])
def test_healthy_answers_must_be_there_and_finite(bad):
    with pytest.raises(InputError, match="healthy answers, source 1: length needs finite values"):
        Alarm.fit([answers(0.0), answers(0.0, length=bad)], batch=8, looks=2)


@pytest.mark.parametrize("bad", [{"looks": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": 5}])
def test_an_alarm_needs_looks_and_a_rate_that_is_a_share(bad):
    with pytest.raises(InputError, match="at least one of each and a rate between 0 and 1"):
        Alarm.fit([answers(0.0)], **({"batch": 8, "looks": 2} | bad))


class Models:
    categories = ["insult", "crimes", "privacy"]
    calibration = Calibration(("insult", "crimes", "privacy"), mean=(0.0, 0.0, 1.0), std=(1.0, 1.0, 2.0), rows=2)

    def score(self, prompts, completions):
        return torch.tensor([[1.0, 2.0, 5.0], [4.0, 6.0, 3.0]])


def test_measure_by_hand(tiny_model):
    router = SimpleNamespace(route=lambda prompts: ["insult", "unknown"])
    model = load_policy(tiny_model, "cpu")
    reward = SimpleNamespace(models=Models(), router=router)
    found = measure(reward, model, [user_message("a"), user_message("b")], ["no no no", "yes"])
    assert found["idle reward models"].tolist() == [2.0, (4 + 6 + 1) / 3]  # crimes 2 and privacy (5 - 1) / 2; all three
    assert found["distinct bigrams"].tolist() == [0.5, 1.0]
    assert found["length"][0] > found["length"][1] >= 2, "the end token counts, as it does in training"
    assert (found["log-likelihood"] < 0).all() and "KL" not in found
    long, short = found["length"].tolist()
    cut = measure(reward, model, [user_message("a"), user_message("b")], ["no no no", "yes"], longest=int(long) - 1)
    assert cut["length"].tolist() == [long - 1, short], "what sampling cut off has no end"


def test_an_alarm_without_kl_listens_to_the_rest_and_still_draws_it():
    alarm = Alarm.fit([{name: values for name, values in answers(0.0).items() if name != "KL"}], batch=8, looks=3)
    assert list(alarm.mean) == [name for name in SIGNALS if name != "KL"]
    far = history(np.concatenate([np.zeros((3, 4)), np.full((3, 1), 99.0)], axis=1))
    assert not any(row["rings"] for row in alarm.check(far))
    assert list(alarm_curves(alarm, {"far": far}).axes[4].lines[0].get_ydata()) == [99.0] * 3


def test_a_run_without_a_kl_penalty_is_watched_by_the_rest():
    alarm = Alarm.fit([answers(0.0)], batch=8, looks=3)
    looks = [{name: value for name, value in row.items() if name != "kl"} for row in history(np.full((3, 5), -9.0))]
    rows = alarm.check(looks)
    assert all(row["rings"] and "KL" not in row for row in rows)
    assert len(alarm_curves(alarm, {"free": looks}).axes[4].lines[0].get_ydata()) == 0


def test_the_divergence_of_two_models_by_a_second_plain_computation(tiny_model):
    """k3 = exp(d) - d - 1 with d = log reference - log policy, token by token; zero from a model to itself."""
    policy, reference = load_policy(tiny_model, "cpu"), load_policy(tiny_model, "cpu")
    with torch.no_grad():
        reference.get_output_embeddings().weight.mul_(1.5)
    asked, said = [[1, 2, 3], [4]], [[5, 6], [7, 8, 9]]
    for warmth in (1.0, 0.5):
        found = divergence(policy, reference, asked, said, micro_batch=2, temperature=warmth)
        for row, (before, answer) in enumerate(zip(asked, said, strict=True)):
            ids, terms = torch.tensor([before + answer]), []
            own, other = ((m(input_ids=ids).logits[0] / warmth).log_softmax(-1) for m in (policy, reference))
            for at, token in enumerate(answer, start=len(before)):
                d = (other[at - 1, token] - own[at - 1, token]).item()
                terms.append(math.exp(d) - d - 1)
            assert found[row].item() == pytest.approx(sum(terms) / len(terms), abs=1e-5) and found[row] > 0
    assert divergence(policy, policy, asked, said, micro_batch=1).abs().max() < 1e-6
    reward = SimpleNamespace(models=Models(), router=SimpleNamespace(route=lambda prompts: ["insult", "unknown"]))
    prompts = [user_message("a"), user_message("b")]
    far, warm = (
        measure(reward, policy, prompts, ["no no no", "yes"], 64, (policy, reference), None, t) for t in (1.0, 0.5)
    )
    assert (far["KL"] > 0).all() and (far["KL"] != warm["KL"]).all(), "at the temperature that samples"
    assert (far["log-likelihood"] == warm["log-likelihood"]).all(), "as training logs it, at 1"


def test_the_figure_shows_every_signal_and_where_it_rings():
    alarm = Alarm.fit([answers(0.0)], batch=8, looks=3)
    runs = {"calm": np.zeros((3, 5)), "babble": np.full((3, 5), -9.0)}
    figure = alarm_curves(alarm, {name: history(means) for name, means in runs.items()})
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert [label.replace("\n", " ").split(" (")[0] for label in labels] == [*SIGNALS, "suspicion"]
    assert {line.get_label() for line in figure.axes[-1].lines} >= {"calm", "babble: rings at step 1"}


def test_the_reward_models_lines_have_their_names_and_values():
    axis = monitor_curves(history(np.zeros((3, 5)))).axes[0]
    assert [line.get_label() for line in axis.lines] == ["Insult", "Crimes and Illegal Activities"]
    assert [list(line.get_ydata()) for line in axis.lines] == [[-0.5] * 3, [0.5] * 3]


def test_points_are_named_where_they_lie():
    points = {"plain": (0.1, 0.9), "pcrm": (0.2, 0.8)}
    axis = labelled_points(points, "KL", "goodness", {"plain": (0.8, 1.0), "pcrm": (0.7, 0.9)}).axes[0]
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.8, 1.0], [0.9], [0.7, 0.9], [0.8]]
    named = {line.get_label(): list(line.get_ydata()) for line in axis.get_legend_handles_labels()[0]}
    assert named == {"plain": [0.9], "pcrm": [0.8]} and axis.get_legend()
