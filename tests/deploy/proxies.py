"""nginx and Caddy with the files of docker/, in front of two real coordinators, over TLS."""

from __future__ import annotations

import datetime
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from api.embedded import free_port
from tests.deploy.tools import DOCKER, ROOT, tool

NAME = "localhost"
HEADER_S = 1  # instead of the files' ten seconds, so that a test need not wait for them


@dataclass(frozen=True)
class Authority:
    """A certificate authority of this test, and a certificate of it for ``localhost``."""

    root: Path
    certificate: Path
    key: Path


def authority(folder: Path) -> Authority:
    now = datetime.datetime.now(datetime.UTC)

    def certificate(
        name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's CA")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("a test's CA", root_key, ca=True).sign(root_key, hashes.SHA256())
    named = x509.SubjectAlternativeName([x509.DNSName(NAME)])
    leaf = certificate(NAME, key, ca=False).add_extension(named, critical=False)
    made = Authority(folder / "root.pem", folder / "cert.pem", folder / "key.pem")
    pem = serialization.Encoding.PEM
    made.root.write_bytes(root.public_bytes(pem))
    made.certificate.write_bytes(leaf.sign(root_key, hashes.SHA256()).public_bytes(pem))
    made.key.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


class Replica:
    """``fedhypevae serve`` on a port, its log in a file."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.port = free_port()
        self.log = folder / f"replica-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "core.cli", "serve", "--port", str(self.port)],
                env=environment,
                cwd=ROOT,
                stderr=log,
            )

    def wait(self) -> None:
        until_ready(f"http://127.0.0.1:{self.port}/readyz", self.process)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def until_ready(
    url: str, process: subprocess.Popen[bytes], verify: ssl.SSLContext | None = None
) -> None:
    end = time.monotonic() + 60
    with httpx.Client(verify=verify or ssl.create_default_context()) as client:
        while True:
            assert process.poll() is None, f"{process.args} ended"
            assert time.monotonic() < end, f"{url} is not ready"
            try:
                if client.get(url).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs; ``https`` and ``http`` are its ports."""

    kind: str
    process: subprocess.Popen[bytes]
    https: int
    http: int

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.https}"


def _replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def _nginx(folder: Path, made: Authority, ports: list[int], https: int, http: int) -> list[str]:
    """The file as an administrator would change it: name, certificate, upstreams."""
    site = _replaced(
        (DOCKER / "nginx/fedhypevae.conf").read_text(),
        ("coordinator.example", NAME),
        ("/etc/fedhypevae/tls/cert.pem", str(made.certificate)),
        ("/etc/fedhypevae/tls/key.pem", str(made.key)),
        ("127.0.0.1:8000", f"127.0.0.1:{ports[0]}"),
        ("127.0.0.1:8001", f"127.0.0.1:{ports[1]}"),
        ("listen 80;", f"listen 127.0.0.1:{http};"),
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{https} ssl http2;"),
        ("/var/log/nginx/fedhypevae.log", str(folder / "access.log")),
        ("client_header_timeout 10s;", f"client_header_timeout {HEADER_S}s;"),
        ("https://$host$request_uri", f"https://$host:{https}$request_uri"),
    )
    (folder / "fedhypevae.conf").write_text(site)
    kept = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    main = (
        f"{user}daemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n"
        f"worker_processes 1;\nevents {{}}\nhttp {{\n{kept}include {folder}/fedhypevae.conf;\n}}\n"
    )
    (folder / "nginx.conf").write_text(main)
    return [tool("nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c",
            str(folder / "nginx.conf")]  # fmt: skip


def _caddy(folder: Path, https: int, http: int) -> list[str]:
    text = _replaced(
        (DOCKER / "caddy/Caddyfile").read_text(),
        ("\tadmin off\n", f"\tadmin off\n\thttps_port {https}\n\thttp_port {http}\n"),
        ("http://127.0.0.1:2020", f"http://127.0.0.1:{free_port()}"),
        ("read_header 10s", f"read_header {HEADER_S}s"),
    )
    (folder / "Caddyfile").write_text(text)
    return [tool("caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@contextmanager
def running(kind: str, folder: Path, made: Authority, replicas: list[Replica]) -> Iterator[Proxy]:
    """The proxy, checked by its own checker first."""
    https, http = free_port(), free_port()
    ports = [replica.port for replica in replicas]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    if kind == "nginx":
        command = _nginx(folder, made, ports, https, http)
        check = [*command, "-t"]
    else:
        command = _caddy(folder, https, http)
        check = [command[0], "validate", *command[2:]]
        environment |= {
            "FHV_SITE": NAME,
            "FHV_TLS": f"{made.certificate} {made.key}",
            "FHV_UPSTREAMS": " ".join(f"127.0.0.1:{port}" for port in ports),
        }
    done = subprocess.run(check, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr, done.stderr
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        yield Proxy(kind, process, https, http)
    finally:
        process.terminate()
        process.wait(30)
