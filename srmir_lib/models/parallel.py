"""Small jobs side by side, each on one core: matrices of a small model gain little from being shared by several."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch
from tqdm.auto import tqdm

MOST = 4
"""Jobs at a time: each needs its own memory."""


def run_in_threads(jobs: Mapping, device: str | torch.device = "cpu", progress: str | None = None) -> dict:
    """What each of `jobs` (name -> function without arguments) returns, by name and in their order.

    On a CPU as many run at once as torch has threads, each with one thread; on another device, or with one thread, they
    run in turn. Jobs must share nothing that they change, the global random numbers least of all. The first error ends
    it: jobs that have not begun are left out, and the error is raised.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(jobs), MOST) if torch.device(device).type == "cpu" else 1
    if workers <= 1:
        return {name: job() for name, job in tqdm(jobs.items(), desc=progress, disable=progress is None, leave=False)}
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        done = as_completed(futures.values())
        for future in tqdm(done, total=len(jobs), desc=progress, disable=progress is None, leave=False):
            future.result()
        return {name: future.result() for name, future in futures.items()}
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
