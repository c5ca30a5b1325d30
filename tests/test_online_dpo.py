"""Online DPO by TRL's trainer on a tiny random model: it learns what it is paid for, from its start, and repeats."""

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from test_training import COMMON, PROMPTS, count_e, numbers

from srmir_lib.errors import InputError
from srmir_lib.policies.training import train_online_dpo
from srmir_lib.settings.policies import DPOSettings
from srmir_lib.studies.a2_reranking.rounds import sample_in_rounds

SETTINGS = DPOSettings(**COMMON | {"batch_size": 8, "beta": 0.05})


def trained(model, folder, steps=6, start=None, **options):
    settings = SETTINGS.changed(max_steps=steps)
    return train_online_dpo(model, PROMPTS, count_e, folder, settings, 6, start=start, **options)


def test_it_earns_more_and_more(tiny_model, tmp_path):
    history = trained(tiny_model, tmp_path / "p", steps=40)
    paid = [row["objective/scores"] for row in history]
    assert [row["step"] for row in history] == list(range(1, 41))
    assert sum(paid[-8:]) > 1.5 * sum(paid[:8])
    assert load_file(tmp_path / "p" / "adapter_model.safetensors")
    assert not [*tmp_path.rglob("*.bin"), *tmp_path.rglob("*.pt")]


def test_it_repeats_and_what_is_finished_is_not_made_again(tiny_model, tmp_path):
    first = trained(tiny_model, tmp_path / "a")
    assert numbers(trained(tiny_model, tmp_path / "b")) == numbers(first)
    assert trained(tiny_model, tmp_path / "a", resume=True) == first, "with its clocks: nothing ran"
    assert numbers(trained(tiny_model, tmp_path / "a", temperature=0.5, resume=True)) != numbers(first)


def test_the_start_is_its_reference(tiny_model, tmp_path):
    trained(tiny_model, tmp_path / "start", steps=20)
    (row,) = trained(tiny_model, tmp_path / "on", steps=1, start=tmp_path / "start")
    assert row["rewards/margins"] == pytest.approx(0, abs=1e-5) and row["objective/kl"] == pytest.approx(0, abs=1e-4)


def test_another_adapter_may_be_the_reference(tiny_model, tmp_path):
    """As in A2's rounds, which go on from the policy before and are all held against the start."""
    trained(tiny_model, tmp_path / "start", steps=2)
    first = trained(tiny_model, tmp_path / "one", steps=3, start=tmp_path / "start")
    told = {"start": tmp_path / "one", "reference": tmp_path / "start"}
    (row,) = trained(tiny_model, tmp_path / "on", steps=1, **told)
    (own,) = trained(tiny_model, tmp_path / "own", steps=1, start=tmp_path / "one")
    assert first[0]["objective/kl"] == pytest.approx(0, abs=1e-4) and own["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert abs(row["objective/kl"]) > 1e-3, "held against the start, from which it is away already"
    assert trained(tiny_model, tmp_path / "on", steps=1, **told | {"reference": tmp_path / "one"}, resume=True) != [row]


def test_rounds_of_sampling_go_on_from_one_another(tiny_model, tmp_path):
    trained(tiny_model, tmp_path / "start", steps=2)
    told = tmp_path / "online", SETTINGS.changed(max_steps=2), 3, True, 6
    history = sample_in_rounds(tiny_model, tmp_path / "start", PROMPTS, count_e, *told)
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    away = [abs(row["objective/kl"]) for row in history]
    assert away[0] < 1e-4 < min(away[2], away[4]), "later rounds are held against the start, not against themselves"
    assert sample_in_rounds(tiny_model, tmp_path / "start", PROMPTS, count_e, *told) == history, "nothing ran again"


def test_a_set_without_prompts_is_refused(tiny_model, tmp_path):
    with pytest.raises(InputError, match="missing columns: prompt"):
        train_online_dpo(tiny_model, Dataset.from_list([{"asked": "x"}]), count_e, tmp_path, SETTINGS, 6)


def test_a_reward_that_is_no_number_stops_it(tiny_model, tmp_path):
    """The trainer itself would take it for nothing."""

    def broken(prompts, completions, **columns):
        return [float("nan")] * len(completions)

    with pytest.raises(InputError, match="broken: the reward of row 0 is nan; it must be a finite number"):
        train_online_dpo(tiny_model, PROMPTS, broken, tmp_path / "p", SETTINGS, 6)
    assert not (tmp_path / "p").exists()
