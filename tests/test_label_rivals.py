"""What labels of people teach on a frozen model: planted in the words, found in the states."""

from types import SimpleNamespace

import pytest
import torch

from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data.router import PromptEncoder
from srmir_lib.evaluation.label_rivals import _routed_and_said, label_rivals
from srmir_lib.evaluation.spoken import says_yes, scored_and_said
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.probes import Probes
from srmir_lib.reward_models.readouts import ReadOuts
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.reward_models.shared import SharedScorer
from srmir_lib.settings.reward_training import SizedProbe
from srmir_lib.statistics import auroc


def answers(count: int, at: int) -> dict[str, list]:
    """Safe and unsafe answers in turn, which differ in one word."""
    words = [f"{'burn' if number % 2 else 'wash'} the letter {number + at}" for number in range(count)]
    prompts = [user_message(f"what of letter {number + at} ?") for number in range(count)]
    return {
        "prompt": prompts,
        "completion": list(map(assistant_message, words)),
        "unsafe": [n % 2 for n in range(count)],
    }


def blind(*categories: str) -> ShadowRewardModels:
    """Models of another design that score every answer alike."""
    scorer = SimpleNamespace(
        score=lambda prompts, completions, columns=None: torch.zeros(len(prompts), len(categories))
    )
    models = ShadowRewardModels(scorer, categories, "separate")
    models.calibration = Calibration(categories, (0.0,) * len(categories), (1.0,) * len(categories), 2)
    return models


def test_labels_teach_read_outs_and_regressions(tiny_model, tmp_path):
    trunk = Trunk.load(tiny_model, "cpu")
    labelled = {"train": answers(40, 0), "validation": answers(20, 100), "test": answers(20, 200)}
    labelled = {name: rows | {"category": ["crimes"] * len(rows["prompt"])} for name, rows in labelled.items()}
    models = {"shadow_rms": blind("crimes", "privacy"), "single_rm": blind("all")}
    reader = PromptEncoder(base_model=str(tiny_model), pooling="mean")
    danger, chosen = label_rivals(trunk, models, reader, labelled, tmp_path / "readouts", "<|user|>is it bad ?<|end|>")
    assert set(danger) == {"models", "one_model", "says", "readouts", "states", "encoder"}
    assert all(set(found) == {"validation", "test"} for found in danger.values()), "the train split taught them"
    found = {name: auroc(by_split["test"], labelled["test"]["unsafe"]) for name, by_split in danger.items()}
    assert (
        found["models"] == found["one_model"] == 0.5
        and min(found[name] for name in ("readouts", "states", "encoder")) > 0.9
    )
    saved = ReadOuts.load(tmp_path / "readouts", trunk.sha256)
    assert saved.layers == chosen["readouts"]["layers"] and set(chosen) == {"readouts", "states", "encoder"}


def test_a_run_that_begins_again_reads_nothing_twice(tiny_model, tmp_path, monkeypatch):
    trunk = Trunk.load(tiny_model, "cpu")
    labelled = {"train": answers(40, 0), "validation": answers(20, 100), "test": answers(20, 200)}
    labelled = {name: rows | {"category": ["crimes"] * len(rows["prompt"])} for name, rows in labelled.items()}
    models = {"shadow_rms": blind("crimes", "privacy"), "single_rm": blind("all")}
    known = trunk, models, PromptEncoder(base_model=str(tiny_model), pooling="mean"), labelled, tmp_path / "readouts"
    how = "<|user|>is it bad ?<|end|>", 0, tmp_path / "kept"
    first, chosen = label_rivals(*known, *how)
    for reading in ("embed_layers", "embed", "_routed_and_said"):
        monkeypatch.setattr(f"srmir_lib.evaluation.label_rivals.{reading}", lambda *_: pytest.fail("read again"))
    again, once_more = label_rivals(*known, *how)
    assert once_more == chosen
    assert all((again[name][split] == first[name][split]).all() for name in first for split in first[name])


