"""The report on a pair, or on one model: from what was measured to sections and a few sentences.

In this order: right answers, loss on own answers, divergence from the base, metrics, edges, own and shared words, single
problems, exact removals, problems that fell away, what is scored, settings.
"""

from __future__ import annotations

from rlcircuits.errors import counted
from rlcircuits.reports import behaviour, inside
from rlcircuits.reports.findings import Findings
from rlcircuits.reports.report import Report, Section


def pair_report(found: Findings) -> Report:
    """The report of what was measured."""
    sections = [behaviour.accuracy(found), behaviour.own_loss(found)]
    if not found.alone:
        sections.append(behaviour.divergence(found))
    sections += [inside.metrics(found), inside.edges(found)]
    if not found.alone:
        sections.append(inside.shared(found))
    sections += [inside.single_problems(found), inside.trust(found), behaviour.fallen(found), behaviour.scored(found)]
    facts = dict(found.models) | ({} if found.alone or found.method == "other" else {"tuned by": found.method})
    for name in ("problems", "level", "alpha", "prompt"):
        if name in found.settings:
            facts[name] = str(found.settings[name])
    settings = {name: _shown(value) for name, value in found.settings.items()}
    what = "One model" if found.alone else "Before and after fine-tuning"
    return Report(f"{what}: {found.name}", facts, _short(found, sections), sections, settings)


def _short(found: Findings, sections: list[Section]) -> list[str]:
    """What is to be said first."""
    said = {section.name: section for section in sections}
    if found.selection is None:
        return [
            said["accuracy"].says,
            "No problem is left to compare on, so nothing is said of the inside; why is shown below.",
        ]
    short = [said["accuracy"].says, said["metrics"].says]
    weak = [section.title.lower() for section in sections if section.holds is False]
    if weak:
        short.append(f"On weak ground ({counted(len(weak), 'question')}): {', '.join(weak)}.")
    return short


def _shown(value: object) -> str:
    return "–" if value is None else str(value)
