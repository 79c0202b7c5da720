"""Run asyncore's dispatchers, unchanged, on a notifier of becket.

    import becket.asyncore
    becket.asyncore.loop()        # in place of asyncore.loop(); or, once, at the start:
    becket.asyncore.install()     # asyncore.loop() and asyncore.poll() are becket's from here on

asyncore is part of Python 3.11; for later versions it is on PyPI, as ``pyasyncore``.

asyncore asks every dispatcher, before each wait, whether it is readable() and writable(), and then
has the kernel look at all of them. Here a turn costs what the active dispatchers cost. Asked again
are those

- that had an event;
- that had an attribute set, from wherever;
- whose send(), push(), push_with_producer() or close_when_done() was called;
- that have come into the map.

That leaves the dispatcher whose answer depends on what none of these touches: a list that somebody
else appends to, a clock. So all are asked *sweep* seconds (a quarter) after anything happened, at
the latest; nobody waits longer than that to be noticed. A program whose answers change in such ways
and who cannot wait so long passes a smaller *sweep*; 0 asks all in every turn, as asyncore does.

What differs beyond that: handle_expt() is not called for urgent data, which no notifier tells of.
"""

from __future__ import annotations

import functools
import os
import select
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

from becket import _becket

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import asyncore
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "becket.asyncore runs the dispatchers of asyncore, which Python has no more since 3.12: "
        "pip install pyasyncore",
        name="asyncore",
    ) from None
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import asynchat
except ModuleNotFoundError:  # a package of its own since 3.12, which not everybody needs
    asynchat = None  # type: ignore[assignment]

__all__ = ["install", "loop", "poll", "uninstall"]

Map = dict[int, Any]

SWEEP = 0.25  # seconds until a change that nothing told of is noticed
KEPT = 4  # runners that wait for another loop(count=...) or poll() on their map

READ, WRITE = 1, 2


class _Channel:
    """A dispatcher in a map, and what we know of it."""

    __slots__ = ("asked", "fd", "gone", "is_file", "obj", "wants")

    def __init__(self, fd: int, obj: Any) -> None:
        self.fd = fd
        self.obj = obj
        self.wants = 0  # what is watched: READ, WRITE
        self.asked = False  # is in Runner.to_ask, or is being asked
        self.gone = False  # is not in the map any more
        self.is_file = False  # of a kind that the notifier will not watch: it is always ready


