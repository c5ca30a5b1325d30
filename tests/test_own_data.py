"""Own models, own data: read, checked, made a preset, and run; categories are those of the data."""

import json
import re
import shlex
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import papermill
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from own_data import FORMS, NAMES, ROOT, own_root, own_rows, write_rows
from tiny_models import tiny_words, write_model

from srmir_lib.artifacts import load_dataset, read_json
from srmir_lib.cli import main
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data.margins import refused_prompts
from srmir_lib.data.own_files import ALL, own_pairs, read_pairs
from srmir_lib.data.own_sets import own_data
from srmir_lib.data.public_sets import share_a_prompt
from srmir_lib.data.router import Router
from srmir_lib.errors import InputError
from srmir_lib.evaluation.plots import OTHERS, colours
from srmir_lib.evaluation.training_report import running_examples
from srmir_lib.reward_models.calibration import calibration_set
from srmir_lib.reward_models.pairs import categories_of, select_pairs
from srmir_lib.reward_models.preset_facts import follow_up
from srmir_lib.runner.series import Runner
from srmir_lib.taxonomy import COLOURS, UNKNOWN, full_name, ordered

MODELS = ("llama", "qwen3", "gemma", "gpt_neox")
PAIR = {"chosen": "no , i can not", "rejected": "yes , here it is"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_model(kind, folder / kind) for kind in MODELS}


def told(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(map(str, arguments)))
    out = capsys.readouterr()
    return code, out.out, out.err


def pairs_of(sizes: dict[str | None, int], **more) -> list[dict]:
    return [
        {"prompt": f"{name} {n}", **PAIR, "category": name} | more
        for name, count in sizes.items()
        for n in range(count)
    ]


# categories


def test_categories_are_those_of_the_data():
    assert categories_of(["spam", "privacy", UNKNOWN], ["insult", "a b"]) == ["insult", "privacy", "a b", "spam"]
    assert ordered(["z", "ethics", "all", "insult", "z"]) == ["insult", "ethics", "all", "z"]
    assert [full_name(key) for key in ("privacy", "tone_of_voice")] == ["Privacy and Property", "tone of voice"]


def test_own_categories_have_colours_of_their_own_that_differ_in_grey():
    names = ["insult", "privacy", "spam", "tone", UNKNOWN]
    shades = colours(names)
    assert [shades[0], shades[1], shades[4]] == [COLOURS["insult"], COLOURS["privacy"], COLOURS[UNKNOWN]]
    assert len(set(shades)) == 5
    assert len(set(colours([f"c{n:02}" for n in range(14)]))) == 14
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(to_rgb, OTHERS)]
    assert min(abs(a - b) for a, b in pairwise(light)) > 0.1


def test_one_category_called_all_has_all_pairs():
    assert select_pairs(["all", "all", UNKNOWN], ALL, ["all"], "cross", cross_ratio=1.0, unknown_ratio=0.5) == [0, 1, 2]


def test_the_running_examples_are_harmful_where_that_is_known():
    lab = [("a", "benign", "benign"), ("b", "insult", "harmful"), ("c", "insult", "harmful"), ("d", "spam", "own")]
    rows = [{"prompt": user_message(p), "gold_category": gold, "kind": kind} for p, gold, kind in lab]
    found = running_examples(Dataset.from_list(rows), ["insult", "spam", "ethics"])
    assert found == {"insult": user_message("b"), "spam": user_message("d")}


def test_of_own_demonstrations_all_count_as_due_for_a_refusal():
    rows = [{"prompt": user_message("a")}, {"prompt": user_message("b")}]
    assert refused_prompts(rows) == {"a", "b"}
    assert refused_prompts([row | {"refuses": n == 0} for n, row in enumerate(rows)]) == {"a"}


def test_a_router_to_one_category_sends_all_there():
    router = Router.fit(torch.randn(5, 3), ["all"] * 5, torch.randn(2, 3), ["all"] * 2, ["all"])
    likely = router.log_probabilities(torch.randn(4, 3)).exp()
    assert likely.tolist() == [[1.0]] * 4 and router.decide(likely) == ["all"] * 4


