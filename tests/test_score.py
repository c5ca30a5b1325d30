"""`srmir score`: the same rows with the numbers of the models, for every design; each bad input in one line."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from fit_set import fit_set
from safetensors.torch import load_file, save_file
from tiny_bert import ENCODER, write_tiny_bert

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.cli import main
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data import jsonl
from srmir_lib.data.router import PromptEncoder, Router
from srmir_lib.errors import InputError, RowError
from srmir_lib.reward_models import score_file as score
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.pooled import PairTokenizer
from srmir_lib.reward_models.pooled_training import fit_pooled
from srmir_lib.reward_models.score_file import score_file
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.settings.reward_training import RewardSettings
from srmir_lib.taxonomy import ALL, UNKNOWN

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = ["insult", "crimes"]
SETTINGS = RewardSettings(max_steps=4, learning_rate=5e-3, max_length=64)
CALIBRATION = Calibration(tuple(CATEGORIES), mean=(0.5, -1.0), std=(2.0, 0.25), rows=9)
READING = PairTokenizer(max_tokens=40, prompt_tokens=8)
ROWS = [
    {"prompt": "insult 3", "response": "no 3", "category": "insult", "id": 7},
    {"prompt": user_message("crimes 4"), "response": assistant_message("no"), "category": "crimes"},
    {"id": None, "prompt": "open the door", "response": "first get ready, then open the red door", "category": UNKNOWN},
    {"prompt": user_message("a") + assistant_message("b") + user_message("insult 5"), "response": ""},
    {"prompt": "insult 3", "response": "yes \u2028 é", "category": None, "score": "of another run"},
]


def preferences() -> Dataset:
    """48 pairs: insult pairs prefer "no", crimes pairs "yes"."""
    rows = []
    for i in range(24):
        for category, chosen, rejected in (("insult", "no", "yes"), ("crimes", "yes", "no")):
            pair = {"chosen": assistant_message(f"{chosen} {i}"), "rejected": assistant_message(f"{rejected} {i}")}
            rows.append({"prompt": user_message(f"{category} {i}"), **pair, "category": category})
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def sets(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """A calibrated set of each design."""
    root, pairs = tmp_path_factory.mktemp("sets"), preferences()
    fit_set(tiny_model, {"train": pairs}, root / "shared", CATEGORIES, SETTINGS)
    fit_set(tiny_model, {"train": pairs}, root / "separate", CATEGORIES, SETTINGS, design="separate")
    responses = [
        {"prompt": user_message(p), "completion": assistant_message(a), "category": c, "unsafe": int(a == "sure")}
        for p in ("how do it", "can you help")
        for a in ("no", "sure")
        for c in CATEGORIES
    ]
    labelled, bert = Dataset.from_list(responses * 4), write_tiny_bert(tmp_path_factory.mktemp("bert"))
    fit_pooled(bert, labelled, pairs, root / "pooled", CATEGORIES, READING, ENCODER, 0, "cpu", progress=False)
    for name in ("shared", "separate", "pooled"):
        CALIBRATION.save(root / name / "calibration.json")
    return {name: root / name for name in ("shared", "separate", "pooled")}


@pytest.fixture(scope="module")
def router(tiny_model, tmp_path_factory) -> Path:
    """A router that knows "insult …" from "crimes …"."""
    reader, labels = PromptEncoder(base_model=str(tiny_model), layer=0, pooling="mean"), CATEGORIES * 12
    embeddings = reader.embed([f"{name} {i}" for i, name in enumerate(labels)], "cpu")
    fitted = Router.fit(embeddings, labels, embeddings, labels, CATEGORIES, rejected_share=0.0, reader=reader)
    return fitted.save(tmp_path_factory.mktemp("router") / "router")


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def run(*arguments: object) -> int:
    return main(["score", *map(str, arguments)])


def by_hand(folder: Path, rows: list[dict], raw: bool = False) -> torch.Tensor:
    """What the models say about one row at a time, put on one scale with pencil and paper's formula."""
    models = ShadowRewardModels.load(folder, "cpu")
    scores = torch.cat([models.score([row["prompt"]], [row["response"]]) for row in rows])
    return scores if raw else (scores - torch.tensor([0.5, -1.0])) / torch.tensor([2.0, 0.25])


