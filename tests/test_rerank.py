"""`srmir rerank`: pairs are those of a naive loop over the pool; each bad input in one line; nothing is overwritten."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_model
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from tiny_bert import write_tiny_bert
from transformers import AutoModelForCausalLM, AutoTokenizer

from srmir_lib.artifacts import read_json, save_dataset
from srmir_lib.cli import main
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data import jsonl
from srmir_lib.errors import InputError
from srmir_lib.reward_models import rerank_file as command
from srmir_lib.reward_models.rerank_file import rerank_file

LABELLED = [
    {"prompt": f"{text} {n}", "chosen": f"I can not {n}", "rejected": f"first get ready {n}"}
    for n in range(4)
    for text in ("please help me", "open the red door")
]
POOLS = [
    {"prompt": "please help me", "responses": ["first get ready", "no", "I can not answer that"], "id": 7},
    {"prompt": user_message("danger"), "responses": [assistant_message("you can not"), "yes 1 2 3"], "note": None},
    {"prompt": "open the red door", "responses": ["no", "then check that it is done", "no ", "first open the door"]},
]
NEW = ["chosen", "rejected", "score_chosen", "score_rejected", "confidence"]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def run(*arguments: object) -> int:
    return main(["rerank", *map(str, arguments), "--device", "cpu"])


@pytest.fixture
def places(tiny_model, tmp_path) -> list:
    """Arguments with files that will do, but for the last: the labelled pairs."""
    write(tmp_path / "labelled.jsonl", LABELLED)
    source = write(tmp_path / "in.jsonl", POOLS)
    return ["--model", tiny_model, "--input", source, "--output", tmp_path / "out.jsonl"]


def naive_score(folder: Path, kept: Path, prompt: str, answer: str) -> float:
    """Plain transformers and plain numbers: one text at a time, every hidden state, the saved read-outs."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, parts, about = AutoTokenizer.from_pretrained(folder), load_file(kept / "readouts.safetensors"), {}
    about = read_json(kept / "readouts.json")
    asked = f"<|user|>{prompt}<|end|><|assistant|>"
    ids = tokenizer(asked + answer + "<|end|>", return_tensors="pt")
    with torch.no_grad():
        states = model(**ids, output_hidden_states=True).hidden_states
    begin, scores = len(tokenizer(asked)["input_ids"]), []
    for place, layer in enumerate(about["layers"]):
        own = states[layer][0, -1] if about["pooling"] == "last" else states[layer][0, begin:].mean(dim=0)
        seen = (own - parts["center"][place]) / parts["scale"][place]
        scores.append((parts["weights"][place] @ seen + parts["bias"][place]).item())
    total = 0.0
    for place, score in enumerate(scores):
        gate = sum(parts["gate"][place, other].item() * scores[other] for other in range(len(scores)))
        total += score / (1 + math.exp(-gate))
    return total - parts["level"].item()


def said(answer) -> str:
    return answer if isinstance(answer, str) else answer[0]["content"]


@pytest.mark.parametrize(
    ("options", "layers"), [((), [1, 2]), (("--layer", 1, "--pooling", "mean"), [1]), (("--layer", -1), [2])]
)
def test_pairs_equal_those_of_a_naive_loop(tiny_model, tmp_path, places, capsys, options, layers):
    kept = tmp_path / "new" / "readouts"
    labelled = ("--labelled", tmp_path / "labelled.jsonl", "--save-readouts", kept)
    assert run(*places, *labelled, *options) == 0
    about = read_json(kept / "readouts.json")
    assert about["layers"] == layers and about["pooling"] == ("mean" if "mean" in options else "last")
    out = read(tmp_path / "out.jsonl")
    for pool, row in zip(POOLS, out, strict=True):
        assert list(row) == [*pool, *NEW] and {name: row[name] for name in pool} == pool, "their columns stay"
        asked = said(pool["prompt"])
        scores = [naive_score(tiny_model, kept, asked, said(answer).strip()) for answer in pool["responses"]]
        if pool is POOLS[2]:
            scores[2] = scores[0]  # the same answer but for a blank is read once
        assert row["chosen"] == pool["responses"][scores.index(max(scores))]
        assert row["rejected"] == pool["responses"][scores.index(min(scores))]
        assert (row["score_chosen"], row["score_rejected"]) == pytest.approx((max(scores), min(scores)), abs=1e-4)
        gap = 1 / (1 + math.exp(-max(scores))) - 1 / (1 + math.exp(-min(scores)))
        assert row["confidence"] == pytest.approx(1 / (1 + math.exp(-7.5 * gap)), abs=1e-4) and row["confidence"] >= 0.5
    mean = sum(row["confidence"] for row in out) / 3
    line = capsys.readouterr().out
    assert line.startswith(f"{tmp_path / 'out.jsonl'}: 3 pairs of 9 answers, mean confidence {mean:.2f}; ")
    assert "read-outs of 8 labelled pairs (learned without 1 of them, right on " in line


