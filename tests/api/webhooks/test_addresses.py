"""A webhook cannot be used to ask the coordinator's own network, whatever a name resolves to."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from api.config import Settings
from api.webhooks import addresses, kinds
from api.webhooks.addresses import AddressRefused, judge, parsed
from api.webhooks.delivery import Courier
from tests.api.support import Coordinator, problem
from tests.api.webhooks.receiver import receiving


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """As it is unless somebody asks for more, but for the test that needs a receiver."""
    allowed = "certificate" in request.node.name
    return settings.model_copy(update={"webhooks_allow_private": allowed})


PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.1.2.3", "::1",
    "fd12::1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::", "::10.0.0.1", "fec0::1",
]  # fmt: skip
NEVER = [
    "169.254.169.254", "169.254.170.2", "fe80::1", "fd00:ec2::254", "100.100.100.200", "0.0.0.0",  # noqa: S104
    "::", "224.0.0.1", "ff02::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
]  # fmt: skip


@pytest.mark.parametrize("address", [*PRIVATE, *NEVER])
def test_addresses_of_the_own_network_are_refused(address: str) -> None:
    with pytest.raises(AddressRefused):
        judge(ipaddress.ip_address(address), allow_private=False)
    if address in NEVER:
        with pytest.raises(AddressRefused):
            judge(ipaddress.ip_address(address), allow_private=True)
    else:
        judge(ipaddress.ip_address(address), allow_private=True)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_the_internet_is_not(address: str) -> None:
    judge(ipaddress.ip_address(address), allow_private=False)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://a.example/", "https://"),
        ("https://", "name a host"),
        ("https://user:pw@a.example/", "user name"),
        ("https://a.example/#x", "fragment"),
        ("https://a.example:0/", "port"),
        ("https://a.example:99999/", "ort"),
        ("https://a b.example/", "ASCII"),
        ("https://ä.example/", "ASCII"),
        ("https://a.example/" + "x" * 2000, "2000"),
        ("https://a.example%0d%0a/", "name a host"),
        ("file:///etc/passwd", "https://"),
        ("https://" + "a" * 64 + ".example/", "name a host"),
        ("https://a..example/", "name a host"),
        ("https://[::1", "IPv6"),
    ],
)
async def test_unusable_urls_are_named(coordinator: Coordinator, url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parsed(url)
    body = {"url": url, "events": ["round-stuck"], "label": "x"}
    found = problem(
        await coordinator.call("POST", "/v1/webhooks", json=body), 422, "invalid-request", "url"
    )
    assert words in found["detail"]


@pytest.mark.parametrize(
    "url",
    ["http://hooks.example/", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1:8443/x",
     "https://169.254.169.254/latest/meta-data", "http://localhost:6379/x" ],
)  # fmt: skip
async def test_what_can_be_seen_to_be_refused_is_refused_at_once(
    coordinator: Coordinator, url: str
) -> None:
    if "localhost" in url:  # a name: judged when it is resolved
        body = {"url": url, "events": ["round-stuck"], "label": "x"}
        made = await coordinator.ok("POST", "/v1/webhooks", json=body)
        pong = await coordinator.ok("POST", f"/v1/webhooks/{made['id']}/ping")
        assert (pong["state"], pong["status"]) == ("dead", None)
        assert pong["reason"].startswith("the host has a private address")
        return
    body = {"url": url, "events": ["round-stuck"], "label": "x"}
    answer = await coordinator.call("POST", "/v1/webhooks", json=body)
    assert problem(answer, 422, "invalid-request", "url")["mend"]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("events", {"events": []}),
        ("events.0", {"events": ["round-burnt"]}),
        ("label", {"label": ""}),
        ("secret", {"secret": "mine"}),
    ],
)
async def test_wrong_fields_are_named(
    coordinator: Coordinator, field: str, change: dict[str, Any]
) -> None:
    body = {"url": "https://a.example/", "events": ["round-stuck"], "label": "x", **change}
    problem(
        await coordinator.call("POST", "/v1/webhooks", json=body), 422, "invalid-request", field
    )


async def test_one_private_address_among_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["8.8.8.8", "10.0.0.1"], ["8.8.4.4", "8.8.8.8"]]

    def lookup(host: str, port: int, **_: Any) -> list[Any]:
        found = answers.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in found]

    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: lookup(args[0], args[1]))
    target = parsed("https://hooks.example/x?y=1")
    with pytest.raises(AddressRefused, match="private"):
        await addresses.resolved(target, allow_private=False)
    assert await addresses.resolved(target, allow_private=False) == "8.8.4.4"


def _certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A server's context with a certificate of this name, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "receiver.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


async def test_the_address_is_the_one_judged_the_certificate_that_of_the_name(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The name is looked up once an attempt: a second answer (another address) is never asked for.
    The certificate is checked against the name, not the address.
    """
    tls = _certificate(tmp_path, "hooks.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "receiver.pem"))
    real, asked = socket.getaddrinfo, []

    def lookup(host: Any, *args: Any, **options: Any) -> Any:
        if str(host).endswith(".example"):
            asked.append(host)
            host = "127.0.0.1" if asked.count(host) == 1 else "127.0.0.9"
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    courier = Courier(coordinator.ctx)
    with receiving(tls) as receiver:
        for name in ("hooks.example", "other.example"):
            url = receiver.url.replace("127.0.0.1", name)
            body = {"url": url, "events": ["round-stuck"], "label": name}
            await coordinator.ok("POST", "/v1/webhooks", json=body)
        async with coordinator.ctx.database.write() as session:
            assert await kinds.tell(session, "round-stuck", see="/x")
        assert await courier.deliver() == 2
        assert sorted(asked) == ["hooks.example", "other.example"]
        (got,) = receiver.got
        assert got.headers["host"] == receiver.url.split("/")[2].replace(
            "127.0.0.1", "hooks.example"
        )
    rows = await coordinator.sql(
        "SELECT w.label, d.state, d.reason FROM webhook_deliveries d "
        "JOIN webhooks w ON w.id = d.webhook_id ORDER BY w.label"
    )
    assert [tuple(row) for row in rows] == [
        ("hooks.example", "delivered", ""),
        ("other.example", "pending", "no connection or no answer (ConnectError)"),
    ]
    await courier.close()
