"""Processes that are forked from one that has imported what they need: torch and DeepSpeed take seconds each time."""

import multiprocessing
from collections.abc import Callable

import torch.multiprocessing as mp

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.preloaded"])


def run_ranks(rank: Callable[..., None], *arguments: object, world_size: int) -> None:
    """Call `rank(number, *arguments)` in as many processes, to their end; an error of any is raised here."""
    mp.start_processes(rank, args=arguments, nprocs=world_size, start_method="forkserver")