def test_kept_readouts_make_the_same_pairs(tmp_path, places):
    kept = tmp_path / "readouts"
    assert run(*places, "--labelled", tmp_path / "labelled.jsonl", "--save-readouts", kept) == 0
    first = (tmp_path / "out.jsonl").read_text()
    (tmp_path / "labelled.jsonl").unlink()
    assert run(*places, "--readouts", kept) == 0, "the earlier output is replaced when the new one is finished"
    assert (tmp_path / "out.jsonl").read_text() == first


def test_chunks_and_forms_do_not_matter(tiny_model, tmp_path):
    labelled = write(tmp_path / "labelled.jsonl", LABELLED)
    texts = [{"prompt": said(row["prompt"]), "responses": list(map(said, row["responses"]))} for row in POOLS] * 3
    sources = [write(tmp_path / "in.jsonl", texts), tmp_path / "in.json", tmp_path / "in.parquet"]
    sources[1].write_text(json.dumps(texts, indent=1))
    Dataset.from_list(texts).to_parquet(sources[2])
    sources.append(save_dataset(DatasetDict(train=Dataset.from_list(texts)), tmp_path / "folder"))
    pairs = []
    for at, source in enumerate(sources):
        target = tmp_path / f"{at}.jsonl"
        rerank_file(str(tiny_model), str(source), str(target), str(labelled), device="cpu", chunk=(100, 1, 2, 4)[at])
        pairs.append(read(target))
    for other in pairs[1:]:
        for one, row in zip(pairs[0], other, strict=True):
            assert [row[name] for name in NEW[:2]] == [one[name] for name in NEW[:2]]
            assert [row[name] for name in NEW[2:]] == pytest.approx([one[name] for name in NEW[2:]], abs=1e-4)


def test_a_thousand_labelled_pairs_are_read_evenly_spread():
    rows = enumerate(LABELLED * 400, start=1)
    numbers = [number for number, _ in jsonl.spread(rows, 3200, 1000)]
    assert len(numbers) == 1000 and numbers[:3] == [1, 4, 7] and numbers[-1] == 3197


