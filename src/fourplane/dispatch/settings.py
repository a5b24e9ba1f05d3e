"""Everything about dispatch that a deployment file may set."""

import msgspec

from fourplane.dispatch.driver_index import IndexSettings
from fourplane.dispatch.location_feed import FeedSettings
from fourplane.dispatch.matching import MatchingSettings
from fourplane.dispatch.pricing import PricingSettings
from fourplane.edge.webhooks import WebhookSettings


class DispatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`map` is a path to an OpenStreetMap extract; empty: the map imported last, or a generated city."""

    map: str = ""
    index: IndexSettings = IndexSettings()
    feed: FeedSettings = FeedSettings()
    matching: MatchingSettings = MatchingSettings()
    pricing: PricingSettings = PricingSettings()
    webhooks: WebhookSettings = WebhookSettings()
    utc_offset_h: float | None = None  # of the city's clock, for the traffic of the hour; unset: by the sun
    live_hz: float = 2.0  # map frames per second and viewer
    live_drivers_max: int = 20_000  # per frame
    viewers_max: int = 2_000
    guests_per_s: float = 50.0  # per address
    ride_calls_per_s: float = 500.0  # estimates and requests per rider or address
