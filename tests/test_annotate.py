"""`srmir annotate`: margins equal a naive loop's; files and folders come back whole; each bad input in one line."""

import ast
import json
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_model
from datasets import Dataset, DatasetDict
from safetensors.numpy import load_file, save_file
from tiny_bert import write_tiny_bert
from transformers import AutoModelForCausalLM, AutoTokenizer

from srmir_lib.artifacts import load_dataset, save_dataset
from srmir_lib.cli import _parser, main
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data import annotate_file as annotate
from srmir_lib.data.annotate_file import annotate_file
from srmir_lib.data.margins import REFUSALS
from srmir_lib.errors import InputError, RowError
from srmir_lib.papers.legend import NEGATIVES, SCALES

ROOT = Path(__file__).resolve().parents[1]
SAFE = ["No.", "I can not answer that because it would hurt someone."]
TEXTS = [
    ("please help me", "I can not answer that", "first get ready"),
    ("open the red door", "no", "then check that it is done, then open the door"),
    ("please help me", "I can not answer that", "you are right"),
    ("you are quiet", "here is what to say", "it would hurt someone"),
    ("danger", "you can not", "yes 1 2 3"),
]
ROWS = [{"prompt": p, "chosen": c, "rejected": r, "id": at} for at, (p, c, r) in enumerate(TEXTS)]
ROWS[1] |= {"prompt": user_message("open the red door"), "chosen": assistant_message("no")}
ROWS[3] |= {"chosen": user_message("you are quiet") + assistant_message("here is what to say")}


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def run(*arguments: object) -> int:
    return main(["annotate", *map(str, arguments), "--device", "cpu"])


class Naive:
    """Plain transformers: one text at a time, the whole model with its logits, every hidden state."""

    def __init__(self, folder: Path, layer: int = -1, pooling: str = "last"):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer, self.layer, self.pooling = AutoTokenizer.from_pretrained(folder), layer, pooling

    @torch.no_grad()
    def embed(self, prompt: str, answer: str) -> torch.Tensor:
        asked = f"<|user|>{prompt}<|end|><|assistant|>"
        ids = self.tokenizer(asked + answer + "<|end|>", return_tensors="pt")
        states = self.model(**ids, output_hidden_states=True).hidden_states[self.layer][0]
        return states[-1] if self.pooling == "last" else states[len(self.tokenizer(asked)["input_ids"]) :].mean(dim=0)

    def direction(self, harmful, refusals=SAFE) -> torch.Tensor:
        gaps = [self.embed(p, refusals[i % len(refusals)]) - self.embed(p, a) for i, (p, a) in enumerate(harmful)]
        mean = torch.stack(gaps).mean(dim=0)
        return mean / mean.norm()

    def margins(self, direction: torch.Tensor, pairs=TEXTS) -> list[float]:
        return [float((self.embed(p, c) - self.embed(p, r)) @ direction) for p, c, r in pairs]


REFUSED = ("--refusal", SAFE[0], "--refusal", SAFE[1])


@pytest.mark.parametrize("layer", [-1, 1, 0])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_margins_equal_a_naive_loop(tiny_model, tmp_path, layer, pooling, capsys):
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "new" / "out.jsonl"
    reading = ("--layer", layer, "--pooling", pooling)
    arguments = ("--model", tiny_model, "--input", source, "--output", target, "--scale", "none", *REFUSED, *reading)
    naive = Naive(tiny_model, layer, pooling)
    if (layer, pooling) == (0, "last"):  # every text ends with the same token, and no layer has mixed in the others
        assert run(*arguments) == 2 and "the safe and harmful answers must differ" in capsys.readouterr().err
        assert not target.exists()
        return
    assert run(*arguments) == 0
    expected = naive.margins(naive.direction([(prompt, rejected) for prompt, _, rejected in TEXTS]))
    out = read(target)
    assert [row["margin"] for row in out] == pytest.approx(expected, abs=1e-4)
    assert [{name: row[name] for name in row if name != "margin"} for row in out] == ROWS, "their columns stay"
    below = sum(margin < 0 for margin in expected) / 5
    assert f"margins of 5 pairs, {below:.1%} below zero (keep)" in capsys.readouterr().out


