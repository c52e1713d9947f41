"""Which arms of a sweep have no prospects: Hyperband, as W&B simplifies it."""

from collections.abc import Mapping, Sequence

from litcam.sweeps.description import Hyperband

__all__ = ["find_hopeless"]


def find_hopeless(
    histories: Mapping[str, Sequence[float]],
    running: Sequence[str],
    rule: Hyperband,
    *,
    maximize: bool,
) -> list[str]:
    """The running arms that a band does not let pass.

    At the last band that an arm has reached it has to be among the best `rule.share` of all arms
    that have reached it, those included that are done.

    Args:
        histories: of every arm, the metric's values in order.
        running: the arms that may be stopped.
        rule: bands and share.
        maximize: whether more is better.
    """
    sign = -1 if maximize else 1
    costs = {name: [sign * value for value in values] for name, values in histories.items()}
    found = []
    for name in running:
        reached = [band for band in rule.bands if band <= len(costs.get(name, ()))]
        if not reached:
            continue
        band = reached[-1]
        others = sorted(cost[band - 1] for cost in costs.values() if len(cost) >= band)
        own = costs[name][band - 1] if rule.strict else min(costs[name])
        if own > others[int(rule.share * len(others))]:
            found.append(name)
    return found
