"""A chat model's preset from 01 to 06 by the runner, all but its sizes as it stands: a tiny Llama that was taught to
answer, and a miniature of the public files."""

import html
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml
from chat_pack import texts_of, write_chat_model, write_chat_pack
from test_offline import attempts
from test_own_data import shown_in
from test_smoke import ROOT, srmir
from tiny_bert import write_tiny_bert

from srmir_lib.artifacts import load_dataset, read_json, sha256
from srmir_lib.conversations import opens_with_refusal, text_of
from srmir_lib.data import chat_sets
from srmir_lib.data.public_files import XSAFETY_CATEGORIES
from srmir_lib.data.real_sets import real_sets
from srmir_lib.errors import InputError
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.rows import read_jsonl
from srmir_lib.runner.series import Runner
from srmir_lib.settings.data import DataSettings
from srmir_lib.taxonomy import CATEGORIES

pytestmark = pytest.mark.timeout(1800)

PRESET = "smollm2-borrowed"
GRPO = {"prompts_per_step": 2, "max_completion_length": 20}
SIZES = {
    "01_data": {
        "asking": {"max_new_tokens": 40},
        "collection": {"per_group": 3, "practice_per_group": 8},
        "evaluation": {"questions": 2},
    },
    "02_shadow_reward_models": {"max_steps": 4, "lora": ["insult"]},
    "03_margins": {},
    "A0_baselines": {"max_steps": 2, "batch_size": 8, "max_prompts": 8, "grpo": GRPO},
    "04_grpo_linear": {"max_steps": 2, "training": GRPO},
    "05_grpo_categorized": {"max_steps": 2, "signal_prompts": 8, "training": GRPO, "alarm": {"prompts": 8}},
    "06_evaluation": {"sampling": {"max_new_tokens": 20}, "attacks": {"tries": 2, "per_category": 1}},
}
"""What is smaller than in the preset."""

APPENDICES = {
    "A1_bayesian_rewards": {"max_steps": 2, "max_prompts": 8, "grpo": {"max_steps": 1} | GRPO},
    "A2_representation_reranking": {
        "labelled_pairs": 20,
        "max_steps": 2,
        "batch_size": 4,
        "readouts": {"epochs": 2},
        "pool": {"prompts": 6, "max_new_tokens": 20},
        "watching": {"prompts": 8, "course_pools": 3, "cost_pools": 2},
    },
    "A3_hardness": {"max_steps": 2, "train_prompts": 6, "max_prompts": 8, "training": GRPO},
}
"""The same of appendices, which `smollm2` has."""

POLICIES = {"base", "start", "SFT", "DPO", "DPO, within limits", "best-of-n", "GRPO, one model", "linear"}
POLICIES |= {"categorized", "base, again", "start, again"}
RULED = (
    "harm_by_classifier",
    "refusal",
    "attack_success",
    "attack_success_held_out_wrappers",
    "over_refusal",
    "utility",
    "incoherent",
)
ATTACKS = ("attack_success_forced_beginning", "attack_success_any_of_n", "helpful_likelihood")
READ = [f"xsafety_en/{name}" for name in XSAFETY_CATEGORIES]
READ += [f"gptfuzz/{name}.csv" for name in ("GPTFuzzer", "responses_labeled_train", "question_list_0-79")]
READ += ["diasafety/train.json", "diasafety/test.json", "alpaca-harmless/harmless_train.json"]
READ += ["alpaca-harmless/harmless_val.json", "coconot/pairs.jsonl", "do-not-answer-responses/responses.jsonl"]
READ += ["beavertails/responses.jsonl", "safe-rlhf/responses.jsonl", "hh-helpful/pairs.jsonl"]
READ += [
    f"overrefusal-completions/{model}_harmless_{steering}_evaluations.json"
    for model in ("gemma-2b-it", "meta-llama-3-8b-instruct", "qwen-1_8b-chat")
    for steering in ("baseline", "actadd")
]
BORROWED = "safety-tuned-llamas/safety_only_data_Instructions.json"