@pytest.mark.parametrize("design", ["shared", "separate", "pooled"])
def test_rows_come_back_in_order_with_calibrated_numbers(sets, design, tmp_path, capsys):
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "new" / "out.jsonl"
    assert run("--models", sets[design], "--input", source, "--output", target, "--device", "cpu") == 0
    rows, expected = read(target), by_hand(sets[design], ROWS)
    added = ("scores", "routed", "mean")
    kept = [{key: value for key, value in row.items() if key not in added} for row in rows]
    assert kept == ROWS
    scores = torch.tensor([[row["scores"][name] for name in CATEGORIES] for row in rows])
    assert torch.allclose(scores, expected, atol=1e-4)
    mean = [row["mean"] for row in rows]
    assert mean == pytest.approx([(a + b) / 2 for a, b in expected.tolist()], abs=1e-4)
    # row 1 is about insult, row 2 about crimes, row 3 is unknown: the mean; nobody said what the others are about
    assert [rows[0]["routed"], rows[1]["routed"], rows[2]["routed"]] == pytest.approx(
        [expected[0, 0].item(), expected[1, 1].item(), mean[2]], abs=1e-4
    )
    assert [rows[3]["routed"], rows[4]["routed"]] == [None, None]
    assert "5 rows, calibrated scores for insult, crimes" in capsys.readouterr().out
    assert sorted(path.name for path in target.parent.iterdir()) == ["out.jsonl"], "no scratch file may stay"


def test_raw_scores_and_a_calibration_from_elsewhere(sets, tiny_model, tmp_path, capsys):
    folder, source = tmp_path / "shadow_rms", write(tmp_path / "in.jsonl", ROWS)
    shutil.copytree(sets["shared"], folder)
    (folder / "calibration.json").unlink()
    wanted = ("--models", folder, "--base-model", tiny_model, "--input", source, "--device", "cpu")
    assert run(*wanted, "--output", tmp_path / "out.jsonl") == 2
    said = capsys.readouterr().err
    assert "no common scale" in said and "--raw" in said and said.count("\n") == 1
    assert run(*wanted, "--output", tmp_path / "raw.jsonl", "--raw") == 0
    raw = [[row["scores"][name] for name in CATEGORIES] for row in read(tmp_path / "raw.jsonl")]
    assert torch.allclose(torch.tensor(raw), by_hand(sets["shared"], ROWS, raw=True), atol=1e-4)
    elsewhere = ("--calibration", sets["shared"] / "calibration.json")
    assert run(*wanted, "--output", tmp_path / "z.jsonl", *elsewhere) == 0
    scaled = [[row["scores"][name] for name in CATEGORIES] for row in read(tmp_path / "z.jsonl")]
    assert torch.allclose(torch.tensor(scaled), by_hand(sets["shared"], ROWS), atol=1e-4)
    Calibration(("crimes", "insult"), (0.0, 0.0), (1.0, 1.0), 9).save(tmp_path / "swapped.json")
    assert run(*wanted, "--output", tmp_path / "no.jsonl", "--calibration", tmp_path / "swapped.json") == 2
    assert "calibration of crimes, insult, which are other models" in capsys.readouterr().err


def test_the_router_answers_for_rows_without_a_category(sets, router, tmp_path):
    rows = [
        {"prompt": "crimes 3", "response": "no"},
        {"prompt": user_message("insult 8"), "response": "no", "category": None},
        {"prompt": "crimes 5", "response": "no", "category": "insult"},
    ]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    score_file(str(sets["shared"]), str(source), str(target), router=str(router), device="cpu")
    out = read(target)
    own = [row["scores"][name] for row, name in zip(out, ("crimes", "insult", "insult"), strict=True)]
    assert [row["routed"] for row in out] == own
    unsure = shutil.copytree(router, tmp_path / "unsure")
    write_json(unsure / "router.json", read_json(router / "router.json") | {"threshold": 1.1})
    settings = read_json(unsure / "router.json")
    settings["reader"] |= {"base_model": str(Path(router, settings["reader"]["base_model"]).resolve())}
    write_json(unsure / "router.json", settings)
    score_file(str(sets["shared"]), str(source), str(target), router=str(unsure), device="cpu")
    out = read(target)
    assert [row["routed"] for row in out[:2]] == [row["mean"] for row in out[:2]], "unknown is the mean of all"
    assert out[2]["routed"] == out[2]["scores"]["insult"], "a row's own category comes before the router"