def test_held_out_pairs_share_no_prompt_with_the_rest():
    prompts = ["a", "a", "b", "c", "d", "e", "e", "f", "e"]
    assert command._held_out(prompts) == ([0, 1, 2, 3, 4, 7], [5, 6, 8])
    assert command._held_out(["a", "b", "c", "d"]) == ([0, 1, 2, 3], [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "lacks responses"),
        ({"responses": ["a", "b"]}, "lacks prompt"),
        ({"prompt": "a", "responses": None}, "responses is null; give a list of answers"),
        ({"prompt": "a", "responses": "b"}, "responses is a str; give a list of answers"),
        ({"prompt": "a", "responses": []}, "responses holds no answer; a pair needs two, leave the row out"),
        ({"prompt": "a", "responses": ["b"]}, "responses holds 1 answer; a pair needs two, leave the row out"),
        ({"prompt": "a", "responses": ["b", "b", " b"]}, "responses are all equal; a pair needs two that differ"),
        ({"prompt": "a", "responses": ["b", " \n"]}, "responses[1] is empty; an answer needs a word, take it out"),
        ({"prompt": "a", "responses": ["b", assistant_message("")]}, "responses[1] is empty; an answer needs a word"),
        ({"prompt": "a", "responses": ["b", 3]}, "responses[1] is a int; it must be a text or a list of messages"),
        ({"prompt": "a", "responses": ["b", user_message("c")]}, "responses[1] ends with a message of 'user'"),
        ({"prompt": None, "responses": ["b", "c"]}, "prompt is null"),
        (POOLS[0] | {"chosen": "mine"}, "has a column chosen already; give ours another name with --prefix"),
        (POOLS[0] | {"confidence": 1}, "has a column confidence already; give ours another name with --prefix"),
    ],
)
def test_a_bad_pool_is_named_before_anything_is_loaded(tmp_path, places, capsys, monkeypatch, row, message):
    monkeypatch.setattr(command, "_PoolModel", None)  # what would load
    write(tmp_path / "in.jsonl", [POOLS[0], row])
    assert run(*places, "--labelled", tmp_path / "labelled.jsonl") == 2
    line = capsys.readouterr().err
    assert f"srmir: {tmp_path / 'in.jsonl'}: row 2: {message}" in line and line.count("\n") == 1, line
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_places_and_options_are_refused_before_anything_is_loaded(
    tiny_model, tmp_path, places, capsys, monkeypatch
):
    monkeypatch.setattr(command, "_PoolModel", None)
    pairs, mine = tmp_path / "labelled.jsonl", tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    bad, no_rows = write(tmp_path / "bad.jsonl", [LABELLED[0], {"prompt": "a", "chosen": "b"}]), tmp_path / "no.jsonl"
    no_rows.write_text("")
    equal = write(tmp_path / "equal.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    for options, message in (
        (("--labelled", tmp_path / "gone.jsonl"), "gone.jsonl: no such file"),
        (("--labelled", no_rows), "no.jsonl: no rows"),
        (("--labelled", bad), "bad.jsonl: row 2: lacks rejected"),
        (("--labelled", equal), "equal.jsonl: row 1: chosen and rejected are equal"),
        (("--labelled", pairs, "--output", pairs), "would overwrite"),
        (("--labelled", pairs, "--output", tmp_path / "in.jsonl"), "would overwrite"),
        (("--labelled", pairs, "--output", tiny_model / "out.jsonl"), "would overwrite"),
        (("--labelled", pairs, "--output", mine), "is a folder; name a file to write"),
        (("--labelled", pairs, "--output", tmp_path / "out.parquet"), "would hold JSON lines; name it .jsonl"),
        (("--labelled", pairs, "--save-readouts", mine), "mine: exists already and would be lost; name a new folder"),
        (("--labelled", pairs, "--save-readouts", tmp_path / "out.jsonl"), "would overwrite"),
        (("--labelled", pairs, "--model", tmp_path / "gone" / "model"), "no model there, and no folder"),
        (("--readouts", mine), "no read-outs there (no readouts.json); name a folder of --save-readouts"),
        (("--readouts", mine, "--layer", 1), "says itself which layers it reads, and how; leave --layer"),
        (("--readouts", mine, "--pooling", "mean"), "says itself which layers it reads, and how; leave --layer"),
        (("--readouts", mine, "--save-readouts", tmp_path / "r"), "nothing is learned, so nothing need be kept"),
    ):
        if "gone/model" in " ".join(map(str, options)):
            monkeypatch.undo()  # the model's folder is looked at by what would load
        assert run(*places, *options) == 2, message
        line = capsys.readouterr().err
        assert message in line and line.count("\n") == 1, f"one line that says {message!r}, not {line!r}"
        monkeypatch.setattr(command, "_PoolModel", None)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"] and not (tmp_path / "out.jsonl").exists()
    with pytest.raises(InputError, match="give pairs to learn them from"):
        rerank_file(str(tiny_model), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    with pytest.raises(SystemExit):
        run(*places, "--labelled", pairs, "--readouts", mine)
    with pytest.raises(SystemExit):
        run(*places)


def test_readouts_of_another_model_and_models_without_readouts_are_refused(tmp_path, places, capsys):
    kept = tmp_path / "readouts"
    assert run(*places, "--labelled", tmp_path / "labelled.jsonl", "--save-readouts", kept) == 0
    other, bert = write_tiny_model(tmp_path / "other", seed=1), write_tiny_bert(tmp_path / "bert")
    before = (tmp_path / "out.jsonl").read_text()
    for model, options, message in (
        (other, ("--readouts", kept), "readouts: read-outs of another model (hash mismatch); learn"),
        (bert, ("--labelled", tmp_path / "labelled.jsonl"), "bert: BertForSequenceClassification: an encoder"),
        (other, ("--labelled", tmp_path / "labelled.jsonl", "--layer", 3), "layer: 3 asked for, but this model has"),
        (other, ("--labelled", tmp_path / "labelled.jsonl", "--layer", 0), "layer 0: its states are the same for"),
    ):
        capsys.readouterr()
        assert run(*places, "--model", model, *options) == 2
        line = capsys.readouterr().err
        assert message in line and line.count("\n") == 1, line
    assert (tmp_path / "out.jsonl").read_text() == before


def test_states_that_are_not_finite_are_one_line_about_the_row(tmp_path, places, capsys):
    """A token of the third pool alone has an embedding that overflows."""
    model = write_tiny_model(tmp_path / "broken")
    tokenizer = AutoTokenizer.from_pretrained(model)
    weights = load_file(model / "model.safetensors")
    rows = [{"prompt": "a", "responses": ["no", "yes"]}] * 2 + [{"prompt": "a", "responses": ["no", "9"]}]
    weights["model.embed_tokens.weight"][tokenizer("9")["input_ids"][0]] = math.inf
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    source = write(tmp_path / "in.jsonl", rows)
    pairs = tmp_path / "labelled.jsonl"
    assert run(*places, "--model", model, "--labelled", pairs) == 2
    line = capsys.readouterr().err
    assert f"{source}: embedding of row 3 is not finite; check the model's weights" in line and line.count("\n") == 1
    write(pairs, [*LABELLED, {"prompt": "b", "chosen": "9", "rejected": "no"}])
    assert run(*places, "--model", model, "--labelled", pairs) == 2
    line = capsys.readouterr().err
    assert f"{pairs}: embedding of row 9 is not finite" in line and line.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


LONG = "help " * 200


def test_long_pools_and_pairs(tmp_path, places, capsys):
    source, pairs = tmp_path / "in.jsonl", tmp_path / "labelled.jsonl"
    write(source, [POOLS[0], {"prompt": "a", "responses": ["no", "yes", f"so {LONG}"], "id": 2}, POOLS[2]])
    labelled = ("--labelled", pairs)
    assert run(*places, *labelled) == 2
    line = capsys.readouterr().err
    assert f"{source}: row 2: " in line and "the model reads at most 256; shorten it, or pass --too-long cut" in line
    assert run(*places, *labelled, "--too-long", "skip") == 0
    assert "2 pairs of 7 answers (1 too long: left out)" in capsys.readouterr().out
    skipped = read(tmp_path / "out.jsonl")
    assert [row["prompt"] for row in skipped] == ["please help me", "open the red door"]
    assert run(*places, *labelled, "--too-long", "cut") == 0
    assert "3 pairs of 10 answers (1 too long: cut)" in capsys.readouterr().out
    whole = read(tmp_path / "out.jsonl")
    same = {key: pytest.approx(value) if isinstance(value, float) else value for key, value in skipped[0].items()}
    assert whole[0] == same, "scores of another batch, of which float32 may differ in the last place"
    assert whole[1]["responses"][2] == f"so {LONG}", "what is written is whole"
    write(source, [{"prompt": LONG, "responses": ["no", "yes"]}])
    assert run(*places, *labelled, "--too-long", "skip") == 2
    assert "every pool is too long, so that skip leaves none" in capsys.readouterr().err
    write(source, POOLS)
    write(pairs, [LABELLED[0], LABELLED[1] | {"rejected": LONG}])
    assert run(*places, *labelled) == 2
    assert f"{pairs}: row 2: " in capsys.readouterr().err
    assert run(*places, *labelled, "--too-long", "skip") == 0
    assert "read-outs of 1 labelled pairs, " in capsys.readouterr().out
    assert run(*places, *labelled, "--too-long", "cut") == 0
    write(pairs, [LABELLED[1] | {"rejected": LONG}])
    assert run(*places, *labelled, "--too-long", "skip") == 2
    assert "every labelled pair is too long, so that skip leaves none; pass --too-long cut" in capsys.readouterr().err


def test_new_columns_may_have_other_names(tmp_path, places):
    rows = [POOLS[0] | {"chosen": "mine", "confidence": 2}]
    write(tmp_path / "in.jsonl", rows)
    assert run(*places, "--labelled", tmp_path / "labelled.jsonl", "--prefix", "rbrm_") == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert list(row) == [*rows[0], *(f"rbrm_{name}" for name in NEW)]
    assert {name: row[name] for name in rows[0]} == rows[0]


def test_an_exception_in_the_middle_leaves_the_earlier_output(tiny_model, tmp_path, places, monkeypatch):
    target, kept, inner, calls = tmp_path / "out.jsonl", tmp_path / "readouts", command._PoolModel.pairs, []
    target.write_text("earlier")

    def break_down(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("power cut")
        return inner(*arguments)

    monkeypatch.setattr(command._PoolModel, "pairs", break_down)
    places = (str(tiny_model), str(tmp_path / "in.jsonl"), str(target), str(tmp_path / "labelled.jsonl"))
    with pytest.raises(RuntimeError, match="power cut"):
        rerank_file(*places, save_readouts=str(kept), device="cpu", chunk=1)
    assert target.read_text() == "earlier" and not kept.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "labelled.jsonl", "out.jsonl"]