def changed(values: dict, changes: dict) -> dict:
    """`values` but for `changes`, of a group too."""
    return values | {key: changed(values[key], new) if isinstance(new, dict) else new for key, new in changes.items()}


def stated(preset: str) -> dict[str, dict]:
    """A preset's parameters, by notebook."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "params" / preset).glob("*.yaml")}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy of the repository with one preset, whose model and data lie beside it."""
    folder = tmp_path_factory.mktemp("chat")
    params = folder / "repository" / "params"
    (params / PRESET).mkdir(parents=True)
    for name in ("notebooks", "srmir_lib", "pyproject.toml", "params/claims.yaml"):
        (folder / "repository" / name).symlink_to(ROOT / name)
    parameters, data = stated(PRESET), write_chat_pack(folder / "data")
    assert parameters.keys() == SIZES.keys()
    model = str(write_chat_model(folder / "model", data, parameters["01_data"]["asking"]))
    encoder = str(write_tiny_bert(folder / "encoder"))
    for name, values in parameters.items():
        places = {"base_model": model}
        if name == "01_data":
            places = {"chat_model": model, "data_dir": str(data), "encoder": encoder}
        (params / PRESET / f"{name}.yaml").write_text(yaml.safe_dump(changed(values, SIZES[name]) | places))
    return folder / "repository"


@pytest.fixture(scope="module")
def outputs(repository) -> Path:
    """What `srmir run` made of it."""
    done = srmir(repository, "run", PRESET, "--jobs", "2")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return repository / "outputs" / PRESET


def test_smollm2_differs_in_whose_refusals_are_shown_alone():
    """So what is run here is its series too. How many are shown at most says so of those that are at hand."""
    own, lent = stated("smollm2"), stated(PRESET)
    lent["01_data"]["collection"].pop("borrowed")
    lent["01_data"]["collection"]["per_group"] = own["01_data"]["collection"]["per_group"]
    assert {name: own[name] | {"preset": PRESET} for name in lent} == lent


def test_people_may_teach_in_the_place_of_introspection(outputs, repository):
    """`smollm2-labels`: the same data, taken over; reward models from pairs of answers that people labelled."""
    own, told = stated("smollm2"), stated("smollm2-labels")
    told["02_shadow_reward_models"].pop("pairs")
    assert {name: own[name] | {"preset": "smollm2-labels"} for name in told} == told
    for name in ("01_data", "02_shadow_reward_models"):
        path = repository / "params" / "labels" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        values = yaml.safe_load((repository / "params" / PRESET / f"{name}.yaml").read_text())
        path.write_text(yaml.safe_dump(values | {"preset": "labels"}))
    done = srmir(repository, "run", "labels", "--set", "pairs=labelled_pairs")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    assert "01_data: shared" in done.stdout and "02_shadow_reward_models: done" in done.stdout
    pairs = load_dataset(outputs / "01_data" / "labelled_pairs")
    labels = {
        (text_of(row["prompt"]), text_of(row["completion"])): row["unsafe"]
        for row in load_dataset(outputs / "01_data" / "labelled")["train"]
    }
    for row in pairs["train"]:
        sides = [labels[text_of(row["prompt"]), text_of(row[side])] for side in ("chosen", "rejected")]
        assert sides == [0, 1], "a safe answer over an unsafe one to the same prompt"
    assert pairs["test"].to_dict() == load_dataset(outputs / "01_data" / "preferences")["test"].to_dict()
    seen = repository / "outputs" / "labels" / "02_shadow_reward_models"
    assert read_json(seen / "metrics.json") != read_json(outputs / "02_shadow_reward_models" / "metrics.json")


