"""A pair's problems by who answers them right: both models, only the tuned one, only the base, neither.

What fine-tuning changed is said to show on the problems that only the tuned model answers (arXiv 2604.25011). Each stratum has
its own T̄, T_cut and draw, and answers that are wrong are attributed like right ones; so read differences between strata beside
their selections.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcircuits.answers import STRATA
from rlcircuits.metrics import holm

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Strata:
    """What `Study.strata` found, by stratum: ``"both-correct"``, ``"only-tuned"``, ``"only-base"``, ``"neither"``.

    Attributes:
        pair: the pair's name.
        counts: how many of all problems are in each stratum, before any rule on lengths.
        studies: `PairStudy` of those strata in which the rules leave problems.
        empty: of the others, which rule left nothing.
    """

    pair: str
    counts: Mapping[str, int]
    studies: Mapping[str, Any]
    empty: Mapping[str, str]

    def table(self) -> pd.DataFrame:
        """Every metric in every stratum that has problems: the columns of `rlcircuits.compare`, with ``problems`` and Holm's
        correction over all rows, indexed by (stratum, metric); without rows where every stratum is empty.
        """
        import pandas as pd

        parts = {
            name: one.comparison.assign(problems=len(one.selection.problems)) for name, one in self.studies.items()
        }
        if not parts:
            return pd.DataFrame(columns=["problems", "base", "tuned", "difference", "low", "high", "p", "p_holm"])
        table = pd.concat(parts, names=["stratum", "metric"])
        return table.assign(p_holm=holm(table["p"]))

    def selections(self) -> pd.DataFrame:
        """What each rule dropped in each stratum: columns ``dropped``, ``left``, ``detail``, indexed by (stratum, rule)."""
        import pandas as pd

        parts = {name: one.selection.dropped.set_index("rule") for name, one in self.studies.items()}
        if not parts:
            return pd.DataFrame(columns=["dropped", "left", "detail"])
        return pd.concat(parts, names=["stratum", "rule"])

    def shown(self) -> pd.DataFrame:
        """A line a stratum: its problems, those compared, T_cut, activation intensity of both models, its ratio and p."""
        import pandas as pd

        rows = {}
        for name in STRATA:
            row: dict[str, Any] = {"problems": self.counts.get(name, 0), "compared": 0}
            if name in self.studies:
                one = self.studies[name]
                intensity = one.comparison.loc["activation_intensity"]
                row |= {"compared": len(one.selection.problems), "T_cut": one.selection.t_cut}
                row |= {f"intensity, {side}": intensity[side] for side in ("base", "tuned")}
                row |= {"ratio": intensity["ratio"], "p": intensity["p"]}
            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stratum")

    def __repr__(self) -> str:
        said = "".join(f"\n{name}: {why}" for name, why in self.empty.items())
        return f"Strata of {self.pair}\n{self.shown().to_string(float_format='{:.4g}'.format, na_rep='')}{said}"

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(name)}: {html.escape(why)}</p>" for name, why in self.empty.items())
        table = self.shown().to_html(escape=True, border=0, float_format="{:.4g}".format, na_rep="")
        return f'<div class="mathjax_ignore tex2jax_ignore"><p><b>Strata of {html.escape(self.pair)}</b></p>{table}{said}</div>'
