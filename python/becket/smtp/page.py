"""The web page of a Memory, for developers who test outgoing mail, and its JSON API.

    memory = Memory()
    page = Page(memory)
    names = await page.start("tcp://127.0.0.1:8025")     # on a becket.EventLoop
    with page.running("tcp://127.0.0.1:8025") as names:  # or in a thread of its own

Needs aiohttp (``pip install becket[web]``). What docs/mail-page.md describes is tested by
tests/python/test_smtp_page.py. Mail is hostile and so are other pages in the same browser; the
rules are in _guard() and POLICY. The page itself is in page/: plain files, served as they are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from aiohttp import web

from becket import _becket
from becket.loop import EventLoop
from becket.smtp import mime
from becket.smtp.memory import Change, Memory, Message

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# A mail's own HTML: it runs nothing, sends nothing, and loads nothing but what came with it. A
# link that somebody follows opens outside of the sandbox.
SANDBOX = "allow-popups allow-popups-to-escape-sandbox"
MAIL_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; "
    f"base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox {SANDBOX}"
)
FILE_POLICY = "default-src 'none'; sandbox"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": FILE_POLICY,  # unless a response has another
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
}
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

MAX_LIMIT = 200  # messages in one answer
MAX_SEARCH = 500  # characters
MAX_TEXT = 1024 * 1024  # characters of text in JSON; all of it is at …/text
SEARCHED = 65536  # characters of the text of a message that are searched
VIEWS = 8  # messages that are kept as they were last looked at
CONNECTIONS = 200
BEHIND = 500  # events that a client may be behind
ALIVE = 15.0  # seconds between signs of life

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Summary(NamedTuple):
    """A line in the list of messages."""

    json: dict[str, Any]
    text: str  # what is searched, case folded


def url_of(endpoint: str) -> str:
    """The address for a browser of an endpoint that is listened at; "" where there is none."""
    scheme, _, rest = endpoint.partition("://")
    where = rest.partition("?")[0].replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
    kind = {"tcp": "http", "tls": "https", "tls+tcp": "https"}.get(scheme)
    return f"{kind}://{where}/" if kind and where else ""


class Page:
    """The page of *memory*. *hosts* are names it may be asked for by, beside localhost and
    addresses: those that are in the DNS, and people use. Anybody who can connect to its endpoints
    can read all mail: let those be local ones."""

    def __init__(self, memory: Memory, *, hosts: Collection[str] = ()) -> None:
        self._memory = memory
        self._hosts = frozenset(host.lower() for host in hosts)
        self._reader = Reader(memory)
        self._clients: set[Client] = set()
        self._runner: web.AppRunner | None = None
        self._listeners: list[_becket.Listener] = []
        folder = resources.files("becket.smtp") / "page"
        self._files = {
            path: (folder.joinpath(name).read_bytes(), kind) for path, (name, kind) in FILES.items()
        }

    # ---- Serving ----

    async def start(self, *endpoints: str) -> list[str]:
        """Serve at endpoints of any scheme; returns their names, with the ports they got. OSError
        and ValueError for those that cannot be had. RuntimeError: not on a becket.EventLoop."""
        loop = asyncio.get_running_loop()
        if not isinstance(loop, EventLoop):
            raise RuntimeError(f"Page.start() needs a becket.EventLoop, not {type(loop).__name__}")
        self._runner = web.AppRunner(self.app(), access_log=None, handler_cancellation=True)
        await self._runner.setup()
        gate = _becket.Gate(max_connections=CONNECTIONS)
        try:
            for endpoint in endpoints:
                loop._know_engines(endpoint)
                factory: Any = self._runner.server
                self._listeners.append(_becket.Listener(loop, endpoint, factory, gate=gate))
        except BaseException:
            await self.stop()
            raise
        return [listener.name or "" for listener in self._listeners]

    async def stop(self) -> None:
        """Serve no more; what is open is closed."""
        while self._listeners:
            self._listeners.pop().close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @contextmanager
    def running(self, *endpoints: str) -> Iterator[list[str]]:
        """Serve in a thread of its own while the ``with`` statement lasts."""
        loop = EventLoop()
        thread = threading.Thread(target=loop.run_forever, name="becket-page", daemon=True)
        thread.start()

        def call(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        try:
            names = call(self.start(*endpoints))
            try:
                yield names
            finally:
                call(self.stop())
        finally:
            call(loop.shutdown_default_executor())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def app(self) -> web.Application:
        """An application of aiohttp, for those who run one of their own."""
        app = web.Application(middlewares=[self._guard], client_max_size=4096)
        app.on_response_prepare.append(_add_headers)
        app.on_startup.append(self._open)
        app.on_shutdown.append(self._disconnect)
        app.on_cleanup.append(self._close)
        for path in FILES:
            app.router.add_get(path, self._file)
        add, one = app.router.add_route, r"/api/messages/{id:[0-9]{1,18}}"
        add("GET", "/api/messages", self._list)
        add("DELETE", "/api/messages", self._delete_all)
        add("GET", "/api/events", self._events)
        add("GET", one, self._message)
        add("DELETE", one, self._delete)
        add("GET", one + "/text", self._text)
        add("GET", one + "/html", self._html)
        add("GET", one + "/source", self._source)
        add("GET", one + r"/parts/{path:[0-9.]{1,200}}", self._part)
        return app

    async def _open(self, _: web.Application) -> None:
        self._reader.open()

    async def _disconnect(self, _: web.Application) -> None:
        for client in self._clients:
            client.end()

    async def _close(self, _: web.Application) -> None:
        await self._reader.close()

    # ---- Who may ask ----

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Other sites' pages in the same browser get nothing, and change nothing: neither under a
        name of theirs that leads here (DNS rebinding), nor by a request to us (CSRF)."""
        try:
            if not self._knows(request.host):
                raise web.HTTPMisdirectedRequest(
                    text=f"the host {request.host!r} is none of this page's: use localhost or an "
                    "address, or name it (hosts=)"
                )
            if not _is_ours(request):
                raise web.HTTPForbidden(text="another site's page may not ask this")
            return await handler(request)
        except web.HTTPException as error:
            return web.json_response(
                {"error": error.text}, status=error.status, headers=_allowed(error)
            )

    def _knows(self, host: str) -> bool:
        name = _host_name(host)
        if name == "localhost" or name.endswith(".localhost") or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    # ---- Answers ----

    async def _file(self, request: web.Request) -> web.Response:
        body, kind = self._files[request.path]
        headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    async def _list(self, request: web.Request) -> web.Response:
        search = request.query.get("search", "")
        if len(search) > MAX_SEARCH:
            raise web.HTTPBadRequest(text=f"search: more than {MAX_SEARCH} characters")
        limit = _number(request, "limit", 50, 1, MAX_LIMIT)
        before = _number(request, "before", 0, 0, 10**18)
        found, more = await self._reader.search(search, limit, before)
        return web.json_response(
            {
                "total": len(self._memory),
                "messages": found,
                "next": found[-1]["id"] if more else None,
            }
        )

    def _asked(self, request: web.Request) -> Message:
        message = self._memory.get(int(request.match_info["id"]))
        if message is None:
            raise web.HTTPNotFound(text=f"there is no message {request.match_info['id']}")
        return message

    async def _message(self, request: web.Request) -> web.Response:
        message = self._asked(request)
        return web.json_response(await self._reader.details(message))

    async def _text(self, request: web.Request) -> web.Response:
        text = await self._reader.body(self._asked(request), "text/plain")
        if text is None:
            raise web.HTTPNotFound(text="the message has no text")
        return _plain(text.encode("utf-8", "replace"))

    async def _html(self, request: web.Request) -> web.Response:
        html = await self._reader.inert(self._asked(request))
        if html is None:
            raise web.HTTPNotFound(text="the message has no HTML")
        return web.Response(
            body=html.encode("utf-8", "replace"),
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": MAIL_POLICY},
        )

    async def _source(self, request: web.Request) -> web.Response:
        message = self._asked(request)
        if "download" in request.query:
            return _download(message.content, f"message-{message.id}.eml")
        return _plain(message.content)

    async def _part(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        part = await self._reader.part(self._asked(request), path)
        if part is None:
            raise web.HTTPNotFound(text=f"the message has no part {path}")
        return _download(part.data, part.name or f"part-{path}")

    async def _delete(self, request: web.Request) -> web.Response:
        message = self._asked(request)
        return web.json_response({"deleted": int(self._memory.remove(message.id))})

    async def _delete_all(self, _: web.Request) -> web.Response:
        return web.json_response({"deleted": self._memory.clear()})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        client = Client(asyncio.get_running_loop())
        self._clients.add(client)
        unsubscribe = self._memory.subscribe(client.tell)
        try:
            await response.prepare(request)
            await response.write(b"retry: 1000\nevent: ready\ndata: {}\n\n")
            while (text := await client.next()) is not None:
                await response.write(text)
        except ConnectionResetError:
            pass
        finally:
            unsubscribe()
            self._clients.discard(client)
        return response


# ---- Requests and responses ----------------------------------------------------------------------


def _host_name(host: str) -> str:
    """Of a Host: header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_ours(request: web.Request) -> bool:
    """Whether the page itself asks, a person, or a program; not another site's page."""
    if request.path in FILES and request.method in ("GET", "HEAD"):
        return True  # a link to us, from anywhere
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return False
    origin = request.headers.get("Origin")
    return origin is None or origin.partition("://")[2].lower() == request.host.lower()


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


def _allowed(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def _number(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and low <= int(text) <= high):
        raise web.HTTPBadRequest(text=f"{name}: {text[:40]!r} is no number from {low} to {high}")
    return int(text)


def _plain(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="text/plain", charset="utf-8")


def _download(body: bytes, name: str) -> web.Response:
    """A file that a browser saves, and never shows; the name is safe already."""
    ascii_name = "".join(c if c.isascii() and c not in '"\\' else "_" for c in name)
    encoded = quote(name.encode("utf-8", "replace"), safe="")
    headers = {
        "Content-Disposition": f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{encoded}"
    }
    return web.Response(body=body, content_type="application/octet-stream", headers=headers)


# ---- Reading, in a thread ------------------------------------------------------------------------


class Reader:
    """Looks into messages in a thread of its own, as that may take long. What is remembered belongs
    to that thread."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._summaries: dict[int, Summary] = {}
        self._views: OrderedDict[int, mime.View] = OrderedDict()
        self._thread: ThreadPoolExecutor | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    def open(self) -> None:
        """Before anything is read."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="becket-page-reader")
        self._unsubscribe = self._memory.subscribe(self._changed)

    async def close(self) -> None:
        """What is being read is read to its end."""
        self._unsubscribe()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.shutdown, cancel_futures=True)

    def _changed(self, change: Change) -> None:
        if change.removed and self._thread is not None:
            self._thread.submit(self._forget, change.removed)

    def _forget(self, gone: tuple[int, ...]) -> None:
        for id in gone:
            self._summaries.pop(id, None)
            self._views.pop(id, None)

    async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def search(
        self, search: str, limit: int, before: int
    ) -> tuple[list[dict[str, Any]], bool]:
        """The newest messages that have all words, and are older than *before*; whether there are
        more."""
        return await self._run(self._search, search.casefold().split(), limit, before)  # type: ignore[no-any-return]

    def _search(
        self, words: list[str], limit: int, before: int
    ) -> tuple[list[dict[str, Any]], bool]:
        found: list[dict[str, Any]] = []
        for message in self._memory.messages():
            if before and message.id >= before:
                continue
            if words or len(found) < limit:
                summary = self._summary(message)
                if not all(word in summary.text for word in words):
                    continue
            if len(found) == limit:
                return found, True
            found.append(summary.json)
        return found, False

    async def details(self, message: Message) -> dict[str, Any]:
        """All that there is to know of a message, but what may be large."""
        return await self._run(self._details, message)  # type: ignore[no-any-return]

    def _details(self, message: Message) -> dict[str, Any]:
        view = self._view(message)
        text = view.body("text/plain")
        return {
            **self._summary(message).json,
            "peer": message.peer,
            "helo": message.helo,
            "login": message.login,
            "tls": message.secure,
            "problem": view.problem,
            "headers": view.headers,
            "text": text if text is None else text[:MAX_TEXT],
            "cut": text is not None and len(text) > MAX_TEXT,
            "html": any(part.type == "text/html" and not part.attached for part in view.parts),
            "parts": [
                {
                    "path": part.path,
                    "type": part.type,
                    "name": part.name,
                    "size": len(part.data),
                    "attached": part.attached,
                    "cid": part.cid,
                }
                for part in view.parts
            ],
        }

    async def body(self, message: Message, kind: str) -> str | None:
        """Its text of that type."""
        return await self._run(lambda: self._view(message).body(kind))  # type: ignore[no-any-return]

    async def inert(self, message: Message) -> str | None:
        """Its HTML, for the sandbox."""
        return await self._run(lambda: mime.inert(self._view(message)))  # type: ignore[no-any-return]

    async def part(self, message: Message, path: str) -> mime.Part | None:
        """One of its parts."""
        return await self._run(lambda: self._view(message).part(path))  # type: ignore[no-any-return]

    def _view(self, message: Message) -> mime.View:
        view = self._views.pop(message.id, None) or mime.read(message.content)
        self._views[message.id] = view
        if len(self._views) > VIEWS:
            self._views.popitem(last=False)
        return view

    def _summary(self, message: Message) -> Summary:
        summary = self._summaries.get(message.id)
        if summary is None:
            summary = _summarize(message, self._view(message))
            if self._memory.get(message.id) is not None:  # else nobody would tell us to forget it
                self._summaries[message.id] = summary
        return summary


def _summarize(message: Message, view: mime.View) -> Summary:
    names = [part.name for part in view.attachments]
    shown = {name: view.header(name) for name in ("subject", "from", "to", "cc", "date")}
    text = view.body("text/plain") or view.body("text/html") or ""
    json = {
        "id": message.id,
        "received": message.received.isoformat(timespec="milliseconds"),
        "size": len(message.content),
        "sender": message.sender,
        "recipients": list(message.recipients),
        **shown,
        "attachments": len(names),
        "preview": " ".join(text[:400].split())[:160] if view.body("text/plain") else "",
    }
    searched = [message.sender, *message.recipients, *shown.values(), *names, text[:SEARCHED]]
    return Summary(json, "\n".join(searched).casefold())


# ---- Live updates --------------------------------------------------------------------------------


class Client:
    """One who listens to events. One that is too far behind is told to begin anew."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue()

    def tell(self, change: Change) -> None:
        """In any thread."""
        try:
            self._loop.call_soon_threadsafe(self._put, change)
        except RuntimeError:  # the loop has ended
            pass

    def _put(self, change: Change) -> None:
        if self._events.qsize() > BEHIND:
            while not self._events.empty():
                self._events.get_nowait()
            self._events.put_nowait(_event("reset", {}))
            return
        if change.added is not None:
            self._events.put_nowait(_event("added", _envelope(change.added)))
        if change.removed:
            self._events.put_nowait(_event("removed", {"ids": change.removed}))

    def end(self) -> None:
        """No more."""
        self._events.put_nowait(None)

    async def next(self) -> bytes | None:
        """The next event, or a sign of life; None at the end."""
        try:
            return await asyncio.wait_for(self._events.get(), ALIVE)
        except TimeoutError:
            return b": alive\n\n"


def _envelope(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "sender": message.sender,
        "recipients": message.recipients,
        "size": len(message.content),
    }


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