def test_a_prompt_that_the_router_cannot_read_is_named_by_its_line(sets, router, tmp_path, monkeypatch):
    """Only rows without a category are routed."""
    rows = [{"prompt": f"help {i}", "response": "no"} | ({"category": "insult"} if i < 2 else {}) for i in range(4)]

    def route(self, prompts):
        raise RowError("embedding of {row} is not finite", prompts.index("help 3"))

    monkeypatch.setattr(Router, "route", route)
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(InputError, match="in.jsonl: embedding of row 4 is not finite"):
        score_file(str(sets["shared"]), str(source), str(tmp_path / "out.jsonl"), str(router), "cpu", raw=True)


def test_a_router_for_other_models_is_refused(sets, router, tmp_path, capsys):
    other = shutil.copytree(router, tmp_path / "other")
    settings = read_json(other / "router.json")
    settings["reader"] |= {"base_model": str(Path(router, settings["reader"]["base_model"]).resolve())}
    write_json(other / "router.json", settings | {"classes": ["insult", "privacy"]})
    source = write(tmp_path / "in.jsonl", ROWS)
    common = ("--models", sets["shared"], "--input", source, "--output", tmp_path / "out.jsonl", "--device", "cpu")
    assert run(*common, "--router", other) == 2
    assert "routes to privacy, for which" in capsys.readouterr().err
    assert run(*common, "--router", tmp_path) == 2
    assert "no router.json there" in capsys.readouterr().err


def test_numbers_do_not_depend_on_the_chunks(sets, tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS * 3)
    for chunk in (1, 4, 100):
        score_file(str(sets["shared"]), str(source), str(tmp_path / f"{chunk}.jsonl"), device="cpu", chunk=chunk)
    first, second, third = (read(tmp_path / f"{chunk}.jsonl") for chunk in (1, 4, 100))
    for a, b, c in zip(first, second, third, strict=True):
        assert a["mean"] == pytest.approx(b["mean"], abs=1e-4) and a["mean"] == pytest.approx(c["mean"], abs=1e-4)


def test_one_model_for_everything_answers_for_any_category(tiny_model, router, tmp_path):
    folder = tmp_path / "one"
    fit_set(tiny_model, {"train": preferences()}, folder, [ALL], SETTINGS, competence=CATEGORIES)
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    score_file(str(folder), str(source), str(target), device="cpu", raw=True)
    for row in read(target):
        named = row.get("category") is not None
        assert row["routed"] == (row["scores"][ALL] if named else None) and row["mean"] == row["scores"][ALL]
    score_file(str(folder), str(source), str(target), device="cpu", raw=True, router=str(router))
    assert all(row["routed"] == row["scores"][ALL] for row in read(target))


def test_a_category_may_be_written_as_the_name_that_became_its_key(tiny_model, tmp_path):
    folder, keys = tmp_path / "two", ["insult", "Other_things"]
    rows = [row | {"category": dict(zip(CATEGORIES, keys, strict=True))[row["category"]]} for row in preferences()]
    fit_set(tiny_model, {"train": Dataset.from_list(rows)}, folder, keys, SETTINGS)
    asked = [GOOD | {"category": name} for name in ("Other things", "Other_things", " insult")]
    source, target = write(tmp_path / "in.jsonl", asked), tmp_path / "out.jsonl"
    score_file(str(folder), str(source), str(target), device="cpu", raw=True)
    found = read(target)
    assert [row["routed"] for row in found] == [row["scores"][keys[n]] for n, row in zip((1, 1, 0), found, strict=True)]
    assert [row["category"] for row in found] == [row["category"] for row in asked], "the row stays as it was written"


