"""A broker that is away when a message is acknowledged must not leave the worker idle for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection, Queue
from kombu.transport import redis

from tests.faults.services import Valkey, valkey
from worker import broker


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with valkey(tmp_path / "valkey") as made:
        yield made


@pytest.mark.parametrize("kind", ["ack", "reject"])
def test_after_an_acknowledgement_that_failed_there_is_room_for_the_next_message(
    server: Valkey, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(redis.Channel, "QoS", redis.Channel.QoS)  # put back afterwards
    broker.install()
    with Connection(server.url) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)
        queue = Queue("q", channel=channel)
        queue.declare()
        producer = connection.Producer()
        producer.publish({"n": 1}, routing_key="q")
        message = queue.get()
        assert message is not None
        assert not channel.qos.can_consume()  # one in hand: no other one
        server.crash()
        with pytest.raises(connection.connection_errors):
            getattr(message, kind)()
        assert channel.qos.can_consume()
        server.start()
        queue.declare()
        connection.Producer().publish({"n": 2}, routing_key="q")
        again = queue.get()
        assert again is not None
        assert again.payload == {"n": 2}
        again.ack()
        assert channel.qos.can_consume()
