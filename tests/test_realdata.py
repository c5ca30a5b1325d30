"""From the data files to a trained set of reward models, on a miniature data pack and a tiny encoder."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from run_notebook import run_notebook
from tiny_bert import WORDS, write_tiny_bert

from srmir_lib.artifacts import load_dataset, read_json, save_dataset
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data.labelled_sets import labelled_answers
from srmir_lib.data.public_files import OVERREFUSAL_MODELS, XSAFETY_CATEGORIES, all_words
from srmir_lib.data.public_sets import (
    human_preferences,
    public_data,
    real_prompts,
    taught_and_tested,
    texts_in,
)
from srmir_lib.data.router import Router, fit_real_router, router_accuracy
from srmir_lib.evaluation.reward_accuracy import compare_with_words
from srmir_lib.reward_models.pooled import PairTokenizer
from srmir_lib.reward_models.pooled_training import fit_pooled
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.settings.reward_training import EncoderSettings
from srmir_lib.taxonomy import CATEGORIES, UNKNOWN

READING = {"max_tokens": 32, "prompt_tokens": 8}
FINE_TUNING = {
    "epochs": 6,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "head_learning_rate": 1e-2,
    "layer_decay": 0.9,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "pair_weight": 0.5,
    "mean_weight": 0.5,
    "averaging": 0.5,
    "bf16": False,
}
OBJECTIVES = {"margin": {"objective": "margin"}, "pcrm": {"objective": "pcrm_length", "limit": [2.0, 0.01, -1.0]}}


def write_pack(folder: Path) -> Path:
    """About 600 rows in the layout of the real files: each category asks with a word of its own."""
    draw = np.random.default_rng(0)

    def text(count: int) -> str:
        return " ".join(draw.choice(WORDS, count))

    def own(mark: str, number: int) -> str:
        """Three words that stand in no other prompt, or prompts would be of one family."""
        return " ".join(f"{mark}{number}{letter}" for letter in "abc")

    def put(name: str, content: str | bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    for word, name in zip(WORDS, XSAFETY_CATEGORIES, strict=False):
        put(f"xsafety_en/{name}", "".join(f"{word} {word} {word} {word} {text(4)}\r\n" for _ in range(20)))
    questions = [f"{WORDS[n % 7]} {text(3)} {own('f', n)}" for n in range(10)]
    put("gptfuzz/question_list_0-79.csv", "index,text\n" + "".join(f"{n},{x}\n" for n, x in enumerate(questions)))
    answers = [(n, *(("sorry no " + text(3), 0), ("sure here " + text(20), 1))[n // 10 % 2]) for n in range(100)]
    put(
        "gptfuzz/responses_labeled_train.csv",
        "question,Response,label\n" + "".join(f"{n % 10},{a},{u}\n" for n, a, u in answers),
    )
    openings = [f"\n\nHuman: {f'{WORDS[n % 7]} ' * 4}{text(4)}\n\nAssistant:" for n in range(84)]
    pairs = [{"chosen": o + " sorry " + text(3), "rejected": o + " sure " + text(3)} for o in openings]
    pairs[0]["rejected"] = openings[1] + " sure"
    put("hh-rlhf/harmless-base_test.jsonl.gz", gzip.compress("\n".join(map(json.dumps, pairs)).encode()))
    replies = [("sorry no", "Safe"), ("sure here", "Unsafe")]
    for split, count in (("train", 30), ("val", 6), ("test", 10)):
        contexts = [f"{split} {n} {text(3)}" for n in range(count)]
        rows = [
            {"context": c, "category": "Biased Opinion", "response": f"{r} {text(5)}", "label": judged}
            for c in contexts
            for r, judged in replies
        ]
        put(f"diasafety/{split}.json", json.dumps(rows))
    for model in OVERREFUSAL_MODELS:
        for steering, answered in (("baseline", 1), ("actadd", 0)):
            row = {"prompt": text(3), "response": text(5), "is_jailbreak_substring_matching": answered}
            content = json.dumps({"completions": [row] * 3})
            put(f"overrefusal-completions/{model}_harmless_{steering}_evaluations.json", content)
    asked = [f"{f'{WORDS[n % 7]} ' * 6}{n} {text(3)} {own('b', n)}" for n in range(40)]
    both = [(f"sorry no {text(4)}", 0), (f"sure here {text(6)}", 1)]
    said = [{"prompt": x, "response": f"{y} {n}", "label": u} for n, x in enumerate(asked) for y, u in both]
    harms = [{**row, "categories": ["privacy_violation"] * row["label"]} for row in said[:40]]
    judged = {"model": "one", "types_of_harm": "Toxic language (hate speech)"}
    judged = [
        {**row, **judged, "action": 5 * row["label"], "response": row["response"] + " again"}
        | {"prompt": f"{WORDS[n // 2 % 7]} {text(3)} {own('d', n // 2)}"}
        for n, row in enumerate(said)
    ]
    harms += [{"prompt": x, "response": f"perhaps {n}", "label": 0, "categories": []} for n, x in enumerate(questions)]
    put("beavertails/responses.jsonl", "\n".join(map(json.dumps, harms)))
    put("safe-rlhf/responses.jsonl", "\n".join(map(json.dumps, said[30:])))
    put("do-not-answer-responses/responses.jsonl", "\n".join(map(json.dumps, judged)))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(data pack, encoder, prompts, router) of the miniature."""
    pack, encoder = write_pack(tmp_path_factory.mktemp("pack")), write_tiny_bert(tmp_path_factory.mktemp("encoder"))
    prompts = real_prompts(pack, seed=0)
    return pack, encoder, prompts, fit_real_router(prompts, str(encoder), device="cpu")


