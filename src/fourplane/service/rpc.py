"""Calls between processes: typed async methods of ordinary classes, one interface near and far.

A service is any class whose public methods are `async def` (or async generators) with full annotations; nothing is
inherited or registered. `Interface` reads those annotations once. What can be far is called in three ways:

    service                                 in the same process: a plain await
    local(Stock, service)                   the same, but arguments and results are copied as they would be on the wire, so
                                            that code which relies on sharing an object fails in the tests
    remote(Stock, peer, "commerce.stock")   in another process, through a connection of rpc_client.py

and served by `RpcServer` (rpc_server.py). Arguments, results and items must be types msgspec knows. Arguments are only
appended, with defaults; so are fields of structs. A method marked `@idempotent` is sent again when the connection is cut
before its answer; any other raises Unavailable (`connection_lost`), because the work may have happened.

    class Stock:
        @idempotent
        async def available(self, product: str) -> int: ...
        async def watch(self, product: str) -> AsyncIterator[int]: ...
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Protocol, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec

from fourplane.foundation.errors import FourplaneError, Misconfigured, Rejected
from fourplane.service.rpc_frames import END, RESULT, error_body, error_of

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_IDEMPOTENT = "__fourplane_idempotent__"
_encode = msgspec.msgpack.Encoder().encode


def idempotent(function: F) -> F:
    """Mark a method that may be repeated: the second time changes nothing and answers the same."""
    setattr(function, _IDEMPOTENT, True)
    return function


class Method:
    """One method of an interface: how its arguments and answers are written and read."""

    __slots__ = (
        "_arguments", "_decode_arguments", "_decode_whole", "_plain", "answer", "decode", "idempotent", "name", "positional",
        "stream",
    )  # fmt: skip

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.idempotent = bool(getattr(function, _IDEMPOTENT, False))
        try:
            hints = get_type_hints(function)
        except NameError as error:
            raise Misconfigured(f"the types of {name} cannot be resolved: {error}", code="rpc_types") from None
        answer = hints.get("return", type(None))
        self.stream = get_origin(answer) in (AsyncIterator, AsyncGenerator)
        self.answer = END if self.stream else RESULT  # the kind of Tell that ends a call
        if self.stream:
            answer = get_args(answer)[0]
        parameters = list(inspect.signature(function).parameters.values())[1:]
        fields: list[tuple[str, Any, Any]] = []
        for one in parameters:
            if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) or one.name not in hints:
                raise Misconfigured(f"{name}({one.name}) has no type to send", code="rpc_types")
            default = msgspec.NODEFAULT if one.default is one.empty else one.default
            fields.append((one.name, hints[one.name], default))
        self.positional = sum(one.kind is not one.KEYWORD_ONLY for one in parameters)
        if any(_is_opaque(hint) for hint in (answer, *(kind for _, kind, _ in fields))):
            raise Misconfigured(f"{name} has a type that cannot travel", code="rpc_types")
        try:
            self._arguments = msgspec.defstruct(f"{name}_arguments", fields, array_like=True, frozen=True)
            self._decode_arguments = msgspec.msgpack.Decoder(self._arguments).decode
            # When every argument was given, as nearly always, they are read as what they are: a tuple.
            whole: Any = tuple[tuple(kind for _, kind, _ in fields)] if fields else tuple[()]  # type: ignore[misc]
            self._decode_whole = msgspec.msgpack.Decoder(whole).decode
            self._plain = len(fields) == self.positional
            self.decode: Callable[[Any], Any] = msgspec.msgpack.Decoder(answer).decode
        except TypeError as error:
            raise Misconfigured(f"{name} has a type that cannot travel: {error}", code="rpc_types") from None

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments of one call; what was left out takes its default where the method runs."""
        if kwargs or len(args) > self.positional:
            return _encode(
                self._arguments(*args[: self.positional], *_none_over(args, self.positional, self.name), **kwargs)
            )
        return _encode(args)

    def run(self, service: object, body: Any) -> Any:
        """Call the method of `service` with the arguments in `body`; raises Rejected when they do not fit."""
        if self._plain:
            try:
                whole = self._decode_whole(body)
            except (msgspec.ValidationError, msgspec.DecodeError):
                pass  # some were left out, or they do not fit
            else:
                return getattr(service, self.name)(*whole)
        try:
            values = msgspec.structs.astuple(self._decode_arguments(body))
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise Rejected(f"arguments of {self.name}: {error}", code="bad_arguments") from None
        method = getattr(service, self.name)
        count = self.positional
        if len(values) == count:
            return method(*values)
        names = self._arguments.__struct_fields__[count:]
        return method(*values[:count], **dict(zip(names, values[count:], strict=True)))


