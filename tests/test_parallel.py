"""Jobs side by side give what they give in turn, one thread each, and stop at the first error."""

import time
from functools import partial

import pytest
import torch

from srmir_lib.models.parallel import run_in_threads


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_jobs():
    def job(number: int):
        time.sleep(0.05 * (3 - number))
        return number, torch.get_num_threads()

    found = run_in_threads({f"job {number}": partial(job, number) for number in range(3)})
    assert found == {f"job {number}": (number, 1) for number in range(3)} and list(found) == ["job 0", "job 1", "job 2"]
    assert torch.get_num_threads() == 2, "what follows has all threads again"


def test_they_run_at_once():
    started = time.perf_counter()
    run_in_threads(dict.fromkeys(range(2), partial(time.sleep, 0.3)))
    assert time.perf_counter() - started < 0.5


def test_one_job_or_another_device_keeps_all_threads():
    assert run_in_threads({"a": torch.get_num_threads}) == {"a": 2} and run_in_threads({}) == {}
    assert run_in_threads(dict.fromkeys("ab", torch.get_num_threads), "meta") == {"a": 2, "b": 2}


def test_the_first_error_ends_it():
    begun = []

    def job(number: int):
        begun.append(number)
        time.sleep(0.05)
        raise ValueError(f"job {number}")

    with pytest.raises(ValueError, match="job"):
        run_in_threads({number: partial(job, number) for number in range(20)})
    assert len(begun) < 20 and torch.get_num_threads() == 2
