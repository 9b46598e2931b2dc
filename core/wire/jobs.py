"""Names of Celery tasks and queues. Messages carry one id each; the truth is the row it names."""

from __future__ import annotations

QUEUE_TRAIN = "train"
QUEUE_COORDINATOR = "coordinator"
QUEUE_SYNTHESIS = "synthesis"  # of its own: rounds must not wait for somebody's file

TASK_TRAIN = "fhv.train"  # argument: work_id
TASK_CONSENT = "fhv.consent"  # argument: plan_id; to the queue train
TASK_STEP = "fhv.sum-step"  # argument: step_id; to the queue train
TASK_AGGREGATE = "fhv.aggregate"  # argument: job_id
TASK_REPLAY = "fhv.replay"  # argument: job_id
TASK_SYNTHESISE = "fhv.synthesise"  # argument: the synthesis job's id; to the queue synthesis
