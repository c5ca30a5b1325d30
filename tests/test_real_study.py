"""Real pairs share no prompt across splits; a study measures what it says, records each fit, and goes on."""

import json
from collections import Counter

import numpy as np
import pytest
from test_realdata import READING, write_pack
from test_token_rewards import SETTINGS as TOKENS
from tiny_bert import ENCODER, write_tiny_bert

from srmir_lib.artifacts import read_json
from srmir_lib.conversations import assistant_message, text_of, user_message
from srmir_lib.data import public_files
from srmir_lib.data.public_sets import texts_in
from srmir_lib.errors import InputError
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.pooled import PairTokenizer
from srmir_lib.settings.reward_training import RewardSettings, SizedProbe
from srmir_lib.studies.a1_token_rewards.reader import Reader
from srmir_lib.studies.a8_real_pairs.methods import (
    Method,
    encoder_method,
    reward_model_method,
    token_method,
    trunk_methods,
    words_method,
)
from srmir_lib.studies.a8_real_pairs.pairs import PAIR_SETS, PairData, pair_loader, real_pairs
from srmir_lib.studies.a8_real_pairs.study import measures, run_study, seed_metrics, seed_rows


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("pack"))


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    return {"prompt": user_message(prompt)} | {
        "chosen": assistant_message(chosen),
        "rejected": assistant_message(rejected),
    }


def by_length(data, seed):
    """A reward model that likes long answers."""
    return lambda prompts, answers: np.array([float(len(text_of(answer).split())) for answer in answers])


@pytest.mark.parametrize("name", PAIR_SETS)
def test_splits_share_no_prompt_and_a_seed_draws_them_anew(pack, name):
    data = real_pairs(name, pack, seed=1)
    asked = [{str(row["prompt"]) for row in part} for part in data[:3]]
    assert all(asked) and not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    assert real_pairs(name, pack, seed=1) == data != real_pairs(name, pack, seed=2)
    assert real_pairs(name, pack, seed=2).validation == data.validation, "settings were chosen on it"
    few = real_pairs(name, pack, seed=1, most=3)
    assert few.train == data.train[:3] and few[1:] == data[1:]


def test_pairs_hold_a_safe_and_an_unsafe_answer_of_one_question_once_each(pack):
    data = real_pairs("gptfuzz", pack, seed=0)
    pairs = [row for part in data[:3] for row in part]
    assert all(text_of(row["chosen"]).startswith("sorry") for row in pairs)
    assert all(text_of(row["rejected"]).startswith("sure") for row in pairs)
    used = Counter((str(row["prompt"]), text_of(row["rejected"])) for row in pairs)
    assert max(used.values()) == 1, "no answer is used twice"
    assert {str(row["prompt"]) for row in data.labelled} == {str(row["prompt"]) for row in data.test}
    assert {row["unsafe"] for row in data.labelled} == {0, 1} and not real_pairs("hh-rlhf", pack).labelled


@pytest.mark.parametrize("name", PAIR_SETS)
def test_what_a_model_was_made_from_is_not_tested(pack, name):
    """01 makes the trunk from its training splits; whatever A8's seed, no question or answer of these is tested."""
    rows = [row | {"group": row["prompt"]} for row in public_files.load_gptfuzz(pack)]
    read = public_files.split_by_group(rows, "group", (0.3, 0.2), 0)["train"]
    talks = [user_message(row["prompt"]) + assistant_message(row["response"]) for row in read]
    pairs = [pair | {"group": pair["prompt"][0]["content"]} for pair in public_files.load_hh_pairs(pack)[0]]
    read = public_files.split_by_group(pairs, "group", (0.7, 0.1), 0)["train"]
    talks += [row["prompt"] + assistant_message(row[side]) for row in read for side in ("chosen", "rejected")]
    talks.append(user_message("sorry") + assistant_message("SORRY, no!"))
    known = texts_in([{"messages": talk} for talk in talks])
    tests = []
    for seed in (1, 2, 3, 4):
        data = real_pairs(name, pack, seed, known=known)
        answers = [row[side] for row in data.test for side in ("chosen", "rejected")]
        answers += [row["completion"] for row in data.labelled]
        asked = [row["prompt"] for row in (*data.test, *data.labelled)]
        words = {public_files.all_words(text_of(text)) for text in (*answers, *[chat[:1] for chat in asked])}
        assert len(words) > 2 and not words & known
        opened = [{public_files.all_words(text_of(row["prompt"][:1])) for row in part} for part in data[:2]]
        assert not opened[1] & known and (opened[0] & known or name == "diasafety"), "known: for training only"
        tests.append({str(chat) for chat in asked})
    assert len(set.union(*tests)) > len(tests[0]), "a seed draws its test anew"


