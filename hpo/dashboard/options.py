"""Options of ``python -m hpo.dashboard``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from ..arguments import ArtifactsOptions, StudyOptions, option
from ..artifacts.location import check_directory
from ..errors import UserError

TOKEN_VARIABLE = "RUNES_DASHBOARD_TOKEN"


@dataclass(frozen=True, kw_only=True)
class DashboardOptions(ArtifactsOptions, StudyOptions):
    """Options: where the dashboard listens, and for whom."""

    host: str = option("listen there", "127.0.0.1")
    port: int = option("0: a free one", 8080, least=0, most=65535)
    open: bool = option("open a browser", False)
    allow_writes: bool = option("let the dashboard change and delete studies", False)
    token_file: Path | None = option(
        f"ask for the token in this file; also the token itself in ${TOKEN_VARIABLE}",
        None,
        metavar="FILE",
    )
    no_token: bool = option("let everyone in who can reach --host", False)
    allowed_host: tuple[str, ...] = option(
        "a name by which browsers reach the server; may be repeated", (), metavar="NAME"
    )
    proxy: str | None = option(
        "believe X-Forwarded-Proto and -For of the proxy at this address (without one: 127.0.0.1)",
        None,
        nargs="?",
        const="127.0.0.1",
        metavar="ADDRESS",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port is {self.port}; write 1 to 65535, or 0 for a free one")
        check_directory(self.artifacts)
        if self.proxy is not None and not is_address(self.proxy):
            raise UserError(f"--proxy is {self.proxy}; write the IP address that it connects from")
        if self.no_token and self.token_file is not None:
            raise UserError("--token-file and --no-token exclude each other; write one of them")


def is_address(text: str) -> bool:
    """Whether this is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
