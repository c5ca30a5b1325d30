"""Seed after seed through the real runner: records add up, are not made twice, and read back."""

import fcntl
import json

import pytest
from test_run import after, root  # noqa: F401  a repository of two small notebooks

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.cli import main
from srmir_lib.errors import InputError
from srmir_lib.runner.seeds import RECORDS, facts_of_seeds, read_seeds, stale_records


@pytest.fixture
def recorded(root, after, capsys):  # noqa: F811
    return after(root, "seeds", "lab", "--seeds", "3", "4")


def test_every_seed_is_recorded_and_none_twice(recorded, capsys):
    folder = recorded / "outputs/reference/seeds/lab"
    record = read_json(folder / "3/01_make.json")
    assert record["metrics"] == {"rate": 5e-3} and record["seed"] == 3 and record["preset"] == "lab"
    assert record["parameters"] == {"rate": 5e-3, "weights": [1.0, 2.0], "limit": 9}
    assert read_json(recorded / "outputs/seeds/lab/4/02_use/copy.json")["seed"] == 4, "the seed reaches the notebooks"
    assert str(recorded) not in (folder / "3/01_make.json").read_text()
    before = (folder / "3/01_make.json").stat().st_mtime_ns
    assert main(["seeds", "lab", "--seeds", "3", "4", "5"]) == 0
    said = capsys.readouterr().out
    assert "seed 3: recorded already" in said and "seed 5: recorded in outputs/reference/seeds/lab/5" in said
    assert (folder / "3/01_make.json").stat().st_mtime_ns == before
    assert sorted(read_seeds(recorded / RECORDS / "lab")) == [3, 4, 5]


def test_other_parameters_are_another_result_and_are_not_mixed(recorded, capsys):
    (recorded / "params/lab/01_make.yaml").write_text("rate: 7.0e-3\n")
    assert main(["seeds", "lab", "--seeds", "3"]) == 0
    with pytest.raises(InputError, match="4/01_make.json and .*3/01_make.json were run with different parameters"):
        read_seeds(recorded / RECORDS / "lab")
    assert main(["seeds", "lab", "--seeds", "3", "4"]) == 0
    assert "seed 3: recorded already" in capsys.readouterr().out
    assert read_seeds(recorded / RECORDS / "lab") == {seed: {"01_make/rate": 7e-3} for seed in (3, 4)}


def test_what_reads_a_changed_stage_is_not_on_record(recorded, capsys):
    """Killed between the two stages: the second one's own parameters are those on record, and it must still run."""
    (recorded / "params/lab/01_make.yaml").write_text("rate: 7.0e-3\n")
    assert main(["seeds", "lab", "01", "--seeds", "3"]) == 0
    assert main(["seeds", "lab", "--seeds", "3"]) == 0
    assert read_json(recorded / "outputs/seeds/lab/3/02_use/copy.json")["rate"] == 7e-3
    assert "recorded already" not in capsys.readouterr().out


def test_a_seed_that_fails_its_check_is_recorded_and_the_others_go_on(recorded, capsys):
    assert main(["seeds", "lab", "--seeds", "9", "5"]) == 1, "the notebook's check wants a seed below 9"
    assert "seed 9: 01_make" in capsys.readouterr().err
    found = read_seeds(recorded / RECORDS / "lab")
    assert found[9] == {"01_make/rate": 5e-3} == found[5], "what was measured before the check failed is kept"
    facts = facts_of_seeds(recorded / RECORDS / "lab")
    assert facts["seeds"] == [3, 4, 5, 9] and facts["failed"] == ["seed 9, 01_make"]
    failure = read_json(recorded / RECORDS / "lab/9/01_make.json")["failure"]
    assert "outputs/seeds/lab/9" in failure and str(recorded) not in failure, "a record shows no place of this machine"
    assert not (recorded / "outputs/seeds/lab/9/02_use").exists(), "nothing is built on a failed stage"


def test_a_record_that_is_older_than_its_data_is_named(recorded):
    folder = recorded / RECORDS / "lab"
    assert facts_of_seeds(folder)["on earlier data"] == []
    later = read_json(folder / "4/01_make.json") | {"started": "9999-01-01T00:00:00+00:00"}
    write_json(folder / "4/01_make.json", later)
    assert facts_of_seeds(folder)["on earlier data"] == ["02_use"]


def test_again_runs_what_is_recorded(recorded):
    file = recorded / "outputs/seeds/lab/3/01_make/manifest.json"
    before = file.stat().st_mtime_ns
    assert main(["seeds", "lab", "--seeds", "3", "--again"]) == 0
    assert file.stat().st_mtime_ns > before


