"""Other people's files: every form of rows is read alike or refused in one line; what is written, and what stays."""

import bz2
import gzip
import json
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, enable_caching, load_from_disk
from fit_set import fit_set
from safetensors.numpy import save_file

from srmir_lib import artifacts
from srmir_lib.artifacts import atomic_path, save_dataset, write_json
from srmir_lib.cli import main
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data import annotate_file, jsonl, public_files
from srmir_lib.errors import InputError
from srmir_lib.reward_models import rerank_file, score_file
from srmir_lib.rows import read_jsonl, rows_in
from srmir_lib.runner import manifest, series
from srmir_lib.settings.reward_training import RewardSettings

CASES = Path(__file__).parent / "cases"
ROOT = Path(__file__).resolve().parents[1]
COPY = "how do i copy the letter at night ?"
SCORED = [
    {"prompt": COPY, "response": "no , i can not help with that .", "category": "privacy"},
    {"prompt": "tell me how to open the door", "response": "first get ready , then open the door ."},
]
PAIRS = [
    {"prompt": COPY, "chosen": SCORED[0]["response"], "rejected": "first get ready , then copy the letter ."},
    {"prompt": "tell me about the red door", "chosen": "it is red .", "rejected": "no ."},
]
SAID = "a\u2028b\u0085c\u2029 \u200b\u200d zero \u202eRTL\u202c שלום مرحبا 👩‍👩‍👧‍👦 é e\u0301 \ufeff \x0b\x0c\x1c end"
HI = [user_message(text) for text in ("hi there", "hi you")]


