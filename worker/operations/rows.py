"""Operations of data scientists: the published model, its report, rows, files and receipts."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from worker.answers import BRIEFLY, JsonObject, SynthesisedTable
from worker.errors import UnexpectedAnswer
from worker.operations.base import Operations, json_body, path_part

PARQUET = "application/vnd.apache.parquet"


class Rows(Operations):
    """What a published round is worth and gives."""

    # --- the model ---

    def model(self, run_id: str, round_number: int | Literal["latest"] = "latest") -> JsonObject:
        return self._object(
            "GET", f"/v1/runs/{path_part(run_id)}/model", params={"round": round_number}
        )

    def report(self, run_id: str, round_number: int | Literal["latest"] = "latest") -> JsonObject:
        """What the published model is, has cost and is worth: ``core.report.report.Report``."""
        path = f"/v1/runs/{path_part(run_id)}/report"
        asked = {"round": round_number, "format": "json"}
        return self._object("GET", path, params=asked, read_s=self._timeouts.slow)

    def report_page(self, run_id: str, round_number: int | Literal["latest"] = "latest") -> str:
        """The same as one HTML file."""
        path = f"/v1/runs/{path_part(run_id)}/report"
        asked = {"round": round_number, "format": "html"}
        headers = {"Accept": "text/html, application/problem+json"}
        answer = self._send("GET", path, params=asked, headers=headers, read_s=self._timeouts.slow)
        return answer.content.decode()

    # --- rows ---

    def synthesize(self, request: BaseModel | Mapping[str, Any]) -> JsonObject:
        return self._object(
            "POST",
            "/v1/synthesize",
            json={**json_body(request), "format": "json"},
            read_s=self._timeouts.slow,
        )

    def synthesize_table(self, request: BaseModel | Mapping[str, Any]) -> SynthesisedTable:
        answer = self._send(
            "POST",
            "/v1/synthesize",
            json={**json_body(request), "format": "parquet"},
            headers={"Accept": f"{PARQUET}, application/problem+json"},
            read_s=self._timeouts.slow,
        )
        try:
            seed, model = int(answer.headers["x-fhv-seed"]), answer.headers["x-fhv-model"]
        except (KeyError, ValueError) as error:
            raise UnexpectedAnswer("the table came without X-FHV-Seed and X-FHV-Model") from error
        return SynthesisedTable(body=answer.content, seed=seed, model=model)

    def receipt(self, receipt_id: str) -> JsonObject:
        """The signed receipt of rows; with their content once all were made."""
        return self._object("GET", f"/v1/receipts/{path_part(receipt_id)}")

    def receipt_keys(self) -> JsonObject:
        return self._object("GET", "/v1/receipt-keys")

    # --- files of rows ---

    def ask_file(self, request: Mapping[str, Any]) -> JsonObject:
        """Have a file of rows made; the job as it is now."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return self._object("POST", "/v1/synthesis-jobs", json=request, headers=headers)

    def file_job(self, job_id: str) -> JsonObject:
        return self._object("GET", f"/v1/synthesis-jobs/{path_part(job_id)}")

    def cancel_file(self, job_id: str) -> None:
        self._send("DELETE", f"/v1/synthesis-jobs/{path_part(job_id)}", retry=BRIEFLY)