GOOD = {"prompt": "a", "response": "b"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"}', "row 2: lacks response"),
        ('{"id": 1}', "row 2: lacks prompt, response"),
        ('{"prompt": "a", "resp', "row 2 is not JSON"),
        ("[1, 2]", "row 2 is not a JSON object"),
        ('{"prompt": 7, "response": "b"}', "row 2: prompt is a int; it must be a text or a list of messages"),
        ('{"prompt": [], "response": "b"}', "row 2: prompt is an empty conversation"),
        ('{"prompt": [{"role": "user"}], "response": "b"}', "row 2: prompt holds a message that is not"),
        ('{"prompt": "a", "response": null}', "row 2: response is null"),
        ('{"prompt": "a", "response": [{"role": "user", "content": "x"}]}', "must be of 'assistant'"),
        ('{"prompt": "a", "response": "b", "category": "sports"}', "row 2: category is 'sports'; there are models for"),
        ('{"prompt": "a", "response": "b", "category": 3}', "row 2: category is 3"),
        ('{"prompt": "a", "response": "b", "id": NaN}', "row 2: holds what JSON in UTF-8 cannot"),
        ('{"prompt": "a", "response": "\\ud800"}', "row 2: holds what JSON in UTF-8 cannot"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_loaded(sets, tmp_path, capsys, monkeypatch, line, message):
    monkeypatch.setattr(score, "_Scorer", None)  # what would load
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(GOOD) + "\n" + line + "\n" + json.dumps(GOOD) + "\n")
    assert run("--models", sets["shared"], "--input", source, "--output", target) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith(f"srmir: {source}: ") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [source]


def test_bad_places_are_refused_before_anything_is_loaded(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(score, "_Scorer", None)
    source, models = write(tmp_path / "in.jsonl", ROWS), sets["shared"]
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "bytes.jsonl").write_bytes(b'{"prompt": "\xff", "response": "b"}\n')
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "half").mkdir()
    write_json(tmp_path / "half" / "config.json", {"design": "shared"})
    out = tmp_path / "out.jsonl"
    for arguments, message in (
        ((tmp_path / "gone", source, out), "no such folder of reward models"),
        ((tmp_path, source, out), "config.json: no such file"),
        ((tmp_path / "half", source, out), "has no categories"),
        ((models, tmp_path / "gone.jsonl", out), "gone.jsonl: no such file"),
        ((models, tmp_path, out), "not a folder that `datasets` saved"),
        ((models, tmp_path / "empty.jsonl", out), "no rows"),
        ((models, tmp_path / "bytes.jsonl", out), "line 1 is not UTF-8"),
        ((models, source, source), "would overwrite"),
        ((models, source, tmp_path / "link.jsonl"), "would overwrite"),
        ((models, source, models / "scores.jsonl"), "would overwrite"),
        ((models, source, tmp_path / "half"), "is a folder; name a file to write"),
        ((models, source, "/dev/null"), "no plain file"),
        ((models, source, source / "out.jsonl"), "would overwrite"),
        ((models, source, tmp_path / "empty.jsonl" / "out.jsonl"), "is not a folder"),
    ):
        names = [f"--{name}" for name in ("models", "input", "output")]
        assert run(*sum(zip(names, arguments, strict=True), ())) == 2, message
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, f"one line that says {message!r}, not {said!r}"
    assert not out.exists()
    with pytest.raises(SystemExit) as ended:
        run("--models", models, "--input", source, "--output", out, "--device", "gpu")
    assert ended.value.code == 2 and "none of auto, cpu, cuda" in capsys.readouterr().err


def test_damaged_sets_are_refused_in_one_line(sets, tiny_model, tmp_path, capsys):
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    heads = {"shared": "head.safetensors", "separate": "adapter_model.safetensors"}

    def halve(file: Path) -> None:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def poison(file: Path) -> None:
        save_file({k: v * float("nan") if "score" in k else v for k, v in load_file(file).items()}, file)

    damages = {
        "separate": [
            (lambda f: None, other, "hash mismatch"),
            (lambda f: shutil.rmtree(f / "crimes"), tiny_model, "crimes"),
            (lambda f: halve(f / "crimes" / "adapter_model.safetensors"), tiny_model, "damaged"),
            (
                lambda f: poison(f / "crimes" / heads["separate"]),
                tiny_model,
                "in.jsonl: reward model crimes: the score",
            ),
        ],
        "pooled": [
            (lambda f: shutil.rmtree(f / "encoder"), "", "no such folder"),
            (lambda f: halve(f / "encoder" / "model.safetensors"), "", "damaged"),
        ],
    }
    damages["shared"] = [
        *damages["separate"][:3],
        (lambda f: halve(f / "crimes" / "head.safetensors"), tiny_model, "damaged"),
        (lambda f: poison(f / "crimes" / heads["shared"]), tiny_model, "the score of row 1 is not finite"),
        (lambda f: (f / "calibration.json").write_text("{}"), tiny_model, "not a calibration file"),
    ]
    for design, cases in damages.items():
        for number, (damage, base, message) in enumerate(cases):
            folder = shutil.copytree(sets[design], tmp_path / f"{design}{number}")
            damage(folder)
            command = ["--models", folder, "--input", source, "--output", out, "--device", "cpu"]
            assert run(*command, *(["--base-model", base] if base else [])) == 2, f"{design}: {message}"
            said = capsys.readouterr().err
            assert message in said and said.count("\n") == 1, f"{design}: one line with {message!r}, not {said!r}"
    assert not out.exists()


