"""A secure round's job as the job of one update: that of all sites together."""

from __future__ import annotations

from collections.abc import Callable

from core.federation.secure_sum import ALL_SITES, noise_gain, summed
from core.secagg.messages import Transcript
from core.storage import sha256_of
from core.wire.messages import AggregateInput, AggregateJob

Read = Callable[[str], bytes]


def opened(job: AggregateJob, read: Read) -> tuple[AggregateJob, Read, float]:
    """The same round as one update, the unmasked sum; and how much noise is in it, in terms of
    what the event promises (``noise_gain``).

    Raises ``ValueError`` for a transcript of another round, and what ``summed`` raises.
    """
    if job.transcript is None:
        raise ValueError("the round's sum is not a secure one")
    transcript = Transcript.model_validate_json(read(job.transcript))
    session = transcript.session
    if (session.run_id, session.round_number) != (job.run_id, job.round_number):
        raise ValueError("the transcript is of another round")
    masked = {update.client: read(update.digest) for update in job.updates}
    total = summed(transcript, masked, job.spec)
    digest = sha256_of(total)
    one = AggregateInput(client_id=ALL_SITES, client=ALL_SITES, digest=digest)

    def read_total(wanted: str) -> bytes:
        return total if wanted == digest else read(wanted)

    gain = noise_gain(job.spec, job.round_number, len(session.sites), len(masked))
    return job.model_copy(update={"updates": (one,), "transcript": None}), read_total, gain