# what is read


@given(st.dictionaries(st.sampled_from(["a", "b c", "insult"]), st.integers(3, 30), min_size=1), st.integers(0, 3))
def test_every_pair_is_in_one_split_and_every_category_in_all(tmp_path_factory, sizes, seed):
    rows = pairs_of(sizes) + pairs_of(sizes, chosen="another answer")
    pairs = own_pairs(write_rows(tmp_path_factory.mktemp("rows") / "pairs.jsonl", rows), seed)
    places = {}
    for split, part in pairs.splits.items():
        for row in part:
            places.setdefault(row["prompt"][0]["content"], set()).add(split)
        assert {row["category"] for row in part} == {name.replace(" ", "_") for name in sizes}
    assert all(len(found) == 1 for found in places.values())
    assert sorted(row["row"] for part in pairs.splits.values() for row in part) == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows_become_messages(tmp_path, form):
    pairs = own_pairs(write_rows(tmp_path / "pairs.jsonl", own_rows(form)))
    assert len(pairs.categories) == len(NAMES[form])
    tables = pairs.tables()
    found = [row for part in tables["preferences"].values() for row in part]
    (row,) = (row for row in found if row["prompt"][-1]["content"] == "tell me about insult 1")
    assert [turn["role"] for turn in row["prompt"]] == (["system", "user"] if form == FORMS[0] else ["user"])
    assert row["chosen"] == assistant_message("I can not, 1")
    assert row["rejected"] == assistant_message("first get ready, then check 1")
    assert (row["category"], row["origin"], row["difficulty"]) == ("insult", "own", "own")
    assert len(calibration_set(Dataset.from_list(tables["preferences"]["train"]))[0]) == 2 * len(pairs.splits["train"])


def test_the_folders_have_the_columns_that_the_notebooks_read(tmp_path):
    rows = own_rows(FORMS[1]) + own_rows(FORMS[1])[:3] + [{"prompt": "a", "chosen": "b", "rejected": "b"}]
    rows.append(own_rows(FORMS[1])[0] | {"rejected": "something else"})
    pairs = own_pairs(write_rows(tmp_path / "pairs.jsonl", rows))
    assert pairs.left_out == {"the same pair again": 3, "equal answers": 1, "prompt in an earlier split": 0}
    tables = pairs.tables()
    assert {name: list(splits) for name, splits in tables.items()} == {
        "preferences": ["train", "validation", "test"],
        "prompts": ["train", "validation", "test"],
        "demonstrations": ["train", "validation"],
    }
    assert sum(len(part) for part in tables["preferences"].values()) == 21
    assert sum(len(part) for part in tables["prompts"].values()) == 20, "a prompt with two pairs is asked once"
    one = tables["prompts"]["test"][0]
    assert one["category"] == one["gold_category"] == one["gold_topic"] and one["kind"] == "own"
    shown = tables["demonstrations"]["train"][0]
    assert set(shown) == {"prompt", "completion", "category"} and shown["completion"][0]["role"] == "assistant"


def test_a_folders_own_splits_stay_and_what_stands_in_an_earlier_one_goes(tmp_path):
    train, test = pairs_of({"a": 6, "b": 6}), pairs_of({"a": 2}) + [{"prompt": "new", **PAIR, "category": "b"}]
    DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test)).save_to_disk(str(tmp_path / "folder"))
    (tmp_path / "files").mkdir()
    write_rows(tmp_path / "files" / "train.jsonl", train)
    Dataset.from_list(test).to_parquet(str(tmp_path / "files" / "eval.parquet"))
    write_rows(tmp_path / "files" / "test.jsonl", test)
    pairs = own_pairs(tmp_path / "folder")
    assert pairs.cut == ["validation"] and pairs.left_out["prompt in an earlier split"] == 2
    assert [row["prompt"][0]["content"] for row in pairs.splits["test"]] == ["new"]
    assert {split: len(part) for split, part in pairs.splits.items()} == {"train": 10, "validation": 2, "test": 1}
    found = read_pairs(tmp_path / "files")
    assert found.cut == [] and len(found.splits["validation"]) == 1
    assert found.problem == "split test has no pairs left", "all of its prompts stand in validation or train"


