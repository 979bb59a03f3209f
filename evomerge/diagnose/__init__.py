"""``evomerge doctor``: can these be merged, what will it be like, and where to start.

* :mod:`~evomerge.diagnose.compatibility`: opens, compares and audits; every reason, per model.
* :mod:`~evomerge.diagnose.vectors`: sizes, angles and signs of the task vectors.
* :mod:`~evomerge.diagnose.gauge`: weights rewritten without changing what they compute.
* :mod:`~evomerge.diagnose.casting`: what rounding makes of a coefficient.
* :mod:`~evomerge.diagnose.verdicts`: thresholds, and the findings in words.
* :mod:`~evomerge.diagnose.advice`: which method and search space to start from.
* :mod:`~evomerge.diagnose.diagnosis`: all of it together, and as JSON.

:mod:`evomerge.report.doctor` and :mod:`evomerge.report.doctor_picture` show it.
"""

from __future__ import annotations

from evomerge.diagnose.diagnosis import Diagnosis, diagnose
from evomerge.diagnose.finding import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
