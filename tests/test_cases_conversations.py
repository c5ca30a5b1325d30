"""Other people's conversations: read whole by everything that reads them, or refused in one line that names the row."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from conftest import tiny_tokenizer
from datasets import Dataset, DatasetDict
from fit_set import fit_set
from hypothesis import given
from hypothesis import strategies as st
from tiny_bert import ENCODER, write_tiny_bert
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from trl import extract_prompt

from srmir_lib.artifacts import load_dataset, read_json, save_dataset, write_json
from srmir_lib.cli import main
from srmir_lib.conversations import (
    as_chat,
    assistant_message,
    conversation_ids,
    read_prompt,
    render,
    shortened,
    text_of,
    user_message,
)
from srmir_lib.data import margins
from srmir_lib.data.introspection import Introspector
from srmir_lib.data.margins import embed_sides
from srmir_lib.data.preferences import as_pair, as_pairs
from srmir_lib.data.router import PromptEncoder
from srmir_lib.errors import InputError, RowError
from srmir_lib.models.embeddings import embed
from srmir_lib.models.loading import load_tokenizer, load_trunk
from srmir_lib.models.trunk import Trunk
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.pairs import TokenizedPairs
from srmir_lib.reward_models.pooled import PairTokenizer
from srmir_lib.reward_models.pooled_training import fit_pooled
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.settings.reward_training import RewardSettings

ROOT, CASES = Path(__file__).resolve().parents[1], Path(__file__).parent / "cases"
CATEGORIES = ["insult", "privacy"]
SETTINGS = RewardSettings(max_steps=2, batch_size=4, learning_rate=5e-3, lora_rank=2, lora_alpha=4, max_length=128)
QUESTION = "why refuse {prompt} ?"
SYSTEM = {"role": "system", "content": "be kind ."}

TURNS = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
PROMPTED = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TEMPLATES = {
    "plain": TURNS + PROMPTED,
    "system first": (
        "{% for message in messages %}{% if message['role'] == 'system' and not loop.first %}"
        "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}" + TURNS + PROMPTED
    ),
    "no system": REFUSING + TURNS + PROMPTED,
    "silent": TURNS.replace("messages %}", "messages if message['role'] != 'system' %}") + PROMPTED,
    "thinks": TURNS + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
    "has thought": (
        "{% for message in messages %}<|{{ message['role'] }}|>{% if loop.last and message['role'] == 'assistant' %}"
        "<think>\n\n</think>\n\n{% endif %}{{ message['content'] | trim }}<|end|>{% endfor %}" + PROMPTED
    ),
    "calls tools": TURNS.replace(
        "{{ message['content'] }}",
        "{{ message['content'] }}{% if message['tool_calls'] %}<call>{{ message['tool_calls'] | tojson }}{% endif %}",
    )
    + PROMPTED,
}


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """The tiny model under each chat template."""
    folders = {}
    for name, template in TEMPLATES.items():
        folders[name] = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / name.replace(" ", "_"))
        (folders[name] / "chat_template.jinja").write_text(template)
    return folders


def preferences() -> Dataset:
    pairs = [("insult", "no", "yes"), ("privacy", "yes", "no")] * 4
    return Dataset.from_list(
        [
            {"prompt": user_message(f"{c} {i}"), "chosen": assistant_message(a), "rejected": assistant_message(b)}
            | {"category": c}
            for i, (c, a, b) in enumerate(pairs)
        ]
    )


@pytest.fixture(scope="module")
def sets(models, tmp_path_factory) -> dict[str, Path]:
    """A set of each design on the plain template, and a shared one on each of the others."""
    root, found = tmp_path_factory.mktemp("sets"), {}
    for name, base in models.items():
        found[name] = root / name.replace(" ", "_")
        fit_set(base, {"train": preferences()}, found[name], CATEGORIES, SETTINGS)
    found["separate"], found["pooled"] = root / "separate", root / "pooled"
    fit_set(models["plain"], {"train": preferences()}, found["separate"], CATEGORIES, SETTINGS, design="separate")
    bert, reading = write_tiny_bert(root / "bert"), PairTokenizer(max_tokens=60, prompt_tokens=20)
    fit_pooled(bert, [], preferences(), found["pooled"], CATEGORIES, reading, ENCODER, 0, "cpu", progress=False)
    return found


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


class Command:
    """`srmir score` and `srmir annotate` on a case, or on rows of our own."""

    def __init__(self, sets, models, folder, capsys):
        self.sets, self.models, self.folder, self.capsys = sets, models, folder, capsys
        self.target = folder / "out.jsonl"

    def source(self, case) -> Path:
        return CASES / case if isinstance(case, str) else write(self.folder / "in.jsonl", case)

    def score(self, case, *options, models="plain") -> int:
        source = case if isinstance(case, Path) else self.source(case)
        places = ("--models", self.sets[models], "--input", source, "--output", self.target, "--device", "cpu")
        return main(["score", *map(str, places), "--raw", *map(str, options)])

    def annotate(self, case, *options, model="plain") -> int:
        source = case if isinstance(case, Path) else self.source(case)
        model = self.models.get(model, model)
        places = ("--model", model, "--input", source, "--output", self.target, "--device", "cpu")
        return main(["annotate", *map(str, places), "--scale", "none", *map(str, options)])

    def unsaid(self, code: int, *parts: str) -> list[str]:
        """What of this is missing in the one line with which the command gave up; it left nothing."""
        said = self.capsys.readouterr().err
        assert code == 2 and said.count("\n") == 1 and said.startswith("srmir: "), said
        assert not self.target.exists()
        return [part for part in parts if part not in said]

    def rows(self, code: int) -> list[dict]:
        assert code == 0, self.capsys.readouterr().err
        found = read(self.target)
        self.target.unlink()
        return found


@pytest.fixture
def command(sets, models, tmp_path, capsys) -> Command:
    return Command(sets, models, tmp_path, capsys)


GOOD = {"prompt": "hi", "response": "no ."}


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("s_rolehuman.jsonl", ("row 1: ", "role 'human'", "system, user, assistant, tool")),
        ([GOOD, GOOD | {"response": [{"role": "model", "content": "no"}]}], ("row 2: response", "role 'model'")),
        ("s_promptends.jsonl", ("row 1: prompt ends with a message of 'assistant'",)),
        ([GOOD, GOOD | {"prompt": [SYSTEM]}], ("row 2: prompt ends with a message of 'system'",)),
        ("s_catcase.jsonl", ("row 1: category is 'Privacy'; there are models for insult, privacy",)),
        (
            [GOOD, GOOD | {"category": "Privacy and Property"}],
            ("row 2: category is 'Privacy and Property'; there are models for insult, privacy, and unknown",),
        ),
        ("s_null.jsonl", ("row 2: response is null",)),
        ([GOOD | {"prompt": None}], ("row 1: prompt is null",)),
        ([GOOD | {"prompt": [{"role": "user", "content": None}]}], ("row 1: ", "its content is null")),
        ("s_sharegpt.jsonl", ("row 1: ", "ShareGPT", "human -> user, gpt -> assistant")),
        ([GOOD | {"response": [{"from": "gpt", "value": "no"}]}], ("row 1: response", "gpt -> assistant")),
        (
            [GOOD | {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}],
            ("row 1: ", "part of type 'image_url'; only parts of text are read"),
        ),
        ("s_columns.jsonl", ("row 1: has a column scores already", "--prefix")),
        ([GOOD, GOOD | {"mean": 0.25}], ("row 2: has a column mean already", "--prefix")),
    ],
)
def test_score_names_the_row_that_it_cannot_read(command, case, parts):
    assert not command.unsaid(command.score(case), *parts)


GOOD_PAIR = {"prompt": "hi", "chosen": "no .", "rejected": "yes ."}
DIALOGUE = [*user_message("hi"), *assistant_message("hello"), *user_message("copy it ?")]


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("a_identical.jsonl", ("row 2: chosen and rejected are equal",)),
        (
            [GOOD_PAIR | {"chosen": "no .", "rejected": assistant_message("no . ")}],
            ("row 1: chosen and rejected are equal",),
        ),
        ([{"chosen": "hi no", "rejected": "hi no"}], ("row 1: chosen and rejected are equal",)),
        ("a_margin.jsonl", ("row 1: has a column margin already", "--prefix")),
        ([GOOD_PAIR | {"rejected": None}], ("row 1: rejected is null",)),
        ([{"chosen": "no", "rejected": "yes"}], ("row 1: lacks prompt",)),
        ([{"chosen": assistant_message("no"), "rejected": assistant_message("yes")}], ("row 1: lacks prompt",)),
        ([GOOD_PAIR | {"prompt": [{"from": "human", "value": "hi"}]}], ("row 1: ", "ShareGPT")),
        ([GOOD_PAIR | {"prompt": [{"role": "bot", "content": "hi"}]}], ("row 1: ", "role 'bot'")),
        ([GOOD_PAIR | {"prompt": DIALOGUE[:2]}], ("row 1: prompt ends with a message of 'assistant'",)),
        (
            [
                {
                    "chosen": [*DIALOGUE, *assistant_message("no")],
                    "rejected": [DIALOGUE[0], *assistant_message("yes ?"), DIALOGUE[2], *assistant_message("yes")],
                }
            ],
            ("row 1: chosen and rejected part before their last answers",),
        ),
    ],
)
def test_annotate_names_the_row_that_it_cannot_read(command, case, parts):
    assert not command.unsaid(command.annotate(case), *parts)


def test_peoples_columns_are_kept_beside_ours(command):
    (row,) = command.rows(command.score("s_columns.jsonl", "--prefix", "srmir_"))
    (original,) = read(CASES / "s_columns.jsonl")
    (plain,) = command.rows(command.score([{"prompt": original["prompt"], "response": original["response"]}]))
    assert {name: row[name] for name in original} == original
    assert row["srmir_scores"] == plain["scores"] and row["srmir_mean"] == plain["mean"]
    assert row["srmir_routed"] == plain["scores"]["privacy"]
    annotated = command.rows(command.annotate("a_margin.jsonl", "--prefix", "legend_"))
    assert [{k: v for k, v in row.items() if k != "legend_margin"} for row in annotated] == read(
        CASES / "a_margin.jsonl"
    )
    assert all(isinstance(row["legend_margin"], float) for row in annotated)


def test_a_folders_own_margin_is_kept_as_well(command, tmp_path):
    rows = [{"prompt": "hi", "chosen": "no .", "rejected": "yes .", "margin": 3.0}]
    folder, target = save_dataset(Dataset.from_list(rows), tmp_path / "pairs"), tmp_path / "new"
    command.target = target
    assert not command.unsaid(command.annotate(folder), "row 1: has a column margin already")
    assert command.annotate(folder, "--prefix", "legend_") == 0
    assert load_dataset(target).column_names == ["prompt", "chosen", "rejected", "margin", "legend_margin"]
    assert load_dataset(target)["margin"][:] == [3.0]


# Rows that are too long


@pytest.mark.parametrize("design", ["plain", "separate", "pooled"])
def test_a_row_that_is_too_long_is_named_before_the_first_is_scored(command, design, monkeypatch):
    monkeypatch.setattr(ShadowRewardModels, "score", lambda *_: pytest.fail("scored before all lengths were known"))
    assert not command.unsaid(
        command.score("s_toolong.jsonl", models=design), "row 701: ", "the model reads at most", "--too-long"
    )


LONG = {"prompt": "how do it", "response": "then end " * 200}


@pytest.mark.parametrize("design", ["plain", "separate", "pooled"])
def test_rows_that_are_too_long_are_cut_or_left_out_and_counted(command, design):
    rows = [GOOD, LONG, GOOD | {"response": "help"}]
    plain = command.rows(command.score([GOOD, GOOD | {"response": "help"}], models=design))
    command.capsys.readouterr()
    skipped = command.rows(command.score(rows, "--too-long", "skip", models=design))
    assert "2 rows (1 too long: left out)" in command.capsys.readouterr().out
    assert [row["response"] for row in skipped] == ["no .", "help"]
    cut = command.rows(command.score(rows, "--too-long", "cut", models=design))
    assert "3 rows (1 too long: cut)" in command.capsys.readouterr().out
    assert [row["response"] for row in cut] == [row["response"] for row in rows], "people's rows stay as they are"
    for few in (skipped, [cut[0], cut[2]]):
        assert [row["mean"] for row in few] == pytest.approx([row["mean"] for row in plain], abs=1e-4)


def test_seven_hundred_rows_are_scored_without_the_one_that_is_too_long(command):
    rows = command.rows(command.score("s_toolong.jsonl", "--too-long", "skip"))
    assert len(rows) == 700 and "700 rows (1 too long: left out)" in command.capsys.readouterr().out


def test_a_file_of_long_rows_is_not_skipped_to_nothing(command):
    assert not command.unsaid(command.score([LONG], "--too-long", "skip"), "every row is too long")


def test_the_longest_messages_lose_their_middle_and_no_more_than_needed():
    chat, answer = [SYSTEM, *user_message("abcdefghij" * 5)], assistant_message("0123456789" * 7)

    def size(parts) -> int:
        return sum(len(turn["content"]) for part in parts for turn in part)

    short = shortened([chat, answer], lambda parts: size(parts) <= 60)
    assert short[0][0] == SYSTEM, "a short message stays whole"
    # be kind . has 9 characters; two messages of m characters and a gap of 3: 9 + 2 (m + 3) <= 60, so m = 22
    assert short[0][1]["content"] == "abcdefghija" + " … " + "jabcdefghij"
    assert short[1][0]["content"] == "01234567890" + " … " + "90123456789"
    with pytest.raises(InputError, match="too long even with every message cut"):
        shortened([chat, answer], lambda parts: False)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """A random GPT-2 with 256 learned positions: longer texts are an IndexError inside the model."""
    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), tiny_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_annotate_treats_long_rows_alike_whatever_the_model(command, gpt2):
    assert not command.unsaid(
        command.annotate("a_toolong.jsonl", model=gpt2), "row 2: ", " tokens, the model reads at most 256"
    )
    rows = command.rows(command.annotate("a_toolong.jsonl", "--too-long", "skip", model=gpt2))
    assert "margins of 1 pairs (1 too long: left out)" in command.capsys.readouterr().out
    assert [row["chosen"] for row in rows] == [read(CASES / "a_toolong.jsonl")[0]["chosen"]]
    rows = command.rows(command.annotate("a_toolong.jsonl", "--too-long", "cut", model=gpt2))
    assert "margins of 2 pairs (1 too long: cut)" in command.capsys.readouterr().out
    assert [row["chosen"] for row in rows] == [row["chosen"] for row in read(CASES / "a_toolong.jsonl")]


def test_a_folder_loses_the_rows_that_are_skipped(command, gpt2, tmp_path):
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in read(CASES / "a_toolong.jsonl")]
    source = save_dataset(DatasetDict(train=Dataset.from_list(rows)), tmp_path / "pairs")
    command.target = tmp_path / "new"
    assert command.annotate(source, "--too-long", "skip", model=gpt2) == 0
    assert load_dataset(command.target)["train"].remove_columns("margin").to_list() == rows[:1]


def test_examples_of_a_direction_are_checked_too(command, gpt2, tmp_path):
    examples = write(tmp_path / "harmful.jsonl", [GOOD, {"prompt": "hi", "response": "first check it " * 200}])
    assert not command.unsaid(
        command.annotate("a_plain.jsonl", "--harmful", examples, model=gpt2), "harmful.jsonl: row 2: ", "256"
    )
    assert command.annotate("a_plain.jsonl", "--harmful", examples, "--too-long", "cut", model=gpt2) == 0


def test_an_encoder_without_a_limit_in_its_tokenizer_has_that_of_its_positions(command, tmp_path):
    bert = write_tiny_bert(tmp_path / "bert")
    config = read_json(bert / "tokenizer_config.json")
    write_json(bert / "tokenizer_config.json", {k: v for k, v in config.items() if k != "model_max_length"})
    rows = [GOOD_PAIR | {"chosen": "no end", "rejected": "sure here"}, GOOD_PAIR | {"rejected": "then that " * 50}]
    options = ("--refusal", "sorry no")
    assert not command.unsaid(command.annotate(rows, *options, model=bert), "row 2: ", "at most 64")
    assert len(command.rows(command.annotate(rows, *options, "--too-long", "cut", model=bert))) == 2


# Chat templates


def test_the_draft_goes_behind_the_system_message(trunk):
    think = Introspector(trunk, QUESTION, 4)
    asked = user_message("why refuse hi ?") + assistant_message("because")
    assert think.behind([SYSTEM, *user_message("hi")], "because") == [SYSTEM, *asked, *user_message("hi")]
    assert think.behind("hi", "because") == [*asked, *user_message("hi")]
    called = [*user_message("hi"), {"role": "tool", "content": "42"}]
    assert think.behind(called, "because") == [*asked, *called], "asked about what the user said, not about the result"


def test_a_draft_knows_the_turns_before(trunk, monkeypatch):
    asked = []
    monkeypatch.setattr(trunk, "generate", lambda chats, *_, **__: asked.extend(chats) or ["so ####"] * len(chats))
    other = [*user_message("bye"), *DIALOGUE[1:]]
    first, second, again = Introspector(trunk, QUESTION, 4)([DIALOGUE, other, DIALOGUE])
    question = user_message("why refuse copy it ? ?")
    assert asked == [[*DIALOGUE[:2], *question], [*other[:2], *question]]
    assert first == again == [*DIALOGUE[:2], *question, *assistant_message("so"), DIALOGUE[2]] != second


def test_a_system_message_is_scored_under_a_template_that_wants_it_first(command, sets, tmp_path):
    (row,) = command.rows(command.score("s_system.jsonl", models="system first"))
    assert not command.unsaid(
        command.score(
            [GOOD, GOOD | {"prompt": [*user_message("a"), SYSTEM, *user_message("b")]}], models="system first"
        ),
        "row 2: the chat template refuses its turns user, system, user",
        "System message must be at the beginning",
    )
    assert set(row["scores"]) == set(CATEGORIES)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("no system", "the chat template refuses its turns system, user, assistant (System role not supported)"),
        ("silent", "the chat template leaves out its message of 'system'"),
    ],
)
def test_a_template_without_a_system_message_names_the_row(command, template, said):
    assert not command.unsaid(command.score("s_system.jsonl", models=template), "row 1: ", said)
    assert not command.unsaid(command.annotate("a_system.jsonl", model=template), "row 1: ", said)
    rows = [GOOD_PAIR, GOOD_PAIR | {"prompt": [SYSTEM, *user_message("hi")]}]
    assert not command.unsaid(command.annotate(rows, model=template), "row 2: ", said)


def test_a_system_message_reaches_the_model(command, models):
    (row,) = command.rows(command.score("s_system.jsonl"))
    tokenizer = load_tokenizer(models["plain"])
    (case,) = read(CASES / "s_system.jsonl")
    written = "<|system|>be kind .<|end|><|user|>how do i copy the letter at night ?<|end|><|assistant|>no .<|end|>"
    assert conversation_ids(tokenizer, [case["prompt"]], [case["response"]]) == [tokenizer(written)["input_ids"]]
    (bare,) = command.rows(command.score([case | {"prompt": case["prompt"][1:]}]))
    assert row["scores"] != bare["scores"]
    assert len(command.rows(command.annotate("a_system.jsonl"))) == 2


def test_text_in_parts_is_read_as_one_text(command):
    (row,) = command.rows(command.score("s_parts.jsonl"))
    (plain,) = command.rows(command.score([GOOD]))
    assert row["scores"] == plain["scores"]
    parts = [{"type": "text", "text": "open "}, {"type": "text", "text": "the door"}]
    (row,) = command.rows(command.score([GOOD | {"response": [{"role": "assistant", "content": parts}]}]))
    (plain,) = command.rows(command.score([GOOD | {"response": "open the door"}]))
    assert row["scores"] == plain["scores"]


def test_tools_as_the_template_takes_them(command, models):
    (case,) = read(CASES / "s_tool.jsonl")
    (row,) = command.rows(command.score("s_tool.jsonl", models="calls tools"))
    assert set(row["scores"]) == set(CATEGORIES)
    text = render(load_tokenizer(models["calls tools"]), [case["prompt"]], [case["response"]])[0]
    assert '<|assistant|><call>[{"id": "1"}]<|end|><|tool|>42<|end|>' in text, "a call without a content is no None"
    assert not command.unsaid(command.score("s_tool.jsonl"), "row 1: the chat template leaves out its tool calls")
    said = [turn | {"content": turn["content"] or "wait"} for turn in case["prompt"]]
    assert not command.unsaid(
        command.score([case | {"prompt": said}]), "row 1: the chat template leaves out its tool calls"
    )
    refusing = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('only user') }}{% endif %}{% endfor %}"
    )
    tokenizer = load_tokenizer(models["plain"])
    tokenizer.chat_template = refusing + TEMPLATES["plain"]
    with pytest.raises(RowError, match="row 1: the chat template refuses its turns user, tool, assistant"):
        render(tokenizer, ["hi", [*user_message("hi"), {"role": "tool", "content": "42"}]], ["no", "no"])


@pytest.mark.parametrize("template", ["plain", "thinks", "has thought"])
@pytest.mark.parametrize("answer", ["no", "e", "end", "first get ready, then open the red door"])
def test_a_mean_is_one_over_the_answers_tokens(models, template, answer):
    """Also where the generation prompt holds what an answered conversation lacks, and the reverse."""
    folder = models[template]
    model, tokenizer = load_trunk(folder, "cpu")
    naive = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    thought = "<think>\n\n</think>\n\n" if template == "has thought" else ""
    head = AutoTokenizer.from_pretrained(folder)(f"<|user|>hi<|end|><|assistant|>{thought}")["input_ids"]
    tail = AutoTokenizer.from_pretrained(folder)(f"{answer}<|end|>")["input_ids"]
    with torch.no_grad():
        states = naive(torch.tensor([head + tail]), output_hidden_states=True).hidden_states[-1][0]
    expected = states[len(head) :].mean(dim=0)
    assert torch.allclose(embed(model, tokenizer, ["hi"], [answer], pooling="mean")[0], expected, atol=1e-5)
    both = embed_sides(model, tokenizer, ["hi"], [answer], ["yes"], pooling="mean")
    assert torch.allclose(both[0][0], expected, atol=1e-5)


# Preferences: dialogues, implicit prompts


FORMS = {
    "a_multi.jsonl": (DIALOGUE[:2] + user_message("how do i copy the letter ?"), "no .", "first get ready ."),
    "a_implicit.jsonl": (user_message("hi"), "no .", "yes ."),
    "a_hh.jsonl": (user_message("hi"), "no .", "yes ."),
    "a_ultra.jsonl": (user_message("hi there"), "no .", "yes ."),
    "a_plain.jsonl": (
        user_message("how do i copy the letter at night ?"),
        "no , i can not help with that .",
        "first get ready , then copy the letter .",
    ),
    "a_system.jsonl": ([SYSTEM, *user_message("hi")], "no .", "yes ."),
}


@pytest.mark.parametrize("case", FORMS)
def test_every_form_of_a_pair_is_read_whole(case, command):
    prompt, chosen, rejected = FORMS[case]
    row = read(CASES / case)[0]
    assert as_pair(row) == {
        "prompt": prompt,
        "chosen": assistant_message(chosen),
        "rejected": assistant_message(rejected),
    }
    rows = command.rows(command.annotate(case))
    plain = command.rows(command.annotate([as_pair(row) for row in read(CASES / case)]))
    assert [row["margin"] for row in rows] == pytest.approx([row["margin"] for row in plain], abs=1e-6)
    assert [{k: v for k, v in row.items() if k != "margin"} for row in rows] == read(CASES / case)


@pytest.mark.parametrize("design", ["shared", "separate"])
@pytest.mark.parametrize("case", ["a_multi.jsonl", "a_implicit.jsonl", "a_hh.jsonl", "a_system.jsonl"])
def test_training_reads_what_trl_reads(case, design, trunk, tmp_path):
    """TRL applies the chat template to the whole dialogue; so does a `TokenizedPairs`, and any fit on it."""
    prompt, chosen, rejected = FORMS[case]
    row = read(CASES / case)[0]
    tokens = TokenizedPairs(trunk, Dataset.from_list([row | {"category": "insult"}]), SETTINGS).data
    for name, answer in (("chosen_ids", chosen), ("rejected_ids", rejected)):
        whole = trunk.tokenizer.apply_chat_template([*prompt, *assistant_message(answer)], return_dict=False)
        assert tokens[name][0] == whole
    pairs = Dataset.from_list([row | {"category": "insult"}] * 4)
    fit_set(trunk, {"train": pairs}, tmp_path / "set", ["insult"], SETTINGS, design=design)
    assert ShadowRewardModels.load(tmp_path / "set", trunk).score([prompt], [chosen]).shape == (1, 1)


def test_an_encoder_is_trained_on_whole_dialogues(tmp_path):
    row = read(CASES / "a_multi.jsonl")[0] | {"category": "insult"}
    plain = as_pair(row) | {"category": "insult"}
    bert, reading = write_tiny_bert(tmp_path / "bert"), PairTokenizer(max_tokens=60, prompt_tokens=20)
    places = [tmp_path / "dialogues", tmp_path / "plain"]
    for place, rows in zip(places, ([row] * 8, [plain] * 8), strict=True):
        fit_pooled(bert, [], rows, place, CATEGORIES, reading, ENCODER, 0, "cpu", progress=False)
    one, other = (ShadowRewardModels.load(place, "cpu").score(["hi"], ["no"]) for place in places)
    assert torch.equal(one, other)
    with pytest.raises(InputError, match="pairs: row 2: chosen and rejected are equal"):
        fit_pooled(bert, [], [row, row | {"rejected": row["chosen"]}], places[0], CATEGORIES, reading, ENCODER)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (read(CASES / "a_identical.jsonl"), r"row 1 \(from 0\): chosen and rejected are equal"),
        ([GOOD_PAIR, GOOD_PAIR | {"rejected": None}], r"row 1 \(from 0\): rejected is null"),
        ([GOOD_PAIR, GOOD_PAIR | {"prompt": None}], r"row 1 \(from 0\): prompt is null"),
        ([GOOD_PAIR, GOOD_PAIR | {"chosen": "word " * 300}], r"1 pairs exceed .* row 1 \(from 0\) with \d+ tokens"),
    ],
)
def test_training_names_the_row_that_it_cannot_read(rows, said, trunk):
    pairs = Dataset.from_list([row | {"category": "insult"} for row in rows])
    with pytest.raises(InputError, match=said):
        TokenizedPairs(trunk, pairs, SETTINGS)


def test_training_names_the_row_that_the_template_refuses(models):
    rows = [GOOD_PAIR | {"prompt": user_message("hi")}, GOOD_PAIR | {"prompt": [SYSTEM, *user_message("hi")]}]
    pairs = Dataset.from_list([row | {"category": "insult"} for row in rows])
    with pytest.raises(InputError, match="preferences: row 1: the chat template refuses its turns system, user"):
        TokenizedPairs(Trunk.load(models["no system"], "cpu"), pairs, SETTINGS)


def test_pairs_in_our_form_are_not_touched():
    pairs = preferences()
    assert as_pairs(pairs) is pairs


words = st.text("ab ", max_size=6)


@given(words, words, words)
def test_implicit_prompts_are_those_of_trl(prompt, chosen, rejected):
    row = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    if row["chosen"].startswith(row["rejected"]) or row["rejected"].startswith(row["chosen"]):
        return  # one answer ends where the other goes on: TRL cuts a letter off
    theirs = extract_prompt(row)
    if not all(theirs[name].strip() for name in theirs) or theirs["chosen"].strip() == theirs["rejected"].strip():
        return  # refused here: nothing is asked, or nothing is answered
    ours = as_pair(row)
    assert {name: text_of(ours[name]) for name in ours} == theirs
    chats = {name: [*user_message("a"), *assistant_message("b"), *user_message(prompt + "x")] for name in row}
    chats = {name: [*chats[name], *assistant_message(theirs[name])] for name in row}
    assert as_pair(chats) == extract_prompt(chats)


def test_a_prompt_beside_whole_dialogues():
    whole = {name: [SYSTEM, *DIALOGUE, *assistant_message(name)] for name in ("chosen", "rejected")}
    for prompt in ("hi", "copy it ?", DIALOGUE[:1], [SYSTEM, *DIALOGUE], DIALOGUE):
        assert as_pair(whole | {"prompt": prompt})["prompt"] == [SYSTEM, *DIALOGUE]
    for prompt in ("something else", user_message("copy it ?"), "hello"):
        with pytest.raises(InputError, match="chosen holds other messages than the prompt"):
            as_pair(whole | {"prompt": prompt})


def test_what_ends_with_an_answer_is_neither_prompt_nor_answer():
    with pytest.raises(InputError, match="ends with a message of 'assistant'"):
        text_of([*DIALOGUE, *assistant_message("no")])
    with pytest.raises(RowError, match="row 0: response holds several messages"):
        conversation_ids(tiny_tokenizer(), ["hi"], [[*DIALOGUE, *assistant_message("no")]])


# What belongs to an answer changes sides with it


def disagree(monkeypatch):
    """The model prefers the rejected answer of the first pair, and agrees about the others."""

    def raw(model, tokenizer, pairs, direction, **options):
        return torch.tensor([-1.0, *[2.0] * (len(pairs["prompt"]) - 1)])

    monkeypatch.setattr(margins, "annotate", raw)


def test_scores_change_sides_with_their_answers(command, monkeypatch, tmp_path):
    disagree(monkeypatch)
    first, second = command.rows(command.annotate("a_scores.jsonl", "--negative", "flip"))
    assert (first["chosen"], first["score_chosen"], first["score_rejected"]) == (
        "first get ready , then copy the letter .",
        2.0,
        9.0,
    )
    assert (second["score_chosen"], second["score_rejected"]) == (8.0, 1.0)
    assert "did not change sides" not in command.capsys.readouterr().out
    rows = [GOOD_PAIR | {"chosen-rating": 5, "rejected-rating": 2, "chosen_model": "a", "id": 7}] * 2
    command.target = tmp_path / "new"
    source = save_dataset(Dataset.from_list(rows), tmp_path / "pairs")
    assert command.annotate(source, "--negative", "flip") == 0
    out = load_dataset(command.target)
    assert out["chosen"][:] == ["yes .", "no ."] and out["chosen-rating"][:] == [2, 5] == out["rejected-rating"][::-1]
    assert out["chosen_model"][:] == ["a", "a"] and out["id"][:] == [7, 7]
    assert "chosen_model did not change sides" in command.capsys.readouterr().out


def test_a_column_of_one_side_is_named_in_the_closing_line(command, monkeypatch):
    disagree(monkeypatch)
    first, _ = command.rows(command.annotate("a_ultra.jsonl", "--negative", "flip"))
    assert first["score_chosen"] == 8.0
    assert "score_chosen did not change sides" in command.capsys.readouterr().out


# In other trainers


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHATS = [user_message("hi"), [SYSTEM, *user_message("hi")], DIALOGUE, [SYSTEM, *DIALOGUE]]
ANSWERS = ["no .", "yes .", "no , no .", "yes 1"]
LABELS = ["insult", "privacy", "", "insult"]


@pytest.fixture
def expected(sets, models, monkeypatch, tmp_path) -> list[float]:
    """What the models say of `CHATS`, and the environment of both examples."""
    folder = shutil.copytree(sets["plain"], tmp_path / "calibrated")
    Calibration(tuple(CATEGORIES), mean=(0.5, -1.0), std=(2.0, 0.25), rows=9).save(folder / "calibration.json")
    base = read_json(folder / "config.json") | {"base_model": str(models["plain"])}
    write_json(folder / "config.json", base)
    monkeypatch.setenv("SRMIR_MODELS", str(folder))
    monkeypatch.setenv("SRMIR_POLICY", str(models["plain"]))
    scores = ShadowRewardModels.load(folder, "cpu").score(CHATS, ANSWERS)
    scores = (scores - torch.tensor([0.5, -1.0])) / torch.tensor([2.0, 0.25])
    return [scores[0, 0].item(), scores[1, 1].item(), scores[2].mean().item(), scores[3, 0].item()]


def rendered(chat: list[dict]) -> str:
    return "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in chat) + "<|assistant|>"


def test_openrlhf_reads_rendered_conversations(expected):
    example, prompts = load_example("openrlhf_reward"), list(map(rendered, CHATS))
    queries = [f"<|pad|>{prompt}{answer}<|end|>" for prompt, answer in zip(prompts, ANSWERS, strict=True)]
    rewards = example.reward_func(queries, prompts, LABELS)["rewards"]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match="is no conversation of user and assistant in the chat template of"):
        example.reward_func(["<|user|>hi<|end|>no"], ["<|user|>hi<|end|>"], [""])


def test_verl_reads_messages_and_rendered_conversations(expected):
    example = load_example("verl_reward")
    arrays = [np.array(chat, dtype=object) for chat in CHATS]  # as parquet files give them
    for prompts in (CHATS, arrays, list(map(rendered, CHATS))):
        extras = [{"prompt": prompt} for prompt in prompts]
        rewards = example.compute_scores(["lab"] * 4, ANSWERS, LABELS, extras)
        assert rewards == pytest.approx(expected, abs=1e-4)


def test_trl_passes_texts_or_messages(expected, sets, tmp_path):
    models = ShadowRewardModels.load(tmp_path / "calibrated", "cpu")
    reward = RewardFunction(models, "categorized", router="label")
    category = ["insult", "privacy", "unknown", "insult"]
    assert reward(CHATS, list(map(assistant_message, ANSWERS)), category=category) == pytest.approx(expected, abs=1e-4)
    texts = reward(["hi", "hi"], ANSWERS[:2], category=["insult"] * 2)
    messages = reward([user_message("hi")] * 2, list(map(assistant_message, ANSWERS[:2])), category=["insult"] * 2)
    assert texts == messages and texts[0] == pytest.approx(expected[0], abs=1e-4)


def test_a_route_is_that_of_the_whole_conversation(expected, tmp_path):
    class Router:
        """Routes by how many turns there are."""

        classes, asked = CATEGORIES, []

        def route(self, prompts):
            self.asked += prompts
            return [CATEGORIES[not isinstance(prompt, str)] for prompt in prompts]

    models, router = ShadowRewardModels.load(tmp_path / "calibrated", "cpu"), Router()
    prompts = [*user_message("hi"), *assistant_message("no"), *user_message("copy it ?")]
    reward = RewardFunction(models, "categorized", router)
    answers = list(map(assistant_message, ["no ."] * 3))
    reward([user_message("copy it ?"), prompts, prompts], answers)
    assert router.asked == ["copy it ?", prompts], "what is asked last is the same, what was said before is not"


def test_a_router_asks_about_the_last_user_message_behind_the_turns_before(models):
    reader = PromptEncoder(base_model=str(models["plain"]), question=QUESTION)
    model, tokenizer = load_trunk(models["plain"], "cpu")
    asked = [*DIALOGUE[:2], *user_message("why refuse copy it ? ?")]
    assert torch.allclose(reader.embed([DIALOGUE], "cpu"), embed(model, tokenizer, [asked]), atol=1e-5)


@pytest.mark.parametrize("template", ["plain", "system first", "no system", "thinks"])
@pytest.mark.parametrize("chat", CHATS)
def test_a_rendered_prompt_is_read_back(models, template, chat):
    tokenizer = load_tokenizer(models[template])
    if template == "no system" and chat[0] == SYSTEM:
        with pytest.raises(InputError, match="is no conversation of user and assistant"):
            read_prompt(tokenizer, rendered(chat))
        return
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert read_prompt(tokenizer, text) == chat
    assert read_prompt(tokenizer, chat) == chat and read_prompt(tokenizer, "a b\nc") == user_message("a b\nc")


def test_prompts_in_the_templates_of_real_models_are_read_back():
    """Those that TRL keeps: what is read renders to the same text, and is the conversation unless the template itself
    merges the system message into the user's (Gemma 3)."""
    tokenizer, told = tiny_tokenizer(), 0
    for file in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        tokenizer.chat_template = file.read_text(encoding="utf8")
        for chat in CHATS:
            try:
                text = render(tokenizer, [chat])[0]
            except RowError:
                continue  # Gemma has no system message; a template for images wants parts
            found = read_prompt(tokenizer, text)
            assert render(tokenizer, [found])[0] == text
            assert found == chat or "gemma3" in file.name, file.name
            told += found == chat
    assert told > 100


def test_a_templates_own_system_message_is_not_taken_for_the_users(models):
    tokenizer = load_tokenizer(models["plain"])
    default = "{% if messages[0]['role'] != 'system' %}<|system|>be brief .<|end|>{% endif %}"
    tokenizer.chat_template = default + TEMPLATES["plain"]
    for chat in CHATS:
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert read_prompt(tokenizer, text) == chat


def test_conversations_are_checked_in_the_library_too(trunk):
    with pytest.raises(RowError, match="row 1: prompt holds a message of the role 'human'"):
        conversation_ids(trunk.tokenizer, ["hi", [{"role": "human", "content": "hi"}]])
    assert as_chat([{"role": "user", "content": "hi", "name": None}]) == user_message("hi")
