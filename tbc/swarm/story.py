"""Stories for the picture: what one policy did with one pool, moment by moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen

from tbc.swarm.driver import Estimate, Event, Outcome, Team, replay
from tbc.swarm.policies import Books, Policy

__all__ = ["Moment", "Story", "tell"]

#: A story of many events keeps about so many of them; a large swarm's fewer, as every look at the books of n
#: agents takes O(n).
_MOMENTS, _FEWEST_MOMENTS, _LOOKS = 300, 60, 100_000


@frozen
class Moment:
    """The pool after something happened."""

    #: Simulated seconds.
    at_s: float
    #: ``"refused"`` or ``"settled"``.
    what: str
    #: Whose call it was.
    role: str
    #: Where the tokens are.
    books: Books


@frozen
class Story:
    """What a policy did with a pool."""

    #: The policy's name.
    policy: str
    #: The name of what was played: a run or a swarm.
    title: str
    #: The pool, in tokens.
    budget: int
    #: In order of time; of a long story, evenly chosen.
    moments: tuple[Moment, ...]


def tell(
    title: str,
    teams: Sequence[Team],
    budget: int,
    policy: Policy,
    estimate: Estimate,
    priority: Callable[[str, str], int],
    *,
    top: int,
) -> tuple[Outcome, Story]:
    """Replay, and keep what happened to the pool.

    Parameters are those of `tbc.swarm.driver.replay`; `title` names what is played.
    """
    agents = sum(len(team.run.roles) for team in teams)
    most = max(_FEWEST_MOMENTS, min(_MOMENTS, _LOOKS // agents))
    every = max(1, sum(len(team.run.calls) for team in teams) // most)
    moments: list[Moment] = []
    ended = 0

    def watch(event: Event) -> None:
        nonlocal ended
        if event.what == "granted":
            return
        if ended % every == 0:
            moments.append(Moment(event.at_s, event.what, event.arrival.role, policy.books()))
        ended += 1

    outcome = replay(teams, budget, policy, estimate, priority, top=top, watch=watch)
    return outcome, Story(policy.name, title, budget, tuple(moments))