def test_without_a_category_all_pairs_are_of_one_and_null_is_none(tmp_path):
    plain = [{"prompt": f"q {n}", **PAIR} for n in range(9)]
    assert own_pairs(write_rows(tmp_path / "plain.jsonl", plain)).categories == ["all"]
    mixed = pairs_of({"a": 6, None: 6, "Mental Health": 6, 7: 3})
    pairs = own_pairs(write_rows(tmp_path / "mixed.jsonl", mixed))
    assert pairs.categories == ["mental_health", "7", "a"]
    assert Counter(row["category"] for row in pairs.splits["train"])[UNKNOWN] == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no pairs"),
        (pairs_of({"a": 2, "b": 9}), "too few prompts in a 2: 3 are needed"),
        (pairs_of({None: 9}), "no pair has a category"),
        (pairs_of({"benign": 9}), "category 'benign' means prompts that belong to no category"),
        (pairs_of({"all": 9, "a": 9}), "category 'all' means the single model"),
        (pairs_of({"a": 9, "A": 9}), "row 10: category is 'A', and 'a' elsewhere"),
        (pairs_of({"a b": 9, "a/b": 9}), "row 10: category is 'a/b', and 'a b' elsewhere"),
        (pairs_of({"Privacy and Property": 9, "privacy": 9}), "row 10: category is 'privacy'"),
        (pairs_of({"!": 9}), "row 1: category is '!'; it must be a name"),
        (pairs_of({True: 9}), "row 1: category is True"),
        ([{"prompt": "a"}], "row 1: lacks chosen, rejected"),
        ([*pairs_of({"a": 3}), {"prompt": "b", "chosen": "c"}], "row 4: lacks rejected"),
        ([{"prompt": "a", **PAIR}, *pairs_of({"a": 3})], "row 2: has a category, which the first row lacks"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(tmp_path, capsys, rows, message):
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    code, _, err = told(capsys, "check", "--data", file)
    assert code == 2 and message in err and str(file) in err and err.count("\n") == 1
    with pytest.raises(InputError, match=re.escape(message)):
        own_pairs(file)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test_prefs", "train_prefs"], "test_prefs, train_prefs: none of the splits train, validation, test"),
        (["test"], "has no split train"),
        (["validation", "val", "train"], "two are the same split"),
    ],
)
def test_splits_with_other_names_are_named(tmp_path, names, message):
    for name in names:
        write_rows(tmp_path / f"{name}.jsonl", pairs_of({"a": 4}))
    with pytest.raises(InputError, match=message):
        own_pairs(tmp_path)


# with a model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MODELS)
def test_check_serves_models_and_forms(models, tmp_path, capsys, kind, form):
    file = write_rows(tmp_path / "pairs.jsonl", own_rows(form))
    code, out, err = told(capsys, "check", "--model", models[kind], "--data", file, "--categories")
    assert (code, err) == (0, "")
    lines = {line.split("  ")[0] or line.strip().split("  ")[0]: line for line in out.splitlines()}
    assert re.search(r"series +01 to 05 and A0 run$", out, re.MULTILINE), lines
    for name in NAMES[form]:
        assert re.search(rf"^    {name.replace(' ', '_')} +7, 1, 2$", out, re.MULTILINE)
    assert re.search(r"^  shared +works", out, re.MULTILINE) and re.search(r"^  generation +works", out, re.MULTILINE)
    systems = len(own_rows(form)) if form == FORMS[0] else 0
    assert f"{systems} pairs with a system turn, 0 with earlier turns" in out
    assert re.search(r"^  few test pairs +.*privacy.*: what is measured on them says little$", out, re.MULTILINE)


