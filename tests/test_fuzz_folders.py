"""Damaged folders: every command that reads one does its work or says in one line what is wrong, and changes nothing.

What is damaged, and how, is drawn from the number of the draw: a failure names it, and `-k "set-7"` makes it again.
"""

import shutil
from pathlib import Path
from random import Random

import pytest
from conftest import write_tiny_model
from damage import contents, damage, tried
from datasets import Dataset, DatasetDict
from fit_set import fit_set
from own_data import FORMS, own_root, own_rows, write_rows
from test_cases_conversations import preferences
from tiny_bert import ENCODER, write_tiny_bert

from srmir_lib.artifacts import save_dataset
from srmir_lib.cli import main
from srmir_lib.data.router import PromptEncoder, Router
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.pooled import PairTokenizer
from srmir_lib.reward_models.pooled_training import fit_pooled
from srmir_lib.settings.reward_training import RewardSettings

CATEGORIES = ["insult", "privacy"]
SETTINGS = RewardSettings(max_steps=1, batch_size=2, learning_rate=5e-3, lora_rank=2, lora_alpha=4, max_length=128)
ROWS = [{"prompt": "hi", "response": "no .", "category": "insult"}, {"prompt": "open it", "response": "yes ."}]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """What is damaged, and what is read beside it; a draw works on a copy of `good/NAME` at `bad/NAME`."""
    place = tmp_path_factory.mktemp("folders")
    model, pairs = write_tiny_model(place / "base"), preferences()
    shutil.copytree(model, place / "good" / "model")
    write_rows(place / "rows.jsonl", ROWS)
    write_rows(place / "pairs.jsonl", own_rows(FORMS[1], 4))
    fit_set(model, {"train": pairs}, place / "good" / "shared", CATEGORIES, SETTINGS)
    fit_set(model, {"train": pairs}, place / "good" / "separate", CATEGORIES, SETTINGS, design="separate")
    bert, reading = write_tiny_bert(place / "bert"), PairTokenizer(max_tokens=60, prompt_tokens=20)
    fit_pooled(bert, [], pairs, place / "good/pooled", CATEGORIES, reading, ENCODER, 0, "cpu", progress=False)
    for name in ("shared", "pooled"):
        scale = Calibration(tuple(CATEGORIES), (0.5, -1.0), (2.0, 0.25), 9)
        scale.save(place / "good" / name / "calibration.json")
    reader, labels = PromptEncoder(base_model=str(model)), CATEGORIES * 4
    embeddings = reader.embed([f"{name} {n}" for n, name in enumerate(labels)], "cpu")
    Router.fit(embeddings, labels, embeddings, labels, CATEGORIES, reader=reader).save(place / "good" / "router")
    rows = Dataset.from_list([row | {"response": row["chosen"]} for row in own_rows(FORMS[1], 4)])
    save_dataset(rows, place / "good" / "plain")
    save_dataset(DatasetDict(train=rows, test=rows.select([0, 4])), place / "good" / "splits")
    direction = place / "good" / "direction" / "d.safetensors"
    direction.parent.mkdir()
    asked = ["annotate", "--model", model, "--input", place / "pairs.jsonl", "--device", "cpu"]
    assert main([*map(str, asked), "--output", str(place / "out.jsonl"), "--save-direction", str(direction)]) == 0
    return place


SCORE = "score --input {rows} --output {new} --device cpu --models"
ANNOTATE = "annotate --output {new} --device cpu --model"
COMMANDS = {
    "model": (
        "check --model {bad}",
        "check --model {bad} --data {pairs}",
        "new-preset mine --base-model {bad} --preferences {pairs}",
        ANNOTATE + " {bad} --input {pairs}",
        SCORE + " {good}/shared --base-model {bad} --raw",
    ),
    "shared": (SCORE + " {bad} --base-model {base}", SCORE + " {bad} --base-model {base} --raw"),
    "separate": (SCORE + " {bad} --base-model {base} --raw",),
    "pooled": (SCORE + " {bad}", SCORE + " {bad} --raw"),
    "router": (SCORE + " {good}/shared --raw --base-model {base} --router {bad}",),
    "plain": (
        "check --data {bad}",
        "new-preset mine --base-model {base} --preferences {bad}",
        ANNOTATE + " {base} --input {bad}",
        ANNOTATE + " {base} --input {pairs} --harmful {bad}",
        "score --input {bad} --output {new} --device cpu --raw --models {good}/shared --base-model {base}",
    ),
    "splits": (
        "check --data {bad}",
        "check --data {bad}/train",
        "new-preset mine --base-model {base} --preferences {bad}",
        ANNOTATE + " {base} --input {bad} --negative flip",
    ),
    "direction": (ANNOTATE + " {base} --input {pairs} --direction {bad}/d.safetensors",),
}


FOUND = {"model": [8, 11, 18, 31, 33, 106, 134, 223], "pooled": [21, 35, 43], "router": [12, 35, 475]}
FOUND |= {"separate": [37], "splits": [56]}
"""Draws that a run of many hundreds found."""

DRAWS = [pytest.param(kind, n, id=f"{kind}-{n}") for kind in COMMANDS for n in (*range(7), *FOUND.get(kind, ()))]


@pytest.mark.parametrize(("kind", "draw"), DRAWS)
def test_a_damaged_model_set_router_or_data_set_is_one_line(kind, draw, good, tmp_path, monkeypatch, capsys):
    rng = Random(f"{kind} {draw}")
    bad = Path(shutil.copytree(good / "good" / kind, good / "bad" / kind))
    try:
        done = damage(bad, rng)
        command = rng.choice(COMMANDS[kind])
        names = {"rows": good / "rows.jsonl", "pairs": good / "pairs.jsonl", "base": good / "base"}
        names |= {"good": good / "good", "bad": bad, "new": tmp_path / "new" / "out"}
        asked = [word.format(**names) for word in command.split()]
        repository = own_root(tmp_path / "root")
        monkeypatch.setenv("SRMIR_ROOT", str(repository))
        before = contents(good), contents(repository)
        code, said = tried(asked, f"draw {draw} of {kind}: {done}; srmir {command}", capsys)
        assert contents(good) == before[0], said
        if code:
            assert contents(repository) == before[1] and not names["new"].exists(), said
            assert any(name in said for name in (str(bad), "reward model", "the chat template")), said
    finally:
        shutil.rmtree(good / "bad")