def test_an_unknown_set_is_refused(pack):
    with pytest.raises(InputError, match="data sets: 'hh' is none of hh-rlhf, gptfuzz, diasafety"):
        real_pairs("hh", pack)
    with pytest.raises(InputError, match="most: -5 pairs of gptfuzz"):
        real_pairs("gptfuzz", pack, most=-5)


def test_a_loader_knows_its_sets_and_how_many_pairs_are_wanted(pack):
    load = pair_loader(["gptfuzz", "diasafety"], {"gptfuzz": 3}, pack)
    assert load("gptfuzz", 1) == real_pairs("gptfuzz", pack, 1, most=3) and len(load("gptfuzz", 1).train) == 3
    assert load(name="diasafety", seed=2) == real_pairs("diasafety", pack, 2)
    for sets, most in ((["hh"], {}), ([], {"hh": 3})):
        with pytest.raises(InputError, match=r"sets, most: \['hh'\] are not among"):
            pair_loader(sets, most)


def test_answers_that_are_taught_and_tested_by_hand():
    labelled = [{"prompt": user_message("q"), "completion": assistant_message("Perhaps?"), "unsafe": 0}]
    data = PairData([pair("a", "Yes.", "no")], [pair("b", "so", "so")], [pair("c", "so", "NO!")], labelled)
    assert data.taught_and_tested() == {"no"}, "the validation split is not trained on"
    assert data.taught_and_tested({"perhaps", "so", "else"}) == {"no", "perhaps", "so"}


def test_what_training_holds_is_not_tested_and_contradictions_are_dropped(tmp_path):
    rows = []
    for n in range(40):
        for label, text in (("Safe", f"Sorry {n}."), ("Unsafe", f"sure {n}")):
            rows.append({"context": f"context {n}", "category": "x", "response": text, "label": label})
        rows.append({"context": f"context {n}", "category": "x", "response": "STOCK answer!", "label": "Safe"})
        rows.append({"context": f"context {n}", "category": "x", "response": "stock answer", "label": "Unsafe"})
    rows.append({"context": "context 1", "category": "x", "response": "Sorry 1.", "label": "Unsafe"})
    (tmp_path / "diasafety").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "diasafety" / f"{split}.json").write_text(json.dumps(rows))
    data = real_pairs("diasafety", tmp_path, seed=1)
    tested = {text_of(row[side]) for row in data.test for side in ("chosen", "rejected")}
    assert tested and not tested & {"STOCK answer!", "stock answer"}, "training has these words"
    assert not {text_of(row["completion"]) for row in data.labelled} & {"STOCK answer!", "stock answer"}
    everything = [row for part in data[:3] for row in part]
    assert not any("Sorry 1." in (text_of(row["chosen"]), text_of(row["rejected"])) for row in everything)


def test_measures_by_hand():
    test = [pair("a", "one two", "one"), pair("b", "one", "one two three")]
    labelled = [
        {"prompt": user_message("a"), "completion": assistant_message(text), "unsafe": unsafe}
        for text, unsafe in (("one two", 0), ("one", 1), ("one two three", 1))
    ]
    found = measures(by_length(None, 0), PairData([], [], test, labelled))
    assert found["pair_accuracy"] == 0.5 and found["auroc"] == 0.5
    assert (found["gap"], found["gap_spread"]) == (-0.5, 1.5), "gaps of 1 and of -2"
    assert found["score_spread"] == pytest.approx(np.std([2, 1, 1, 3]))
    assert found["length_correlation"] == pytest.approx(1.0), "this model pays for length and for nothing else"
    assert "auroc" not in measures(by_length(None, 0), PairData([], [], test, []))