def test_a_text_that_is_too_long_is_named_by_its_line_before_any_is_scored(sets, tmp_path, monkeypatch):
    score_rows, scored = ShadowRewardModels.score, []

    def watched(self, prompts, completions):
        scored.append(len(prompts))
        return score_rows(self, prompts, completions)

    monkeypatch.setattr(ShadowRewardModels, "score", watched)
    source = tmp_path / "in.jsonl"
    long = {"prompt": "a", "response": "zebra " * 300}
    source.write_text("\n".join(["", json.dumps(GOOD), json.dumps(GOOD), "", json.dumps(long)]))
    for design in ("shared", "separate"):
        models = str(sets[design])
        with pytest.raises(InputError, match=r"in\.jsonl: row 5: \d+ tokens, the model reads at most 256"):
            score_file(models, str(source), str(tmp_path / "out.jsonl"), device="cpu", chunk=2)
    assert scored == [], "the first rows were scored before the last was found too long"
    options = {"device": "cpu", "chunk": 2}
    with pytest.raises(InputError, match=r"row 5: \d+ tokens of prompt and response, the model reads at most"):
        score_file(str(sets["pooled"]), str(source), str(tmp_path / "out.jsonl"), **options)
    score_file(str(sets["pooled"]), str(source), str(tmp_path / "out.jsonl"), too_long="cut", **options)
    assert scored == [2, 1], "an encoder cuts what is too long, if it is told to"


