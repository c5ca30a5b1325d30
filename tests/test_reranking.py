"""A2: labels, pairs of a pool, rounds held against the start, order and distance, costs, says against knows."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from srmir_lib.conversations import assistant_message, text_of, user_message
from srmir_lib.errors import InputError
from srmir_lib.evaluation.evaluate import worth_of
from srmir_lib.evaluation.measures import Verdict
from srmir_lib.models.loading import load_policy, load_tokenizer
from srmir_lib.policies.training import train_dpo, train_sft
from srmir_lib.reward_models.pairs import swap_labels
from srmir_lib.settings.appendices import ReadoutTraining, Watching
from srmir_lib.settings.cost import Shape
from srmir_lib.settings.policies import DPOSettings, SFTSettings
from srmir_lib.studies.a2_reranking import cost, course, rounds, says

PAIRS = Dataset.from_list(
    [
        {
            "prompt": user_message(f"open {i}"),
            "chosen": assistant_message(f"good {i}"),
            "rejected": assistant_message("no"),
        }
        for i in range(10)
    ]
)
POOL = Dataset.from_list(
    [
        {"prompt": user_message(f"open the {w} door"), "responses": ["yes", "no way", f"the {w} one"]}
        for w in ("red", "big")
    ]
)
TUNING = {"learning_rate": 1e-2, "lr_scheduler": "constant", "micro_batch": 4, "max_length": 64, "seed": 0}
TUNING |= {"lora_r": 4, "lora_alpha": 8, "device": "cpu"}


def said(pairs: Dataset, side: str) -> list[str]:
    return [text_of(answer) for answer in pairs[side]]


class Ladder:
    """A referee that finds an answer as good as its number of words, and forbids what speaks of doors."""

    def __call__(self, prompts, answers):
        return [Verdict("", len(a.split()), "yes" in a, a.startswith("no"), a != "babble") for a in answers]

    def read_prompt(self, prompt):
        return prompt if "open" in prompt else None

    def is_forbidden(self, asked):
        return "door" in asked


def test_a_share_of_the_labels_is_swapped_the_same_ones_for_a_seed():
    swapped = swap_labels(PAIRS, 0.3, seed=1)
    wrong = [row for row, text in enumerate(said(swapped, "chosen")) if text == "no"]
    assert len(wrong) == 3 and [said(swapped, "rejected")[row] for row in wrong] == [f"good {row}" for row in wrong]
    assert swap_labels(PAIRS, 0.3, seed=1)[:] == swapped[:] != swap_labels(PAIRS, 0.3, seed=2)[:]
    assert swap_labels(PAIRS, 0.0, seed=1)[:] == PAIRS[:]
    told = PAIRS.add_column("category", [str(row) for row in range(len(PAIRS))])
    assert swap_labels(told, 0.5, seed=1)["category"][:] == told["category"][:], "what else is said of a pair stays"


def test_the_referee_labels_and_leaves_ties_out():
    rows = [("one", "one more"), ("so", "no"), ("a b c", "a")]
    pairs = Dataset.from_list(
        [
            {"prompt": user_message("p"), "chosen": assistant_message(c), "rejected": assistant_message(r)}
            for c, r in rows
        ]
    )
    found = rounds.labelled_by(Ladder(), pairs)
    assert said(found, "chosen") == ["one more", "a b c"] and said(found, "rejected") == ["one", "a"]
    with pytest.raises(InputError, match="labels: the referee finds both answers of all 1 pairs equally good; give"):
        rounds.labelled_by(Ladder(), pairs.select([1]))


def test_pairs_of_a_pool_by_hand():
    scores = torch.tensor([[0.0, math.log(3), -math.log(3)], [1.0, 0.0, 2.0]])
    pairs = rounds.ranked_pairs(POOL, scores, "pair", seed=0)
    assert said(pairs, "chosen") == ["no way", "the big one"] and said(pairs, "rejected") == ["the red one", "no way"]
    assert pairs["score_chosen"][:] == pytest.approx([math.log(3), 2.0])
    gaps = [3 / 4 - 1 / 4, 1 / (1 + math.exp(-2)) - 1 / 2]
    sure = [1 / (1 + math.exp(-7.5 * gap)) for gap in gaps]
    assert pairs["confidence"][:] == pytest.approx(sure, abs=1e-6)
    dealt = [rounds.ranked_pairs(POOL, scores, "shuffled", seed)["confidence"][:] for seed in range(6)]
    assert all(sorted(of) == pytest.approx(sorted(sure)) for of in dealt) and len({*map(tuple, dealt)}) == 2
    assert "confidence" not in rounds.ranked_pairs(POOL, scores, "batch", 0).column_names


def test_worth_and_texts_of_a_pool_stand_in_its_order():
    assert worth_of(Ladder(), POOL, POOL["responses"]).tolist() == [[1, 2, 3], [1, 2, 3]]
    prompts, answers = rounds.flat(POOL)
    assert [text_of(prompt) for prompt in prompts] == ["open the red door"] * 3 + ["open the big door"] * 3
    assert answers[1] == "no way" and answers[5] == "the big one"


def test_pools_that_make_no_pair_are_left_out_and_counted(monkeypatch):
    texts = [["a", "b"], ["a", "a"], ["a", " "], ["c", "a"]]
    monkeypatch.setattr(rounds, "sample_groups", lambda *_, **__: texts)
    asked = Dataset.from_list([{"prompt": user_message(str(i)), "kind": i} for i in range(4)])
    pool, left = rounds.sample_pool(None, None, asked, 2)
    assert (pool["kind"][:], pool["responses"][:], left) == ([0, 3], [["a", "b"], ["c", "a"]], 2)
    texts[:] = [["a", "a"]] * 4
    with pytest.raises(InputError, match="pool: none of 4 prompts has 2 answers to be ranked; sample more of them"):
        rounds.sample_pool(None, None, asked, 2)


@pytest.fixture(scope="module")
def start(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a2") / "start"
    shown = PAIRS.rename_column("chosen", "completion")
    train_sft(tiny_model, shown, folder, SFTSettings(**TUNING, max_steps=2, batch_size=4))
    return folder


def test_rounds_go_on_and_the_reference_stays_the_start(tiny_model, start, tmp_path):
    told, policies = DPOSettings(**TUNING, max_steps=2, batch_size=4), []

    def pairs_of(number, policy):
        policies.append(policy)
        return PAIRS

    history = rounds.train_in_rounds(tiny_model, start, pairs_of, tmp_path / "dpo", told, 2)
    folders = rounds.round_folders(tmp_path / "dpo", 2)
    assert policies == [start, folders[0]] and [row["step"] for row in history] == [1, 2, 3, 4]
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "the policy starts as its own reference"
    assert abs(history[2]["loss"] - math.log(2)) > 1e-3, "and is held against the start, not against itself"
    again = train_dpo(tiny_model, PAIRS, tmp_path / "again", told.changed(seed=1), start=folders[0])
    assert again[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "without a reference it would be itself"
    with pytest.raises(InputError, match="^reference: .* is no PEFT adapter folder"):
        train_dpo(tiny_model, PAIRS, tmp_path / "x", told, start=start, reference=tmp_path / "none")


def test_the_gap_to_another_reference_is_the_one_by_hand(tiny_model, start, tmp_path):
    """What TRL logs at the first update of a second round, against log-probabilities of single texts."""
    told = DPOSettings(**TUNING, max_steps=1, batch_size=4).changed(micro_batch=2, batch_size=2)
    two = PAIRS.select([0, 1])
    train_dpo(tiny_model, two, tmp_path / "one", told, start=start)
    (row,) = train_dpo(tiny_model, two, tmp_path / "two", told, start=tmp_path / "one", reference=start)
    tokenizer = load_tokenizer(tiny_model)

    def log_probability(policy, prompt, answer):
        begin = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))
        ids = torch.tensor([tokenizer.apply_chat_template(prompt + answer, return_dict=False)])
        with torch.no_grad():
            found = policy(input_ids=ids).logits[0, begin - 1 : -1].log_softmax(-1)
        return found.gather(1, ids[0, begin:, None]).sum().item()

    new, old = (load_policy(tiny_model, "cpu", adapter=folder) for folder in (tmp_path / "one", start))
    gaps = [
        sum(
            sign * (log_probability(new, pair["prompt"], pair[side]) - log_probability(old, pair["prompt"], pair[side]))
            for side, sign in (("chosen", 1), ("rejected", -1))
        )
        for pair in two
    ]
    assert row["rewards/margins"] == pytest.approx(told.beta * sum(gaps) / 2, abs=1e-4)


def test_reranking_reads_the_present_policy_and_learns_on(tiny_model, start):
    told, tokenizer = ReadoutTraining(epochs=2, more_epochs=1), load_tokenizer(tiny_model)
    policy = load_policy(tiny_model, "cpu", adapter=start).get_base_model()
    right, fits = rounds.compare_readouts(policy, tokenizer, {"a": PAIRS}, PAIRS, told, "tiny", 0)
    assert set(right["a"]) == {f"{reads}, {how}" for reads in ("all layers", "layer 2") for how in ("last", "mean")}
    assert fits["a"].layers == [1, 2] and all(
        set(of) <= {0, 0.5, 1} and len(of) == len(PAIRS) for of in right["a"].values()
    )
    before = {name: value.clone() for name, value in fits["a"].tensors.items()}
    ranked = rounds.Reranker(tiny_model, POOL, PAIRS, fits["a"], told, "pair", 0, "cpu")
    first, second = (ranked(number, start) for number in range(2))
    scores = rounds.pool_scores(policy, tokenizer, POOL, fits["a"])
    assert said(first, "chosen") == [POOL[i]["responses"][at] for i, at in enumerate(scores.argmax(1).tolist())]
    assert first["score_chosen"][:] == pytest.approx(scores.amax(1).tolist(), abs=1e-5)
    assert second["score_chosen"][:] != first["score_chosen"][:], "they learned on"
    assert all(torch.equal(value, before[name]) for name, value in fits["a"].tensors.items()), "but in a copy"
    assert [row["round"] for row in ranked.seen] == [1, 2] and ranked.seen[0]["another best"] is None
    with pytest.raises(InputError, match="readouts.layer: 0 is the token's embedding, which has read nothing"):
        rounds.compare_readouts(policy, tokenizer, {"a": PAIRS}, PAIRS, ReadoutTraining(layer=0), "tiny", 0)


def test_order_and_distance_of_a_policy_that_is_the_start(tiny_model, start, tmp_path):
    told, tokenizer = ReadoutTraining(epochs=2), load_tokenizer(tiny_model)
    policy = load_policy(tiny_model, "cpu", adapter=start).get_base_model()
    _, fits = rounds.compare_readouts(policy, tokenizer, {"a": PAIRS}, PAIRS, told, "tiny", 0)
    train_dpo(tiny_model, PAIRS, tmp_path / "p", DPOSettings(**TUNING, max_steps=3, batch_size=4), start=start)
    held_out = PAIRS.rename_column("chosen", "completion")
    followed = {"start": start, "same": start, "moved": tmp_path / "p"}
    reader, sampling = load_policy(tiny_model, "cpu"), {"max_new_tokens": 6, "temperature": 1.0, "seed": 0}
    found = course.follow(tiny_model, followed, POOL, fits["a"], held_out, reader, "cpu", **sampling)
    assert all(0 < row["p"] <= 1 for row in found.values())
    assert found["same"] == pytest.approx(found["start"], abs=1e-6) and found["start"]["KL"] == pytest.approx(
        0, abs=1e-7
    )
    assert found["start"]["order by states"] == found["start"]["order by likelihood"] == pytest.approx(1)
    assert found["moved"]["KL"] > 1e-6 and found["moved"]["held-out"] != found["start"]["held-out"] < 0


def test_rank_correlations_by_hand():
    scores, others = (
        torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]),
        torch.tensor([[10.0, 20.0, 30.0], [1.0, 3.0, 2.0]]),
    )
    assert course.mean_rank_correlation(scores, others) == pytest.approx(((1 - 1) / 2, 1)), (
        "1 and -1: sd root 2, of two"
    )
    assert course.mean_rank_correlation(scores, torch.ones(2, 3)) == (0, 0)
    with pytest.raises(InputError, match="^watching.course_pools: 1 pool has no standard error; read two or more"):
        course.mean_rank_correlation(scores[:1], others[:1])


def test_the_sentence_of_the_hypothesis_turns_round_with_the_numbers():
    moved = {"order by states": 0.5, "error of order": 0.1, "KL": 0.05}
    stayed = {"order by states": 0.95, "error of order": 0.01, "KL": 0.5}
    text = course.about_course({"dpo": moved, "GRPO": stayed}, ["GRPO"], 0.9, 0.1)
    assert "below 0.1) under: dpo. Per nat of KL it moved more than" in text and "(GRPO) under: dpo. The" in text
    assert "holds here" in text and "dpo 0.500 (± 0.200) at KL 0.050" in text
    text = course.about_course({"dpo": stayed, "GRPO": moved}, ["GRPO"], 0.9, 0.1)
    assert "below 0.1) under: GRPO. " in text and "(GRPO) under: none. The" in text and "does not hold here" in text
    unsure = moved | {"error of order": 0.25}
    text = course.about_course({"dpo": unsure, "GRPO": stayed}, ["GRPO"], 0.9, 0.1)
    assert "below 0.1) under: none. " in text and "does not hold here" in text, ".5 and twice .25 is not below .9"


def test_who_trains_on_its_own_samples_is_no_case_for_the_hypothesis():
    moved = {"order by states": 0.5, "error of order": 0.1, "KL": 0.05}
    stayed = {"order by states": 0.95, "error of order": 0.1, "KL": 0.5}
    both = ["GRPO", "online"]
    assert "holds here" in course.about_course({"dpo": moved, "GRPO": stayed, "online": stayed}, both, 0.9, 0.1)
    told = course.about_course({"dpo": moved, "GRPO": stayed, "online": moved}, both, 0.9, 0.1)
    assert "does not hold here" in told and "their own samples (GRPO and online)" in told
    noisy = moved | {"order by states": 0.8, "error of order": 0.06}
    told = course.about_course({"dpo": moved, "GRPO": noisy}, ["GRPO"], 0.9, 0.1)
    assert "does not hold here" in told, "the noise of GRPO's order does not speak for the hypothesis"


def test_a_null_run_that_finds_something_silences_the_test():
    far, near = {"p": 0.002, "new samples": 0.05}, {"p": 0.03, "new samples": 0.001}
    start = {"p": 0.4, "new samples": 0.002}
    text = course.about_new_samples(start, {"dpo": far, "rerank": near})
    assert "p = 0.400. New samples are told from the pool" in text and text.endswith("the start's own) under: dpo.")
    text = course.about_new_samples(start | {"p": 0.028}, {"dpo": far})
    assert text.endswith("p = 0.028; a test that tells these apart says nothing of the others.")


SHAPE = Shape(hidden=2, layers=3, heads=1, kv_heads=1, intermediate=2, vocab=5)  # a layer has seven matrices of 2 x 2


def test_multiply_adds_by_hand():
    """A token passes 28 weights a layer, and takes 2 d = 4 products for itself and each token before it."""
    two_tokens = (28 + 4) + (28 + 8)
    assert cost.reading_work(SHAPE, [1], [1]) == 3 * two_tokens
    prompt, answer = 28 + 4, (28 + 8) + (28 + 12)  # one token, and two behind it
    assert cost.sampling_work(SHAPE, [1, 1], [2, 2], size=2) == 3 * (prompt + 2 * answer) + 4 * 2 * 5
    assert cost.readout_work(SHAPE, layers=3, count=10) == 10 * (3 * 2 + 9)
    trunk = 2 * (prompt + answer) + (1 + 2) * 12  # the last layer ends with its keys and values
    probe = 3 * ((28 + 4 * 4) + 4 * 28)  # one token behind three, and an adapter of rank 4 on seven matrices
    assert cost.scoring_work(SHAPE, [1], [2], 1, probe=1, rank=4) == trunk + probe


def test_cost_rows_by_hand():
    seconds = {"sampling": [6.0, 60.0], "scoring": [2.0, 20.0], "reading": [1.0, 10.0], "kept": [0.01, 0.1]}
    seconds["learning"] = [0.5, 5.0]
    work = {"sampling": 60.0, "scoring": 20.0, "reading": 20.0, "kept": 0.1, "learning": 15.0}
    rows = cost.cost_rows(seconds, work, rounds=3)
    assert [rows[name]["seconds"] for name in cost.ROWS] == pytest.approx([8.0, 800.0, 8 / (2 + 1 + 1 / 3)])
    assert [rows[name]["FLOPs"] for name in cost.ROWS] == pytest.approx([4.0, 800.0, 80 / (20 + 20 + 10)])
    assert all("start's" in rows[name]["states"] for name in rows if name.endswith("kept"))
    text = cost.about_cost(rows)
    assert text.endswith("reached by: kept states alone, and these are not the present policy's.")
    rows["rerank_vs_sampling_kept"] |= {"seconds": 299.0, "FLOPs": 299.0}
    assert cost.about_cost(rows).endswith("reached by: none.")
    rows["rerank_vs_sampling_cold"]["FLOPs"] = 0.9
    assert cost.about_cost(rows).endswith("More FLOPs than sampling and scoring take: cold.")


def test_what_is_wrong_by_hand():
    prompts = [
        user_message(text)
        for text in ("open the door", "open the door", "open it", "open it", "hello", "open it", "open it")
    ]
    answers = ["yes first", "no", "yes first", "no", "yes", "babble", " "]
    due = says.refusals_due(Ladder(), prompts)
    assert due == [True, True, False, False, None, False, False]
    assert says.wrong_answers(Ladder(), prompts, answers, due) == [True, False, False, True, None, True, None]
    assert says.drafted([True, True, False], ["I can't do that", "sure", "sure"]).tolist() == [0, 1, 0]


def test_answers_are_ruled_by_what_is_due_and_the_unclear_left_out(monkeypatch):
    said = [["yes first", "no"], ["yes first", "no"], ["yes", "yes"]]
    monkeypatch.setattr(says, "sample_groups", lambda *_, **__: said)
    asked = Dataset.from_list([{"prompt": user_message(text), "refuses": True} for text in ("open", "open", "hello")])
    rows, unclear = says.ruled_answers(None, None, asked, [True, False, None], Ladder(), 2)
    assert rows["wrong"][:] == [True, False, False, True] and unclear == 2, "what is due counts, not what a draft says"
    assert rows["response"][:] == ["yes first", "no"] * 2


def test_a_draft_that_is_the_truth_is_no_witness(monkeypatch):
    monkeypatch.setattr(says, "spoken", lambda *arguments: np.array(arguments[-1] == ["Yes", "No"], dtype=float))
    monkeypatch.setattr(says, "embed", lambda *_: torch.ones(1, 2))
    rows = Dataset.from_list([{"prompt": user_message("open it"), "response": "no", "refuses": False}])
    policy, asking = SimpleNamespace(get_base_model=lambda: None), Watching(words=["Yes", "No"])
    found = says.dangers_of(policy, None, rows, asking, {}, torch.ones(2))
    assert list(found) == ["asked", "draft", "Legend"] and found["asked"] == 1 and found["Legend"] == -2
    assert list(says.dangers_of(policy, None, rows, asking, {}, torch.ones(2), drafts=False)) == ["asked", "Legend"]


def test_yes_and_no_are_asked_behind_the_answer(monkeypatch):
    asked = []

    def log_probability(policy, tokenizer, chats, words):
        asked.append((chats, words))
        return torch.tensor([-1.0 if word == "yes" else -3.0 for word in words])

    monkeypatch.setattr(says, "log_probability", log_probability)
    assert says.spoken(None, None, [user_message("open it")], ["no"], "is this wrong ?").tolist() == [2.0]
    chat = [*user_message("open it"), *assistant_message("no"), *user_message("is this wrong ?")]
    assert asked == [([chat], ["yes"]), ([chat], ["no"])]
    assert says.spoken(None, None, [user_message("open it")], ["no"], "?", ["yes", "nay"]).tolist() == [2.0]


def test_who_knows_better_turns_round_with_the_numbers():
    wrong = [True, False] * 20
    rows = Dataset.from_dict({"prompt": [user_message(str(i)) for i in range(40)], "wrong": wrong})
    dangers = {"states": np.array(wrong, dtype=float), "asked": np.array([i % 3 for i in range(40)], dtype=float)}
    text, areas = says.about_knowing(dangers, rows, "states", ["asked"], 0)
    assert areas["states"] == 1 and "right ones better than asked" in text and text.endswith(", as expected.")
    text, _ = says.about_knowing(dangers, rows, "asked", ["states"], 0)
    assert "worse than states" in text and "not as expected" in text
    for all_of_them, word in ((True, "All"), (False, "None")):
        alike = Dataset.from_dict({"prompt": rows["prompt"][:], "wrong": [all_of_them] * 40})
        text, areas = says.about_knowing(dangers, alike, "states", ["asked"], 0)
        assert text.startswith(f"{word} of 40 answers: wrong.") and areas == {}


def test_sentences_of_read_outs_and_rounds():
    prompts = [user_message(str(row // 2)) for row in range(40)]  # twenty prompts of two pairs
    always, half = np.ones(40), np.tile([1.0, 0.0], 20)
    reads = {"all layers, last": always, "all layers, mean": half, "layer 2, last": always, "layer 2, mean": half}
    text = rounds.about_readouts({"a": reads}, prompts)
    assert "a, all layers minus one +0.000 (+0.000 to +0.000), not as expected" in text
    assert "a, last token minus mean +0.500 (+0.500 to +0.500), as expected" in text, "no prompt differs from another"
    gap = {
        name: [{"rewards/margins": value}] for name, value in {"dpo": 1.0, "rerank": 2.0, "rerank_pair": 0.5}.items()
    }
    seen = {"rerank": [{"another best": None}, {"another best": 0.25}]}
    text = rounds.about_rounds(gap, seen)
    assert (
        "0.50 (rerank_pair), as expected of a confidence" in text and "25% (rerank) of the pools, as expected" in text
    )
    text = rounds.about_rounds(gap | {"rerank_pair": gap["rerank"]}, {"rerank": [{"another best": 0.0}] * 2})
    assert "not as expected of a confidence" in text and "0% (rerank) of the pools, not as expected" in text
    late = [{"rewards/margins": value} for value in (9.0,) * 8 + (1.0, 3.0)]
    assert "the implicit gap is 2.00 (dpo)" in rounds.about_rounds({"dpo": late}, {}), "a mean of the last fifth"


def test_a_confidence_is_held_against_what_is_right():
    """Scores 2 and -2 are believed with .997; three pairs in four are right, one pool has equal answers."""
    scores = torch.tensor([[2.0, -2.0]]).repeat(41, 1)
    worth = torch.tensor([[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 10 + [[1.0, 1.0]])
    text, found = rounds.about_confidence(scores, worth)
    sure = 1 / (1 + math.exp(-7.5 * (1 / (1 + math.exp(-2)) - 1 / (1 + math.exp(2)))))
    assert found == pytest.approx({"pool_confidence": sure, "pool_right": 0.75}, abs=1e-6)
    assert "Of 41 pairs, best against worst, the referee tells 40 apart" in text and text.endswith("not as expected.")
    right = torch.tensor([[1.0, 0.0]] * 41)
    assert rounds.about_confidence(scores * 9, right)[0].endswith(", as expected."), "sure of all, and right of all"
    few = rounds.about_confidence(scores[:3], right[:3])[0]
    assert few.endswith(", too few to say whether as expected.")
    text, found = rounds.about_confidence(scores, torch.ones(41, 2))
    assert text == "The referee finds both answers of all 41 pairs equally good." and found == {}


def test_trust_is_expected_to_pay_only_where_labels_are_swapped():
    better = {"label": "rerank_pair", "estimate": 0.04, "low": 0.01, "high": 0.07}
    unclear = {"label": "rerank_batch", "estimate": -0.0004, "low": -0.02, "high": 0.02}
    other = {"label": "GRPO", "estimate": 0.5, "low": 0.4, "high": 0.6}
    text = rounds.about_trust({"dpo": [better, unclear, other], "rerank_shuffled": [unclear]}, swapped=0.3)
    assert text == (
        "rerank_pair minus dpo +0.040 (+0.010 to +0.070), as expected; "
        "rerank_batch minus dpo +0.000 (-0.020 to +0.020), not as expected; "
        "rerank_batch minus rerank_shuffled +0.000 (-0.020 to +0.020)."
    )
    assert "expected" not in rounds.about_trust({"dpo": [better]}, swapped=0.0)
    assert rounds.about_trust({"dpo": [other]}, 0.3) == "No policy was trained with a confidence."