def test_check_names_only_categories_of_few_test_pairs(tmp_path, capsys):
    file = write_rows(tmp_path / "pairs.jsonl", pairs_of({"many": 200, "thin": 20}))
    out = told(capsys, "check", "--data", file)[1]
    assert re.search(r"^    many +140, 20, 40$", out, re.MULTILINE)
    assert re.search(r"^  few test pairs +thin:", out, re.MULTILINE)


def test_check_counts_what_is_too_long_and_01_leaves_it_out(models, tmp_path, capsys):
    rows = own_rows(FORMS[1])
    rows[4] = rows[4] | {"prompt": "open the red door " * 60}
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    code, out, _ = told(capsys, "check", "--model", models["llama"], "--data", file)
    assert code == 0 and "1 longer than the model reads" in out
    folders, router, numbers = own_data(file, models["llama"], 0, "cpu")
    assert sum(map(len, folders["preferences"].values())) == 19
    assert numbers["left_out"]["longer than the model reads"] == 1 and router.classes == ["insult", "privacy"]
    test = folders["prompts"]["test"]["category"]
    largest = max(map(list(test).count, test)) / len(test)
    assert numbers["router"]["if all went to the largest"] == pytest.approx(largest)
    assert {"all prompts", "sent to no category", "insult", "privacy"} < {*numbers["router"]}
    assert not any(map(share_a_prompt, folders.values()))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bert", {}, "an encoder"),
        ("llama", {"tokenizer": tiny_words(chat_template=None)}, "no chat template"),
        ("mamba", {}, "keeps no key and value of every token"),
    ],
)
def test_a_model_that_does_not_serve_is_told_with_the_reason(tmp_path, capsys, kind, options, message):
    folder = write_model(kind, tmp_path / "model", **options)
    file = write_rows(tmp_path / "pairs.jsonl", own_rows(FORMS[1]))
    code, out, err = told(capsys, "check", "--model", folder, "--data", file)
    assert code == 2 and message in err and err.count("\n") == 1 and "  pairs" in out
    code, out, err = told(capsys, "check")
    assert code == 2 and "--model, --data" in err


# a preset


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SRMIR_ROOT", str(own_root(tmp_path / "root")))
    monkeypatch.chdir(tmp_path / "root")
    return tmp_path / "root"


def test_new_preset_writes_files_that_fit_and_never_overwrites(models, root, capsys):
    write_rows(root / "pairs.jsonl", own_rows(FORMS[2]))
    asked = ["new-preset", "mine", "--base-model", models["qwen3"], "--preferences", "pairs.jsonl"]
    code, out, err = told(capsys, *asked)
    assert (code, err) == (0, "") and "left out: 00" in out and "rough time" in out and "srmir run mine" in out
    runner = Runner("mine", root)
    plans = {task.name[:2]: task.parameters for task in runner.plan(runner.select())}
    assert list(plans) == ["01", "02", "03", "A0", "04", "05"]
    assert plans["01"]["preferences"] == "pairs.jsonl" and plans["01"]["prompt_source"] == "own"
    assert {plans[name]["base_model"] for name in ("02", "03", "A0", "04", "05")} == {str(models["qwen3"])}
    assert plans["02"]["probe"]["names"] == {} and plans["02"]["design"] == "shared"
    assert plans["02"]["probe"]["text"] == "<|user|>Is the answer above good as to {category}?<|end|><|assistant|>"
    before = {path: path.read_bytes() for path in (root / "params" / "mine").iterdir()}
    assert all(text.startswith(b"# ") for text in before.values())
    trial = Runner("mine-trial", root)
    tried = {task.name[:2]: task.parameters for task in trial.plan(trial.select())}
    assert [tried[name]["max_steps"] for name in ("02", "A0", "04", "05")] == [2] * 4 and tried["A0"][
        "start_steps"
    ] == 1
    assert tried["01"] == plans["01"] | {"preset": "mine-trial"}
    assert [*plans["03"]["objectives"]] == [*tried["03"]["objectives"]] == ["margin"]
    assert "srmir run mine-trial shows" in out
    code, _, err = told(capsys, *asked)
    assert code == 2 and "never overwritten" in err and err.count("\n") == 1
    assert before == {path: path.read_bytes() for path in (root / "params" / "mine").iterdir()}


