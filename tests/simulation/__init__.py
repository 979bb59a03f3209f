"""A cluster on a virtual clock, a disk that kills its driver, and what must hold after both.

Real: :class:`~evomerge.study.Study`, :class:`~evomerge.store.TrialStore` with its journal, its
locks and its files, and every search driver. Simulated: time, workers, evaluations (a function of
the recipe, per-document scores included), and the end of a driver, which is an exception that
nothing catches; what it leaves on the disk is what a kill or a power cut could leave.
"""