def test_scales_and_policies(tiny_model, tmp_path):
    """Pairs 1 and 4 are turned round, so that the model disagrees with some."""
    turned = [row if at not in (1, 4) else row | swap(row) for at, row in enumerate(ROWS)]
    source = write(tmp_path / "in.jsonl", turned)
    examples = write(tmp_path / "harmful.jsonl", [{"prompt": p, "response": r} for p, _, r in TEXTS])
    naive = Naive(tiny_model)
    pairs = [(p, r, c) if at in (1, 4) else (p, c, r) for at, (p, c, r) in enumerate(TEXTS)]
    raw = naive.margins(naive.direction([(p, r) for p, _, r in TEXTS]), pairs)
    negative = [at for at in range(5) if raw[at] < 0]
    assert 0 < len(negative) < 5, "the test needs both signs"

    def made(*options: str) -> list[dict]:
        target = tmp_path / "out.jsonl"
        places = ("--model", tiny_model, "--input", source, "--output", target, "--harmful", examples)
        assert run(*places, *REFUSED, *options) == 0
        return read(target)

    rms = (sum(value**2 for value in raw) / 5) ** 0.5
    assert [row["margin"] for row in made()] == pytest.approx([value / rms for value in raw], abs=1e-4)
    clipped = [row["margin"] for row in made("--scale", "none", "--negative", "clip")]
    assert clipped == pytest.approx([max(value, 0) for value in raw], abs=1e-4)
    kept = made("--scale", "none", "--negative", "drop")
    assert [row["id"] for row in kept] == [at for at in range(5) if at not in negative], "in order, without the dropped"
    flipped = made("--scale", "none", "--negative", "flip")
    assert [row["margin"] for row in flipped] == pytest.approx([abs(value) for value in raw], abs=1e-4)
    for at, row in enumerate(flipped):
        wanted = swap(turned[at]) if at in negative else turned[at]
        assert (row["chosen"], row["rejected"]) == (wanted["chosen"], wanted["rejected"])
    ranks = sorted(range(5), key=raw.__getitem__)
    binned = {at: row["margin"] for at, row in enumerate(made("--scale", "binned"))}
    assert all(binned[at] == 0 for at in negative), "who disagrees is asked for nothing"
    agreed = [at for at in ranks if at not in negative]
    assert binned[agreed[-1]] == pytest.approx(1), "the widest of those that agree is the largest bin"
    assert [binned[at] for at in agreed] == sorted(binned[at] for at in agreed)


def swap(row: dict) -> dict:
    return {"chosen": row["rejected"], "rejected": row["chosen"]}


def test_the_direction_from_other_prompts_is_kept_and_used_again(tiny_model, tmp_path, capsys):
    source, kept = write(tmp_path / "in.jsonl", ROWS), tmp_path / "direction.safetensors"
    harmful = [
        ("how", "first open the door"),
        ("danger 1", "yes"),
        ("you", "then check"),
        ("red", "get ready"),
        ("a", "b"),
    ]
    examples = write(tmp_path / "harmful.jsonl", [{"prompt": p, "response": a} for p, a in harmful])
    common = ("--model", tiny_model, "--input", source, "--scale", "none")
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    estimate = ("--harmful", examples, "--direction-pairs", 2, "--layer", 1, "--save-direction", kept, *REFUSED)
    assert run(*common, "--output", first, *estimate) == 0
    naive = Naive(tiny_model, layer=1)
    direction = naive.direction([harmful[0], harmful[2]])  # two of five, evenly spread: rows 0 and 5 // 2
    assert torch.allclose(torch.from_numpy(load_file(kept)["direction"]), direction, atol=1e-5)
    assert [row["margin"] for row in read(first)] == pytest.approx(naive.margins(direction), abs=1e-4)
    assert run(*common, "--output", second, "--direction", kept) == 0
    assert second.read_text() == first.read_text(), "layer and pooling come with the direction"

    other = write_tiny_model(tmp_path / "other", seed=5)
    capsys.readouterr()
    save_file({"direction": load_file(kept)["direction"] * 2}, tmp_path / "long.safetensors", meta(kept))
    save_file({"direction": load_file(kept)["direction"]}, tmp_path / "bare.safetensors")
    (tmp_path / "half.safetensors").write_bytes(kept.read_bytes()[:100])
    for model, file, options, message in (
        (other, kept, (), "hash mismatch"),
        (tiny_model, kept, ("--layer", 0), "made with layer 1, not 0"),
        (tiny_model, kept, ("--pooling", "mean"), "made with pooling last, not mean"),
        (tiny_model, tmp_path / "long.safetensors", (), "must be a vector of length 1"),
        (tiny_model, tmp_path / "bare.safetensors", (), "not a safety direction"),
        (tiny_model, tmp_path / "half.safetensors", (), "not a safety direction"),
        (tiny_model, tmp_path / "gone.safetensors", (), "no such file; write one with --save-direction"),
    ):
        places = ("--model", model, "--input", source, "--output", tmp_path / "no.jsonl", "--direction", file)
        assert run(*places, *options) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
    assert not (tmp_path / "no.jsonl").exists()