def test_appendices_run_on_a_chat_model(outputs, repository):
    """As in `smollm2`, on what this preset made: a classifier rules, an encoder tells A3's sentences apart."""
    for name, sizes in APPENDICES.items():
        places = {"preset": PRESET, "base_model": str(repository.parent / "model")}
        if name == "A3_hardness":
            places["encoder"] = str(repository.parent / "encoder")
        values = changed(stated("smollm2")[name], sizes) | places
        (repository / "params" / PRESET / f"{name}.yaml").write_text(yaml.safe_dump(values))
    done = srmir(repository, "run", PRESET, *(name[:2] for name in APPENDICES), "--jobs", "2")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    told = {name: read_json(outputs / name / "manifest.json") for name in APPENDICES}
    assert all(one["ok"] for one in told.values())
    read = {name: {path.split("/")[-1] for path in one["inputs"]} for name, one in told.items()}
    assert all("classifier" in of for of in read.values()), read
    assert told["A3_hardness"]["parameters"]["encoder"].endswith("encoder")


@pytest.mark.parametrize("name", SIZES)
def test_every_stage_is_done_and_its_numbers_are_finite(outputs, name):
    assert read_json(outputs / name / "manifest.json")["ok"]
    metrics = read_json(outputs / name / "metrics.json")
    assert metrics and all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert '"output_type": "error"' not in (outputs / name / f"{name}.ipynb").read_text(encoding="utf8")


def test_nothing_tried_to_leave_the_machine(outputs, repository):
    assert attempts(repository.parent) == []


def test_harm_is_refused_in_borrowed_words_and_help_is_the_models_own(outputs, repository):
    shown, data = load_dataset(outputs / "01_data" / "demonstrations")["train"], repository.parent / "data"
    lent = {row["instruction"]: row["output"] for row in json.loads((data / BORROWED).read_text())}
    plain = {row["instruction"] for row in json.loads((data / "alpaca-harmless" / "harmless_train.json").read_text())}
    refused = {text_of(row["prompt"]): text_of(row["completion"]) for row in shown if row["refuses"]}
    helped = {text_of(row["prompt"]): text_of(row["completion"]) for row in shown if not row["refuses"]}
    assert refused and helped and refused.items() <= lent.items() and helped.keys() <= plain
    assert not any(map(opens_with_refusal, helped.values())) and all(said.endswith(".") for said in helped.values())
    prompts = load_dataset(outputs / "01_data" / "prompts")
    assert not {text_of(prompt) for part in prompts.values() for prompt in part["prompt"]} & refused.keys()
    assert 0 <= read_json(outputs / "01_data" / "metrics.json")["referee_auroc"] <= 1


def test_seven_models_one_scale_and_margins_come_of_it(outputs):
    for file in ("02_shadow_reward_models/shadow_rms/config.json", "03_margins/calibration.json"):
        assert sorted(read_json(outputs / file)["categories"]) == sorted(CATEGORIES)
    assert (outputs / "02_shadow_reward_models" / "readouts").is_dir(), "what labels of people teach"
    rivals = read_json(outputs / "02_shadow_reward_models" / "metrics.json")
    assert {f"{who}_auroc_test" for who in ("models", "one_model", "says", "readouts", "states", "words")} <= {*rivals}
    against = rivals["pair_accuracy_insult_probe_minus_lora"]
    assert -1 <= rivals["pair_accuracy_insult_probe_minus_lora_low"] <= against <= 1
    whole = ShadowRewardModels.load(outputs / "02_shadow_reward_models" / "lora_rms")
    assert (whole.categories, whole.design) == (["insult"], "separate")
    pairs = load_dataset(outputs / "03_margins" / "preferences_with_margins")
    assert set(pairs) == {"train", "validation", "test"} and all(
        "margin" in part.column_names for part in pairs.values()
    )
    assert "margin_action_spearman" in read_json(outputs / "03_margins" / "metrics.json"), "what people saw models do"


def test_policies_are_watched(outputs):
    found = read_json(outputs / "05_grpo_categorized" / "metrics.json")
    assert (
        found["alarm_router"] == (found["suspicion_router"] > found["alarm_threshold"]) and found["unknown_share"] < 1
    )
    for name in ("04_grpo_linear", "05_grpo_categorized"):
        history = read_jsonl(outputs / name / "history.jsonl")
        watched = {
            "kl",
            "coherence/log_likelihood",
            "completions/mean_length",
            *(f"monitor/{key}" for key in CATEGORIES),
        }
        assert len(history) == 2 and watched <= set().union(*history)


