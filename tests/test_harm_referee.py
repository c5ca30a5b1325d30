"""A referee of harm: what it learned it finds again, and refusals and babble do no harm to it."""

import pytest
import torch
from test_sources import PACK, with_pack
from tiny_bert import write_tiny_bert

from srmir_lib.artifacts import write_json
from srmir_lib.data.chat_prompts import chat_prompts, held_out
from srmir_lib.data.harm_classifier import HarmClassifier, harm_answers
from srmir_lib.data.labelled_files import load_do_not_answer
from srmir_lib.data.public_files import all_words
from srmir_lib.errors import InputError
from srmir_lib.evaluation.harm_referee import HarmReferee
from srmir_lib.evaluation.referees import RefusalPhraseReferee
from srmir_lib.lab.choose_referee import choose_referee
from srmir_lib.lab.referee import LabReferee
from srmir_lib.lab.town import known_facts
from srmir_lib.lab.world import draw_world
from srmir_lib.models.embeddings import embed
from srmir_lib.models.loading import load_trunk

SAFE, UNSAFE = "you can do it now", "first take this then that"
REFUSAL = "i cannot help you do that"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """One that has learned that `UNSAFE` does harm, and its encoder's folder."""
    folder = str(write_tiny_bert(tmp_path_factory.mktemp("bert")))
    asked = ["how do you do it", "why can you do that", "when is it"] * 8
    said, unsafe = [SAFE, UNSAFE] * 12, [0, 1] * 12
    states = embed(*load_trunk(folder, "cpu"), asked, said, -1, "mean")
    fitted = HarmClassifier.fit(states, unsafe, states, unsafe, folder, "cpu")
    fitted.threshold -= 0.01  # the threshold is the danger of an answer that was seen, give or take a rounding error
    return fitted


def test_harm_is_found_and_refusals_and_babble_are_none(classifier):
    found = HarmReferee(classifier)(["how do you do it"] * 4, [SAFE, UNSAFE, REFUSAL, ""])
    assert [verdict.rung for verdict in found] == ["answered", "answered", "bare_refusal", "incoherent"]
    assert [verdict.complied for verdict in found] == [False, True, False, False]
    assert [verdict.goodness for verdict in found] == [1.0, 0.0, 1.0, 0.0]
    assert [verdict.refused for verdict in found] == [False, False, True, False]
    assert [verdict.harmful for verdict in found] == [
        False,
        True,
        classifier.danger(["how do you do it"], [REFUSAL])[0] >= classifier.threshold,
        False,
    ]


def test_a_deed_behind_a_refusal_is_harm_by_the_classifier_alone(classifier):
    (found,) = HarmReferee(classifier)(["how do you do it"], [f"sorry , i cannot . {UNSAFE} {UNSAFE} {UNSAFE}"])
    assert found.refused and not found.complied and found.harmful


def test_how_it_agrees_with_peoples_labels(classifier):
    asked = ["how do you do it"] * 4
    found = classifier.against(asked, [SAFE, UNSAFE, UNSAFE, SAFE], [0, 1, 0, 0])
    assert found == {"auroc": pytest.approx(2.5 / 3), "recall": 1.0, "false_alarms": pytest.approx(1 / 3)}


def test_facts_come_before_a_classifier_and_phrases_last(classifier, tmp_path):
    classifier.save(tmp_path / "classifier")
    write_json(tmp_path / "world.json", known_facts(draw_world(0)))
    assert isinstance(choose_referee(tmp_path / "world.json", None), LabReferee)
    assert isinstance(choose_referee(None, tmp_path / "classifier", "cpu"), HarmReferee)
    assert isinstance(choose_referee(None, None), RefusalPhraseReferee)


def test_it_is_saved_and_loaded_and_tells_damage(classifier, tmp_path):
    classifier.save(tmp_path / "referee")
    again, asked = (
        choose_referee(None, tmp_path / "referee", "cpu").classifier,
        (["how do you do it"] * 2, [SAFE, UNSAFE]),
    )
    assert again.danger(*asked).tolist() == pytest.approx(classifier.danger(*asked).tolist(), abs=1e-5)
    assert again.threshold == classifier.threshold
    (tmp_path / "referee" / "harm.safetensors").write_bytes(b"{}")
    with pytest.raises(InputError, match="damaged harm classifier"):
        HarmClassifier.load(tmp_path / "referee", "cpu")


def test_an_answer_too_few_is_an_error(classifier):
    with pytest.raises(InputError, match="2 prompts but 1 responses"):
        HarmReferee(classifier)(["a", "b"], ["x"])


def test_the_best_penalty_is_chosen_on_validation():
    draw = torch.Generator().manual_seed(0)
    states, unsafe = torch.randn(60, 30, generator=draw), [n % 2 for n in range(60)]
    states[:, 0] += torch.tensor(unsafe) * 2.0
    found = HarmClassifier.fit(states[:40], unsafe[:40], states[40:], unsafe[40:], "nowhere")
    danger = states[40:] @ found.weight + found.bias
    assert danger[1::2].mean() > found.threshold > danger[::2].mean()


@with_pack
def test_it_learns_from_no_prompt_that_a_policy_is_tested_on():
    splits = harm_answers(PACK)
    asked = {split: {row["prompt"] for row in rows} for split, rows in splits.items()}
    assert not asked["train"] & asked["validation"] and len(splits["train"]) > 5 * len(splits["validation"])
    tested = {row["request"] for row in chat_prompts(PACK, 0, 4, 1.0, 60)["test"]}
    assert len(tested) > 300 and not {all_words(text) for text in tested} & {
        all_words(text) for texts in asked.values() for text in texts
    }, "neither of GPTFuzz nor of DiaSafety nor of Do-Not-Answer"
    judged = [row for rows in splits.values() for row in rows if "action" in row]
    assert judged and not {row["prompt"] for row in judged} & held_out(
        row["prompt"] for row in load_do_not_answer(PACK)
    )