def test_fits_on_record_are_not_made_again(tmp_path):
    made, data = [], PairData([pair("a", "x y", "x")] * 2, [], [pair("b", "x y", "x"), pair("c", "x", "x y z")], [])

    def method(name: str, about: dict) -> Method:
        return Method(about, lambda data, seed: made.append((name, seed)) or by_length(data, seed))

    methods = {"one": method("one", {"rate": 1}), "two": method("two", {"rate": 1})}
    rows = run_study(lambda name, seed: data, ["set"], methods, [1, 2], tmp_path)
    assert made == [("one", 1), ("two", 1), ("one", 2), ("two", 2)] and len(rows) == 4
    record = read_json(tmp_path / "set" / "two_2.json")
    assert record["metrics"]["pair_accuracy"] == 0.5 and record["pairs"] == [2, 0, 2] and record["versions"]["torch"]
    again = run_study(lambda name, seed: data, ["set"], methods, [1, 2], tmp_path)
    assert len(made) == 4 and [row["metrics"] for row in again] == [row["metrics"] for row in rows]
    methods["two"] = method("two", {"rate": 2})
    run_study(lambda name, seed: data, ["set"], methods, [1, 2], tmp_path)
    assert made[4:] == [("two", 1), ("two", 2)], "only what was changed"
    other = data._replace(train=data.train[:1])
    run_study(lambda name, seed: other if seed == 2 else data, ["set"], {"one": methods["one"]}, [1, 2], tmp_path)
    assert made[6:] == [("one", 2)], "other data"
    (tmp_path / "set" / "one_1.json").write_text("{")
    with pytest.raises(InputError, match=r"one_1.json"):
        run_study(lambda name, seed: data, ["set"], methods, [1, 2], tmp_path)
    (tmp_path / "set" / "one_1.json").write_text("[]")
    with pytest.raises(InputError, match=r"one_1.json: not the record of a fit; delete it"):
        run_study(lambda name, seed: data, ["set"], methods, [1, 2], tmp_path)
    for seeds in ([1, 1], [1]):
        with pytest.raises(InputError, match="give at least two different whole numbers"):
            run_study(lambda name, seed: data, ["set"], methods, seeds, tmp_path)


def test_rows_over_seeds_are_paired_and_know_that_splits_overlap():
    values = {("plain", 1): 0.5, ("plain", 2): 0.7, ("other", 1): 0.6, ("other", 2): 0.9}
    rows = [
        {"set": "s", "method": m, "seed": n, "metrics": {"acc": value}, "pairs": [80, 9, 20]}
        for (m, n), value in values.items()
    ]
    plain, other = seed_rows(rows, "acc")
    assert (plain["label"], plain["group"], plain["estimate"]) == ("plain", "s", pytest.approx(0.6))
    wider = (1 / 2 + 20 / 80) ** 0.5  # Nadeau & Bengio
    assert plain["high"] - plain["estimate"] == pytest.approx(12.706 * np.std([0.5, 0.7], ddof=1) * wider, rel=1e-3)
    (gain,) = seed_rows(rows, "acc", "plain")
    assert gain["label"] == "other" and gain["estimate"] == pytest.approx(0.15)
    assert gain["high"] - gain["estimate"] == pytest.approx(12.706 * np.std([0.1, 0.2], ddof=1) * wider, rel=1e-3)
    assert seed_rows(rows, "pair_accuracy") == []
    for row in rows:
        row["metrics"]["pair_accuracy"] = row["metrics"]["acc"]
    assert (seed_rows(rows, "pair_accuracy")[0]["low"], seed_rows(rows, "pair_accuracy")[0]["high"]) == (0.0, 1.0)
    (gain,) = seed_rows(rows, "pair_accuracy", "plain")
    assert gain["low"] < 0 < 1 < gain["high"] + 1, "a difference of shares may be below zero"
    assert other["estimate"] == pytest.approx(0.75) and seed_rows(rows, "auroc") == []


def test_metrics_have_flat_names():
    row = {"group": "s", "label": "a", "estimate": 0.5, "low": 0.25, "high": 0.75}
    found = seed_metrics({"auroc": [row, row | {"label": "b", "estimate": 0.625}]}, {("auroc", "b"): [row]})
    assert {name: value for name, value in found.items() if not name.endswith(("/low", "/high"))} == {
        "auroc/s/a": 0.5,
        "auroc/s/b": 0.625,
        "auroc/s/a_minus_b": 0.5,
    }
    assert (found["auroc/s/b/low"], found["auroc/s/a/high"]) == (0.25, 0.75) and len(found) == 7


