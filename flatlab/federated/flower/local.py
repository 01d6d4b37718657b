"""A federation on this machine: a SuperLink and its nodes as processes of their own, over the loopback with TLS.

In Flower's simulation the SuperNodes are actors of Ray, and the nodes' processes are reached by their number.
"""

import datetime
import ipaddress
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.error import URLError
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

from flatlab.errors import FlatlabError
from flatlab.federated.flower.programs import free_port, program, start, stop
from flatlab.files import atomic_write, write_text
from flatlab.tell import Tell

NAME = "flatlab"
"""Of the SuperLink's connection in Flower's configuration."""

START_SECONDS = 60.0
"""How long the SuperLink may take to answer."""

DAYS = 3650
"""How long a certificate of the loopback is good."""


class LocalFederation:
    """One node for each file of `shares`, whose clients' vectors and logs lie in `folder`; use as a context manager.

    `own` are options of flatlab node that let code of the user's run there: `--model` and its name, ...
    """

    def __init__(
        self, shares: Sequence[Path], folder: Path, own: Sequence[str] = (), *, simulated: bool = False
    ) -> None:
        self.shares, self.folder, self.own, self.simulated = shares, folder, own, simulated
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.stack = ExitStack()

    def __enter__(self) -> "LocalFederation":
        try:
            self.home = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="flatlab-flower-")))
            self.certificates = write_certificates(self.home / "tls")
            self.address = f"127.0.0.1:{free_port()}"
            log, options = self.folder / "superlink.log", ("--simulation",) if self.simulated else ()
            self.superlink = start_superlink(self.address, self.certificates, log, self.home, options)
            self.stack.callback(stop, self.superlink)
            configuration = f'[superlink.{NAME}]\naddress = "{self.address}"\nroot-certificates = "{self.authority}"\n'
            write_text(self.home / "config.toml", configuration)
            self.stack.callback(self._stop_nodes)
            for share in self.shares:
                self._start_node(share)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    @property
    def authority(self) -> Path:
        """The certificate with which the nodes check the SuperLink's."""
        return self.certificates / "ca.crt"

    def look_after(self, tell: Tell) -> None:
        """Start nodes that died again; raises `FlatlabError` where the SuperLink did."""
        if self.superlink.poll() is not None:
            raise FlatlabError(
                f"Flower's SuperLink ended (code {self.superlink.returncode}; {self.folder / 'superlink.log'}); what "
                "was saved is safe: go on with --resume."
            )
        for share in self.shares:
            ended = self.nodes[share.stem].poll()
            if ended is not None:
                tell(f"{share.stem} died (code {ended}; {self.folder / share.stem / 'node.log'}): starting it again.")
                self._start_node(share)

    def _start_node(self, share: Path) -> None:
        folder = self.folder / share.stem
        words = [sys.executable, "-m", "flatlab", "node", str(share), "--out", str(folder)]
        if self.simulated:
            words += ["--socket", str(self.home / share.stem)]
        else:
            words += ["--superlink", self.address, "--root-certificates", str(self.authority)]
        words += self.own
        self.nodes[share.stem] = start(words, folder / "node.log", self.home)

    def _stop_nodes(self) -> None:
        for node in self.nodes.values():
            node.terminate()
        for node in self.nodes.values():
            stop(node)


def start_superlink(
    address: str, certificates: Path, log: Path, home: Path | None = None, options: Sequence[str] = ()
) -> "subprocess.Popen[bytes]":
    """Start a SuperLink at `address` (host:port) with what `write_certificates` wrote, and wait until it answers."""
    host, port = address.rsplit(":", 1)
    words = [program("flower-superlink"), "--host", host, "--port", port, "--disable-runtime-dependency-installation"]
    words += options
    for option, name in {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}.items():
        words += [f"--ssl-{option}", str(certificates / name)]
    process = start(words, log, home)
    trusted = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=trusted))  # whatever proxy there is for other machines
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with opener.open(f"https://{address}/health", timeout=2):
                return process
        except OSError as error:
            refused = error.reason if isinstance(error, URLError) else None
            if isinstance(refused, ssl.SSLCertVerificationError):
                stop(process)
                raise FlatlabError(f"The certificate of Flower's SuperLink does not do: {refused}.") from error
        time.sleep(0.1)
    stop(process)
    raise FlatlabError(f"Flower's SuperLink did not start at {address}; {log} says why.")


def write_certificates(folder: Path) -> Path:
    """Write a certificate authority and a key and certificate of 127.0.0.1 that it signed; returns `folder`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey, names: x509.GeneralNames | None) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(subject))
            .issuer_name(_named("flatlab loopback authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=DAYS))
            .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        )
        issuer, own = authority.public_key(), key.public_key()  # Python's ssl asks for both from 3.13 on
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False)
        if names is None:
            builder = builder.add_extension(_signing(), critical=True)
        else:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(authority, hashes.SHA256())

    def _signing() -> x509.KeyUsage:
        no = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        never = dict.fromkeys((*no, "encipher_only", "decipher_only"), False)
        return x509.KeyUsage(key_cert_sign=True, crl_sign=True, **never)

    def _named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    loopback = x509.GeneralNames([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    files = {
        "ca.crt": certificate("flatlab loopback authority", authority, None).public_bytes(serialization.Encoding.PEM),
        "server.crt": certificate("127.0.0.1", server, loopback).public_bytes(serialization.Encoding.PEM),
        "server.key": server.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            os.fchmod(file.fileno(), 0o600)  # before there is anything in it: one of them is a key
            file.write(content)
    return folder