def test_a_preset_that_cannot_run_is_not_written(models, root, capsys, tmp_path):
    write_rows(root / "pairs.jsonl", own_rows(FORMS[1]))
    write_rows(root / "few.jsonl", pairs_of({"a": 2}))
    granite = write_model("granite", tmp_path / "granite")
    for name, model, data, more, message in (
        ("../x", models["llama"], "pairs.jsonl", [], "no name for a preset"),
        ("mine", models["llama"], "few.jsonl", [], "too few prompts in a 2"),
        ("mine", models["llama"], "gone.jsonl", [], "gone.jsonl: no such file"),
        ("mine", root / "gone", "pairs.jsonl", [], "no model there"),
        ("mine", granite, "pairs.jsonl", ["--design", "separate"], "design separate: "),
    ):
        code, _, err = told(capsys, "new-preset", name, "--base-model", model, "--preferences", data, *more)
        assert code == 2 and message in err and err.count("\n") == 1, err
    assert list((root / "params").iterdir()) == []


def test_a_follow_up_is_written_as_the_template_writes_it(models):
    tokenizer = tiny_words()
    assert follow_up(tokenizer, "good?") == "<|user|>good?<|end|><|assistant|>"
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert follow_up(tokenizer, "good?") == "", "earlier turns are written in another way"


# the notebooks


def run_series(root: Path, model: Path, rows: list[dict], capsys) -> Path:
    """A preset for them, and all that its trial runs, in two updates: the folder of its outputs."""
    write_rows(root / "pairs.jsonl", rows)
    code, out, err = told(capsys, "new-preset", "mine", "--base-model", model, "--preferences", "pairs.jsonl")
    assert code == 0, err
    code, out, err = told(capsys, "run", "mine-trial")
    assert code == 0, err
    return root / "outputs" / "mine-trial"


def trained_categories(outputs: Path) -> list[list[str]]:
    """The categories that 02's models and 03's scale know."""
    config = read_json(outputs / "02_shadow_reward_models" / "shadow_rms" / "config.json")
    return [sorted(config["categories"]), sorted(read_json(outputs / "03_margins" / "calibration.json")["categories"])]


def shown_whole(outputs: Path, rows: list[dict]) -> dict[str, tuple[bool, list[str]]]:
    """Stage -> whether its notebook shows masked texts, and which texts of `rows` it shows whole."""
    texts = [row[side] for row in rows for side in row.keys() & {"prompt", "chosen", "rejected"}]
    hidden = {turn["content"] for text in texts for turn in (user_message(text) if isinstance(text, str) else text)}
    stages = [*sorted(path.name for path in outputs.glob("0*")), "A0_baselines"]
    said = {stage: shown_in(outputs / stage / f"{stage}.ipynb") for stage in stages}
    return {stage[:2]: ("redacted]" in text, [own for own in hidden if own in text]) for stage, text in said.items()}


MASKED = {"01": (False, []), "03": (False, [])} | dict.fromkeys(("02", "04", "05", "A0"), (True, []))


def shown_in(executed: Path) -> str:
    """All that the cells of an executed notebook print and display."""
    cells = json.loads(executed.read_text(encoding="utf8"))["cells"]
    found = [output for cell in cells for output in cell.get("outputs", [])]
    return "\n".join("".join(part) for o in found for part in (o.get("text", ""), *o.get("data", {}).values()))


