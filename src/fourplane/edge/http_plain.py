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

from fourplane.edge.admission import CLASSES
from fourplane.edge.http_request import (
    FIRST_OF_GET,
    GET,
    PLAIN_BLOCK,
    PLAIN_GET,
    PLAIN_LINE,
    HotAnswer,
    HttpRequest,
    made_request,
)
from fourplane.foundation.disk_sync import give_way

if TYPE_CHECKING:
    from fourplane.edge.http_protocol import HttpProtocol

HEAD_END: Final = b"\r\n\r\n"
SEEN_MAX: Final = 2_048  # plain GETs a server remembers, and blocks of fields
SEEN_BYTES_MAX: Final = 1_024  # each
FRESH_BYTES: Final = 2_048
NO_LENGTH: Final = -1
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
    connection.deadline_tick = server.deadlines.now + server.idle_ticks
    answer: HotAnswer
    if admission.in_flight >= admission.shed_at and admission.turns_away(method, target):
        answer = server.turned_away(data, target) if method is GET else server.refusal()
    else:
        request = made_request(data, method, target, body, connection.peer)
        answer = _at_once(connection, data, request)
        if answer is None:
            _begin(connection, request)
    if answer is None:
        return True
    _write(connection, answer)
    if answer is admission.rejection:
        server.resting.told += 1
        _come_again(connection, data, 1)
    return True


def take_run(connection: "HttpProtocol", data: bytes, position: int) -> tuple[int, int]:
    """Take the plain requests from `position` on, until one begins an exchange; where the next begins, and what they cost."""
    server, admission = connection.server, connection.admission
    size, most, cost, refused = len(data), server.settings.burst_max, 0, 0
    told: list[bytes] = []
    rejection, room = admission.rejection, server.room
    shut, counts = admission.shut(), [0] * CLASSES
    fresh_from = size - FRESH_BYTES if connection.early else 0
    connection.deadline_tick = server.deadlines.now + server.idle_ticks
    while position < size and cost + (len(told) >> 4) < most and not server.draining:
        found = _plain_at(connection, data, position)
        if found is None:
            break
        priority, method, target, head_end, end = found
        late = position < fresh_from
        if priority >= 0 and (shut[priority] or (late and priority > 0)):
            counts[priority] += 1
            instead = None if room is None or method is not GET else room.instead(data[position:end], target)
            told.append(instead or rejection)
            position = end
            continue
        whole = data[position:end]
        request = made_request(whole, method, target, data[head_end:end], connection.peer)
        answer = _at_once(connection, whole, request, late=late)
        position = end
        if answer is rejection:
            told.append(rejection)
            continue
        if told:
            refused += _tell(connection, told)
            cost += len(told) >> 4
            told.clear()
        cost += 1
        if answer is None:
            if priority >= 0:
                admission.let_in(priority)
            _begin(connection, request)
            break
        _write(connection, answer)
        if connection.write_paused:
            break
    give_way()
    if told:
        refused += _tell(connection, told)
    server.shed_total.value += admission.turned_away(counts)
    if refused:
        server.resting.told += refused
        if position == size and connection.exchange is None:
            _come_again(connection, data, refused)
    return position, cost + (len(told) >> 4)


def _plain_at(connection: "HttpProtocol", data: bytes, position: int) -> tuple[int, bytes, bytes, int, int] | None:
    """Class (`EXEMPT`: a hot route's), method, target, end of the head and end of the plain request at `position`, if all of it
    lies here.
    """
    line_end = data.find(b"\r\n", position)
    head_end = end = data.find(HEAD_END, line_end) + 4
    if line_end < 0 or head_end < 4:
        return None
    length = _length(connection, data[line_end:head_end])
    if length is None:
        return None
    line = _line_at(connection, data, position, line_end)
    if line is None:
        return None
    priority, method, target = line
    if length != NO_LENGTH:
        end += length
        if method is GET or end > len(data):
            return None
    if end - position > connection.plain_max and not _fits(connection, data[position:end], target, data[head_end:end]):
        return None
    return priority, method, target, head_end, end


def _line_at(connection: "HttpProtocol", data: bytes, position: int, line_end: int) -> tuple[int, bytes, bytes] | None:
    """Class, method and target of the first line that lies there, None where it is not plain."""
    admission = connection.admission
    if data[position] == FIRST_OF_GET:
        target = data[position + 4 : line_end - 9]
        priority = admission.known.get(target)
        if priority is None:
            return (
                (admission.class_of(GET, target), GET, target)
                if PLAIN_LINE.fullmatch(data, position, line_end)
                else None
            )
        if data.startswith(b"GET ", position) and data.startswith(b" HTTP/1.1", line_end - 9):
            return priority, GET, target
        return None
    lines = connection.server.lines.get(data[position : position + 4])
    found = None if lines is None else lines.pattern.fullmatch(data, position, line_end)
    if lines is not None and found is not None:
        method = lines.method
        return lines.classes[found.lastindex or 0], method, data[position + len(method) + 1 : line_end - 9]
    found = PLAIN_LINE.fullmatch(data, position, line_end)
    return None if found is None else (admission.class_of(found[1], found[2]), found[1], found[2])


def _length(connection: "HttpProtocol", block: bytes) -> int | None:
    """The body's length by these fields, `NO_LENGTH` where they tell none, None where they are not plain. Clients say the same
    ones again and again, so those seen lately are remembered.
    """
    blocks = connection.server.blocks
    length = blocks.get(block)
    if length is None:
        found = PLAIN_BLOCK.fullmatch(block)
        if found is None:
            return None
        told = found[2] or found[3]
        length = NO_LENGTH if told is None else int(told)
        if len(block) <= SEEN_BYTES_MAX:
            if len(blocks) >= SEEN_MAX:
                blocks.clear()
            blocks[block] = length
    return length


def _at_once(connection: "HttpProtocol", data: bytes, request: HttpRequest, *, late: bool = False) -> HotAnswer:
    """What a hot route says, or a refusal of what it leaves to the application; None where that is to be asked."""
    server, admission = connection.server, connection.admission
    method, path = request.method, request.path
    hot = server.hot_handler(method, path)
    if hot is None:
        return None
    answer = hot(request)
    if answer is not None:
        server.hot_total.value += 1
    elif (late or admission.in_flight >= admission.shed_at) and admission.turns_away_as(method, path, late=late):
        answer = server.turned_away(data, request.target) if method is GET else server.refusal()
    return answer


def _begin(connection: "HttpProtocol", request: HttpRequest) -> None:
    """Give an admitted request to the application."""
    connection.request = request
    connection.exchange = connection.server.begin_exchange(connection, request, whole=True)


def _write(connection: "HttpProtocol", answer: bytes | tuple[bytes | memoryview, ...]) -> None:
    if isinstance(answer, tuple):
        connection.transport.writelines(answer)
    else:
        connection.transport.write(answer)


def _tell(connection: "HttpProtocol", told: list[bytes]) -> int:
    """Write several answers at once; how many of them are the plain refusal."""
    connection.transport.write(b"".join(told))
    return told.count(connection.admission.rejection)


def _come_again(connection: "HttpProtocol", data: bytes, count: int) -> None:
    """A connection was refused `count` times: when it was told so already, and others stand in line, it rests."""
    server = connection.server
    if not connection.admission.waiting:
        return
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