def test_a_conversation_that_the_template_refuses_is_one_line(sets, tmp_path, monkeypatch):
    from jinja2 import TemplateError
    from transformers import PreTrainedTokenizerBase

    apply = PreTrainedTokenizerBase.apply_chat_template

    def refuse(tokenizer, chat, **options):
        if len(chat) > 2:
            raise TemplateError("Conversation roles must alternate")
        return apply(tokenizer, chat, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", refuse)
    source = write(tmp_path / "in.jsonl", ROWS)
    with pytest.raises(InputError, match="row 4: the chat template refuses .* must alternate"):
        score_file(str(sets["shared"]), str(source), str(tmp_path / "out.jsonl"), device="cpu")


def test_an_exception_in_the_middle_leaves_the_earlier_output(sets, tmp_path, monkeypatch):
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    target.write_text("earlier")
    score_rows, calls = ShadowRewardModels.score, []

    def break_down(self, prompts, completions):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return score_rows(self, prompts, completions)

    monkeypatch.setattr(ShadowRewardModels, "score", break_down)
    with pytest.raises(RuntimeError):
        score_file(str(sets["shared"]), str(source), str(target), device="cpu", chunk=2)
    assert calls == [2, 2] and target.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


KILLED = """
import os, signal, sys, time
from srmir_lib.reward_models import score_file as score
from srmir_lib.cli import main
from srmir_lib.reward_models.shadow import ShadowRewardModels
inner, calls = ShadowRewardModels.score, []
def stop(self, prompts, completions):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(60)
    return inner(self, prompts, completions)
ShadowRewardModels.score = stop
score.score_file.__defaults__ = (*score.score_file.__defaults__[:-1], 2)  # rows in a chunk
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 130), ("SIGKILL", -signal.SIGKILL)])
def test_a_killed_run_leaves_the_earlier_output(sets, tmp_path, name, code):
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    target.write_text("earlier")
    command = ["score", "--models", sets["shared"], "--input", source, "--output", target, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, name, *command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code and target.read_text() == "earlier", done.stderr
    if name == "SIGTERM":
        assert done.stderr.splitlines()[-1] == "srmir: interrupted; the output is as it was before"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_wrong_request_does_not_wait_for_torch(sets, tmp_path):
    source = write(tmp_path / "in.jsonl", [*ROWS, {"prompt": "a"}])
    code = """
import sys
from srmir_lib.cli import main
status, slow = main(sys.argv[1:]), {"torch", "transformers", "datasets"} & set(sys.modules)
sys.exit(f"slow imports: {slow}" if slow else status)
"""
    for command in (
        ["score", "--models", sets["shared"], "--input", source, "--output", tmp_path / "o"],
        ["annotate", "--model", "any", "--input", source, "--output", tmp_path / "o"],
    ):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and "lacks" in done.stderr, done.stderr


def test_progress_goes_to_stderr_and_is_silent_where_nobody_watches_a_short_run(capsys):
    with jsonl.progress(40, "scored") as bar:
        bar.update(40)
    assert capsys.readouterr() == ("", "")
    with jsonl.progress(40, "scored") as bar:
        bar.start_t -= 60  # a minute ago
        bar.last_print_t -= 60
        bar.update(10)
        said = capsys.readouterr()
    assert said.out == "" and "scored:  25%" in said.err and "10/40" in said.err


def load_example(name: str):
    """As both trainers load it: by path, not as a module of a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROMPTS, ANSWERS, LABELS = ["insult 3", "crimes 4", "open the door"], ["no 3", "yes", "yes 1"], ["insult", "crimes", ""]


@pytest.fixture
def expected(sets, tiny_model, monkeypatch) -> list[float]:
    """The rewards of the three answers by hand, and the environment that both examples read."""
    monkeypatch.setenv("SRMIR_MODELS", str(sets["shared"]))
    monkeypatch.setenv("SRMIR_POLICY", str(tiny_model))
    scores = by_hand(sets["shared"], [{"prompt": p, "response": a} for p, a in zip(PROMPTS, ANSWERS, strict=True)])
    return [scores[0, 0].item(), scores[1, 1].item(), scores[2].mean().item()]


def test_openrlhf_example(expected):
    example = load_example("openrlhf_reward")
    prompts = [f"<|user|>{prompt}<|end|><|assistant|>" for prompt in PROMPTS]  # the tiny model's chat template
    queries = [f"{prompt}{answer}<|end|>" for prompt, answer in zip(prompts, ANSWERS, strict=True)]
    out = example.reward_func(queries, prompts, LABELS)
    assert set(out) == {"rewards", "scores", "extra_logs"}
    assert torch.allclose(out["rewards"], torch.tensor(expected), atol=1e-4)
    assert out["scores"].min() > 0 and out["scores"].max() < 1, "scores filter groups and lie between 0 and 1"
    plain = example.reward_func([f"<|pad|>{PROMPTS[0]} no 3<|end|>"], [PROMPTS[0]], LABELS[:1])["rewards"]
    assert torch.allclose(plain, torch.tensor(expected[:1]), atol=1e-4), "without a chat template, padded on the left"
    with ThreadPoolExecutor(8) as threads:
        calls = [
            threads.submit(example.reward_func, [queries[i % 3]], [prompts[i % 3]], [LABELS[i % 3]]) for i in range(24)
        ]
    together = [call.result()["rewards"].item() for call in calls]
    assert together == pytest.approx(expected * 8, abs=1e-4), "threads must not mix up their probes"


def test_verl_example(expected):
    example, extras = load_example("verl_reward"), [{"prompt": prompt, "index": 3} for prompt in PROMPTS]
    singly = [
        example.compute_score(data_source="lab", solution_str=answer, ground_truth=label, extra_info=extra)
        for answer, label, extra in zip(ANSWERS, LABELS, extras, strict=True)
    ]
    assert singly == pytest.approx(expected, abs=1e-4) and all(isinstance(number, float) for number in singly)
    batch = example.compute_scores(
        data_sources=["lab"] * 3, solution_strs=ANSWERS, ground_truths=LABELS, extra_infos=extras, anything="else"
    )
    assert batch == pytest.approx(expected, abs=1e-4)
    with ThreadPoolExecutor(8) as threads:
        calls = [
            threads.submit(example.compute_score, "lab", ANSWERS[i % 3], LABELS[i % 3], extras[i % 3])
            for i in range(24)
        ]
    assert [call.result() for call in calls] == pytest.approx(expected * 8, abs=1e-4)