def meta(path: Path) -> dict:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def as_dataset(rows) -> Dataset:
    names = {"prompt": user_message, "chosen": assistant_message, "rejected": assistant_message}
    columns = [dict(zip(names, row, strict=True)) for row in rows]
    return Dataset.from_list(
        [{name: names[name](row[name]) for name in names} | {"id": at} for at, row in enumerate(columns)]
    )


def test_a_folder_comes_back_as_a_folder(tiny_model, tmp_path):
    splits = DatasetDict(validation=as_dataset(TEXTS[3:]), train=as_dataset(TEXTS[:3]))
    source, target = save_dataset(splits, tmp_path / "pairs"), tmp_path / "new"
    for _ in range(2):  # the second time it replaces what the first wrote
        assert run("--model", tiny_model, "--input", source, "--output", target, "--scale", "none", *REFUSED) == 0
    out, naive = load_dataset(target), Naive(tiny_model)
    direction = naive.direction([(prompt, rejected) for prompt, _, rejected in TEXTS[:3]])  # of the split train
    assert list(out) == ["validation", "train"]
    for name, rows in (("train", TEXTS[:3]), ("validation", TEXTS[3:])):
        assert out[name]["margin"][:] == pytest.approx(naive.margins(direction, rows), abs=1e-4)
        assert out[name].remove_columns("margin").to_list() == splits[name].to_list()
    single = save_dataset(splits["train"], tmp_path / "single")
    annotate_file(
        str(tiny_model), str(single), str(tmp_path / "one"), scale="none", refusals=SAFE, chunk=2, device="cpu"
    )
    assert load_dataset(tmp_path / "one")["margin"][:] == pytest.approx(out["train"]["margin"][:], abs=1e-4)


def test_chunks_do_not_matter(tiny_model, tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS * 3)
    for chunk in (1, 4, 100):
        target = str(tmp_path / f"{chunk}.jsonl")
        annotate_file(str(tiny_model), str(source), target, refusals=SAFE, device="cpu", chunk=chunk)
    first, second, third = ([row["margin"] for row in read(tmp_path / f"{chunk}.jsonl")] for chunk in (1, 4, 100))
    assert first == pytest.approx(second, abs=1e-4) and first == pytest.approx(third, abs=1e-4)


def test_an_encoder_annotates_too(tmp_path, capsys):
    bert = write_tiny_bert(tmp_path / "bert")
    rows = [("how can you", "sorry no", "sure here is"), ("why do it", "i cannot help", "first take this")]
    source = write(
        tmp_path / "in.jsonl", [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
    )
    common = (
        "--model",
        bert,
        "--input",
        source,
        "--output",
        tmp_path / "out.jsonl",
        "--refusal",
        "sorry i cannot help",
    )
    assert run(*common, "--layer", 1, "--pooling", "mean") == 0
    assert all(isinstance(row["margin"], float) for row in read(tmp_path / "out.jsonl"))
    assert run(*common, "--layer", 3) == 2
    assert "layer: 3 asked for, but this model has hidden states 0 to 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "row 2: lacks rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "row 2: rejected is a int"),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, "row 2: prompt is null"),
        ({"prompt": "a", "chosen": " ", "rejected": "c"}, "row 2: chosen is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": user_message("c")}, "must be of 'assistant'"),
        (
            {"prompt": "a", "chosen": user_message("z") + assistant_message("b"), "rejected": "c"},
            "row 2: chosen holds other messages than the prompt",
        ),
    ],
)
def test_a_bad_row_is_named_before_anything_is_loaded(tiny_model, tmp_path, capsys, monkeypatch, row, message):
    monkeypatch.setattr(annotate, "MarginModel", None)  # what would load
    source, target = write(tmp_path / "in.jsonl", [ROWS[0], row]), tmp_path / "out.jsonl"
    assert run("--model", tiny_model, "--input", source, "--output", target) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not target.exists(), said