def test_prompts_have_the_columns_of_every_prompts_folder(made):
    _, _, prompts, _ = made
    columns = {"prompt", "category", "gold_category", "kind", "subkind", "family", "held_out", "reference"}
    assert all(set(part.column_names) == columns for part in prompts.values())
    assert sum(len(part) for part in prompts.values()) == 140
    texts = [{row["prompt"][0]["content"] for row in part} for part in prompts.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


def test_the_router_learns_the_categories_and_is_saved(made, tmp_path):
    _, _, prompts, router = made
    accuracy = router_accuracy(router, prompts["test"])
    assert accuracy["mean"] > 0.7 and set(accuracy) == {*CATEGORIES, "mean", UNKNOWN}
    router.save(tmp_path / "router")
    again = Router.load(tmp_path / "router", "cpu")
    assert again.route(prompts["test"]["prompt"]) == router.route(prompts["test"]["prompt"])


def all_labelled(router, pack: Path):
    """As 01 asks for it with real data."""
    return labelled_answers(router, pack, seed=0, far=0, gptfuzz_taught=True)


def test_answers_and_pairs_get_a_category_and_splits_share_no_prompt(made):
    pack, _, _, router = made
    labelled, repeats = all_labelled(router, pack)
    assert repeats == dict.fromkeys(labelled, 0)
    counts = {name: {kind: of["kind"].count(kind) for kind in set(of["kind"])} for name, of in labelled.items()}
    assert counts["train"].pop("gptfuzz") == 60, "three fifths of ten questions"
    assert counts["train"].keys() == {"beavertails", "safe-rlhf"} and sum(counts["train"].values()) == 24 * 2 + 6
    assert sum(counts["validation"].values()) == 6 * 2 + 20 + 2 and counts["gptfuzz"] == {"gptfuzz": 20}
    assert sum(counts["test"].values()) == 20 + 2 and "gptfuzz" not in counts["test"]
    assert len(labelled["diasafety"]) == 20 and counts["overrefusal"] == {"answered": 9, "refused": 9}
    groups = [set(labelled[name]["group"]) for name in ("train", "validation", "test", "gptfuzz")]
    assert [len(part) for part in groups] == [30, 8, 12, 2] and len(set.union(*groups)) == 50, "two questions twice"
    assert set(labelled["train"]["category"]) <= {*CATEGORIES, UNKNOWN}
    assert not any(labelled["overrefusal"]["unsafe"]) and sum(labelled["diasafety"]["unsafe"]) == 10
    harmful = labelled["train"].filter(lambda row: row["unsafe"] and row["kind"] == "beavertails")
    assert set(harmful["category"]) == {"privacy"}, "what people said, not what the router says of the prompt"
    preferences, left_out = human_preferences(router, pack, seed=0)
    assert left_out["prompts differ"] == 1 and sum(len(part) for part in preferences.values()) == 83
    assert preferences["train"][0]["chosen"][0]["content"].startswith("sorry")


def test_all_public_folders_come_with_the_numbers_about_them(made):
    pack, encoder, prompts, router = made
    folders, again, numbers = public_data(pack, str(encoder), 0, "cpu")
    assert again.fingerprint == router.fingerprint and list(folders) == ["prompts", "preferences", "labelled"]
    assert folders["prompts"]["test"].to_list() == prompts["test"].to_list()
    assert folders["labelled"]["test"].to_list() == all_labelled(router, pack)[0]["test"].to_list()
    assert folders["preferences"]["test"].to_list() == human_preferences(router, pack)[0]["test"].to_list()
    assert numbers["router"] == router_accuracy(router, prompts["test"])
    assert numbers["left_out"]["prompts differ"] == 1 and numbers["repeats"] == dict.fromkeys(folders["labelled"], 0)


def test_what_is_taught_and_tested_by_hand():
    said = {"train": ["No, never.", "yes", "!"], "validation": ["maybe"], "test": ["no never", "perhaps", "?"]}
    parts = {name: [{"answer": assistant_message(text), "x": "yes"} for text in of] for name, of in said.items()}
    assert taught_and_tested(parts, ["answer"]) == {"no never"}, "an answer without a word is none"
    assert taught_and_tested(parts, ["answer", "x"]) == {"no never", "yes"}


def test_an_answer_of_an_earlier_split_is_left_out_and_counted(made, tmp_path):
    """Ten questions of ten answers, and every question has one answer in the very same words."""
    _, _, _, router = made
    folder = write_pack(tmp_path)
    path = folder / "gptfuzz" / "responses_labeled_train.csv"
    path.write_text(path.read_text() + "".join(f"{n},Sorry! No.,0\n{n},sorry no,0\n" for n in range(10)))
    labelled, repeats = all_labelled(router, folder)
    assert repeats == dict.fromkeys(labelled, 0) | {"validation": 4, "gptfuzz": 4}
    assert [labelled[name]["kind"].count("gptfuzz") for name in ("train", "validation", "gptfuzz")] == [72, 20, 20]
    path = folder / "hh-rlhf" / "harmless-base_test.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for row in rows[2:]:
        row["rejected"] = row["chosen"].partition("Assistant:")[0] + "Assistant: the same for all"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    preferences, left_out = human_preferences(router, folder, seed=0)
    kept = {name: len(part) for name, part in preferences.items()}
    assert kept["validation"] + kept["test"] <= 1, "all but one of them have an answer of the training split"
    assert left_out["answer in an earlier split"] == 83 - sum(kept.values()) > 20


def test_the_chain_from_files_to_reward_models(made, tmp_path):
    pack, encoder, _, router = made
    (labelled, _), (preferences, _) = all_labelled(router, pack), human_preferences(router, pack)
    folder = tmp_path / "shadow_rms"
    settings = PairTokenizer(**READING), EncoderSettings(**FINE_TUNING | {"epochs": 10})
    train = labelled["train"], preferences["train"]
    fit_pooled(encoder, *train, folder, list(CATEGORIES), *settings, device="cpu", progress=False)
    models = ShadowRewardModels.load(folder, "cpu")
    table, gains, chosen = compare_with_words(models, labelled, preferences, pair_weight=0.5)
    assert list(table) == ["models", "words", "words_and_pairs"] and list(chosen) == ["words", "words_and_pairs"]
    for name, choice in chosen.items():
        assert set(choice) == {"reads", "ngrams", "penalty", "validation"}
        assert choice["validation"] == table[name]["auroc_validation"], f"{name} was not chosen on the validation rows"
    assert all(measures["auroc_test"] > 0.95 for measures in table.values()), "refusals are easy to tell here"
    assert gains["test_minus_words"].estimate == pytest.approx(
        table["models"]["auroc_test"] - table["words"]["auroc_test"]
    )
    assert set(gains) == {
        f"{split}_minus_{rival}"
        for split in ("test", "diasafety", "gptfuzz", "do_not_answer")
        for rival in ("words", "words_and_pairs")
    }


def execute(name: str, root: Path, **parameters) -> Path:
    """Run a notebook with `root` as the repository its stage sees; return its output folder."""
    run_notebook(name, root, **{"preset": "realdata", "device": "cpu"} | parameters)
    return root / "outputs" / "realdata" / name


def test_notebooks_02_and_03_run_on_real_data(made, tmp_path):
    pack, encoder, prompts, router = made
    data = tmp_path / "outputs" / "realdata" / "01_data"
    preferences, _ = human_preferences(router, pack)
    save_dataset(all_labelled(router, pack)[0], data / "labelled")
    save_dataset(preferences, data / "preferences")
    router.save(data / "router")
    shared = {"base_model": str(encoder), "labelled": "labelled"}
    own = {"design": "pooled", "show_text": False, "reading": READING, "fine_tuning": FINE_TUNING}
    second = execute("02_shadow_reward_models", tmp_path, **shared, **own)
    models = ShadowRewardModels.load(second / "shadow_rms", "cpu")
    assert models.design == "pooled" and models.calibration is not None
    metrics = read_json(second / "metrics.json")
    assert metrics["models_auroc_test"] > 0.9 and metrics["words_auroc_test"] > 0.9
    assert metrics["pair_accuracy_human_seven_low"] <= metrics["pair_accuracy_human_seven"]
    assert metrics["seven_minus_words_tuned_human"] == pytest.approx(
        metrics["pair_accuracy_human_seven"] - metrics["pair_accuracy_human_words_tuned"]
    )
    assert "pair_accuracy_last_row" not in metrics, "one encoder has no single model in the last row"
    shown = (tmp_path / "02_shadow_reward_models.ipynb").read_text(encoding="utf8")
    assert "redacted" in shown
    third = execute(
        "03_margins", tmp_path, **shared, legend={"pooling": "mean", "pairs": 20}, objectives=OBJECTIVES, best_of=0
    )
    pairs = load_dataset(third / "preferences_with_margins", columns=["margin"])
    assert all(np.isfinite(part["margin"]).all() for part in pairs.values())
    assert ShadowRewardModels.load(third / "shadow_rms", "cpu").calibration is not None
    metrics = read_json(third / "metrics.json")
    assert metrics["auroc_test_margin"] > 0.9, "refusals are easy to tell here"


def test_notebook_A8_runs_every_objective_and_goes_on_where_it_stopped(made, tmp_path):
    pack, encoder, _, _ = made
    own = {
        "encoder": {"reading": READING, "fine_tuning": FINE_TUNING},
        "seeds": [1, 2],
        "sets": ["hh-rlhf", "diasafety"],
    }
    given = {
        "base_model": str(encoder),
        "data_dir": str(pack),
        "objectives": {"bradley_terry": {}, **OBJECTIVES},
        **own,
    }
    folder = execute("A8_real_pairs", tmp_path, **given)
    files = {path: path.stat().st_mtime_ns for path in (folder / "records").rglob("*.json")}
    assert len(files) == 2 * 2 * 4
    metrics = read_json(folder / "metrics.json")
    assert metrics["auroc/diasafety/bradley_terry"] > 0.9, "refusals are easy to tell here"
    assert "auroc/hh-rlhf/words" not in metrics, "nobody judged single answers there"
    shown = (tmp_path / "A8_real_pairs.ipynb").read_text(encoding="utf8")
    assert "redacted" in shown
    execute("A8_real_pairs", tmp_path, **given)
    assert files == {path: path.stat().st_mtime_ns for path in (folder / "records").rglob("*.json")}


def test_notebook_01_leaves_repeats_out_and_keeps_what_the_text_model_has_read(made, tmp_path):
    pack, encoder, _, _ = made
    given = {"prompt_source": "xsafety", "data_dir": str(pack), "encoder": str(encoder), "text_model_steps": 2}
    folder = execute("01_data", tmp_path, **given)
    read = texts_in(load_dataset(folder / "base_model_texts"))
    preferences, labelled = load_dataset(folder / "preferences"), load_dataset(folder / "labelled")
    sides = [(preferences, "chosen"), (preferences, "rejected"), (labelled, "completion")]
    for split in ("train", "test"):
        texts = {all_words(answer[0]["content"]) for data, side in sides for answer in data[split][side]}
        assert texts <= read if split == "train" else texts and not texts & read
    assert read_json(folder / "metrics.json")["repeats_test"] == 0 and (folder / "base_model").is_dir()


def test_notebook_A8_holds_the_designs_of_reward_models_against_each_other(made, tiny_model, tmp_path):
    settings = {"max_steps": 16, "batch_size": 8, "learning_rate": 0.01, "lora_rank": 4, "lora_alpha": 8}
    first = json.loads((made[0] / "diasafety" / "train.json").read_text())[:12]
    talks = [user_message(row["context"]) + assistant_message(row["response"]) for row in first]
    read = Dataset.from_list([{"messages": talk} for talk in talks])
    save_dataset(read, tmp_path / "outputs" / "realdata" / "01_data" / "base_model_texts")
    folder = execute(
        "A8_real_pairs",
        tmp_path,
        base_model=str(tiny_model),
        data_dir=str(made[0]),
        design="tokens",
        trunk_from="01_data",
        seeds=[1, 2],
        sets=["diasafety"],
        objectives={},
        reward_models={name: {"design": name} for name in ("separate", "shared")},
        trunk={"reward_model": settings, "prompt_tokens": 16, "answer_tokens": 16},
    )
    metrics = read_json(folder / "metrics.json")
    both = [metrics[f"auroc/diasafety/{name}"] for name in ("shared", "separate")]
    assert min(both) > 0.9, "refusals are easy to tell here"
    assert metrics["auroc/diasafety/shared_minus_separate"] == pytest.approx(both[0] - both[1])
