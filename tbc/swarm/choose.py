"""How large a late role's reserve is: chosen by trying it out on the training runs.

A large reserve serves the late role in more runs and strands more tokens. `choose_reserve` tries each of
`QUANTILES` (which quantile of the late role's inputs counts as usual, see `tbc.swarm.fit`) and takes

* of those that served at least `TARGET` of the late role's calls the one that served the most tokens;
* if there are none, the one that served the largest share of them.

A trial is judged on runs that it was not fitted on. The training runs are dealt into `FOLDS` folds; contracts
are fitted on all folds but one, and the runs of that one are played under the real manager, each on a pool of
its own. So every training run with a late call is judged once per trial. The contract that is handed out is
then fitted on all of them. Nothing but training runs comes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import define

from tbc.swarm.driver import Outcome, p90_output, replay_alone
from tbc.swarm.fit import LATE_ROLES, Fit, fit_runs
from tbc.swarm.market import Contracts, Market
from tbc.swarm.traces import Run

__all__ = ["FOLDS", "QUANTILES", "TARGET", "choose_reserve"]

#: What is tried.
QUANTILES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
#: The share of the late role's calls that has to be served in the trials. The aim is 95 % in runs that nobody
#: has seen; one point more is asked for because the best of several trials looks better than it is.
TARGET = 0.96
#: So many folds, or as many as there are runs.
FOLDS = 5


@define
class _Trial:
    """What one quantile did on the folds."""

    quantile: float
    asked: int = 0
    served: int = 0
    tokens: int = 0

    def add(self, outcome: Outcome, late: str) -> None:
        for fate in outcome.fates:
            is_late = fate.arrival.role == late
            self.asked += is_late
            if fate.served:
                self.served += is_late
                self.tokens += fate.call.tokens

    @property
    def share(self) -> float:
        return self.served / self.asked if self.asked else 0.0


def choose_reserve(
    runs: Sequence[Run], *, pressure: float, late_roles: Mapping[str, str] = LATE_ROLES
) -> Fit:
    """Learn from training runs, and choose on them how large the late role's reserve is.

    Parameters
    ----------
    runs : sequence of Run
        The training runs, in random order: runs that were recorded one after the other resemble each other.
    pressure : float
        Budget over a run's own demand, as it will be for the runs to come.
    late_roles : mapping of str to str
        Kind → the role that comes last and is to be protected.

    Returns
    -------
    Fit
        As of `fit_runs`, with the chosen quantile. If there is nothing to judge by (no fold has a run with a
        late call while the others have one too), the largest.
    """
    trials = [_Trial(quantile) for quantile in QUANTILES]
    folds = min(FOLDS, len(runs))
    for fold in range(folds):
        others = [run for i, run in enumerate(runs) if i % folds != fold]
        for trial in trials:
            fit = fit_runs(others, late_roles=late_roles, late_quantile=trial.quantile)
            for run in runs[fold::folds]:
                late = fit.late_role(run.kind)
                if late is not None and late in run.roles.values():
                    market = Market(fit, Contracts.RESERVE)
                    trial.add(replay_alone(run, pressure, market, p90_output(fit), fit), late)
    enough = [trial for trial in trials if trial.share >= TARGET]
    # Of equals the larger quantile: max() takes the first that it finds.
    best = (
        max(reversed(enough), key=lambda trial: trial.tokens)
        if enough
        else max(reversed(trials), key=lambda trial: (trial.share, trial.tokens))
    )
    return fit_runs(runs, late_roles=late_roles, late_quantile=best.quantile)
