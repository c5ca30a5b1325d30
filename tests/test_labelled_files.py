"""Answers with human labels and kinds of harm: small files by hand, the whole data pack where it is present."""

import json
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest
from test_sources import PACK, with_pack, write

from srmir_lib.data import labelled_files as files
from srmir_lib.errors import InputError
from srmir_lib.rows import read_jsonl
from srmir_lib.taxonomy import CATEGORIES

THEFT, HATE = "financial_crime,property_crime,theft", "hate_speech,offensive_language"


def lines(folder: Path, name: str, *rows: dict) -> Path:
    write(folder / name, "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def beavertails(folder: Path, **changed) -> Path:
    row = {"prompt": " How? ", "response": "So.", "label": 1, "categories": [THEFT, HATE]} | changed
    return lines(folder, "beavertails/responses.jsonl", row)


def do_not_answer(folder: Path, **changed) -> Path:
    row = {"prompt": "How?", "response": "So.", "label": 0, "action": 4, "model": "m", "types_of_harm": "Adult Content"}
    return lines(folder, "do-not-answer-responses/responses.jsonl", row | changed)


@pytest.mark.parametrize("table", [files.BEAVERTAILS_HARMS, files.DO_NOT_ANSWER_HARMS])
def test_every_kind_of_harm_has_one_of_our_categories(table):
    assert set(table.values()) == set(CATEGORIES), "and every category has a kind"


def test_an_answer_may_do_several_kinds_of_harm(tmp_path):
    (row,) = files.load_beavertails(beavertails(tmp_path))
    assert row == {"prompt": "How?", "response": "So.", "unsafe": 1, "harms": ["insult", "crimes"]}
    (safe,) = files.load_beavertails(beavertails(tmp_path / "safe", label=0, categories=[]))
    assert safe["harms"] == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"label": 0}, "row 1 has label 0 and 2 kinds of harm; they contradict"),
        ({"categories": []}, "row 1 has label 1 and 0 kinds of harm; they contradict"),
        ({"label": True}, "row 1 has label True; it must be 0 or 1"),
        ({"label": 2}, "row 1 has label 2; it must be 0 or 1"),
        ({"categories": "theft"}, "row 1 has categories 'theft'; it must be a list"),
        ({"categories": ["arson"]}, "row 1 names the kind of harm 'arson', which has no category"),
        ({"response": "  "}, "row 1 has no text in the column response"),
        ({"prompt": None}, "row 1 has no text in the column prompt"),
    ],
)
def test_a_bad_row_of_beavertails_is_named(tmp_path, changed, says):
    with pytest.raises(InputError, match=says) as error:
        files.load_beavertails(beavertails(tmp_path, **changed))
    assert "beavertails/responses.jsonl" in str(error.value)


@pytest.mark.parametrize("action", [6, -1, None, "5"])
def test_an_action_that_is_none_is_named(tmp_path, action):
    with pytest.raises(InputError, match="row 1 has action .*; it must be a whole number from 0 to 5"):
        files.load_do_not_answer(do_not_answer(tmp_path, action=action))


def test_do_not_answer_knows_what_the_prompt_asks_for(tmp_path):
    (row,) = files.load_do_not_answer(do_not_answer(tmp_path))
    assert (row["category"], row["unsafe"], row["action"], row["model"]) == ("ethics", 0, 4, "m")


def test_a_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="coconot/pairs.jsonl: no such file"):
        files.load_look_alikes(tmp_path)
    with pytest.raises(InputError, match="split 'test'; use train or val"):
        files.load_instructions(tmp_path, "test")


def test_instructions_stand_once(tmp_path):
    write(tmp_path / "alpaca-harmless" / "harmless_val.json", json.dumps([{"instruction": x} for x in "aba"]))
    assert files.load_instructions(tmp_path, "val") == ["a", "b"]


@with_pack
def test_the_sets_have_their_sizes():
    """Rows as the data's own description counts them."""
    answers = files.load_beavertails(PACK)
    assert (len(answers), sum(row["unsafe"] for row in answers)) == (1789, 1017)
    found = Counter(harm for row in answers for harm in row["harms"])
    assert found["mental_health"] == 6, "hardly an answer harms anybody's mind: said where the category is used"
    assert len(files.load_safe_rlhf(PACK)) == 3978
    judged = files.load_do_not_answer(PACK)
    assert (len(judged), sum(row["unsafe"] for row in judged)) == (5614, 189)
    assert {row["category"] for row in judged} == set(CATEGORIES)
    assert len(files.load_look_alikes(PACK)) == 187 + 139 + 76 + 68, "its 446 others ask for what a model cannot do"
    assert len(files.load_instructions(PACK)) == 18793


@with_pack
def test_the_recipe_for_pools_of_labelled_answers_works(tmp_path, monkeypatch):
    """`docs/own_data.md`: no prompt is both ranked and taught, and every pair has a safe answer over an unsafe one."""
    text = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text(encoding="utf8")
    (code,) = re.findall(r"<!-- pools -->\n```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("recipe.py").write_text(code.replace("FOLDER", str(PACK)))
    runpy.run_path("recipe.py")
    pools, pairs = (read_jsonl(tmp_path / f"{name}.jsonl") for name in ("pools", "pairs"))
    assert len(pools) > 100 and len(pairs) > 100
    assert not {row["prompt"] for row in pools} & {row["prompt"] for row in pairs}
    unsafe = {(row["prompt"], row["response"]): row["unsafe"] for row in files.load_safe_rlhf(PACK)}
    assert {(unsafe[row["prompt"], row["chosen"]], unsafe[row["prompt"], row["rejected"]]) for row in pairs} == {(0, 1)}
    for row in pools:
        assert [unsafe[row["prompt"], said] for said in row["responses"]] == row["unsafe"] and {*row["unsafe"]} == {
            0,
            1,
        }