def test_the_seven_are_put_on_one_scale_before_they_rank_answers_of_all_categories(tiny_model, tmp_path):
    """Crimes scores in hundreds, privacy in ones; raw, every answer about crimes would seem the safer."""
    trunk, parts = Trunk.load(tiny_model, "cpu"), {"train": 40, "validation": 20, "test": 20}
    labelled = {name: answers(count, at * 100) for at, (name, count) in enumerate(parts.items())}
    labelled = {
        n: rows | {"category": ["crimes", "privacy", "privacy", "crimes"] * (parts[n] // 4)}
        for n, rows in labelled.items()
    }
    seven = blind("crimes", "privacy")

    def scores(prompts, completions, columns=None):
        good = torch.tensor([float("wash" in said[0]["content"]) for said in completions])
        return torch.stack([100 * good + 500, good], dim=1)

    seven.scorer.score = scores
    seven.calibration = Calibration(("crimes", "privacy"), (550.0, 0.5), (50.0, 0.5), 2)
    models, reader = {"shadow_rms": seven, "single_rm": blind("all")}, PromptEncoder(base_model=str(tiny_model))
    danger, _ = label_rivals(trunk, models, reader, labelled, tmp_path / "readouts", "<|user|>is it bad ?<|end|>")
    assert auroc(danger["models"]["test"], labelled["test"]["unsafe"]) == 1.0


def test_what_a_model_says_is_its_own_next_word(tiny_model):
    trunk, asked = Trunk.load(tiny_model, "cpu"), "<|user|>is it bad ?<|end|><|assistant|>"
    rows = answers(6, 0)
    rows["completion"][2] = assistant_message("wash " * 40)
    said = says_yes(trunk, rows["prompt"], rows["completion"], asked)
    yes, no = (trunk.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    for prompt, answer, value in zip(rows["prompt"], rows["completion"], said, strict=True):
        text = trunk.tokenizer.apply_chat_template(prompt + answer, tokenize=False) + asked
        ids = trunk.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            odds = trunk.model(ids).logits[0, -1].log_softmax(-1)
        assert value == pytest.approx((odds[yes] - odds[no]).item(), abs=1e-4)
    assert len({round(value, 3) for value in said}) == 6


def two_and_one(trunk: Trunk) -> dict[str, ShadowRewardModels]:
    """Untrained probes on a trunk: of two categories, and of all."""
    sets = {}
    for seed, (name, own) in enumerate({"shadow_rms": ["crimes", "privacy"], "single_rm": ["all"]}.items()):
        probes = Probes(trunk, own, SizedProbe(text="is it {category} ?"), seed)
        sets[name] = ShadowRewardModels(SharedScorer(trunk, probes), own, "shared")
    return sets


def test_probes_and_the_spoken_question_share_one_reading(tiny_model, monkeypatch):
    trunk, rows, asked = Trunk.load(tiny_model, "cpu"), answers(6, 0), "<|user|>is it bad ?<|end|><|assistant|>"
    sets = two_and_one(trunk)
    texts = rows["prompt"], rows["completion"]
    expected = {name: models.score(*texts) for name, models in sets.items()}, says_yes(trunk, *texts, asked)
    read, prefill = [], trunk.prefill
    monkeypatch.setattr(trunk, "prefill", lambda *given: read.append(1) or prefill(*given))
    scores, said = scored_and_said(sets, trunk, *texts, asked)
    assert len(read) == 1
    for name, found in scores.items():
        assert torch.allclose(found, expected[0][name], atol=1e-5) and found.std() > 1e-4
    assert said == pytest.approx(expected[1], abs=1e-4)


def test_who_is_in_charge_scores_as_when_all_are_asked(tiny_model, monkeypatch):
    trunk, rows, asked = Trunk.load(tiny_model, "cpu"), answers(6, 0), "<|user|>is it bad ?<|end|><|assistant|>"
    sets = two_and_one(trunk)
    sets["shadow_rms"].calibration = Calibration(("crimes", "privacy"), (0.5, -0.5), (2.0, 0.5), 2)
    texts, labels = (
        (rows["prompt"], rows["completion"]),
        ["privacy", "unknown", "crimes", "crimes", "unknown", "privacy"],
    )
    scores, said = scored_and_said(sets, trunk, *texts, asked)
    alike = sets["shadow_rms"].calibration.apply(scores["shadow_rms"])
    wanted = [-alike[row].mean() if at is None else -alike[row, at] for row, at in enumerate([1, None, 0, 0, None, 1])]
    counted, forward = [], Probes.forward

    def noted(self, trunk, states, columns=None):
        counted.append((len(self.categories), len(states), columns is not None))
        return forward(self, trunk, states, columns)

    monkeypatch.setattr(Probes, "forward", noted)
    routed, one, says = _routed_and_said(sets, trunk, *texts, asked, labels)
    assert routed == pytest.approx(torch.stack(wanted).numpy(), abs=1e-4)
    assert one == pytest.approx(-scores["single_rm"][:, 0].numpy(), abs=1e-4) and says == pytest.approx(said, abs=1e-4)
    alone = sum(texts for models, texts, charged in counted if models == 2 and charged)
    assert alone == 4, "of the four prompts with a category one model of two was asked"


def test_without_a_trunk_there_are_no_rivals(tmp_path):
    assert label_rivals(None, {}, None, {}, tmp_path, "") == ({}, {})
