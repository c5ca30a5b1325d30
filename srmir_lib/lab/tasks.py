"""Utility tasks with one right answer each: small sums, sorting, copying, look-ups. They measure the alignment tax."""

import random

from srmir_lib.lab.world import OBJECTS

LETTERS = "abcdefgh"


COLOURS = ("red", "blue", "green", "white", "black")


TASKS = ("sum", "sort", "copy", "look_up")


PHRASES = {
    "sum": ("there is {0} {2} and then {1} more . how many ?", "add {0} {2} and {1} {2} ."),
    "sort": ("sort : {0}", "put in order : {0}"),
    "copy": ("repeat : {0}", "say again : {0}"),
    "look_up": ("{0} . look up {1}", "here is a list : {0} . find {1}"),
}


def make_task(task: str, split: str, rng: random.Random) -> tuple[str, str]:
    """(question, exact answer) of a task; the content, not the wording, decides the split, so tests are never seen."""
    while True:
        content, filled, expected = draw(task, rng)
        if split_of(task, content) == split:
            return rng.choice(PHRASES[task]).format(*filled), expected


def draw(task: str, rng: random.Random) -> tuple[tuple, tuple, str]:
    """(what identifies the task, what fills its phrase, the answer)."""
    if task == "sum":
        a, b, noun = (
            rng.randrange(6),
            rng.randrange(6),
            rng.choice([noun for kind in OBJECTS.values() for noun in kind]),
        )
        return (a, b, noun), (a, b, noun), str(a + b)
    if task == "sort":
        letters = rng.sample(LETTERS, 3)
        return tuple(letters), (" ".join(letters),), " ".join(sorted(letters))
    if task == "copy":
        letters = rng.sample(LETTERS, 4)
        return tuple(letters), (" ".join(letters),), " ".join(letters)
    nouns = rng.sample([noun for kind in OBJECTS.values() for noun in kind], 2)
    colours = rng.sample(COLOURS, 2)
    asked = rng.randrange(2)
    facts = " , ".join(f"{noun} {colour}" for noun, colour in zip(nouns, colours, strict=True))
    return (*nouns, *colours, asked), (facts, nouns[asked]), f"{nouns[asked]} {colours[asked]}"


def split_of(task: str, content: tuple) -> str:
    """train (80 %), validation (5 %) or test (15 %), from the content alone: the words never decide."""
    bucket = random.Random(f"{task}-{content}").randrange(20)
    return "test" if bucket < 3 else "validation" if bucket < 4 else "train"
