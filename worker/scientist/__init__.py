"""For data scientists: rows of a published generator as DataFrames, arrays, tensors.

    from worker.scientist import Coordinator

    with Coordinator("https://coordinator.example", token) as coordinator:
        rows = coordinator.synthesize("wards", 1000, mixture={"hospital-a": 1}, seed=7)
        frame = rows.dataframe()

What goes wrong is an ``ApiProblem`` (the coordinator refuses: ``problem`` is its stable code, with
``detail``, ``field`` and ``mend``), a ``NotNow`` (it is busy, or a quota is used up; the same, and
``retry_after_s``) or another ``ClientError``.
"""

from worker.errors import ApiProblem as ApiProblem
from worker.errors import ClientError as ClientError
from worker.errors import FileNotMade as FileNotMade
from worker.errors import NotNow as NotNow
from worker.errors import Unreachable as Unreachable
from worker.scientist.coordinator import Coordinator as Coordinator
from worker.scientist.coordinator import Model as Model
from worker.scientist.coordinator import Run as Run
from worker.scientist.rows import Rows as Rows
from worker.scientist.stream import Stream as Stream
