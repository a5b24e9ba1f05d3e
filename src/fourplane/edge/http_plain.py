"""Plain requests, which need no second thought: turned away, answered or begun without the parser.

A request whose bytes lie here whole and whose head is of the strict form of `http_request` is turned away by its first line,
before anything of it becomes an object, while the server sheds; a hot route answers it inside `data_received`, without a
task; else the application gets it with its fields still unsplit. Whatever is not plain is left to the parser, untouched.

Several in one buffer are taken one after the other: those that are turned away share one write, and the first that begins an
exchange ends the run, because answers leave in order. Of what came while the connection rested only the last has a chance
(`FRESH_BYTES`), but for the highest class: the rest is as old as the rest was long. A run is bounded (`burst_max`; a refusal
counts a sixteenth), so that no connection keeps the loop for itself.
"""

import re
from typing import TYPE_CHECKING, Final

from fourplane.edge.http_request import (
    FIRST_OF_GET,
    GET,
    MAY_BE_PLAIN,
    PLAIN_GET,
    PLAIN_HEAD,
    made_request,
)

if TYPE_CHECKING:
    from fourplane.edge.http_protocol import HttpProtocol

HEAD_END: Final = b"\r\n\r\n"
SEEN_MAX: Final = 2_048  # plain GETs a server remembers
SEEN_BYTES_MAX: Final = 1_024  # each
FRESH_BYTES: Final = 2_048
FOR_OTHERS: Final = re.compile(rb"\r\n(?:via|(?:x-)?forwarded[-a-z]*):", re.IGNORECASE)


def plain_target(connection: "HttpProtocol", data: bytes) -> bytes | None:
    """The target of a plain GET. Clients say the same bytes again and again, so what was seen lately is remembered."""
    found = PLAIN_GET.fullmatch(data)
    if found is None:
        return None
    target = found[1]
    if len(data) <= SEEN_BYTES_MAX:
        seen = connection.seen
        if len(seen) >= SEEN_MAX:
            seen.clear()
        seen[data] = target
    return target


def take_plain(connection: "HttpProtocol", data: bytes, method: bytes, target: bytes, body: bytes) -> bool:
    """Turn away, answer or begin the plain request that `data` is; False when the parser has to see it."""
    server, admission = connection.server, connection.admission
    if server.draining or (len(data) > connection.plain_max and not _fits(connection, data, target, body)):
        return False
    if admission.in_flight >= admission.shed_at and admission.turns_away(method, target):
        told = server.turned_away(data, target) if method is GET else server.refusal()
        connection.transport.write(told)
        connection.deadline_tick = server.deadlines.now + server.idle_ticks
        if admission.waiting and told is admission.rejection:
            server.resting.told += 1
            _come_again(connection, data, 1)
        return True
    _serve(connection, data, method, target, body)
    return True


def take_run(connection: "HttpProtocol", data: bytes, position: int) -> tuple[int, int]:
    """Take the plain requests from `position` on, until one begins an exchange; where the next begins, and what they cost."""
    server, admission = connection.server, connection.admission
    size, most, cost = len(data), server.settings.burst_max, 0
    told: list[bytes] = []
    refused = 0
    fresh_from = size - FRESH_BYTES if connection.early else 0
    while position < size and cost + (len(told) >> 4) < most and not server.draining:
        found = _plain_at(connection, data, position)
        if found is None:
            break
        method, target, head_end, end = found
        if (admission.in_flight >= admission.shed_at and admission.turns_away(method, target)) or (
            position < fresh_from and admission.turns_away_late(method, target)
        ):
            answer = server.turned_away(data[position:end], target) if method is GET else server.refusal()
            refused += answer is admission.rejection
            told.append(answer)
            position = end
            continue
        if told:
            connection.transport.write(b"".join(told))
            cost += len(told) >> 4
            told.clear()
        cost += 1
        _serve(connection, data[position:end], method, target, data[head_end:end])
        position = end
        if connection.exchange is not None or connection.write_paused:
            break
    if told:
        server.resting.told += refused
        connection.transport.write(b"".join(told))
        connection.deadline_tick = server.deadlines.now + server.idle_ticks
        if position == size and refused and admission.waiting:
            _come_again(connection, data, refused)
    return position, cost + (len(told) >> 4)


def _plain_at(connection: "HttpProtocol", data: bytes, position: int) -> tuple[bytes, bytes, int, int] | None:
    """Method, target, end of the head and end of the plain request at `position`, if all of it lies here."""
    first = data[position]
    if first == FIRST_OF_GET:
        head_end = end = data.find(HEAD_END, position) + 4
        if end < 4:
            return None
        head = data[position:end]
        method, target = GET, connection.seen.get(head)
        if target is None:
            target = plain_target(connection, head)
            if target is None:
                return None
    elif first in MAY_BE_PLAIN:
        found = PLAIN_HEAD.match(data, position)
        if found is None:
            return None
        head_end = found.end()
        end = head_end + int(found[4] or found[5] or 0)
        if end > len(data):
            return None
        method, target = found[1], found[2]
    else:
        return None
    if end - position > connection.plain_max and not _fits(connection, data[position:end], target, data[head_end:end]):
        return None
    return method, target, head_end, end


def _serve(connection: "HttpProtocol", data: bytes, method: bytes, target: bytes, body: bytes) -> None:
    """Answer an admitted request by its hot route, or give it to the application."""
    server = connection.server
    request = made_request(data, method, target, body, connection.peer)
    connection.deadline_tick = server.deadlines.now + server.idle_ticks
    hot = server.hot_handler(method, request.path)
    if hot is not None:
        answered = hot(request)
        if answered is not None:
            server.hot_total.value += 1
            if isinstance(answered, tuple):
                connection.transport.writelines(answered)
            else:
                connection.transport.write(answered)
            return
        admission = connection.admission
        if admission.in_flight >= admission.shed_at and admission.turns_away_as(method, request.path):
            connection.transport.write(server.turned_away(data, target) if method is GET else server.refusal())
            return
    connection.request = request
    connection.exchange = server.begin_exchange(connection, request, whole=True)


def _come_again(connection: "HttpProtocol", data: bytes, count: int) -> None:
    """A connection was refused `count` times: when it was told so already, it rests."""
    server = connection.server
    now = server.deadlines.now
    early, connection.told_tick = count > 1 or now < connection.told_tick, now + server.retry_ticks
    if early and server.resting.wanted and FOR_OTHERS.search(data, 0, data.find(HEAD_END)) is None:
        connection.rest(count)


def _fits(connection: "HttpProtocol", data: bytes, target: bytes, body: bytes) -> bool:
    """Whether a plain request longer than most keeps all bounds."""
    head, limits = len(data) - len(body), connection.server.settings
    return (
        head <= limits.head_bytes_max
        and len(target) <= limits.target_bytes_max
        and len(body) <= min(limits.hot_body_max, limits.body_bytes_max, limits.body_buffer_max)
        and data.count(b"\r\n", 0, head) <= limits.header_count_max + 2
    )
