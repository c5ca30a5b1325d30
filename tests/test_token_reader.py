"""What token rewards read: drafts first, answers behind the prompt, one line for whatever is wrong."""

import pytest
from tiny_bert import write_tiny_bert

from srmir_lib.conversations import assistant_message, conversation_ids
from srmir_lib.errors import InputError
from srmir_lib.models.trunk import Trunk
from srmir_lib.studies.a1_token_rewards.reader import Reader, invocation_tokens

PROMPTS = ["open the door", "help me", "open the red door then check that it is done", "help me"]
ANSWERS = ["no", "first get ready, then open it.", "yes", "I can not"]


@pytest.fixture(scope="module")
def reader(tiny_model) -> Reader:
    return Reader(Trunk.load(tiny_model, "cpu"), "", 128)


def test_answers_hold_every_token_behind_the_prompt(reader):
    answers = reader.answers(PROMPTS, ANSWERS)
    whole = conversation_ids(reader.trunk.tokenizer, PROMPTS, ANSWERS)
    assert [p + t for p, t in zip(answers.prompts, answers.tails, strict=True)] == whole
    for tail, answer in zip(answers.tails, ANSWERS, strict=True):
        assert reader.trunk.tokenizer.decode(tail[: reader.opening]) == "<|assistant|>"
        assert reader.trunk.tokenizer.decode(tail[reader.opening :]) == f"{answer}<|end|>"


def test_drafts_come_before_the_prompt(tiny_model):
    asking = Reader(Trunk.load(tiny_model, "cpu"), 'why refuse " {prompt} " ?', 256, draft_tokens=4)
    text = asking.trunk.tokenizer.decode(asking.answers(["help me"], ["no"]).prompts[0])
    assert text.startswith('<|user|>why refuse " help me " ?<|end|><|assistant|>') and text.endswith("help me<|end|>")


@pytest.mark.parametrize(
    "prompts, completions, message",
    [
        (["a", "b"], ["yes", " "], "answer of row 1 is empty"),
        (["a", "b"], ["yes"], "1 for 2 prompts"),
        (["a"], ["yes " * 200], "row 0: .* exceed max_length 128"),
    ],
)
def test_bad_answers_are_refused_in_one_line(reader, prompts, completions, message):
    with pytest.raises(InputError, match=message) as caught:
        reader.answers(prompts, completions)
    assert "\n" not in str(caught.value)


def test_an_encoder_is_refused_with_the_reason(tmp_path):
    folder = write_tiny_bert(tmp_path / "bert")
    with pytest.raises(InputError, match="encoder: its state of a token has seen what follows") as caught:
        Reader(Trunk.load(folder, "cpu"), "", 64)
    assert "\n" not in str(caught.value)


def test_pairs_are_all_chosen_then_all_rejected(reader):
    rows = {"prompt": ["help me", "open it"], "chosen": ["yes", "no"], "rejected": ["a", "b"]}
    for side in ("chosen", "rejected"):
        rows[side] = [assistant_message(text) for text in rows[side]]
    pairs = reader.pairs(rows)
    texts = [reader.trunk.tokenizer.decode(tail[reader.opening : -1]) for tail in pairs.tails]
    assert texts == ["yes", "no", "a", "b"] and pairs.prompts[:2] == pairs.prompts[2:]
    assert pairs.select([3, 0]).tails == [pairs.tails[3], pairs.tails[0]]
    assert pairs.select([0, 1, 2, 3]).sha256() == pairs.sha256() != pairs.select([1, 0, 2, 3]).sha256()


def test_an_empty_answer_is_one_token_for_a_policy(reader):
    (tail,) = reader.answers(["help me"], [""], allow_empty=True).tails
    assert tail[reader.opening :] == [reader.trunk.tokenizer.eos_token_id]


def test_a_template_without_a_generation_prompt_is_refused(reader):
    class Silent:
        def apply_chat_template(self, chat, **options):
            return [1, 2, 3]

    assert invocation_tokens(reader.trunk.tokenizer) == reader.invocation
    with pytest.raises(InputError, match="no generation prompt"):
        invocation_tokens(Silent())
