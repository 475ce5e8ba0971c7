"""Scores: (model, inputs, targets) -> parameter name -> tensor of the weight's shape; HIGHER = KEEP.

One module per method notebook. `SCORERS` names them all; those that end in `_written` or `_run` are the readings in
which the thesis's text or its released code differs from the method's source.
"""

from lib.scorers import baselines, lap_lamp, obd, snip_grasp, synflow

SCORERS = {
    "random": baselines.random,
    "magnitude": baselines.magnitude,
    "gradient": baselines.gradient,
    "activation": baselines.activation,
    "activation_run": baselines.activation_run,
    "obd": obd.obd,
    "obd_run": obd.obd_run,
    "lap": lap_lamp.lap,
    "lap_run": lap_lamp.lap_run,
    "lamp": lap_lamp.lamp,
    "snip": snip_grasp.snip,
    "snip_written": snip_grasp.snip_written,
    "grasp": snip_grasp.grasp,
    "grasp_written": snip_grasp.grasp_written,
    "grasp_run": snip_grasp.grasp_run,
    "synflow": synflow.synflow,
    "synflow_run": synflow.synflow_run,
}


def needs_data(name: str) -> bool:
    """Whether the score of that name looks at the scoring batch: what does not say that it does not, does."""
    return getattr(SCORERS[name], "data", True)
