"""Redfish: the power of the whole machine over HTTP from its BMC (DMTF DSP0268: Power, EnvironmentMetrics)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.adapters._http import checked_url, get_json, trusted
from pytest_tokenpower.meters.adapters.ipmi import BMC_RESOLUTION_MS
from pytest_tokenpower.meters.adapters.no_reading import is_watts
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import Device, PowerSamples, Reading

if TYPE_CHECKING:
    import ssl

    import httpx

OPEN_S = 15.0
"""A rack's BMC may list dozens of chassis, each a request of up to a second."""

_PARTS = frozenset({"Component", "Module", "Card", "Cartridge", "Expansion", "Zone", "IPBasedDrive"})
"""Values of ChassisType that are parts of a machine: a GPU's power there is not the node's."""

_Json = Mapping[str, Any]


class _NotFound(MeterError):
    pass


@dataclass(frozen=True)
class _Source:
    """Where the node's watts are read: ``path`` of the resource and which of the two schemas it has."""

    path: str
    schema: str
    chassis: _Json


class RedfishMeter:
    """``PowerWatts`` of a chassis' EnvironmentMetrics, else ``PowerConsumedWatts`` of its Power, once a second.

    The chassis is the one that is contained in no other, is no part (a GPU, a riser), and has a reading above
    zero; where several are left, ``chassis`` must name one. What is not given comes from the environment:
    TOKENPOWER_REDFISH_URL, _USER, _PASSWORD, _CHASSIS and _CA (a file of certificates to trust, for a BMC that
    signed its own). ``verify=False`` leaves the certificate unchecked and is recorded.
    No request takes longer than ``timeout_s`` (at most 5 s).
    """

    name = "redfish"
    poll_interval_s = 1.0

    def __init__(
        self,
        url: str | None = None,
        user: str | None = None,
        password: str | None = None,
        *,
        chassis: str | None = None,
        ca: str | None = None,
        verify: bool = True,
        timeout_s: float = 4.0,
    ) -> None:
        env = os.environ
        named = env.get("TOKENPOWER_REDFISH_URL", "") if url is None else url
        self._url = checked_url(named, "Redfish", "https://bmc.example.org")
        self._user = env.get("TOKENPOWER_REDFISH_USER") if user is None else user
        self._password = env.get("TOKENPOWER_REDFISH_PASSWORD") if password is None else password
        self._chassis = env.get("TOKENPOWER_REDFISH_CHASSIS") if chassis is None else chassis
        self._ca = env.get("TOKENPOWER_REDFISH_CA") if ca is None else ca
        self._verify = verify
        self._timeout_s = min(timeout_s, 5.0)
        self._client: httpx.Client | None = None
        self._source: _Source | None = None
        if self._url != without_credentials(self._url):
            raise UsageError(
                "Redfish: leave user and password out of the URL, which is shown in messages;"
                " set TOKENPOWER_REDFISH_USER and TOKENPOWER_REDFISH_PASSWORD"
            )

    def open(self, clock: Clock) -> Sequence[Device]:
        """Find the node's chassis and take a first reading; raises MeterUnavailable with what to do."""
        if not self._url:
            raise MeterUnavailable(
                "Redfish: no BMC is named; set TOKENPOWER_REDFISH_URL, TOKENPOWER_REDFISH_USER and"
                " TOKENPOWER_REDFISH_PASSWORD"
            )
        import httpx

        auth = (self._user, self._password or "") if self._user else None
        self._client = httpx.Client(
            base_url=self._url,
            auth=auth,
            verify=self._trust(),
            headers={"Accept": "application/json"},
            # A BMC is reached directly: a proxy for the internet does not know it.
            trust_env=False,
        )
        try:
            self._source = self._find()
        except MeterError as error:
            self.close()
            raise MeterUnavailable(str(error)) from error
        chassis = self._source.chassis
        key_facts: dict[str, Fact] = {"interface": "redfish", "schema": self._source.schema}
        facts: dict[str, Fact] = {
            "resolution_ms": BMC_RESOLUTION_MS,
            "refresh_ms": self.poll_interval_s * 1e3,
            "resource": self._source.path,
            "tls_verified": self._verify and self._url.startswith("https"),
        }
        model = " ".join(
            str(chassis[part]).strip() for part in ("Manufacturer", "Model") if chassis.get(part)
        )
        if model:
            key_facts["model"] = model
        return [
            Device(
                id=f"redfish:{_name(chassis)}",
                scope="node",
                name=f"{model or 'BMC'} (Redfish)",
                meter=self.name,
                provenance="measured",
                key_facts=key_facts,
                facts=facts,
                latency_s=self._timeout_s,
            )
        ]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """One point; raises MeterError."""
        if self._source is None:
            raise MeterError("Redfish: poll before open")
        t0_ns = clock.monotonic_ns()
        resource = self._get(self._source.path)
        t1_ns = clock.monotonic_ns()
        watts = _watts(resource, self._source.schema)
        if watts is None or not is_watts(watts):
            raise MeterError(
                f"Redfish: {self._url}{self._source.path} reads"
                f" {'nothing' if watts is None else f'{watts:g} W'} as {self._source.schema}"
            )
        return [
            Reading(
                f"redfish:{_name(self._source.chassis)}", power=PowerSamples.point(t0_ns, t1_ns, watts * 1000)
            )
        ]

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._source = None

    def _trust(self) -> bool | ssl.SSLContext:
        if not self._verify:
            return False
        if not self._ca:
            return trusted(self._url)
        import ssl

        try:
            return ssl.create_default_context(cafile=self._ca)
        except (OSError, ssl.SSLError) as error:
            raise MeterUnavailable(
                f"Redfish: no certificates can be read from {self._ca}: {error}"
            ) from error

    def _find(self) -> _Source:
        end = time.monotonic() + OPEN_S
        links = [_object(member).get("@odata.id") for member in self._members()]
        members = [link for link in links if isinstance(link, str)]
        if self._chassis is not None:
            named = [path for path in members if path.rstrip("/").rpartition("/")[2] == self._chassis]
            if not named:
                raise MeterError(f"Redfish: {self._url} has no chassis {self._chassis!r}; {_choice(members)}")
            members = named
        sources: list[_Source] = []
        seen: list[str] = []
        for path in members:
            if time.monotonic() > end:
                raise MeterError(
                    f"Redfish: {self._url} took over {OPEN_S:.0f} s to describe its chassis;"
                    f" name the node's one in TOKENPOWER_REDFISH_CHASSIS; {_choice(members)}"
                )
            try:
                chassis = self._get(path)
            except _NotFound:
                # Some BMCs list what was unplugged.
                continue
            contained = _object(chassis.get("Links")).get("ContainedBy")
            if self._chassis is None and (contained or str(chassis.get("ChassisType")) in _PARTS):
                continue
            for schema, link in (("PowerWatts", "EnvironmentMetrics"), ("PowerConsumedWatts", "Power")):
                target = _object(chassis.get(link)).get("@odata.id")
                if not isinstance(target, str):
                    continue
                try:
                    watts = _watts(self._get(target), schema)
                except _NotFound:
                    watts = None
                seen.append(f"{target}: {'none' if watts is None else f'{watts:g} W'}")
                if watts is not None and is_watts(watts):
                    sources.append(_Source(target, schema, chassis))
                    break
        if not sources:
            raise MeterError(
                f"Redfish: no meter, {self._url} has no chassis with a power reading above zero"
                f" ({'; '.join(seen) or f'{len(members)} chassis without Power or EnvironmentMetrics'})"
            )
        if len(sources) > 1:
            raise MeterError(
                f"Redfish: {self._url} has power readings of several machines; name this one's chassis in"
                f" TOKENPOWER_REDFISH_CHASSIS; {_choice([source.path for source in sources])}"
            )
        return sources[0]

    def _members(self) -> Sequence[object]:
        members = self._get("/redfish/v1/Chassis").get("Members")
        if not isinstance(members, list):
            raise MeterError(f"Redfish: {self._url}/redfish/v1/Chassis lists no chassis (no Members)")
        return members

    def _get(self, path: str) -> _Json:
        if self._client is None:
            raise MeterError("Redfish: the connection is closed")
        where = f"Redfish: GET {self._url}{path}"
        try:
            answer = get_json(self._client, path, timeout_s=self._timeout_s, where=where)
        except MeterError as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise
            raise MeterError(
                f"{error}, and TOKENPOWER_REDFISH_CA one for the BMC alone, which may have signed its own"
            ) from error
        if answer.status in (401, 403):
            raise MeterError(
                f"{where}: {answer.status}, user {self._user!r} may not read this; set"
                " TOKENPOWER_REDFISH_USER and TOKENPOWER_REDFISH_PASSWORD to an account that may log in and read"
            )
        if answer.status == 404:
            raise _NotFound(f"{where}: status 404, there is no such resource")
        if answer.status != 200:
            raise MeterError(f"{where}: status {answer.status} {answer.reason}")
        if not isinstance(answer.document, dict):
            raise MeterError(f"{where}: the answer is not a Redfish resource (a JSON object)")
        return answer.document


def _watts(resource: _Json, schema: str) -> float | None:
    """Return the watts that the machine draws; None where the resource has none."""
    if schema == "PowerWatts":
        sensor = _object(resource.get("PowerWatts"))
        # Watts, whatever the excerpt leaves out; a sensor in another unit is none that is known here.
        value = sensor.get("Reading") if sensor.get("ReadingUnits", "W") in ("W", "Watts") else None
    else:
        # The first member stands for the chassis; further ones are its domains (CPU, memory), parts of the first.
        listed = resource.get("PowerControl")
        controls = [_object(each) for each in listed] if isinstance(listed, list) else []
        value = next((each["PowerConsumedWatts"] for each in controls if "PowerConsumedWatts" in each), None)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return None
    return float(value)


def _object(value: object) -> _Json:
    """Return a JSON object as it is; what is none has no members."""
    return value if isinstance(value, dict) else {}


def _name(chassis: _Json) -> str:
    return str(chassis.get("Id") or chassis.get("@odata.id"))


def _choice(paths: Sequence[str]) -> str:
    return f"there are: {', '.join(path.rstrip('/').removeprefix('/redfish/v1/Chassis/') for path in paths)}"