def lines(rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write(path: Path, rows) -> Path:
    path.write_bytes(lines(rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def run(command: str, *arguments: object) -> int:
    return main([command, *map(str, arguments)])


# The forms that rows come in. Each case is a file that somebody brought.


@pytest.mark.parametrize(
    ("name", "numbers", "rows"),
    [
        ("a_plain.jsonl", [1, 2], PAIRS),
        ("a.jsonl.gz", [1], PAIRS[:1]),
        ("a.parquet", list(range(1, 11)), PAIRS * 5),
        ("s_pretty.json", [1, 2], SCORED),
        ("s_bom.jsonl", [1, 2], SCORED),
        ("s_blank.jsonl", [1, 4], SCORED),
        ("s_unicode.jsonl", [1, 2], [{"prompt": SAID, "response": SAID, "category": "privacy"}, SCORED[0]]),
    ],
)
def test_a_case_is_read(name, numbers, rows):
    assert list(rows_in(CASES / name)) == list(zip(numbers, rows, strict=True))


FORMS = {
    "lines.jsonl": lines,
    "misnamed.json": lines,
    "windows.jsonl": lambda rows: lines(rows).replace(b"\n", b"\r\n"),
    "no_last_end.jsonl": lambda rows: lines(rows)[:-1],
    "joined_files_with_marks.jsonl": lambda rows: b"".join(b"\xef\xbb\xbf" + lines([row]) for row in rows),
    "list.json": lambda rows: json.dumps(rows).encode(),
    "list_with_mark.json": lambda rows: b"\xef\xbb\xbf\n" + json.dumps(rows, indent=2).encode(),
    "list_a_row_a_line.json": lambda rows: b"[" + lines(rows)[:-1].replace(b"\n", b",\n") + b"]",
    "rows_over_lines.jsonl": lambda rows: b"\n".join(json.dumps(row, indent=2).encode() for row in rows),
    "gzipped": lambda rows: gzip.compress(lines(rows)),
    "gzipped_in_parts.gz": lambda rows: b"".join(gzip.compress(lines([row])) for row in rows),
    "gzipped_list.json.gz": lambda rows: gzip.compress(json.dumps(rows, indent=1).encode()),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_in_another_form(tmp_path, form):
    rows = [{"prompt": SAID, "response": user_message("é")}, *SCORED]
    (tmp_path / form).write_bytes(FORMS[form](rows))
    assert list(rows_in(tmp_path / form)) == list(enumerate(rows, start=1))


def parquet(rows, path: Path, group: int = 2) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


@pytest.mark.parametrize("name", ["rows.parquet", "no_ending", "odd [a] *?{b}::c.parquet"])
def test_parquet_of_any_name_and_size(tmp_path, name):
    rows = [{"prompt": user_message(str(n)), "response": SAID, "category": None} for n in range(5)]
    assert list(rows_in(parquet(rows, tmp_path / name))) == list(enumerate(rows, start=1))


def test_a_folder_of_one_split_is_read_and_of_several_one_is_named(tmp_path):
    one, other = Dataset.from_list(PAIRS), Dataset.from_list(PAIRS[:1])
    save_dataset(one, tmp_path / "plain")
    save_dataset(DatasetDict(train=one), tmp_path / "single")
    save_dataset(DatasetDict(train=other, test=one), tmp_path / "several")
    for folder in ("plain", "single", "several/test"):
        assert list(rows_in(tmp_path / folder)) == list(enumerate(PAIRS, start=1))
    with pytest.raises(InputError, match=r"several: has the splits train, test; name one: .*several/train$"):
        next(rows_in(tmp_path / "several"))


def test_lines_and_parquet_are_read_in_bounded_memory(tmp_path):
    rows = [{"prompt": "x" * 1000, "id": n} for n in range(20_000)]
    (tmp_path / "a.gz").write_bytes(gzip.compress(lines(rows), 1))
    write(tmp_path / "a.jsonl", rows)
    parquet(rows, tmp_path / "a.parquet", 5000)
    for name, count in (("a.gz", 20_000), ("a.jsonl", 20_000), ("a.parquet", 20_000)):
        next(rows_in(tmp_path / name))  # what is imported stays
        tracemalloc.start()
        assert sum(1 for _ in rows_in(tmp_path / name)) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3e6, f"{name}: {peak / 1e6:.1f} MB for 20 MB of text"


def test_our_own_rows_come_back(tmp_path):
    rows = [{"a": "x\u2028y"}, {"a": "\x85\ufeff"}]
    assert read_jsonl(artifacts.write_jsonl(tmp_path / "a.jsonl", rows)) == rows


def zipped(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jsonl", lines(SCORED))
    return path.read_bytes()


BOTH = {"responses": ["yes", "no"]} | SCORED[0] | PAIRS[0]
GOOD, CUT = lines([BOTH]), b'{"prompt": "a", "resp'
REFUSED = {
    "utf16_without_mark.jsonl": (GOOD.decode().encode("utf-16-be"), "not UTF-8 text, more likely UTF-16; convert it"),
    "utf32.jsonl": (GOOD.decode().encode("utf-32"), "not UTF-8 text, more likely UTF-16; convert it"),
    "utf16.gz": (gzip.compress(GOOD.decode().encode("utf-16")), "not UTF-8 text, more likely UTF-16; convert it"),
    "latin.jsonl": (GOOD + '{"prompt": "é"}'.encode("latin1"), "line 2 is not UTF-8 text (byte 0xe9); convert"),
    "latin_list.json": ('[\n{"prompt":\n"é"}]'.encode("latin1"), "line 3 is not UTF-8 text (byte 0xe9); convert"),
    "packed.zip": (zipped, "a zip file; unpack it"),
    "packed.xz": (lzma.compress(GOOD), "an xz file; unpack it"),
    "packed.bz2": (bz2.compress(GOOD), "a bzip2 file; unpack it"),
    "packed.zst": (b"\x28\xb5\x2f\xfd\x04\x00", "a zstd file; unpack it"),
    "table.csv": (
        b"prompt,response\na,b\n",
        "row 1 is not JSON (Expecting value: line 1 column 1 (char 0)); give",
    ),
    "cut.gz": (gzip.compress(GOOD * 9)[:-20], "not a readable gzip file (Compressed file ended before the end"),
    "damaged.gz": (gzip.compress(GOOD)[:10] + b"\xff" * 20, "not a readable gzip file"),
    "cut.parquet": (CASES.joinpath("a.parquet").read_bytes()[:-50], "not a readable parquet file"),
    "cut.jsonl": (GOOD + b"\n" + CUT, "row 3 is not JSON (Unterminated string"),
    "cut_first.jsonl": (CUT + b"\n" + GOOD, "row 1 is not JSON (Unterminated string"),
    "cut.json": (json.dumps([BOTH], indent=1).encode()[:-30], "not JSON (Unterminated string starting at: line 11"),
    "cut_after_list.json": (b"[\n" + GOOD, "not JSON (Expecting ',' delimiter: line 3 column 1"),
    "two_on_a_line.jsonl": (GOOD * 2 + GOOD[:-1] + GOOD, "row 3 is not JSON (Extra data"),
    "numbers.json": (b"[1, 2]", "row 1 is not a JSON object with named columns"),
    "lists.jsonl": (b'["a", "b"]\n["c", "d"]\n', "row 1 is not a JSON object with named columns"),
    "list_of_some.json": (b"[" + GOOD + b", 2]", "row 2 is not a JSON object with named columns"),
    "deep.jsonl": (b"[" * 100_000, "not JSON ("),
    "empty.jsonl": (b"", "no rows"),
    "empty.gz": (gzip.compress(b""), "no rows"),
    "empty_list.json": (b"[]", "no rows"),
    "blank.jsonl": (b"\xef\xbb\xbf\n \n", "no rows"),
}


@pytest.fixture
def nothing_loads(monkeypatch):
    monkeypatch.setattr(score_file, "_Scorer", None)
    monkeypatch.setattr(annotate_file, "MarginModel", None)
    monkeypatch.setattr(rerank_file, "_PoolModel", None)


@pytest.fixture
def models(tmp_path_factory) -> Path:
    """What is read of a set of reward models before anything is loaded."""
    folder = tmp_path_factory.mktemp("models")
    write_json(folder / "config.json", {"categories": ["privacy"]})
    return folder


def about(command: str, models: Path, source: Path) -> tuple:
    """What each command is told beside its places; the pairs of a file are labels for its pools as well."""
    own = {"score": ("--models", models, "--raw"), "annotate": ("--model", models)}
    return own.get(command, ("--model", models, "--labelled", source, "--prefix", "new_"))


def refused(capsys, command: str, source: Path, models: Path, *more: object) -> str:
    """What any command says about an input that it refuses: one line, exit code 2, nothing written."""
    target = source.parent / "written" / "out.jsonl"
    places = ("--input", source, "--output", target)
    assert run(command, *places, *about(command, models, source), *more) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not target.parent.exists(), said
    return said


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_line_about_what_it_is(tmp_path, capsys, nothing_loads, models, name):
    content, message = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content(path) if callable(content) else content)
    for command in ("score", "annotate", "rerank"):
        said = refused(capsys, command, path, models)
        assert said.startswith(f"srmir: {path}: ") and message in said, said


def test_the_utf16_case_says_what_to_convert(tmp_path, capsys, nothing_loads, models):
    path = tmp_path / "s_utf16.jsonl"
    path.write_bytes((CASES / path.name).read_bytes())
    said = refused(capsys, "score", path, models)
    assert said == (
        f"srmir: {path}: not UTF-8 text, more likely UTF-16; convert it: iconv -f UTF-16 -t UTF-8 s_utf16.jsonl > NEW\n"
    )
    converted = path.read_text("utf-16").encode()  # what iconv does
    (tmp_path / "new.jsonl").write_bytes(converted)
    assert [row for _, row in rows_in(tmp_path / "new.jsonl")] == SCORED


def test_a_wrong_row_is_named_in_every_form(tmp_path, capsys, nothing_loads, models):
    rows = [SCORED[1], SCORED[1], SCORED[1] | {"response": None}]
    for form, made in FORMS.items():
        (tmp_path / form).write_bytes(made(rows))
    parquet(rows, tmp_path / "a.parquet")
    save_dataset(Dataset.from_list(rows), tmp_path / "folder")
    for path in sorted(tmp_path.iterdir()):
        assert refused(capsys, "score", path, models).startswith(f"srmir: {path}: row 3: response is null"), path
    pairs = [PAIRS[0], PAIRS[0] | {"chosen": " "}]
    folder = save_dataset(
        DatasetDict(train=Dataset.from_list(PAIRS), test=Dataset.from_list(pairs)), tmp_path / "pairs"
    )
    assert f"srmir: {folder}: split test, row 2: chosen is empty" in refused(capsys, "annotate", folder, models)
    examples = write(tmp_path / "harmful.json", [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": ""}])
    said = refused(capsys, "annotate", parquet(PAIRS, tmp_path / "p.parquet"), models, "--harmful", examples)
    assert said.startswith(f"srmir: {examples}: row 2: response is empty")


def test_a_folder_of_another_kind_is_told_apart_from_a_damaged_one(tmp_path, capsys, nothing_loads, models):
    clone = tmp_path / "cloned" / "data"
    clone.mkdir(parents=True)
    parquet(PAIRS, clone / "train-00000-of-00001.parquet")
    broken = save_dataset(Dataset.from_list(PAIRS), tmp_path / "broken")
    (broken / "state.json").write_text("{")
    for command in ("score", "annotate", "rerank"):
        said = refused(capsys, command, clone.parent, models)
        assert "cloned: not a folder that `datasets` saved" in said and "data/train-00000-of-00001.parquet" in said
        assert "broken: damaged dataset folder" in refused(capsys, command, broken, models)


def test_values_that_json_has_no_word_for_are_named(tmp_path, capsys, nothing_loads, models):
    for value, what in ((b"\x00", "bytes"), (float("nan"), "nan")):
        path = parquet([BOTH | {"extra": None}, BOTH | {"extra": value}], tmp_path / f"{what}.parquet")
        said = refused(capsys, "score", path, models)
        assert "row 2: holds what JSON in UTF-8 cannot (" in said and what in said and "column" in said, said


@pytest.mark.parametrize("ending", [".gz", ".parquet", ".csv", ".arrow"])
def test_an_output_is_not_named_as_what_it_is_not(tmp_path, capsys, nothing_loads, models, ending):
    source = write(tmp_path / "in.jsonl", [BOTH])
    for command in ("score", "annotate", "rerank"):
        target = tmp_path / f"out{ending}"
        assert run(command, "--input", source, "--output", target, *about(command, models, source)) == 2
        assert f"{target}: would hold JSON lines; name it .jsonl" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in.jsonl"]


# The two commands give the same numbers for the same rows, whatever form they come in.


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> Path:
    folder, say = tmp_path_factory.mktemp("sets") / "shadow_rms", assistant_message
    pairs = [{"prompt": user_message(f"{n}"), "chosen": say("no"), "rejected": say("yes")} for n in range(8)]
    data = Dataset.from_list([pair | {"category": ("privacy", "insult")[n % 2]} for n, pair in enumerate(pairs)])
    fit_set(
        tiny_model,
        {"train": data},
        folder,
        ["privacy", "insult"],
        RewardSettings(max_steps=1, batch_size=4, learning_rate=1e-3, lora_rank=2, lora_alpha=4, max_length=128),
    )
    return folder


def every_form(folder: Path, rows) -> list[Path]:
    """The rows as files and folders of every form."""
    for form, made in FORMS.items():
        (folder / form).write_bytes(made(rows))
    parquet(rows, folder / "a.parquet")
    save_dataset(Dataset.from_list(rows), folder / "plain")
    save_dataset(DatasetDict(train=Dataset.from_list(rows)), folder / "single")
    return sorted(folder.iterdir())


def test_scores_are_the_same_for_every_form(trained, tmp_path, monkeypatch):
    made = score_file._Scorer(str(trained), "", "cpu", True, "", "")
    monkeypatch.setattr(score_file, "_Scorer", lambda *_: made)
    (tmp_path / "in").mkdir()
    rows = [row | {"category": row.get("category")} for row in SCORED]  # a table has a cell in every row

    def scored(source: Path) -> list[dict]:
        target = tmp_path / "out.jsonl"
        assert run("score", "--models", trained, "--raw", "--input", source, "--output", target) == 0
        return read(target)

    expected = scored(write(tmp_path / "plain.jsonl", rows))
    assert [row["routed"] is None for row in expected] == [False, True]
    for source in every_form(tmp_path / "in", rows):
        assert scored(source) == expected, source
    kept = [{name: value for name, value in row.items() if value is not None} for row in expected]
    for name in ("s_bom.jsonl", "s_blank.jsonl", "s_pretty.json"):
        found = [{name: value for name, value in row.items() if value is not None} for row in scored(CASES / name)]
        assert found == kept, name
    first, second = scored(CASES / "s_unicode.jsonl")
    assert (first["prompt"], first["response"]) == (SAID, SAID) and second["prompt"] == expected[0]["prompt"]
    assert second["scores"] == pytest.approx(expected[0]["scores"], abs=1e-5), "in other company, up to rounding"


def test_margins_are_the_same_for_every_form(tiny_model, tmp_path, monkeypatch):
    made = annotate_file.MarginModel(str(tiny_model), "cpu", -1, "last")
    monkeypatch.setattr(annotate_file, "MarginModel", lambda *_: made)
    (tmp_path / "in").mkdir()

    def annotated(source: Path, *more: object) -> list[dict]:
        """The rows, and their margins in seven digits; a folder is one again, with its splits."""
        target = tmp_path / f"{source.name}.out"
        assert run("annotate", "--model", tiny_model, "--input", source, "--output", target, *more) == 0
        if not source.is_dir():
            return read(target)
        made = load_from_disk(target)
        rows = made["train"] if source.name == "single" else made
        return [row | {"margin": jsonl.seven_digits(row["margin"])} for row in rows]

    expected = annotated(write(tmp_path / "plain.jsonl", PAIRS))
    assert all(row["margin"] for row in expected)
    for source in every_form(tmp_path / "in", PAIRS):
        assert annotated(source) == expected, source
    harmful = write(tmp_path / "harmful.jsonl", [{"prompt": pair["prompt"], "response": "yes"} for pair in PAIRS])
    other = parquet(read(harmful), tmp_path / "harmful.parquet")
    plain = annotated(tmp_path / "plain.jsonl", "--harmful", harmful)
    assert annotated(tmp_path / "plain.jsonl", "--harmful", other) == plain != expected
    assert len(annotated(CASES / "a.parquet")) == 10 and len(annotated(CASES / "a.jsonl.gz")) == 1
    assert [row["margin"] for row in annotated(CASES / "a_plain.jsonl")] == [row["margin"] for row in expected]
    assert [row["prompt"] for row in annotated(CASES / "a_ultra.jsonl")] == ["hi there", "hi you"]


def test_the_public_files_are_read_by_the_same_reader(tmp_path):
    """hh-rlhf's file unpacked and packed again with a mark; a list with a mark; a file of rows in place of a list."""
    (tmp_path / "hh-rlhf").mkdir()
    row = read(CASES / "a_hh.jsonl")[0]
    file = tmp_path / "hh-rlhf" / "harmless-base_test.jsonl.gz"
    for content in (b"\xef\xbb\xbf" + lines([row]), gzip.compress(b"\xef\xbb\xbf" + lines([row])), json.dumps([row])):
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        rows, left_out = public_files.load_hh_pairs(tmp_path)
        assert rows == [{"prompt": user_message("hi"), "chosen": "no .", "rejected": "yes ."}]
    (tmp_path / "diasafety").mkdir()
    reply = {"context": "a", "response": "b", "category": "c", "label": "Safe"}
    for content in (b"\xef\xbb\xbf" + json.dumps([reply]).encode(), lines([reply]), gzip.compress(lines([reply]))):
        (tmp_path / "diasafety" / "test.json").write_bytes(content)
        assert public_files.load_diasafety(tmp_path) == [{"prompt": "a", "response": "b", "unsafe": 0, "kind": "c"}]
    (tmp_path / "diasafety" / "test.json").write_bytes(json.dumps([reply]).encode("utf-16"))
    with pytest.raises(InputError, match="test.json: not UTF-8 text, more likely UTF-16"):
        public_files.load_diasafety(tmp_path)


# Permissions.


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (2, 0o664, 0o775)])
def test_files_of_any_writer_are_readable_as_the_umask_says(tmp_path, umask, file, folder):
    import tempfile

    import numpy as np

    outside = tmp_path / "outside"
    outside.write_text("somebody's")
    outside.chmod(0o640)
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "one.safetensors") as fresh:
            save_file({"a": np.zeros(2)}, fresh)
        with atomic_path(tmp_path / "set") as fresh:
            fresh.mkdir()
            save_file({"a": np.zeros(2)}, fresh / "model.safetensors")
            (Path(tempfile.mkdtemp(dir=fresh)) / "deep.json").write_text("{}")
            handle, _ = tempfile.mkstemp(dir=fresh)
            os.close(handle)
            (fresh / "link").symlink_to(outside)
    finally:
        os.umask(before)
    written = [tmp_path / "one.safetensors", tmp_path / "set", *(tmp_path / "set").rglob("*")]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in written if not path.is_symlink()}
    assert (
        len(modes) == 6
        and {path.name: oct(mode) for path, mode in modes.items() if mode != (folder if path.is_dir() else file)} == {}
    )
    assert stat.S_IMODE(outside.stat().st_mode) == 0o640, "what a link leads to is not ours"


# What people do in the folders of a preset.


def test_what_a_reader_caches_in_a_dataset_makes_nothing_stale(tmp_path):
    """`filter` and `map` in a session of the reader's own write beside the data that was read."""
    data = save_dataset(DatasetDict(train=Dataset.from_dict({"a": [1, 2]})), tmp_path / "preferences")
    recorded = manifest.hash_outputs(tmp_path)
    named = manifest.outside_inputs({"preferences": str(data)}, [], tmp_path)
    assert set(named) == {"parameter preferences"}
    enable_caching()
    files = set(data.rglob("*"))
    load_from_disk(data)["train"].filter(lambda row: row["a"] > 1)
    assert set(data.rglob("*")) - files, "the cache file that this test is about"
    (data / ".DS_Store").write_text("a file manager looked")
    assert manifest.damaged(tmp_path, recorded) == []
    assert manifest.outside_inputs({"preferences": str(data)}, [], tmp_path) == named
    (data / "train" / "more.arrow").write_text("data")
    assert manifest.outside_inputs({"preferences": str(data)}, [], tmp_path) != named


def test_a_model_that_a_group_names_is_an_input(tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text("{}")
    group = {"similarity_model": "encoder", "deeper": {"base": str(tmp_path / "encoder")}, "question": "why ? " * 999}
    told = {"training": group, "question": "~nobody " + "why ? " * 999}
    before = manifest.outside_inputs(told, [], tmp_path)
    assert set(before) == {"parameter training.similarity_model", "parameter training.deeper.base"}
    (tmp_path / "encoder" / "config.json").write_text('{"more": 1}')
    assert manifest.outside_inputs(told, [], tmp_path) != before


def test_a_folder_that_is_copied_anew_is_the_same_input(tmp_path, monkeypatch):
    """Data that is mounted or checked out again has other times: hours of runs were begun again for it."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "answers.csv").write_text("prompt,label")
    before = manifest.outside_inputs({"data_dir": str(data)}, [], tmp_path)
    os.utime(data / "answers.csv", (1, 1))
    again = shutil.copytree(data, tmp_path / "elsewhere")
    assert manifest.outside_inputs({"data_dir": str(data)}, [], tmp_path) == before
    assert manifest.outside_inputs({"data_dir": str(again)}, [], tmp_path) == before
    (again / "answers.csv").write_text("prompt,lapel")
    assert manifest.outside_inputs({"data_dir": str(again)}, [], tmp_path) != before
    monkeypatch.setattr(manifest, "LARGE", 4)
    large = manifest.outside_inputs({"data_dir": str(data)}, [], tmp_path)
    os.utime(data / "answers.csv", (2, 2))
    assert manifest.outside_inputs({"data_dir": str(data)}, [], tmp_path) != large, "a large one is known by its time"


def stage_folder(path: Path, results: dict[str, str]) -> Path:
    """A finished stage with these files."""
    for name, text in results.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    write_json(path / "manifest.json", {"ok": True, "key": "k", "outputs": manifest.hash_outputs(path)})
    (path / f"{path.name}.ipynb").write_text("{}")
    return path


def texts(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_peoples_files_go_along_or_aside(tmp_path):
    old = stage_folder(tmp_path / "01_make", {"numbers/a.json": "1", "gone.json": "2", "same.json": "3"})
    new = stage_folder(tmp_path / ".01_make.work", {"numbers/a.json": "4", "same.json": "5", "notes.txt": "6"})
    (new / "01_make.ipynb").write_text("new")
    (old / "numbers/a.json").write_text("changed by hand")
    (old / "notes.txt").write_text("mine, under a name that the stage now takes")
    (old / "plots").mkdir()
    (old / "plots/mine.svg").write_text("mine")
    (old / "link").symlink_to("plots")
    (old / "dangling").symlink_to("nowhere")
    (old / "01_make.ipynb").write_text("old")
    aside = manifest.carry_over(old, new)
    assert aside == tmp_path / "01_make.yours"
    mine = {"numbers/a.json": "changed by hand", "notes.txt": "mine, under a name that the stage now takes"}
    assert texts(aside) == mine
    kept = {"numbers/a.json": "4", "same.json": "5", "notes.txt": "6", "plots/mine.svg": "mine"}
    found = texts(new)
    assert {name: found[name] for name in kept} == kept
    assert "gone.json" not in found and found["01_make.ipynb"] == "new"
    assert os.readlink(new / "link") == "plots" and os.readlink(new / "dangling") == "nowhere"
    assert manifest.carry_over(old, new) == tmp_path / "01_make.yours2", "what lies aside is never replaced"
    assert texts(aside) == mine
    (old / "numbers/a.json").write_text("1")
    (old / "notes.txt").unlink()
    assert manifest.carry_over(old, new) is None


def test_a_folder_that_no_run_made_goes_aside_whole(tmp_path):
    """ "Run all" leaves no manifest, and nothing there tells a file from a result; an empty folder is nobody's."""
    old = tmp_path / "01_make"
    (old / "numbers").mkdir(parents=True)
    new = stage_folder(tmp_path / ".01_make.work", {"numbers/a.json": "4"})
    assert manifest.carry_over(old, new) is None and old.is_dir()
    (old / "notes.txt").write_text("mine")
    assert manifest.carry_over(old, new) == tmp_path / "01_make.yours" and not old.exists()
    assert texts(tmp_path / "01_make.yours") == {"notes.txt": "mine"}
    assert manifest.carry_over(old, new) is None, "there may be none yet"


def test_a_dataset_folder_that_holds_other_files_is_not_replaced(tmp_path, capsys, nothing_loads, models):
    source = save_dataset(Dataset.from_list(PAIRS), tmp_path / "pairs")
    for place in ("notes.txt", "train/mine.csv"):
        target = save_dataset(DatasetDict(train=Dataset.from_list(PAIRS)), tmp_path / place[:4])
        (target / place).write_text("mine")
        assert run("annotate", "--input", source, "--output", target, "--model", models) == 2
        said = capsys.readouterr().err
        assert f"{target}: holds {place}, which would be lost; name a new folder" in said
        assert (target / place).read_text() == "mine"


# Systems other than Linux.

WINDOWS = """
import ctypes, os, sys
for name in ("fcntl", "grp"):  # termios and resource are what libraries import, by system
    sys.modules[name] = None  # importing it is an ImportError
del os.sched_getaffinity
library = ctypes.CDLL

def CDLL(name, *arguments, **options):
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    return library(name, *arguments, **options)

ctypes.CDLL = CDLL
from srmir_lib.cli import main
sys.exit(main(sys.argv[1:]))
"""


def elsewhere(*arguments: object) -> subprocess.CompletedProcess:
    """`srmir` where the modules and calls are missing that Windows lacks."""
    command = [sys.executable, "-c", WINDOWS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_command_line_works_without_fcntl(tmp_path, models):
    assert "usage: srmir" in elsewhere("status", "--help").stdout
    source = write(tmp_path / "in.jsonl", [PAIRS[0], {}])
    for command in ("score", "annotate", "rerank"):
        places = ("--input", source, "--output", tmp_path / "out.jsonl")
        done = elsewhere(command, *places, *about(command, models, source))
        assert done.returncode == 2 and ": lacks " in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_run_says_in_one_line_why_it_cannot(tmp_path):
    for command, told in (("run", ()), ("seeds", ("--seeds", "0"))):
        done = elsewhere(command, "lab", "00", *told)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("srmir: this system has no file locks (fcntl)") and done.stderr.count("\n") == 1


def test_margins_are_written_to_a_folder_without_linuxs_calls(tiny_model, tmp_path):
    source = save_dataset(Dataset.from_list(PAIRS), tmp_path / "pairs")
    save_dataset(Dataset.from_list(PAIRS[:1]), tmp_path / "out")
    done = elsewhere("annotate", "--input", source, "--output", tmp_path / "out", "--model", tiny_model)
    assert done.returncode == 0, done.stderr
    assert load_from_disk(tmp_path / "out").column_names == [*PAIRS[0], "margin"] and len(os.listdir(tmp_path)) == 2


def test_no_module_that_one_system_lacks_is_needed():
    unix = {"fcntl", "grp", "pwd", "resource", "termios", "pty", "tty", "syslog", "posix", "crypt"}
    for path in (ROOT / "srmir_lib").rglob("*.py"):
        named = {line.split()[1].split(".")[0] for line in path.read_text("utf8").splitlines() if line[:7] == "import "}
        assert not named & unix, path
    assert series.fcntl is not None, "and here it is used"