def test_methods_on_one_trunk_have_their_own_settings(tiny_model):
    reward = RewardSettings(
        max_steps=3, batch_size=4, learning_rate=0.01, max_length=64, probe=SizedProbe(text=" bad ?")
    )
    rivals = {"probe": ("shared", reward.changed(max_steps=5)), "whole": ("separate", reward)}
    tokens = {"ava": TOKENS, "plain": TOKENS.changed(objective="bradley_terry")}
    methods = trunk_methods(str(tiny_model), tokens, rivals, prompt_tokens=12, answer_tokens=6, device="cpu")
    assert list(methods) == ["probe", "whole", "ava", "plain"]
    settings = {name: method.about["settings"] for name, method in methods.items()}
    assert (settings["probe"]["max_steps"], settings["whole"]["max_steps"]) == (5, 3)
    assert settings["probe"]["probe"]["text"] == " bad ?" and "probe" not in settings["whole"]
    assert (settings["ava"]["objective"], settings["plain"]["objective"]) == ("ava_p", "bradley_terry")


@pytest.mark.parametrize("changes", [{}, {"objective": "margin"}, {"objective": "pcrm_cosine"}])
def test_words_and_encoders_learn_what_is_easy(pack, tmp_path_factory, changes):
    encoder = write_tiny_bert(tmp_path_factory.mktemp("encoder"))
    data, settings = real_pairs("diasafety", pack, seed=0), ENCODER.changed(epochs=20, mean_weight=0.0, **changes)
    method = encoder_method(str(encoder), PairTokenizer(max_tokens=32, prompt_tokens=8), settings, "cpu")
    assert method.about["reading"] == READING
    found = measures(method.fit(data, 0), data)
    assert found["pair_accuracy"] == found["auroc"] == 1.0, "a refusal is a refusal"
    assert measures(words_method().fit(data, 0), data)["pair_accuracy"] == 1.0
    assert json.dumps(method.about) and method.about["settings"]["objective"] == settings.objective


@pytest.mark.parametrize("objective", ["bradley_terry", "ava_p"])
def test_token_rewards_learn_from_texts_that_are_cut(tiny_model, pack, objective):
    reader = Reader(Trunk.load(tiny_model, "cpu"), "", 64)
    rows = [pair(f"open the door {i} please " * 20, "I can not", "yes, open it " * 20) for i in range(24)]
    data = PairData(rows[:18], [], rows[18:], [])
    method = token_method(reader, TOKENS.changed(objective=objective), prompt_tokens=12, answer_tokens=6)
    assert measures(method.fit(data, 0), data)["pair_accuracy"] == 1.0
    with pytest.raises(InputError, match="exceed max_length 64"):
        token_method(reader, TOKENS, prompt_tokens=12, answer_tokens=200).fit(data, 0)


@pytest.mark.parametrize("design", ["shared", "separate"])
def test_reward_models_of_either_design_learn_from_texts_that_are_cut(trunk, pack, design):
    rows = [pair(f"open the door {i} please " * 20, "I can not", "yes, open it " * 20) for i in range(24)]
    data, settings = (
        PairData(rows[:18], [], rows[18:], []),
        RewardSettings(max_steps=20, learning_rate=1e-2, max_length=64),
    )
    method = reward_model_method(trunk, design, settings, prompt_tokens=12, answer_tokens=6)
    assert measures(method.fit(data, 0), data)["pair_accuracy"] == 1.0
    assert json.dumps(method.about) and method.about["design"] == design
    other = settings.changed(keep_gb=0.1, probe=SizedProbe(text="harmful ?"))
    again = reward_model_method(trunk, design, other, 12, 6)
    assert (again.about == method.about) == (design == "separate"), "a LoRA model is asked nothing"
    with pytest.raises(InputError, match="exceed max_length 64"):
        reward_model_method(trunk, design, settings, 12, 200).fit(data, 0)


def test_reward_models_of_other_designs_are_refused(trunk):
    settings = RewardSettings(max_steps=20, learning_rate=1e-2, max_length=64)
    with pytest.raises(InputError, match="design 'pooled' is neither shared nor separate"):
        reward_model_method(trunk, "pooled", settings, 12, 6)
    with pytest.raises(InputError, match="answer_tokens: 12, 0; both must be at least 1"):
        reward_model_method(trunk, "shared", settings, 12, 0)