class Interface:
    """The methods of a class that can be called from elsewhere: all public async ones, or those in `only`."""

    __slots__ = ("methods", "name")

    def __init__(self, source: type, *, only: frozenset[str] | None = None) -> None:
        self.name = source.__name__
        self.methods: dict[str, Method] = {}
        for name, function in inspect.getmembers(source, inspect.isfunction):
            chosen = not name.startswith("_") if only is None else name in only
            if chosen and (inspect.iscoroutinefunction(function) or _streams(function)):
                self.methods[name] = Method(name, function)
        missing = (only or frozenset()) - self.methods.keys()
        if missing or not self.methods:
            raise Misconfigured(f"{self.name} has no async method {min(missing, default='')}", code="rpc_methods")


class Caller(Protocol):
    """What carries calls elsewhere: `rpc_client.Peer`."""

    def method(self, service: str, method: Method) -> Callable[..., Any]:
        """An async function (or a function that returns an async iterator) that behaves like the method."""


class _Far:
    """Stands for a service that is elsewhere; each method of the interface is an attribute."""

    def __init__(self, interface: Interface, method: Callable[[Method], Callable[..., Any]]) -> None:
        self._interface = interface.name
        for name, one in interface.methods.items():
            setattr(self, name, method(one))

    def __repr__(self) -> str:
        return f"<{self._interface} elsewhere>"


def remote(source: type[T], caller: Caller, service: str, *, only: frozenset[str] | None = None) -> T:
    """The service called `service` behind `caller`, with the methods of `source`."""
    return cast("T", _Far(Interface(source, only=only), lambda method: caller.method(service, method)))


def local(source: type[T], service: T, *, only: frozenset[str] | None = None) -> T:
    """`service` in this process behind a border that copies: what it would be like elsewhere."""
    return cast("T", _Far(Interface(source, only=only), lambda method: _copying(method, service)))


def _copying(method: Method, service: object) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        body = method.encode_arguments(args, kwargs)
        try:
            return method.decode(_encode(await method.run(service, body)))
        except FourplaneError as error:
            raise error_of(error_body(error)) from None

    async def stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        body = method.encode_arguments(args, kwargs)
        try:
            async for item in method.run(service, body):
                yield method.decode(_encode(item))
        except FourplaneError as error:
            raise error_of(error_body(error)) from None

    return stream if method.stream else call


def _is_opaque(kind: Any) -> bool:
    """Whether msgspec would need help with this type, wherever it is inside."""
    seen: set[int] = set()
    waiting: list[Any] = [msgspec.inspect.type_info(kind)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, msgspec.inspect.CustomType):
            return True
        if id(one) in seen or not isinstance(one, msgspec.inspect.Type | msgspec.inspect.Field):
            continue
        seen.add(id(one))
        for name in one.__struct_fields__:
            value = getattr(one, name)
            waiting += value if isinstance(value, tuple) else (value,)
    return False


def _streams(function: Callable[..., Any]) -> bool:
    if inspect.isasyncgenfunction(function):
        return True
    answer = getattr(function, "__annotations__", {}).get("return")
    return get_origin(answer) in (AsyncIterator, AsyncGenerator)


def _none_over(args: tuple[Any, ...], positional: int, name: str) -> tuple[Any, ...]:
    if len(args) > positional:
        raise TypeError(f"{name} takes {positional} positional arguments, {len(args)} were given")
    return ()