def test_bad_places_and_options_are_refused_before_anything_is_loaded(tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(annotate, "MarginModel", None)
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out"
    folder = save_dataset(DatasetDict(train=as_dataset(TEXTS)), tmp_path / "pairs")
    empty = save_dataset(as_dataset([("a", "", "b")]), tmp_path / "blank")
    precious = tmp_path / "home" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "a", "response": ""}])
    for arguments, options, message in (
        ((tmp_path / "gone", source, out), (), "no such model folder"),
        ((tiny_model, tmp_path / "gone.jsonl", out), (), "no such file"),
        ((tiny_model, tmp_path / "home", out), (), "not a folder that `datasets` saved"),
        ((tiny_model, empty, out), (), "row 1: chosen is empty"),
        ((tiny_model, folder, tmp_path / "home"), (), "is not a datasets folder"),
        ((tiny_model, folder, folder), (), "would overwrite"),
        ((tiny_model, folder / "train", folder), (), "would overwrite"),
        ((tiny_model, source, source), (), "would overwrite"),
        ((tiny_model, source, tmp_path / "home"), (), "is a folder; name a file to write"),
        ((tiny_model, source, tiny_model / "out.jsonl"), (), "would overwrite"),
        ((tiny_model, source, out), ("--harmful", bad), "bad.jsonl: row 1: response is empty"),
        ((tiny_model, source, out), ("--save-direction", out), "would overwrite"),
        ((tiny_model, source, out), ("--save-direction", source), "would overwrite"),
        ((tiny_model, source, out), ("--direction-pairs", 0), "at least 1 is needed"),
        ((tiny_model, source, out), ("--refusal", " "), "refusal: an empty text"),
    ):
        names = [f"--{name}" for name in ("model", "input", "output")]
        assert run(*sum(zip(names, arguments, strict=True), ()), *options) == 2, message
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, f"one line that says {message!r}, not {said!r}"
    assert precious.read_text() == "years of work" and not out.exists()


def test_damaged_weights_are_one_line(tmp_path, capsys):
    model, source = write_tiny_model(tmp_path / "model"), write(tmp_path / "in.jsonl", ROWS)
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert run("--model", model, "--input", source, "--output", tmp_path / "out.jsonl") == 2
    said = capsys.readouterr().err
    assert "damaged weights" in said and said.count("\n") == 1


def test_an_exception_in_the_middle_leaves_the_earlier_output(tiny_model, tmp_path, monkeypatch):
    from srmir_lib.data import margins

    source, target, kept = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl", tmp_path / "v.safetensors"
    target.write_text("earlier")
    inner, calls = margins.annotate, []

    def break_down(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RowError("embedding of {row} is not finite; check the model's weights", 1)
        return inner(*arguments, **options)

    monkeypatch.setattr(margins, "annotate", break_down)
    options = {"save_direction": str(kept), "device": "cpu", "chunk": 2}
    with pytest.raises(InputError, match="in.jsonl: embedding of rows 3 to 4 is not finite; check"):
        annotate_file(str(tiny_model), str(source), str(target), **options)
    assert target.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_pair_that_is_too_long_is_found_before_any_is_read(tiny_model, tmp_path, monkeypatch):
    from srmir_lib.data import margins

    monkeypatch.setattr(margins, "embed_sides", None)  # what would read
    source = write(tmp_path / "in.jsonl", [*ROWS, ROWS[0] | {"rejected": "zebra " * 300}])
    with pytest.raises(InputError, match=r"in.jsonl: row 6: \d+ tokens, the model reads at most 256"):
        annotate_file(str(tiny_model), str(source), str(tmp_path / "out.jsonl"), device="cpu", chunk=4)


def test_nothing_is_written_where_drop_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    from srmir_lib.data import margins

    monkeypatch.setattr(
        margins, "annotate", lambda m, t, pairs, v, **options: torch.full((len(pairs["prompt"]),), -1.0)
    )
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="drop leaves none"):
        annotate_file(str(tiny_model), str(source), str(target), negative="drop", device="cpu")
    assert not target.exists()


def test_the_command_line_offers_what_the_library_knows():
    """The parser names the choices itself, for reading them from `margins` would import torch."""
    actions = {action.dest: action for action in _parser()._subparsers._group_actions[0].choices["annotate"]._actions}
    assert actions["scale"].choices == SCALES and actions["negative"].choices == NEGATIVES


def test_the_refusals_are_those_of_the_notebook():
    cells = json.loads((ROOT / "notebooks" / "03_margins.ipynb").read_text())["cells"]
    parameters = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))
    values = {node.target.id: node.value for node in ast.parse("".join(parameters["source"])).body}
    assert tuple(ast.literal_eval(values["refusals"])) == REFUSALS
