"""Loaders of the real data files: small files by hand, the whole data pack where it is present."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from srmir_lib.data import public_files as sources
from srmir_lib.errors import InputError
from srmir_lib.runner.series import Runner

MARKS = ("\u2028", "\u2029", "\x85", "\x1e", "\x0b")
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
PACK = Path(os.environ.get("SRMIR_DATA") or BESIDE)
with_pack = pytest.mark.skipif(
    not PACK.is_dir(), reason="the public data files are not here: set SRMIR_DATA to their folder (see the README)"
)


def write(path: Path, text: str, bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    return path


def xsafety(folder: Path, **changed: str) -> Path:
    for name in sources.XSAFETY_CATEGORIES:
        write(folder / "xsafety_en" / name, changed.get(name.split("_")[0], "one prompt\r\n"))
    return folder


def gptfuzz(folder: Path, responses: str) -> Path:
    write(folder / "gptfuzz" / "question_list_0-79.csv", "index,text\n0,How?\n1,Why?\n")
    write(folder / "gptfuzz" / "responses_labeled_train.csv", responses)
    return folder


def hh(folder: Path, *lines: str) -> Path:
    path = folder / "hh-rlhf" / "harmless-base_test.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


def pair(chosen: str, rejected: str) -> str:
    return json.dumps({"chosen": chosen, "rejected": rejected})


def test_xsafety_reads_marks_quotes_spaces_and_empty_columns(tmp_path):
    folder = xsafety(tmp_path, Insult='"You, there\nare rude",\r\n  Same \r\nSame,\r\n')
    write(folder / "xsafety_en" / "Mental_Health_n.csv", "I am sad\r\n", bom=True)
    rows = sources.load_xsafety(folder)
    insults = [row["prompt"] for row in rows if row["category"] == "insult"]
    assert insults == ["You, there are rude", "Same"]
    assert [row["prompt"] for row in rows if row["category"] == "mental_health"] == ["I am sad"]
    assert len(rows) == 2 + 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fine\n\nfine\n", "row 2 has no prompt"),
        ("fine\nfirst, second\n", "row 2 has text after its first column"),
        ('"never closed\n', "not valid CSV"),
        ("", "the file is empty"),
    ],
)
def test_xsafety_names_the_bad_row(tmp_path, text, says):
    with pytest.raises(InputError, match=says) as error:
        sources.load_xsafety(xsafety(tmp_path, Physical=text))
    assert "Physical_Harm_n.csv" in str(error.value)


def test_gptfuzz_joins_questions_and_checks_labels(tmp_path):
    good = 'question,Response,label\n1,"Sorry, no.",0\n0,Sure,1\n'
    assert sources.load_gptfuzz(gptfuzz(tmp_path / "good", good)) == [
        {"question": 1, "prompt": "Why?", "response": "Sorry, no.", "unsafe": 0},
        {"question": 0, "prompt": "How?", "response": "Sure", "unsafe": 1},
    ]
    for name, text, says in (
        ("label", "question,Response,label\n0,x,2\n", "row 2 has label '2'"),
        ("question", "question,Response,label\n0,x,1\n7,x,1\n", "row 3 names question 7"),
        ("number", "question,Response,label\nzero,x,1\n", "row 2 has question 'zero'"),
        ("column", "question,response,label\n0,x,1\n", "lacks the columns Response"),
        ("cut", "question,Response,label\n0,x,1\n0,x\n", "row 3 has 2 cells"),
        ("bare", "question,Response,label\n", "no rows after the header"),
    ):
        with pytest.raises(InputError, match=says):
            sources.load_gptfuzz(gptfuzz(tmp_path / name, text))


def test_hh_splits_the_last_answer_and_counts_what_it_leaves_out(tmp_path):
    opening = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bad?\n\nAssistant:"
    folder = hh(
        tmp_path,
        pair(opening + " No.", opening + " Yes!"),
        pair("\n\nHuman: A\n\nAssistant: 1", "\n\nHuman: B\n\nAssistant: 2"),
        pair(opening + " same", opening + " same"),
        pair(opening + " some", opening + " "),
    )
    rows, left_out = sources.load_hh_pairs(folder)
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bad?"},
    ]
    assert rows == [{"prompt": prompt, "chosen": "No.", "rejected": "Yes!"}]
    assert left_out == {"prompts differ": 1, "same answer": 1, "empty answer": 1}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"chosen": ', "row 2"),
        ('{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b"}', "row 2 is not a pair of dialogues .'rejected'"),
        (pair("no turns", "no turns"), "row 2 .* from a Human turn to an Assistant turn"),
    ],
)
def test_hh_names_the_bad_row(tmp_path, line, says):
    good = pair("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c")
    with pytest.raises(InputError, match=says):
        sources.load_hh_pairs(hh(tmp_path, good, line))


def test_hh_rows_end_at_line_feeds_only(tmp_path):
    """U+2028, U+0085 and the like stand inside texts; a JSON line may hold them as they are."""
    lines = [
        {"chosen": f"\n\nHuman: a\n\nAssistant: b{mark}c", "rejected": "\n\nHuman: a\n\nAssistant: d"} for mark in MARKS
    ]
    rows, _ = sources.load_hh_pairs(hh(tmp_path, *[json.dumps(line, ensure_ascii=False) for line in lines]))
    assert [row["chosen"] for row in rows] == [f"b{mark}c" for mark in MARKS]


def test_a_text_of_an_earlier_split_is_left_out_word_for_word():
    parts = {
        "train": [{"a": "Sorry, no.", "b": "x"}, {"a": "Sorry, no.", "b": "y"}],
        "validation": [{"a": "sorry NO", "b": "new"}, {"a": "yes", "b": "z"}, {"a": "...", "b": "!"}],
        "test": [
            {"a": "one", "b": "yes"},
            {"a": "two", "b": "new"},
            {"a": "three", "b": "?!"},
        ],
    }
    kept = sources.without_repeats(parts, ["a", "b"])
    assert kept["train"] == parts["train"], "what repeats inside a split stays"
    assert kept["validation"] == parts["validation"][1:], "equal but for case and punctuation; no words are no text"
    assert kept["test"] == [parts["test"][2]], "an answer of a row that was left out counts as seen, too"


def test_hh_refuses_a_truncated_download(tmp_path):
    folder = hh(tmp_path, *[pair("\n\nHuman: a\n\nAssistant: b", f"\n\nHuman: a\n\nAssistant: {n}") for n in range(50)])
    path = folder / "hh-rlhf" / "harmless-base_test.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is the download complete"):
        sources.load_hh_pairs(folder)


def test_diasafety_and_overrefusal_check_their_rows(tmp_path, monkeypatch):
    row = {"context": " c ", "response": "r", "category": "Offending User", "label": "Unsafe"}
    write(tmp_path / "diasafety" / "test.json", json.dumps([row]))
    expected = [{"prompt": "c", "response": "r", "unsafe": 1, "kind": "Offending User"}]
    assert sources.load_diasafety(tmp_path) == expected
    write(tmp_path / "diasafety" / "val.json", json.dumps([row, row | {"label": "safe"}]))
    with pytest.raises(InputError, match="row 2 has label 'safe'"):
        sources.load_diasafety(tmp_path, "val")
    with pytest.raises(InputError, match="split 'dev'"):
        sources.load_diasafety(tmp_path, "dev")
    completion = {"prompt": "Hi", "response": "Hello", "is_jailbreak_substring_matching": 1}
    for name, rows in (("baseline", [completion]), ("actadd", [completion | {"is_jailbreak_substring_matching": 0}])):
        path = tmp_path / "overrefusal-completions" / f"m_harmless_{name}_evaluations.json"
        write(path, json.dumps({"completions": rows}))
    monkeypatch.setattr(sources, "OVERREFUSAL_MODELS", ["m"])
    assert [row["answered"] for row in sources.load_overrefusal(tmp_path)] == [True, False]
    write(path, json.dumps({"completions": [{"prompt": "Hi", "response": "Hello"}]}))
    with pytest.raises(InputError, match="row 1 lacks is_jailbreak_substring_matching"):
        sources.load_overrefusal(tmp_path)


def test_data_folder_comes_from_the_parameter_then_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SRMIR_DATA", str(tmp_path))
    assert sources.data_folder() == tmp_path
    with pytest.raises(InputError, match="no folder"):
        sources.data_folder(tmp_path / "missing")
    monkeypatch.delenv("SRMIR_DATA")
    with pytest.raises(InputError, match="SRMIR_DATA is not set"):
        sources.data_folder()
    with pytest.raises(InputError, match="no such file"):
        sources.load_gptfuzz(tmp_path)


@pytest.mark.parametrize(("preset", "notebook"), [("realdata", "01"), ("smollm2", "01"), ("realdata", "A8")])
def test_a_folder_that_is_not_there_stops_a_run_before_anything_is_loaded(preset, notebook, monkeypatch):
    runner = Runner(preset)
    names = runner.select([notebook])
    monkeypatch.setenv("SRMIR_DATA", "no/such/folder")
    with pytest.raises(InputError, match="data_dir: no folder no/such/folder; see docs/data.md"):
        runner.plan(names)
    monkeypatch.setenv("SRMIR_DATA", "docs")  # relative ones lie under the repository, wherever the command is given
    monkeypatch.chdir("/")
    runner.plan(names)
    assert sources.data_folder(root=runner.root) == runner.root / "docs"


def test_split_by_group_keeps_groups_apart():
    rows = [{"question": n % 10, "n": n} for n in range(50)]
    parts = sources.split_by_group(rows, "question", (0.6, 0.2), seed=3)
    held = {name: {row["question"] for row in part} for name, part in parts.items()}
    assert {name: len(part) for name, part in held.items()} == {"train": 6, "validation": 2, "test": 2}
    assert set.union(*held.values()) == set(range(10)) and sum(map(len, held.values())) == 10
    assert parts == sources.split_by_group(rows, "question", (0.6, 0.2), seed=3)
    assert held != {
        name: {row["question"] for row in part}
        for name, part in sources.split_by_group(rows, "question", (0.6, 0.2), seed=4).items()
    }
    with pytest.raises(InputError, match="leave a split empty"):
        sources.split_by_group(rows[:2], "question", (0.6, 0.2), seed=0)


@with_pack
def test_the_real_files_have_the_documented_rows():
    prompts = Counter(row["category"] for row in sources.load_xsafety(PACK))
    assert prompts == {key: 199 if key == "crimes" else 200 for key in sources.XSAFETY_CATEGORIES.values()}
    labelled = sources.load_gptfuzz(PACK)
    assert len(labelled) == 6160 and sum(row["unsafe"] for row in labelled) == 1694
    assert len({row["question"] for row in labelled}) == 80
    pairs, left_out = sources.load_hh_pairs(PACK)
    assert len(pairs) + sum(left_out.values()) == 2312 and left_out["prompts differ"] == 5
    assert [len(sources.load_diasafety(PACK, split)) for split in ("train", "val", "test")] == [9017, 1097, 1095]
    assert len(sources.load_overrefusal(PACK)) == 600
