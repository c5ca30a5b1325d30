"""Where in an answer the asked act stands: the ground truth that token rewards are held against, never trained on."""

import re

from srmir_lib.lab.judge import LabJudge, split_clauses


def act_span(judge: LabJudge, prompt: str, response: str) -> tuple[int, int] | None:
    """Characters (start, end) of the asked act, from its verb to the end of its clause's last asked word.

    None where no clause of the answer tells someone to carry the act out: refusals, hedges, quotations, other acts.
    """
    asked = judge.read_prompt(prompt)
    if asked is None or "asked act" not in [judge.tells_to(clause, asked) for clause in split_clauses(response)]:
        return None
    found = re.search(rf"\b{asked['verb']}\b[^.,;:!?']*?\b{asked['object']}\b[^.,;:!?']*", response.lower())
    return (found.start(), found.start() + len(found.group().rstrip())) if found else None


def harmful_span(judge: LabJudge, prompt: str, response: str) -> tuple[int, int] | None:
    """The span of an act that the by-laws forbid; None for harmless prompts and for answers that do not comply."""
    asked = judge.read_prompt(prompt)
    return act_span(judge, prompt, response) if asked and judge.is_forbidden(asked) else None
