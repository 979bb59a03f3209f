"""Search drivers: one algorithm, one file, each a fold over told trials.

=====================  ===========================================================================
``base``               the :class:`~evomerge.optimizers.base.Optimizer` protocol, ``Problem`` and
                       ``Yardstick`` (scores and constraints as every driver reads them)
``design``             Sobol points
``random_search``      :class:`~evomerge.optimizers.random_search.Random`: uniform, the yardstick
``cma_es``             :class:`~evomerge.optimizers.cma_es.CmaEs`: one scalarised score, on pycma
``cma_run``            one run of it between two restarts, fed with points that come late
``de``                 :class:`~evomerge.optimizers.de.De`: differential evolution, a yardstick
``sobol``              :class:`~evomerge.optimizers.sobol.Sobol`: an even cover of the space
``grid``               :class:`~evomerge.optimizers.grid.Grid`: at most three dimensions
``genetic``            what the NSGAs share: design, children, constrained domination
``niches``             M2N2's archive: competition, attraction, split-point crossover
``documents``          per-document scores as what models compete for
``m2n2``               :class:`~evomerge.optimizers.m2n2.M2n2`: natural niches
``surrogate``          quadratic forms and Gaussian processes, chosen by leave-one-out error
``predicted_front``    the front that surrogates predict, and what measuring a point is worth
``nested``             Nested MAP's pairs of experts
``map_quadratic``      :class:`~evomerge.optimizers.map_quadratic.MapQuadratic`: MAP
``bayesian``           :class:`~evomerge.optimizers.bayesian.Bayesian`: Gaussian processes
``nsga2``              :class:`~evomerge.optimizers.nsga2.Nsga2`: a Pareto front, on pymoo
``nsga3``              :class:`~evomerge.optimizers.nsga3.Nsga3`: the same by reference directions
=====================  ===========================================================================

A file is found by its ``conf/optimizer/*.yaml``; nothing is imported here, since pycma alone takes
seconds. To add one: the file, the configuration, and a test with a known optimum; the contract
suite in ``tests/optimizers/test_optimizer_contract.py`` finds it by itself.
"""
