"""The table of methods, each in up to three readings.

Published (no suffix): score and initialisation as the method's own paper and official code define them, pruned to the
exact count; which layers are pruned and how they are trained is the same for all. `@written`: as the thesis says, where
that differs. `@run`: as its released code ran it. `GlobalLAP` and both `Act` follow its text.
A method of your own is one more row, and a score in `scorers.SCORERS` if it needs a new one: the README shows how.
"""

import re
from dataclasses import dataclass

from lib import UserError
from lib.models import INITS
from lib.scorers import SCORERS

# How the network runs while it is scored.
MODES = {
    "train": "BatchNorm with the batch's statistics, dropout off",
    "dropout": "BatchNorm with the batch's statistics, dropout on (as released)",
    "eval": "BatchNorm with its stored statistics, dropout off",
    "calibrated": "eval, after the stored statistics were set from the scoring images",
}


@dataclass(frozen=True)
class Method:
    """A row of the table: how weights are scored, and how a mask is made of the scores.

    name: with its reading, as in "SNIP@run" or "SNIP@written"; without one it is the published reading.
    score: a key of `scorers.SCORERS`; None: nothing is pruned.
    scope: "global": all prunable weights compete; "layer": each layer keeps the same share.
    rounds: score and prune so often, on SynFlow's exponential schedule; what is gone stays gone.
    init: the initial weights, a key of `models.initialise`: "own", "variance_scaling", "xavier_normal".
    mode: how the network runs while it is scored, a key of `MODES`.
    selection: "exact": the K best; "quantile": the released two-sided rule; "bernoulli": by chance.
    Raises `UserError` for any other value.
    """

    name: str
    score: str | None
    scope: str = "global"
    rounds: int = 1
    init: str = "own"
    mode: str = "train"
    selection: str = "exact"

    def __post_init__(self):
        known = {"score": (None, *SCORERS), "scope": ("global", "layer"), "init": INITS, "mode": MODES,
                 "selection": ("exact", "quantile", "bernoulli")}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UserError(f"The {name} of {self.name} is {getattr(self, name)!r}: it must be one of "
                                f"{', '.join(map(str, values))}.")
        if not re.fullmatch(r"\w[\w.+-]*(@written|@run)?", self.name) and self.score:
            raise UserError(f"A method cannot be named {self.name!r}: letters and digits, and for its readings @written and "
                            "@run, which every table knows.")
        if self.selection == "bernoulli" and (self.score, self.scope) != ("random", "global"):
            raise UserError(f"{self.name} cannot have the selection bernoulli, which looks at no score: that is for the "
                            "score \"random\" in the global scope.")
        plain = self.score not in (None, "random") and (self.scope, self.selection) == ("global", "exact")
        if not isinstance(self.rounds, int) or self.rounds < 1 or self.rounds > 1 and not plain:
            raise UserError(f"{self.name} cannot have {self.rounds} rounds: it must be a whole number, and more than one "
                            "needs a score that is not by chance, the global scope and the exact selection.")

    @property
    def base(self) -> str:
        """The method's name without its reading: `SNIP` of `SNIP@run`."""
        return self.name.split("@")[0]

    @property
    def reading(self) -> str:
        """`published`, `written` or `run`; of an unpruned network its initialisation, where that is not its own."""
        return self.name.partition("@")[2] or "published"


_TABLE = (
    # name              score             scope     further
    Method("Random",     "random",         "global"),
    Method("GlobalMag",  "magnitude",      "global"),
    Method("LayerMag",   "magnitude",      "layer"),
    Method("GlobalGrad", "gradient",       "global"),
    Method("LayerGrad",  "gradient",       "layer"),
    Method("GlobalAct",  "activation",     "global"),
    Method("LayerAct",   "activation",     "layer"),
    Method("GlobalLAP",  "lap",            "global"),
    Method("LayerLAP",   "lap",            "layer"),
    Method("LAMP",       "lamp",           "global"),
    Method("OBD",        "obd",            "global", mode="calibrated"),
    Method("SNIP",       "snip",           "global", init="variance_scaling"),
    Method("GraSP",      "grasp",          "global"),
    Method("SynFlow",    "synflow",        "global", mode="eval", rounds=100),
    # Where the thesis's text differs.
    Method("SNIP@written",  "snip_written",  "global", init="xavier_normal"),
    Method("GraSP@written", "grasp_written", "global"),
    # As released: density rule and two-sided quantile mask of strategies/utils.py:14-48 and pruning/utils.py:141-164.
    Method("Random@run",     "random",         "global", mode="dropout", selection="bernoulli"),
    Method("GlobalMag@run",  "magnitude",      "global", mode="dropout", selection="quantile"),
    Method("LayerMag@run",   "magnitude",      "layer",  mode="dropout", selection="quantile"),
    Method("GlobalGrad@run", "gradient",       "global", mode="dropout", selection="quantile"),
    Method("LayerGrad@run",  "gradient",       "layer",  mode="dropout", selection="quantile"),
    Method("GlobalAct@run",  "activation_run", "global", mode="dropout", selection="quantile"),
    Method("LayerAct@run",   "activation_run", "layer",  mode="dropout", selection="quantile"),
    Method("GlobalLAP@run",  "lap_run",        "global", mode="dropout", selection="quantile"),
    Method("LayerLAP@run",   "lap_run",        "layer",  mode="dropout", selection="quantile"),
    Method("LAMP@run",       "lamp",           "global", mode="dropout", selection="quantile"),
    Method("OBD@run",        "obd_run",        "global", mode="calibrated", selection="quantile"),
    Method("SNIP@run",       "snip_written",   "global", mode="dropout", selection="quantile", init="xavier_normal"),
    Method("GraSP@run",      "grasp_run",      "global", mode="dropout", selection="quantile", init="xavier_normal"),
    Method("SynFlow@run",    "synflow_run",    "global", mode="eval", selection="quantile"),
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}

# The unpruned networks, one for each initialisation: they serve r = 1 for every method that starts from it.
DENSE: dict[str, Method] = {
    "own": Method("Dense", None),
    "variance_scaling": Method("Dense@variance_scaling", None, init="variance_scaling"),
    "xavier_normal": Method("Dense@xavier_normal", None, init="xavier_normal"),
}

# `@run` as an earlier state of the released code has it (commit f01a221, strategies/snip.py and grasp.py): without new
# initial weights. In no grid and no table but that of `lib.earlier`.
EARLIER: dict[str, Method] = {
    "SNIP@run": Method("SNIP-f01a221@run", "snip_written", mode="dropout", selection="quantile"),
    "GraSP@run": Method("GraSP-f01a221@run", "grasp_run", mode="dropout", selection="quantile"),
}


class UnknownMethod(UserError):
    """A name that is not in the table."""


def get(name: str) -> Method:
    """The method of that name; raises `UnknownMethod`, a `UserError`, for a name that is not in the table."""
    known = METHODS | {method.name: method for method in (*DENSE.values(), *EARLIER.values())}
    found = known.get(name) if isinstance(name, str) else None
    if found is None:
        raise UnknownMethod(f"Unknown method {name!r}: choose one of {', '.join(METHODS)}.")
    return found


def dense(name: str) -> str:
    """The name of the unpruned network that serves r = 1 for the method of that name; raises as `get` does."""
    return DENSE[get(name).init].name
