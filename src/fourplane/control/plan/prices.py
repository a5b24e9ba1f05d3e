"""What things cost a month: assumptions in one table that anybody can edit.

`./fourplane plan SYSTEM --write-prices FILE` writes this table as TOML, `--prices FILE` reads an edited one. The defaults are
rounded list prices of large clouds for a year's commitment; they are meant to be replaced by one's own.
"""

import msgspec

from fourplane.foundation.errors import Misconfigured


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of machine and its price a month."""

    name: str
    cores: int
    memory_gib: float
    network_gbit_s: float
    per_month: float


MACHINES = (
    Machine("small (2 cores, 8 GiB)", 2, 8, 1.0, 45.0),
    Machine("medium (8 cores, 32 GiB)", 8, 32, 5.0, 180.0),
    Machine("large (32 cores, 128 GiB)", 32, 128, 12.5, 720.0),
    Machine("memory (16 cores, 128 GiB)", 16, 128, 10.0, 480.0),
    Machine("delivery (16 cores, 64 GiB, 100 Gbit/s)", 16, 64, 100.0, 900.0),
)


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices a month in one currency."""

    currency: str = "USD"
    machines: tuple[Machine, ...] = MACHINES
    disk_gb: float = 0.08
    object_gb: float = 0.021
    egress_gb: float = 0.03
    between_regions_gb: float = 0.01
    own_delivery_gb: float = 0.004  # from caches that stand at the providers: machines and ports, no transit
    database_surcharge: float = 1.0  # 2.0 for a managed database of twice the machine's price


def read_prices(text: str) -> Prices:
    """An edited table. Raises Misconfigured with the place of a mistake."""
    try:
        prices = msgspec.toml.decode(text, type=Prices)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Misconfigured(f"the price table: {error}", code="bad_prices") from None
    if not prices.machines or any(one.cores < 1 or one.memory_gib <= 0 or one.per_month < 0 for one in prices.machines):
        raise Misconfigured("the price table needs machines with cores, memory and a price", code="bad_prices")
    return prices


def written_prices(prices: Prices) -> str:
    """The table as TOML, to be edited."""
    lines = ["# Prices a month. Edit what differs for you; ./fourplane plan SYSTEM --prices THIS_FILE"]
    for name, value in msgspec.to_builtins(prices).items():
        if name != "machines":
            lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
    for machine in prices.machines:
        lines += ["", "[[machines]]"]
        lines += [
            f"{name} = {msgspec.json.encode(value).decode()}" for name, value in msgspec.to_builtins(machine).items()
        ]
    return "\n".join(lines) + "\n"
