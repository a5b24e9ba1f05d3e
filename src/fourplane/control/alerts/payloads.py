"""Alerts in the forms others read: Alertmanager's webhook, version 4, and PagerDuty's Events API, version 2.

Alertmanager: one body a group, each alert with labels, annotations, times in RFC 3339 and a fingerprint, so that any receiver
written for Prometheus works as it is. PagerDuty: one event an alert, `trigger` with everything a person on call needs,
`acknowledge`, `resolve`; the `dedup_key` is the alert's fingerprint, so that every repetition and the end are the same incident.
Facts after prometheus.io/docs/alerting/latest/configuration/#webhook_config and PagerDuty's "Send an event" page.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from fourplane.control.alerts.grouping import Notification
from fourplane.control.alerts.model import Alert

NEVER = "0001-01-01T00:00:00Z"
SUMMARY_MAX = 1_024
PAGERDUTY_SEVERITY = {"page": "critical", "ticket": "warning", "info": "info"}


class WebhookAlert(msgspec.Struct, rename="camel"):
    """One alert in a webhook."""

    status: str
    labels: dict[str, str]
    annotations: dict[str, str]
    starts_at: str
    ends_at: str
    generator_url: str = msgspec.field(name="generatorURL")
    fingerprint: str = ""


class Webhook(msgspec.Struct, rename="camel"):
    """The body Alertmanager sends."""

    version: str
    group_key: str
    truncated_alerts: int
    status: str
    receiver: str
    group_labels: dict[str, str]
    common_labels: dict[str, str]
    common_annotations: dict[str, str]
    external_url: str = msgspec.field(name="externalURL")
    alerts: list[WebhookAlert] = []


class PagerPayload(msgspec.Struct, omit_defaults=True):
    """What a person on call reads."""

    summary: str
    source: str
    severity: str
    timestamp: str = ""
    component: str = ""
    group: str = ""
    class_: str = msgspec.field(name="class", default="")
    custom_details: dict[str, str] = {}


class PagerEvent(msgspec.Struct, omit_defaults=True):
    """One event of PagerDuty's Events API v2."""

    routing_key: str
    event_action: str
    dedup_key: str
    payload: PagerPayload | None = None
    client: str = ""
    client_url: str = ""


def webhook(told: Notification, *, receiver: str, external_url: str, now_s: float) -> bytes:
    """The body of one notification for an Alertmanager receiver."""
    alerts = [_alert(one, external_url, now_s) for one in (*told.firing, *told.resolved)]
    body = Webhook(
        "4",
        told.key,
        told.truncated,
        "firing" if told.firing else "resolved",
        receiver,
        told.labels,
        _common([one.labels for one in alerts]),
        _common([one.annotations for one in alerts]),
        external_url,
        alerts,
    )
    return msgspec.json.encode(body)


def pager_events(told: Notification, *, routing_key: str, source: str, external_url: str) -> list[bytes]:
    """The events of one notification for PagerDuty."""
    triggers = [_trigger(one, routing_key, source, external_url) for one in told.firing]
    ends = [PagerEvent(routing_key, "resolve", one.fingerprint) for one in told.resolved]
    return [msgspec.json.encode(one) for one in (*triggers, *ends)]


def pager_acknowledgement(alert: Alert, *, routing_key: str) -> bytes:
    """The event that says that somebody looks after an alert."""
    return msgspec.json.encode(PagerEvent(routing_key, "acknowledge", alert.fingerprint))


def rfc3339(at_s: float) -> str:
    """A moment as both receivers write it."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trigger(alert: Alert, routing_key: str, source: str, external_url: str) -> PagerEvent:
    payload = PagerPayload(
        summary=f"{alert.service}: {alert.summary}"[:SUMMARY_MAX],
        source=source,
        severity=PAGERDUTY_SEVERITY.get(alert.severity, "error"),
        timestamp=rfc3339(alert.started_s),
        component=alert.service,
        group=alert.labels.get("worker", alert.service),
        class_=alert.name,
        custom_details=alert.labels,
    )
    link = f"{external_url}/control/alerts" if external_url else ""
    return PagerEvent(routing_key, "trigger", alert.fingerprint, payload, "Fourplane", link)


def _alert(alert: Alert, external_url: str, now_s: float) -> WebhookAlert:
    ended = alert.state == "resolved"
    return WebhookAlert(
        alert.state,
        alert.matched(),
        {"summary": alert.summary},
        rfc3339(alert.started_s),
        rfc3339(now_s) if ended else NEVER,
        f"{external_url}/control/alerts#{alert.fingerprint}",
        alert.fingerprint,
    )


def _common(all_pairs: list[dict[str, str]]) -> dict[str, str]:
    """The pairs every alert has."""
    if not all_pairs:
        return {}
    first: Mapping[str, str] = all_pairs[0]
    return {key: text for key, text in first.items() if all(pairs.get(key) == text for pairs in all_pairs)}