COVERED = {("gpt_neox", FORMS[3])}
"""Covers, with the walk-through's pairing (gemma, four categories) and the chat series' (a Llama, conversations with a
system turn), every model and form once but Qwen3 and plain texts: the lab is a Qwen2, and most other tests speak in
texts."""


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        pytest.param(*pairing, marks=[] if pairing in COVERED else pytest.mark.matrix)
        for pairing in product(MODELS, FORMS)
    ],
)
def test_02_to_05_run_on_every_model_and_form(models, root, capsys, kind, form):
    rows = own_rows(form)
    outputs = run_series(root, models[kind], rows, capsys)
    assert trained_categories(outputs) == [sorted({row.get("category", ALL).replace(" ", "_") for row in rows})] * 2
    assert sum(map(len, load_dataset(outputs / "01_data" / "preferences").values())) == len(rows)
    assert (outputs / "05_grpo_categorized" / "policy" / "adapter_model.safetensors").is_file()
    assert shown_whole(outputs, rows) == MASKED


@pytest.mark.matrix
def test_02_to_05_run_on_one_category(models, root, capsys):
    rows = [{"prompt": f"q {n}", **PAIR} for n in range(20)]
    outputs = run_series(root, models["llama"], rows, capsys)
    assert trained_categories(outputs) == [[ALL], [ALL]]
    assert sum(map(len, load_dataset(outputs / "01_data" / "preferences").values())) == len(rows)
    assert (outputs / "05_grpo_categorized" / "policy" / "adapter_model.safetensors").is_file()
    assert shown_whole(outputs, rows) == MASKED


@pytest.mark.matrix
def test_the_series_runs_by_plain_papermill(models, root, capsys):
    write_rows(root / "pairs.jsonl", own_rows(FORMS[2]))
    asked = ["new-preset", "mine", "--base-model", models["gpt_neox"], "--preferences", "pairs.jsonl"]
    assert told(capsys, *asked)[0] == 0
    for name in Runner("mine", root).select():
        values = yaml.safe_load((root / "params" / "mine" / f"{name}.yaml").read_text(encoding="utf8"))
        values |= {"max_steps": 2} if "max_steps" in values else {}
        book = root / "notebooks" / f"{name}.ipynb"
        papermill.execute_notebook(book, root / f"{name}.ipynb", values, progress_bar=False, cwd=root.parent)
    assert (root / "outputs" / "mine" / "05_grpo_categorized" / "policy" / "adapter_model.safetensors").is_file()


def test_the_walk_through_does_what_it_says(models, root, capsys):
    """Every command of docs/own_data.md, in its order; of two runs of the series the short one."""
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf8")
    lines = [
        line for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in block.split("\n")
    ]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("srmir ")]
    assert [words[1] for words in commands] == ["check", "new-preset", "run", "run", "report", "score", "rerank"]
    write_rows(root / "pairs.jsonl", own_rows(FORMS[2]))
    (root / "model").symlink_to(models["gemma"])
    write_rows(root / "answers.jsonl", [{"prompt": "tell me about spam", "response": "I can not", "category": "spam"}])
    write_rows(root / "pools.jsonl", [{"prompt": "tell me about spam", "responses": ["I can not", "First get ready."]}])
    for words in commands:
        if words[1:] != ["run", "mine"]:  # the trial stands for it
            code, out, err = told(capsys, *words[1:])
            assert code == 0, (words, err)
        if words[1:] == ["run", "mine-trial"]:
            (root / "outputs" / "mine").symlink_to("mine-trial")
    scored = json.loads((root / "scored.jsonl").read_text(encoding="utf8"))
    assert set(scored["scores"]) == {"insult", "privacy", "spam", "tone_of_voice"}
    assert scored["routed"] == scored["scores"]["spam"]
    pair = json.loads((root / "new_pairs.jsonl").read_text(encoding="utf8"))
    assert {pair["chosen"], pair["rejected"]} == {"I can not", "First get ready."} and 0.5 <= pair["confidence"] < 1