def test_what_another_preset_made_in_the_same_way_is_shared(recorded, capsys):
    for name in ("01_make", "02_use"):
        (recorded / f"params/other/{name}.yaml").parent.mkdir(exist_ok=True)
        (recorded / f"params/other/{name}.yaml").write_text("preset: other\n")
    (recorded / "params/other/01_make.yaml").write_text("preset: other\nrate: 5.0e-3\n")
    assert main(["seeds", "other", "--seeds", "3"]) == 0
    said = capsys.readouterr().out
    assert "01_make: shared" in said and "02_use: shared" in said
    mine, theirs = (recorded / f"outputs/seeds/{preset}/3/01_make" for preset in ("other", "lab"))
    made = read_json(mine / "manifest.json")
    assert made["shared_with"] == "outputs/seeds/lab/3/01_make" and made["preset"] == "other"
    assert made["started"] == read_json(theirs / "manifest.json")["started"], (
        "when it was made, and not when taken over"
    )
    assert read_json(recorded / RECORDS / "other/3/01_make.json")["metrics"] == {"rate": 5e-3}
    assert main(["seeds", "other", "--seeds", "3"]) == 0
    assert "seed 3: recorded already" in capsys.readouterr().out


def test_a_run_of_the_preset_itself_is_the_seed_that_it_has(recorded, capsys):
    assert main(["run", "lab"]) == 0
    capsys.readouterr()
    assert main(["seeds", "lab", "--seeds", "0"]) == 0, "the notebook's own seed"
    said = capsys.readouterr().out
    assert "01_make: shared" in said and "02_use: shared" in said
    assert read_json(recorded / "outputs/seeds/lab/0/02_use/manifest.json")["shared_with"] == "outputs/lab/02_use"
    assert main(["seeds", "lab", "02", "--seeds", "6", "--data", "0"]) == 0
    assert read_json(recorded / "outputs/seeds/lab/6/02_use/copy.json")["seed"] == 0


def test_a_damaged_manifest_elsewhere_stops_nobody(recorded, capsys):
    (recorded / "outputs/elsewhere/01_make").mkdir(parents=True)
    (recorded / "outputs/elsewhere/01_make/manifest.json").write_text("{")
    assert main(["run", "lab"]) == 0
    assert "01_make: done" in capsys.readouterr().out


def test_seeds_may_share_the_data_of_one(recorded, capsys):
    capsys.readouterr()
    assert main(["seeds", "lab", "02", "--seeds", "7", "8", "--data", "3"]) == 0
    said = capsys.readouterr().out
    assert "01_make: " not in said and said.count("02_use: done") == 2
    for seed in (7, 8):
        made = read_json(recorded / f"outputs/seeds/lab/{seed}/01_make/manifest.json")
        assert made["shared_with"] == "outputs/seeds/lab/3/01_make" and made["seed"] == 3
        copied = read_json(recorded / f"outputs/seeds/lab/{seed}/02_use/copy.json")
        assert copied["seed"] == 3, "the data of seed 3, read by another"
        assert not (recorded / RECORDS / f"lab/{seed}/01_make.json").exists(), "what was not run is not on record"
    assert main(["seeds", "lab", "02", "--seeds", "7", "--data", "3"]) == 0
    assert "seed 7: recorded already" in capsys.readouterr().out
    assert main(["seeds", "lab", "02", "--seeds", "7", "--data", "6"]) == 2
    line = "--data 6: outputs/seeds/lab/6 is missing; run `srmir seeds lab 01 02 --seeds 6` first"
    assert line in capsys.readouterr().err


def test_nothing_is_shared_that_was_made_otherwise_or_is_damaged(recorded, capsys):
    for name in ("01_make", "02_use"):
        (recorded / f"params/other/{name}.yaml").parent.mkdir(exist_ok=True)
        (recorded / f"params/other/{name}.yaml").write_text("preset: other\n")
    (recorded / "params/other/01_make.yaml").write_text("preset: other\nrate: 5.0e-3\n")
    assert main(["seeds", "other", "--seeds", "8"]) == 0, "a seed that nobody has run"
    (recorded / "outputs/seeds/lab/3/01_make/metrics.json").write_text("{}")
    assert main(["seeds", "other", "--seeds", "3"]) == 0, "what is damaged there"
    (recorded / "params/other/01_make.yaml").write_text("preset: other\nrate: 7.0e-3\n")
    assert main(["seeds", "other", "--seeds", "4"]) == 0, "and what is told something else"
    assert "01_make: shared" not in capsys.readouterr().out


def edit_first_notebook(root, old: str, new: str) -> None:  # noqa: F811
    path = root / "notebooks/01_make.ipynb"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_records_are_stale_when_todays_preset_would_make_others(recorded, capsys):
    assert stale_records("lab", recorded) == []
    write_json(recorded / RECORDS / "lab/4/03_gone.json", {"chain": "0"})
    assert stale_records("lab") == ["outputs/reference/seeds/lab/4/03_gone.json"], "the preset has no such notebook"
    (recorded / RECORDS / "lab/4/03_gone.json").unlink()
    (recorded / "params/lab/02_use.yaml").write_text("source: ''\n")
    every = [f"outputs/reference/seeds/lab/{seed}/{name}.json" for seed in (3, 4) for name in ("01_make", "02_use")]
    assert stale_records("lab") == every[1::2]
    (recorded / "params/lab/02_use.yaml").write_text("")
    (recorded / "params/lab/01_make.yaml").write_text("rate: 7.0e-3\n")
    assert stale_records("lab") == every, "what reads a changed stage is stale with it"


