"""Executors: where candidates are merged and scored.

* :mod:`~evomerge.executors.base`: jobs in, finished trials out.
* :mod:`~evomerge.executors.worker`: one live model, one job at a time; never raises.
* :mod:`~evomerge.executors.local`: one worker in this process.
* :mod:`~evomerge.executors.ray`: one worker actor per GPU or share of the CPU cores.
* :mod:`~evomerge.executors.division`: how many of them, and what each gets.
* :mod:`~evomerge.executors.notes`: what workers did and warned of, on its way to the driver.
"""