class _Runner:
    """Turns the dispatchers of one map, in one thread at a time. Other threads may close and add
    dispatchers, and change them; all that they do to us is to append to `to_ask`."""

    def __init__(self, map: Map, notifier: str | None) -> None:
        self.map = map
        self.notifier = notifier
        self.pause = SWEEP
        self.thread: int | None = threading.get_ident()  # that turns it now
        self.loop = _becket.Loop(notifier)
        self.channels: dict[int, _Channel] = {}  # by descriptor
        self.known: dict[int, _Channel] = {}  # by id() of the dispatcher
        self.to_ask: deque[_Channel] = deque()
        self.files: dict[int, _Channel] = {}
        self.reads: list[_Channel] = []  # what the notifier has told in this turn
        self.writes: list[_Channel] = []
        self.directions = (
            (READ, self.loop._add_reader, self.loop._remove_reader, self.reads),
            (WRITE, self.loop._add_writer, self.loop._remove_writer, self.writes),
        )
        self.swept = float("-inf")
        self.restless = True  # something has happened since then

    def close(self) -> None:
        for channel in list(self.channels.values()):
            self.forget(channel)
        self.loop._close_core()

    # ---- Who is in the map ----

    def adopt(self, fd: int, obj: Any) -> None:
        before = self.channels.get(fd)
        if before is not None:
            self.forget(before)
        channel = _Channel(fd, obj)
        self.channels[fd] = self.known[id(obj)] = channel
        self.ask_later(channel)

    def forget(self, channel: _Channel) -> None:
        """At once, as its descriptor may be closed next, and its number be somebody else's."""
        if self.channels.get(channel.fd) is channel:
            del self.channels[channel.fd]
        if self.known.get(id(channel.obj)) is channel:
            del self.known[id(channel.obj)]
        channel.gone = True
        if self.thread in (None, threading.get_ident()):
            self.watch(channel, 0)
        else:  # that thread may be in the notifier
            self.to_ask.append(channel)

    def compare(self) -> None:
        """What was done to the map itself, not through a dispatcher, is found here."""
        for fd, obj in list(self.map.items()):
            channel = self.channels.get(fd)
            if channel is None or channel.obj is not obj:
                self.adopt(fd, obj)
        for channel in list(self.channels.values()):
            if channel.fd not in self.map:
                self.forget(channel)

    # ---- What they want ----

    def ask_later(self, channel: _Channel) -> None:
        if not channel.asked:
            channel.asked = True
            self.to_ask.append(channel)

    def ask(self, channel: _Channel) -> None:
        wants = 0
        if not channel.gone:
            obj = channel.obj
            wants = READ if obj.readable() else 0
            if obj.writable() and not obj.accepting:
                wants |= WRITE
        if channel.gone:  # already, or by being asked
            wants = 0
        if wants != channel.wants:
            self.watch(channel, wants)

    def ask_those_due(self) -> None:
        if len(self.map) != len(self.channels):
            self.compare()
        for _ in range(len(self.to_ask)):
            channel = self.to_ask.popleft()
            try:
                self.ask(channel)
            except BaseException:
                self.to_ask.appendleft(channel)
                raise
            channel.asked = False  # only now: what it sets while it is asked is no news
        if self.to_ask:  # by being asked, one has changed another
            self.restless = True

    def sweep(self) -> None:
        self.swept = time.monotonic()
        self.restless = False
        self.compare()
        for channel in list(self.channels.values()):
            self.ask_later(channel)

    def watch(self, channel: _Channel, wants: int) -> None:
        fd, changed = channel.fd, wants ^ channel.wants
        try:
            for direction, add, remove, ready in () if channel.is_file else self.directions:
                if changed & wants & direction:
                    add(fd, ready.append, channel)
                elif changed & direction:
                    remove(fd)
        except PermissionError:
            channel.is_file = True
        channel.wants = wants
        if channel.is_file and wants:
            self.files[fd] = channel
        elif channel.is_file:
            self.files.pop(fd, None)

    # ---- Turning ----

    def poll(self, timeout: float | None, use_poll: bool) -> None:
        """Return when some had events, and were told, or *timeout* is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self.restless and time.monotonic() >= self.swept + self.pause:
                self.sweep()
            self.ask_those_due()
            self.wait(deadline)
            if self.reads or self.writes:
                break
            if deadline is not None and time.monotonic() >= deadline:
                break
        self.restless = True
        if use_poll:
            self.tell_as_poll2()
        else:
            self.tell_as_poll()

    def wait(self, deadline: float | None) -> None:
        until = self.swept + self.pause if self.restless else None
        if deadline is not None and (until is None or deadline < until):
            until = deadline
        seconds = None if until is None else until - time.monotonic()
        self.reads.clear()  # of a turn that an exception ended
        self.writes.clear()
        self.loop._turn(0 if self.files else seconds)
        for channel in self.files.values():
            if channel.wants & READ:
                self.reads.append(channel)
            if channel.wants & WRITE:
                self.writes.append(channel)

    def is_there(self, channel: _Channel) -> bool:
        """Whether it has not been closed, and its number reused, in this very turn."""
        return not channel.gone and self.map.get(channel.fd) is channel.obj

    def tell_as_poll(self) -> None:
        reads, writes = self.reads.copy(), self.writes.copy()
        for channels, tell in ((reads, asyncore.read), (writes, asyncore.write)):
            for channel in channels:
                if self.is_there(channel):
                    self.ask_later(channel)
                    tell(channel.obj)

    def tell_as_poll2(self) -> None:
        flags = dict.fromkeys(self.reads, select.POLLIN)
        for channel in self.writes:
            flags[channel] = flags.get(channel, 0) | select.POLLOUT
        for channel, events in flags.items():
            if self.is_there(channel):
                self.ask_later(channel)
                asyncore.readwrite(channel.obj, events)


class _Runners:
    """All runners there are. They are kept between calls, for programs that call loop(count=1)
    again and again."""

    def __init__(self) -> None:
        self.all: tuple[_Runner, ...] = ()  # never changed in place: others are going through it
        self.idle: list[_Runner] = []  # those of them that nobody turns at present
        self.lock = threading.Lock()

    def take(self, map: Map, notifier: str | None) -> _Runner:
        with self.lock:
            for runner in self.idle:
                if runner.map is map and runner.notifier == notifier:
                    self.idle.remove(runner)
                    runner.thread = threading.get_ident()
                    return runner
        runner = _Runner(map, notifier)
        with self.lock:
            self.all = (*self.all, runner)
        return runner

    def give_back(self, runner: _Runner, keep: bool) -> None:
        with self.lock:
            runner.thread = None
            if keep:
                self.idle.append(runner)
            ended = [] if keep else [runner]
            while len(self.idle) > KEPT:
                ended.append(self.idle.pop(0))
            self.all = tuple(r for r in self.all if r not in ended)
        for each in ended:
            each.close()

    def after_fork(self) -> None:
        """In the child: a notifier that is shared with the parent would mix up the two."""
        self.lock = threading.Lock()
        for runner in self.all:
            if runner.thread in (None, threading.get_ident()):
                runner.loop._forked()


_runners = _Runners()
os.register_at_fork(after_in_child=_runners.after_fork)


# ---- How a change is noticed: the classes tell us ----


def _note(obj: object) -> None:
    for runner in _runners.all:
        channel = runner.known.get(id(obj))
        if channel is not None and not channel.asked:
            runner.ask_later(channel)


def _telling(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method after which its dispatcher is asked again."""

    @functools.wraps(method)
    def tell(self: object, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        finally:
            _note(self)

    return tell


def _set_attribute(self: Any, name: str, value: object) -> None:
    super(asyncore.dispatcher, self).__setattr__(name, value)
    _note(self)


def _adding(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def add_channel(self: Any, map: Map | None = None) -> None:
        method(self, map)
        into = self._map if map is None else map
        for runner in _runners.all:
            if runner.map is into:
                runner.adopt(self._fileno, self)

    return add_channel


def _deleting(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def del_channel(self: Any, map: Map | None = None) -> None:
        out_of = self._map if map is None else map
        for runner in _runners.all:
            channel = runner.known.get(id(self))
            if runner.map is out_of and channel is not None:
                runner.forget(channel)
        method(self, map)

    return del_channel


_listening = threading.Lock()


def _listen_to_classes() -> None:
    """Once: asyncore's classes tell of what is done to a dispatcher, and cost a little more."""
    dispatcher: Any = asyncore.dispatcher
    with _listening:
        if dispatcher.__setattr__ is not _set_attribute:
            _replace_methods(dispatcher)


def _replace_methods(dispatcher: Any) -> None:
    dispatcher.__setattr__ = _set_attribute
    dispatcher.add_channel = _adding(dispatcher.add_channel)
    dispatcher.del_channel = _deleting(dispatcher.del_channel)
    dispatcher.send = _telling(dispatcher.send)
    if asynchat is not None:
        chat: Any = asynchat.async_chat
        for name in ("push", "push_with_producer", "initiate_send", "close_when_done"):
            setattr(chat, name, _telling(getattr(chat, name)))


# ---- asyncore's functions ----


def loop(
    timeout: float | None = 30.0,
    use_poll: bool = False,
    map: Map | None = None,
    count: int | None = None,
    *,
    notifier: str | None = None,
    sweep: float = SWEEP,
) -> None:
    """Turn the dispatchers in *map* until it is empty, or *count* times; as asyncore.loop().

    A turn waits *timeout* seconds at most (None: for ever) and ends when some dispatchers had
    events. With *use_poll* they are told of them as by asyncore.poll2(): each of all its events,
    and one whose handler raises the OSError of a lost connection is told handle_close(); without,
    as by asyncore.poll(): first all who can read. *notifier* is one of ``becket.notifiers``. All
    dispatchers are asked again *sweep* seconds after anything happened, at the latest.

    What handlers raise goes to handle_error(), but for ExitNow, KeyboardInterrupt and SystemExit,
    which come out of this call; so does what readable() and writable() raise. ValueError for a
    *timeout* or *sweep* below 0, or when there is no such notifier; OSError for a descriptor that
    cannot be watched.
    """
    if map is None:
        map = asyncore.socket_map
    if timeout is not None and timeout < 0:
        if not use_poll:
            raise ValueError(f"timeout: seconds, 0 or more, not {timeout!r}")
        timeout = None  # as poll() takes it
    if not sweep >= 0:
        raise ValueError(f"sweep: seconds, 0 or more, not {sweep!r}")
    if not map or (count is not None and count <= 0):
        return
    _listen_to_classes()
    runner = _runners.take(map, notifier)
    runner.pause = sweep
    keep = False
    try:
        while map and (count is None or count > 0):
            runner.poll(timeout, use_poll)
            if count is not None:
                count -= 1
        keep = bool(map)
    finally:
        _runners.give_back(runner, keep)


def poll(
    timeout: float | None = 0.0,
    map: Map | None = None,
    *,
    use_poll: bool = False,
    notifier: str | None = None,
    sweep: float = SWEEP,
) -> None:
    """One turn of loop(), whose other arguments these are; as asyncore.poll()."""
    loop(timeout, use_poll, map, 1, notifier=notifier, sweep=sweep)


_REPLACED = ("loop", "poll", "poll2", "poll3")
_own = {name: getattr(asyncore, name) for name in _REPLACED}


def install(notifier: str | None = None, sweep: float = SWEEP) -> None:
    """Put loop() and poll() in the place of asyncore's, for all that call them as
    ``asyncore.loop()``; those who had imported the function itself keep it."""
    ours = functools.partial(poll, notifier=notifier, sweep=sweep)
    ours2 = functools.partial(ours, use_poll=True)
    new_loop = functools.partial(loop, notifier=notifier, sweep=sweep)
    for name, function in zip(_REPLACED, (new_loop, ours, ours2, ours2), strict=True):
        setattr(asyncore, name, function)


def uninstall() -> None:
    """Give asyncore its own functions back."""
    for name, function in _own.items():
        setattr(asyncore, name, function)
