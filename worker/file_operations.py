"""The coordinator's operations for files of rows: asked for by data scientists, made by workers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from core.receipts.content import Content
from core.receipts.signing import Signed
from core.wire.messages import JobFailure, LeaseRenewal
from core.wire.synthesis import Claim, FileMade, Part, SynthesisJob
from worker import parsing
from worker.answers import BRIEFLY, JsonObject
from worker.operations import Operations, path_part


class FileOperations(Operations):
    """Those of ``Operations``, and those of synthesis jobs."""

    # --- a data scientist's ---

    def ask_file(self, request: Mapping[str, Any]) -> JsonObject:
        """Have a file of rows made; the job as it is now."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return self._object("POST", "/v1/synthesis-jobs", json=request, headers=headers)

    def file_job(self, job_id: str) -> JsonObject:
        return self._object("GET", f"/v1/synthesis-jobs/{path_part(job_id)}")

    def cancel_file(self, job_id: str) -> None:
        self._send("DELETE", f"/v1/synthesis-jobs/{path_part(job_id)}", retry=BRIEFLY)

    # --- a worker's ---

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