def test_every_policy_is_ruled_on_by_the_referee_of_harm(outputs):
    results = read_json(outputs / "06_evaluation" / "results.json")
    assert "HarmReferee" in results["note"] and set(results["policies"]) == POLICIES
    for name, measures in results["policies"].items():
        assert {*RULED, *(() if name.endswith(", again") else ATTACKS)} <= set(measures)
    asked = [text_of(prompt) for prompt in load_dataset(outputs / "01_data" / "prompts")["test"]["prompt"]]
    answers = {}
    for row in read_jsonl(outputs / "06_evaluation" / "answers.jsonl"):
        answers.setdefault(row["policy"], []).append(row["prompt"])
    assert answers == dict.fromkeys(POLICIES, asked)


def test_no_text_of_people_or_models_is_shown_whole(outputs, repository):
    hidden = set(
        texts_of(repository.parent / "data", "prompt", "instruction", "context", "response", "output", "chosen")
    )
    hidden |= {row["response"] for row in read_jsonl(outputs / "06_evaluation" / "answers.jsonl")}
    for name in ("prompts", "demonstrations", "preferences"):
        for part in load_dataset(outputs / "01_data" / name).values():
            sides = {"prompt", "completion", "chosen", "rejected"} & {*part.column_names}
            hidden |= {text_of(text) for side in sides for text in part[side]}
    hidden = {text for text in hidden if len(text.split()) > 3}
    assert len(hidden) > 500
    said = {name: shown_in(outputs / name / f"{name}.ipynb") for name in SIZES}
    said["report"] = html.unescape((outputs / "report" / "index.html").read_text(encoding="utf8"))
    assert [name for name, page in said.items() if "redacted]" not in page] == ["03_margins"], "it shows no text"
    assert [(name, text) for name, page in said.items() for text in hidden if text in page] == []


def test_a_second_run_skips_everything_and_changes_nothing(outputs, repository):
    before = sha256(outputs)
    done = srmir(repository, "run", PRESET)
    assert done.returncode == 0 and done.stdout.count(": skipped") == len(SIZES)
    assert sha256(outputs) == before


def told(repository: Path, **changes) -> DataSettings:
    """The settings of 01, but for `changes`."""
    runner = Runner(PRESET, repository)
    return DataSettings.of(changed(runner.plan(runner.select(["01"]))[0].parameters, changes))


def test_asked_why_the_model_refuses_in_words_of_its_own(repository):
    settings = told(repository, collection={"borrowed": False})
    data = real_sets(settings, settings.chat_model, Path())
    shown, practised = data.folders["demonstrations"]["train"], data.folders["prompts"]["train"]["prompt"]
    refused = [row for row in shown if row["refuses"]]
    assert {row["category"] for row in refused} == {*CATEGORIES} and all("1. it " in row["draft"] for row in refused)
    assert {text_of(row["prompt"]) for row in refused} <= {*map(text_of, practised)}


def loaded(*_, **__):
    raise LookupError("a model is loaded")


@pytest.mark.parametrize("name", [*READ, BORROWED])
def test_a_file_that_is_missing_is_named_before_a_model_is_loaded(repository, tmp_path, monkeypatch, name):
    for model in ("PromptEncoder", "resolve_encoder", "Trunk"):
        monkeypatch.setattr(chat_sets, model, loaded)
    data = shutil.copytree(repository.parent / "data", tmp_path / "data")
    (data / name).unlink()
    with pytest.raises(InputError, match=f"^{re.escape(str(data / name))}: no such file") as refused:
        real_sets(told(repository, data_dir=str(data)), "model", Path())
    assert "\n" not in str(refused.value)


def test_what_a_chat_model_does_not_need_may_be_missing(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_sets, "resolve_encoder", loaded)
    for name in READ:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(repository.parent / "data" / name, tmp_path / name)
    with pytest.raises(LookupError):
        real_sets(told(repository, data_dir=str(tmp_path), collection={"borrowed": False}), "model", Path())