def test_a_parameter_added_with_its_default_makes_no_record_stale_and_a_changed_default_does(recorded, capsys):
    edit_first_notebook(recorded, "limit: int = 9  # most", "limit: int = 9  # most\\nshy: bool = False  # new")
    assert stale_records("lab") == []
    assert main(["seeds", "lab", "--seeds", "3"]) == 0
    assert "seed 3: recorded already" in capsys.readouterr().out
    (recorded / "params/lab/01_make.yaml").write_text("rate: 5.0e-3\nshy: true\n")
    assert len(stale_records("lab")) == 4
    (recorded / "params/lab/01_make.yaml").write_text("rate: 5.0e-3\nlimit: 9\n")
    assert stale_records("lab") == [], "a default that is written out"
    (recorded / "params/lab/01_make.yaml").write_text("rate: 5.0e-3\n")
    edit_first_notebook(recorded, "limit: int = 9", "limit: int = 8")
    assert len(stale_records("lab")) == 4


def test_a_record_knows_what_it_read_even_where_that_is_not_on_record(recorded):
    for seed in (3, 4):
        (recorded / RECORDS / f"lab/{seed}/01_make.json").unlink()
    assert stale_records("lab") == []
    edit_first_notebook(recorded, "limit: int = 9", "limit: int = 8")
    assert len(stale_records("lab")) == 2


def test_again_takes_nothing_away_before_it_has_the_lock_and_a_new_result(recorded, capsys):
    folder = recorded / "outputs/seeds/lab/3"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["seeds", "lab", "--seeds", "3", "--again"]) == 2
    assert "another `srmir run lab` is at work" in capsys.readouterr().err
    assert (folder / "01_make/manifest.json").is_file() and (folder / "02_use/manifest.json").is_file()
    (recorded / "params/lab/01_make.yaml").write_text("rate: 5.0e-3\nlimit: 1\n")
    assert main(["seeds", "lab", "--seeds", "3", "--again"]) == 1, "the check fails"
    assert read_json(folder / "01_make/manifest.json")["ok"], "and the finished result of before is there"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope", "--seeds", "100"], "nope: unknown preset; there are lab"),
        (["lab", "07", "--seeds", "100"], "07: unknown notebook"),
        (
            ["lab", "02", "--seeds", "100"],
            "02_use reads outputs/seeds/lab/100/01_make/numbers, which is missing; run `srmir seeds lab 01 --seeds 100",
        ),
        (["lab", "--seeds", "1", "1"], "seeds: [1, 1]; give different whole numbers"),
        (["lab", "--seeds", "-1"], "seeds: [-1]; give different whole numbers"),
        (["lab", "--seeds", "3-5", "4"], "seeds: [3, 4, 5, 4]; give different whole numbers"),
    ],
)
def test_a_wrong_request_is_one_line(root, capsys, arguments, message):  # noqa: F811
    assert main(["seeds", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"srmir: {message}")
    assert not (root / "outputs").exists()


@pytest.mark.parametrize("towns", ["x", "5-3", "1.5", "3-"])
def test_what_is_no_town_and_no_range_of_towns_is_refused(root, capsys, towns):  # noqa: F811
    with pytest.raises(SystemExit) as stopped:
        main(["seeds", "lab", "--seeds", towns])
    assert stopped.value.code == 2 and f"{towns!r} is neither a whole number nor a range" in capsys.readouterr().err


def test_seeds_may_be_a_range(recorded, capsys):
    assert main(["seeds", "lab", "--seeds", "3-5", "7"]) == 0
    said = capsys.readouterr().out
    assert said.count("recorded already") == 2 and sorted(read_seeds(recorded / RECORDS / "lab")) == [3, 4, 5, 7]


def test_damaged_or_missing_records_are_named(recorded):
    with pytest.raises(InputError, match="run `srmir seeds other --seeds …`"):
        read_seeds(recorded / RECORDS / "other")
    file = recorded / "outputs/reference/seeds/lab/3/01_make.json"
    file.write_text(json.dumps(read_json(file))[:40])
    with pytest.raises(InputError, match="01_make.json: not valid JSON"):
        read_seeds(recorded / RECORDS / "lab")
    write_json(file, {"seed": 3})
    with pytest.raises(InputError, match="01_make.json: not a record of a seed"):
        read_seeds(recorded / RECORDS / "lab")
