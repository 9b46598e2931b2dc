"""Operations of the coordinator's own workers: aggregation jobs and files of rows."""

from __future__ import annotations

from core.receipts.content import Content
from core.receipts.signing import Signed
from core.wire.messages import AggregateJob, AggregateResult, JobFailure, LeaseRenewal
from core.wire.synthesis import Claim, FileMade, Part, SynthesisJob
from worker import parsing
from worker.answers import BRIEFLY, ONCE
from worker.operations.base import Operations, path_part


class Jobs(Operations):
    """Claimed by lease; each lease's token comes with every later request."""

    # --- aggregation ---

    def claim_job(self, job_id: str) -> AggregateJob:
        path = f"/v1/jobs/{path_part(job_id)}/claim"
        return parsing.message(AggregateJob, self._send("POST", path, retry=BRIEFLY))

    def renew_job(self, job_id: str, lease_token: str) -> LeaseRenewal:
        path = f"/v1/jobs/{path_part(job_id)}/renew"
        return parsing.message(
            LeaseRenewal, self._send("POST", path, lease=lease_token, retry=ONCE)
        )

    def complete_job(self, job_id: str, lease_token: str, result: AggregateResult) -> None:
        self._send("POST", f"/v1/jobs/{path_part(job_id)}/complete", lease=lease_token, json=result)

    def fail_job(self, job_id: str, lease_token: str, failure: JobFailure) -> None:
        self._send("POST", f"/v1/jobs/{path_part(job_id)}/fail", lease=lease_token, json=failure)

    # --- files of rows ---

    def claim_file(self, job_id: str, claim: Claim) -> SynthesisJob:
        path = _path(job_id, "claim")
        return parsing.message(SynthesisJob, self._send("POST", path, json=claim, retry=BRIEFLY))

    def report_part(self, job_id: str, lease_token: str, part: Part) -> LeaseRenewal:
        answer = self._send("POST", _path(job_id, "parts"), lease=lease_token, json=part)
        return parsing.message(LeaseRenewal, answer)

    def close_file(self, job_id: str, lease_token: str, content: Content) -> Signed:
        answer = self._send("POST", _path(job_id, "close"), lease=lease_token, json=content)
        return parsing.message(Signed, answer)

    def complete_file(self, job_id: str, lease_token: str, made: FileMade) -> None:
        self._send("POST", _path(job_id, "complete"), lease=lease_token, json=made)

    def fail_file(self, job_id: str, lease_token: str, failure: JobFailure) -> None:
        self._send("POST", _path(job_id, "fail"), lease=lease_token, json=failure)


def _path(job_id: str, what: str) -> str:
    return f"/v1/synthesis-jobs/{path_part(job_id)}/{what}"
