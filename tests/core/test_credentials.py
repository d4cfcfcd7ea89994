"""What may be shown of a source's name: never a credential."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.core.credentials import shown_command, without_credentials


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("nvml,rapl", "nvml,rapl"),
        ("prometheus:http://host:9090", "prometheus:http://host:9090"),
        ("prometheus:http://bob:s3cret@host:9090/a", "prometheus:http://host:9090/a"),
        ("prometheus:http://bob@host", "prometheus:http://host"),
        ("prometheus:https://bob:s3%2Fcret@[::1]:9/a", "prometheus:https://[::1]:9/a"),
        ("prometheus:http://host/a?token=s3cret&user=bob", "prometheus:http://host/a?token=***&user=***"),
        ("prometheus:http://host?s3cret", "prometheus:http://host?***"),
        ("prometheus:http://host/a#s3cret", "prometheus:http://host/a"),
        ("prometheus:http://host/a?user=me@home", "prometheus:http://host/a?user=***"),
        (
            "nvml,redfish:https://a:b@bmc,prometheus:http://c:d@p",
            "nvml,redfish:https://bmc,prometheus:http://p",
        ),
        # No URLs, and written all the same.
        ("prometheus:http://bob:s3/cret@host", "prometheus:http://***@host"),
        ("prometheus:http://bob:s3?cret@host", "prometheus:http://***@host"),
        ("prometheus:http://bob:s3@cret@host", "prometheus:http://host"),
    ],
)
def test_sources(source: str, shown: str) -> None:
    assert ",".join(without_credentials(part) for part in source.split(",")) == shown


@given(st.text(min_size=8, max_size=20), st.sampled_from(["http", "https"]))
def test_no_password_gets_through(password: str, scheme: str) -> None:
    encoded = quote(password, safe="")
    for url in (f"{scheme}://me:{encoded}@host:1/x", f"{scheme}://host/x?key={encoded}&other={encoded}"):
        assert encoded not in without_credentials(f"cannot read {url} (refused)").replace("host", "")


def test_commands() -> None:
    assert (
        shown_command(("ipmitool", "-H", "h", "-P", "pw", "-kpw", "-y", "pw"))
        == "ipmitool -H h -P *** -k*** -y ***"
    )
    assert shown_command(("sudo", "-n", "ipmitool", "-E")) == "sudo -n ipmitool -E"
