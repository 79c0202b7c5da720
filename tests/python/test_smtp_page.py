"""becket.smtp.page: its JSON API, whom it lets in, and the page itself in a real browser."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shlex
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import becket
from becket.smtp.memory import Memory
from becket.smtp.page import BEHIND, Client, Page, url_of
from interop.processes import environment_of_others, find_program
from mail import PATIENCE, letter, send, serving

ROOT = Path(__file__).parent.parent.parent


class Site:
    """A page in a thread, and asking it."""

    def __init__(self, memory: Memory, endpoint: str) -> None:
        self.memory = memory
        self.endpoint = endpoint
        self.url = url_of(endpoint)
        self.host = endpoint.removeprefix("tcp://")

    def ask(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, headers=names)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def json(self, path: str, method: str = "GET", status: int = 200) -> Any:
        got, headers, body = self.ask(path, method)
        assert (got, headers.get_content_type()) == (status, "application/json"), body
        return json.loads(body)

    def add(self, message: Any, **more: Any) -> int:
        content = message if isinstance(message, bytes) else message.as_bytes()
        return self.memory.add(content, "me@a.org", ["you@b.org"], **more).id


@pytest.fixture
def site() -> Iterator[Site]:
    memory = Memory()
    with Page(memory, hosts=["Mail.Example.org"]).running("tcp://127.0.0.1:0") as [endpoint]:
        yield Site(memory, endpoint)


# ---- The API -------------------------------------------------------------------------------------


def test_list(site: Site) -> None:
    assert site.json("/api/messages") == {"total": 0, "messages": [], "next": None}
    message = letter("Grüße", "Some text.\n")
    message.add_attachment(b"x", maintype="image", subtype="png", filename="a.png")
    site.add(message)
    answer = site.json("/api/messages")
    [listed] = answer["messages"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", listed.pop("received"))
    assert listed == {
        "id": 1,
        "size": len(message.as_bytes()),
        "sender": "me@a.org",
        "recipients": ["you@b.org"],
        "subject": "Grüße",
        "from": "Me <me@a.org>",
        "to": "you@b.org",
        "cc": "",
        "date": "",
        "attachments": 1,
        "preview": "Some text.",
    }


def test_paging(site: Site) -> None:
    for n in range(5):
        site.add(letter(f"number {n}"))
    seen, before = [], 0
    while before is not None:
        answer = site.json(f"/api/messages?limit=2&before={before}")
        assert answer["total"] == 5
        seen.append([message["id"] for message in answer["messages"]])
        before = answer["next"]
    assert seen == [[5, 4], [3, 2], [1]]


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", [4, 3, 2, 1]),
        ("PARCEL", [1]),
        ("way+your", [1]),
        ("parcel+absent", []),
        ("%C3%9C%C3%9C", [2]),
        ("invoice.pdf", [3]),
        ("you@b.org", [4, 3, 2, 1]),
        ("bold", [4]),
    ],
)
def test_search(site: Site, search: str, found: list[int]) -> None:
    site.add(letter("Your parcel", "is on its WAY"))
    site.add(letter("üü"))
    message = letter()
    message.add_attachment(b"x", maintype="a", subtype="b", filename="invoice.pdf")
    site.add(message)
    site.add(b"Content-Type: text/html\r\n\r\n<b>bold</b>")
    answer = site.json(f"/api/messages?search={search}")
    assert [message["id"] for message in answer["messages"]] == found
    assert answer["next"] is None


def test_one_message(site: Site) -> None:
    message = letter("hello", "Text.\n", "<p>HTML")
    message.add_attachment(b"data", maintype="image", subtype="png", filename="a.png")
    site.add(message, peer="192.0.2.1", helo="client", login="ada", secure=True)
    answer = site.json("/api/messages/1")
    assert (answer["peer"], answer["helo"], answer["login"]) == ("192.0.2.1", "client", "ada")
    assert (answer["tls"], answer["html"], answer["cut"], answer["problem"]) == (
        True, True, False, "",
    )  # fmt: skip
    assert answer["text"] == "Text.\n"
    assert ["Subject", "hello"] in answer["headers"]
    assert answer["parts"][-1] == {
        "path": "2",
        "type": "image/png",
        "name": "a.png",
        "size": 4,
        "attached": True,
        "cid": "",
    }
    status, headers, body = site.ask("/api/messages/1/text")
    assert (status, headers["Content-Type"], body) == (200, "text/plain; charset=utf-8", b"Text.\n")
    status, headers, body = site.ask("/api/messages/1/source")
    assert (headers["Content-Type"], body) == ("text/plain; charset=utf-8", message.as_bytes())
    status, headers, body = site.ask("/api/messages/1/source?download")
    assert body == message.as_bytes()
    assert headers["Content-Disposition"].startswith('attachment; filename="message-1.eml"')


def test_long_text_is_cut_in_json(site: Site) -> None:
    site.add(b"\r\n" + b"x" * 2_000_000)
    answer = site.json("/api/messages/1")
    assert (len(answer["text"]), answer["cut"]) == (1024 * 1024, True)
    assert len(site.ask("/api/messages/1/text")[2]) == 2_000_000


def test_download_of_a_part(site: Site) -> None:
    message = letter()
    message.add_attachment(
        b"<script>", maintype="text", subtype="html", filename='../../Grüße "x\\y;\r\nX: y.html'
    )
    site.add(message)
    status, headers, body = site.ask("/api/messages/1/parts/2")
    assert (status, body) == (200, b"<script>")
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert headers["X"] is None
    assert re.fullmatch(
        r"attachment; filename=\"[\w .;_-]+\"; filename\*=UTF-8''[\w.%-]+",
        headers["Content-Disposition"],
        re.ASCII,
    )


def test_parts_of_a_part_that_says_it_is_html(site: Site) -> None:
    site.add(letter(html="<script>x</script>"))
    _, headers, _ = site.ask("/api/messages/1/parts/2")
    assert headers["Content-Disposition"].startswith('attachment; filename="part-2"')


def test_deleting(site: Site) -> None:
    for _ in range(3):
        site.add(letter())
    assert site.json("/api/messages/2", "DELETE") == {"deleted": 1}
    assert site.json("/api/messages/2", "DELETE", 404) == {"error": "there is no message 2"}
    assert site.json("/api/messages", "DELETE") == {"deleted": 2}
    assert site.json("/api/messages")["total"] == 0


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/api/messages/7", 404, "there is no message 7"),
        ("/api/messages/7/html", 404, "there is no message 7"),
        ("/api/messages/1/html", 404, "the message has no HTML"),
        ("/api/messages/2/text", 404, "the message has no text"),
        ("/api/messages/1/parts/9", 404, "the message has no part 9"),
        ("/api/messages/x", 404, "404: Not Found"),
        ("/../../etc/passwd", 404, "404: Not Found"),
        ("/api/messages?limit=0", 400, "limit: '0' is no number from 1 to 200"),
        ("/api/messages?limit=201", 400, "limit: '201' is no number from 1 to 200"),
        ("/api/messages?limit=%D9%A1", 400, "limit: '\u0661' is no number from 1 to 200"),
        ("/api/messages?before=-1", 400, "before: '-1' is no number from 0 to 1000000000000000000"),
        ("/api/messages?search=" + "x" * 501, 400, "search: more than 500 characters"),
    ],
)
def test_errors(site: Site, path: str, status: int, error: str) -> None:
    site.add(letter())
    site.add(b"Content-Type: text/html\r\n\r\n<b>bold</b>")
    assert site.json(path, status=status) == {"error": error}


def test_a_method_that_is_not_there(site: Site) -> None:
    status, headers, _ = site.ask("/api/messages", "PUT")
    assert (status, headers["Allow"]) == (405, "DELETE,GET")


def test_hostile_messages(site: Site) -> None:
    deep = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
        for n in range(3000)
    )
    for content in (b"", b"\0", deep, b"Subject: \xff\xfe\r\nContent-Type: ;\r\n\r\n\xff"):
        id = site.add(content)
        answer = site.json(f"/api/messages/{id}")
        assert answer["size"] == len(content)
        assert site.ask(f"/api/messages/{id}/source")[2] == content
    assert site.json("/api/messages?search=x")["total"] == 4


# ---- Events --------------------------------------------------------------------------------------


class Events:
    """What a client is told, event by event."""

    def __init__(self, site: Site) -> None:
        self._connection = http.client.HTTPConnection(site.host, timeout=PATIENCE)
        self._connection.request("GET", "/api/events")
        self.response = self._connection.getresponse()
        assert self.response.headers["Content-Type"] == "text/event-stream"
        assert self.next() == ("ready", {})

    def next(self) -> tuple[str, Any] | None:
        fields = {}
        while line := self.response.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if not name and "event" in fields:
                return fields["event"], json.loads(fields["data"])
            fields[name] = value
        return None

    def close(self) -> None:
        self._connection.close()
        self.response.close()


def test_events(site: Site) -> None:
    events = Events(site)
    id = site.add(b"x")
    expected = {"id": id, "sender": "me@a.org", "recipients": ["you@b.org"], "size": 1}
    assert events.next() == ("added", expected)
    site.memory.remove(id)
    assert events.next() == ("removed", {"ids": [id]})
    events.close()


def test_listeners_hear_of_the_end() -> None:
    memory = Memory()
    with Page(memory).running("tcp://127.0.0.1:0") as [endpoint]:
        events = Events(Site(memory, endpoint))
    assert events.next() is None
    events.close()
    assert memory._subscribers == []


def test_one_that_is_behind_is_told_to_begin_anew() -> None:
    async def main() -> None:
        memory, client = Memory(), Client(asyncio.get_running_loop())
        memory.subscribe(client.tell)
        for _ in range(BEHIND + 2):
            memory.add(b"", "", [])
        await asyncio.sleep(0)
        assert await client.next() == b"event: reset\ndata: {}\n\n"
        memory.clear()
        assert (await client.next() or b"").startswith(b"event: removed")

    asyncio.run(main())


def test_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("becket.smtp.page.ALIVE", 0.01)

    async def main() -> None:
        client = Client(asyncio.get_running_loop())
        assert await client.next() == b": alive\n\n"

    asyncio.run(main())


# ---- Who may ask ---------------------------------------------------------------------------------

OURS = ["127.0.0.1:{port}", "localhost", "LOCALHOST:1", "mail.localhost", "[::1]:80", "192.0.2.1",
        "mail.example.org", "mail.example.org.:8025"]  # fmt: skip
OTHERS = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "a@b",
          "evil.example:127.0.0.1", "user:localhost@evil.example"]  # fmt: skip


@pytest.mark.parametrize("path", ["/", "/api/messages"])
@pytest.mark.parametrize("host", OURS)
def test_hosts(site: Site, host: str, path: str) -> None:
    assert site.ask(path, Host=host.format(port=80))[0] == 200


@pytest.mark.parametrize("path", ["/", "/page.js", "/api/messages", "/absent"])
@pytest.mark.parametrize("host", OTHERS)
def test_names_that_lead_here_from_elsewhere(site: Site, host: str, path: str) -> None:
    status, _, body = site.ask(path, Host=host)
    assert status in (400, 421)
    assert b"total" not in body


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:8025"}, 200),
        ({"Origin": "http://localhost:8025", "Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "none"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_other_sites_pages(site: Site, method: str, headers: dict[str, str], status: int) -> None:
    site.add(letter())
    assert site.ask("/api/messages", method, Host="localhost:8025", **headers)[0] == status
    assert len(site.memory) == int(status == 403 or method == "GET")


def test_a_link_from_another_site(site: Site) -> None:
    assert site.ask("/", Sec_Fetch_Site="cross-site")[0] == 200


@pytest.mark.parametrize("path", ["/", "/page.js", "/api/messages", "/absent", "/api/messages/9"])
def test_headers_of_every_answer(site: Site, path: str) -> None:
    _, headers, _ = site.ask(path)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert "Access-Control-Allow-Origin" not in headers


# ---- Serving -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("tcp://127.0.0.1:80", "http://127.0.0.1:80/"),
        ("tcp://0.0.0.0:80", "http://127.0.0.1:80/"),
        ("tls://[::]:443?cert=x", "https://[::1]:443/"),
        ("unix:/run/x", ""),
    ],
)
def test_addresses_for_browsers(endpoint: str, url: str) -> None:
    assert url_of(endpoint) == url


def test_endpoints_that_cannot_be_had(no_leaks: None) -> None:
    page = Page(Memory())
    with pytest.raises(ValueError, match="nonsense"):
        with page.running("tcp://127.0.0.1:0", "nonsense"):
            raise AssertionError
    with page.running("tcp://127.0.0.1:0") as [endpoint]:  # once more, after that
        assert Site(Memory(), endpoint).ask("/")[0] == 200


def test_needs_a_loop_of_becket() -> None:
    with pytest.raises(RuntimeError, match=r"needs a becket\.EventLoop, not "):
        asyncio.run(Page(Memory()).start("tcp://127.0.0.1:0"))


def test_on_the_loop_that_runs(short_path: str, no_leaks: None) -> None:
    async def main() -> None:
        page = Page(Memory())
        assert await page.start(f"unix:{short_path}", "memory:page") == [
            f"unix:{short_path}",
            "memory:page",
        ]
        for name in (f"unix:{short_path}", "memory:page"):
            reader, writer = await becket.open(name)
            writer.write(b"GET /api/messages HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            writer.close()
            await writer.wait_closed()
        await page.stop()
        await asyncio.get_running_loop().shutdown_default_executor()

    becket.run(main())


def test_the_commands_of_the_documentation(site: Site, tmp_path: Path) -> None:
    """Each `curl` in docs/mail-page.md, in order, with this page's address."""
    find_program("curl")
    for n in range(13):
        message = letter(f"order {n}", html="<p>HTML")
        message.add_attachment(b"PDF", maintype="application", subtype="pdf", filename="a.pdf")
        site.add(message)
    text = (ROOT / "docs" / "mail-page.md").read_text()
    commands = re.findall(r"^    \$ (curl .*)$", text, re.M)
    assert len(commands) >= 9
    for command in commands:
        own = shlex.split(command.replace("localhost:8025", site.host))
        if "/api/events" in command:
            continue  # has no end; see above
        done = subprocess.run(
            [*own, "--silent", "--show-error", "--fail-with-body", "--output", "-"],
            capture_output=True, check=False, timeout=PATIENCE, env=environment_of_others(),
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, (command, done)


def test_the_program_of_the_documentation() -> None:
    text = (ROOT / "docs" / "mail-page.md").read_text()
    [program] = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    exec(program, {})


# ---- In a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    folder = tmp_path_factory.mktemp("chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = find_program("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",  # it does not run as root with it
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1280,900",
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(argument)
    options.add_experimental_option(
        "prefs",
        {"download.default_directory": str(folder), "download.prompt_for_download": False},
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(find_program("chromedriver"), env=environment_of_others())
    driver = webdriver.Chrome(options, service)
    driver.set_page_load_timeout(PATIENCE)
    driver.downloads = folder  # type: ignore[attr-defined]
    yield driver
    driver.quit()
    shutil.rmtree(folder, ignore_errors=True)


class Browser:
    """The page in a browser, as a person uses it."""

    def __init__(self, driver: Any, site: Site) -> None:
        self.driver = driver
        self.site = site
        driver.get_log("browser")  # of others
        driver.get("about:blank")
        driver.get(site.url)
        self.until(lambda: self.text("#live") == "Live")

    def until(self, holds: Callable[[], Any]) -> Any:
        wait = WebDriverWait(
            self.driver, PATIENCE, 0.02, ignored_exceptions=[StaleElementReferenceException]
        )
        return wait.until(lambda _: holds())

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)  # type: ignore[no-any-return]

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.one(selector).text)

    def subjects(self) -> list[str]:
        return [element.text for element in self.all("#messages .subject")]

    def wait_listed(self, *subjects: str) -> None:
        self.until(lambda: self.subjects() == list(subjects))

    def open(self, id: int) -> None:
        link = self.until(lambda: self.all(f'#messages a[data-id="{id}"]'))[0]
        link.click()
        self.wait_open(id)

    def wait_open(self, id: int) -> None:
        self.until(lambda: self.all(f'a[data-id="{id}"][aria-current]'))
        self.until(lambda: self.one("#message").is_displayed())

    def choose(self, view: str) -> None:
        self.one(f"#tab-{view}").click()

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> str:
        element = self.driver.switch_to.active_element
        return str(element.get_attribute("data-id") or element.get_attribute("id"))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def browser(chromium: Any, site: Site) -> Iterator[Browser]:
    browser = Browser(chromium, site)
    yield browser
    while len(chromium.window_handles) > 1:
        chromium.switch_to.window(chromium.window_handles[-1])
        chromium.close()
    chromium.switch_to.window(chromium.window_handles[0])
    chromium.get("about:blank")


def test_mail_appears_by_itself(browser: Browser) -> None:
    browser.until(lambda: browser.text("#none-text").startswith("No mail yet."))
    with serving(browser.site.memory) as port:
        send(port, letter("first"))
        browser.wait_listed("first")
        send(port, letter("second"))
        browser.wait_listed("second", "first")
    assert browser.text("#count") == "2 messages"
    assert not browser.one("#none").is_displayed()
    assert browser.driver.title == "(2) Mail · becket"
    browser.site.memory.remove(1)
    browser.wait_listed("second")
    assert browser.errors() == []


def test_reading(browser: Browser) -> None:
    message = letter("subject", "Look at https://a.org/x?y=1.\n", "<p id=p>HTML &amp; more")
    browser.site.add(message, helo="client", peer="192.0.2.1")
    browser.open(1)
    assert browser.text("#subject") == "subject"
    assert "me@a.org → you@b.org" in browser.text("#facts")
    browser.until(lambda: browser.all("#panel iframe"))
    browser.driver.switch_to.frame(browser.one("#panel iframe"))
    browser.until(lambda: browser.all("#p"))
    assert browser.text("#p") == "HTML & more"
    browser.driver.switch_to.default_content()
    browser.choose("text")
    assert browser.text("#panel") == "Look at https://a.org/x?y=1."
    link = browser.one("#panel a")
    assert link.get_attribute("href") == "https://a.org/x?y=1"
    assert link.get_attribute("rel") == "noopener noreferrer"
    browser.choose("headers")
    assert "Subject subject" in browser.text("#panel").replace("\n", " ")
    browser.choose("source")
    browser.until(lambda: browser.all("#panel pre"))
    assert 'Content-Type: text/html; charset="utf-8"' in browser.text("#panel")
    assert browser.errors() == []


def test_search_in_the_page(browser: Browser) -> None:
    for subject in ("apples", "pears", "apples and pears"):
        browser.site.add(letter(subject))
    browser.wait_listed("apples and pears", "pears", "apples")
    browser.press("/")
    assert browser.focused() == "search"
    browser.press("apples")
    browser.wait_listed("apples and pears", "apples")
    assert browser.text("#count") == "2 of 3 found"
    browser.site.add(letter("more apples"))
    browser.wait_listed("more apples", "apples and pears", "apples")
    browser.site.add(letter("more pears"))
    browser.until(lambda: browser.text("#count") == "3 of 5 found")
    assert len(browser.subjects()) == 3
    browser.press(" nowhere")
    browser.wait_listed()
    assert browser.text("#none-text") == "No message has all these words."
    browser.press(Keys.ESCAPE)
    browser.until(lambda: len(browser.subjects()) == 5)


def test_keys(browser: Browser) -> None:
    for subject in ("one", "two", "three"):
        browser.site.add(letter(subject))
    browser.wait_listed("three", "two", "one")
    for key, id in (
        ("j", 3),
        ("j", 2),
        (Keys.ARROW_DOWN, 1),
        ("j", 1),
        ("k", 2),
        (Keys.ARROW_UP, 3),
    ):
        browser.press(key)
        browser.wait_open(id)
        assert browser.focused() == str(id)
    browser.press("4")
    assert browser.one("#tab-headers").get_attribute("aria-selected") == "true"
    assert browser.focused() == "tab-headers"
    browser.press(Keys.ARROW_RIGHT)
    assert browser.focused() == "tab-source"
    browser.press(Keys.ARROW_RIGHT)
    assert browser.focused() == "tab-text"
    browser.press(Keys.ESCAPE)
    browser.until(lambda: browser.one("#nothing").is_displayed())
    assert browser.focused() == "3"
    browser.press("?")
    assert browser.one("#help").is_displayed()
    browser.press(Keys.ESCAPE)
    browser.until(lambda: not browser.one("#help").is_displayed())


def test_older_messages_are_shown_when_asked_for(browser: Browser) -> None:
    for n in range(60):
        browser.site.add(letter(f"number {n}"))
    browser.until(lambda: len(browser.subjects()) == 50 and browser.text("#count") == "60 messages")
    browser.one("#older").click()
    browser.until(lambda: len(browser.subjects()) == 60)
    assert browser.focused() == "10"
    assert not browser.one("#older").is_displayed()


def test_deleting_in_the_page(browser: Browser) -> None:
    for subject in ("one", "two", "three"):
        browser.site.add(letter(subject))
    browser.open(2)
    browser.one("#delete").click()
    browser.wait_listed("three", "one")
    browser.wait_open(1)
    browser.press(Keys.DELETE)
    browser.wait_listed("three")
    browser.wait_open(3)
    browser.one("#clear").click()
    browser.one('#sure button[value="no"]').click()
    browser.until(lambda: not browser.one("#sure").is_displayed())
    assert len(browser.site.memory) == 1
    browser.one("#clear").click()
    browser.one('#sure button[value="yes"]').click()
    browser.wait_listed()
    browser.until(lambda: browser.one("#nothing").is_displayed())
    assert len(browser.site.memory) == 0


def test_a_message_that_somebody_else_deletes_is_closed(browser: Browser) -> None:
    browser.site.add(letter())
    browser.open(1)
    browser.site.memory.clear()
    browser.until(lambda: browser.one("#nothing").is_displayed())


def test_attachments_are_downloaded(browser: Browser) -> None:
    message = letter()
    data = bytes(range(256)) * 50
    message.add_attachment(data, maintype="text", subtype="html", filename="../Grüße.html")
    browser.site.add(message)
    browser.open(1)
    browser.choose("files")
    assert browser.text("#panel") == "Grüße.html\ntext/html, 13 KB"
    browser.one("#panel a").click()
    file = browser.driver.downloads / "Grüße.html"
    browser.until(file.exists)
    assert file.read_bytes() == data
    assert browser.driver.current_url.startswith(browser.site.url)


HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def test_what_headers_say_is_text(browser: Browser) -> None:
    message = letter(HOSTILE, HOSTILE)
    message.add_attachment(b"x", maintype="a", subtype="b", filename=f"{HOSTILE.replace('/', '')}")
    message["X-Hostile"] = HOSTILE
    del message["From"]
    message["From"] = f'"{HOSTILE}" <a@b.org>'.replace('"document', "document").replace(
        "owned'\"", "owned'"
    )
    browser.site.memory.add(message.as_bytes(), HOSTILE, [HOSTILE], helo=HOSTILE, peer=HOSTILE)
    browser.open(1)
    assert browser.text("#subject") == HOSTILE
    assert browser.subjects() == [HOSTILE]
    assert HOSTILE in browser.text("#facts")
    for view in ("text", "files", "headers", "source"):
        browser.choose(view)
        browser.until(lambda: "owned" in browser.text("#panel"))
        assert browser.all("#panel img, #panel script, #messages img, #facts img") == []
    assert "owned" not in browser.driver.title
    assert browser.errors() == []  # the policy had nothing to forbid


class Trap(ThreadingHTTPServer):
    """Another site, that writes down who connects to it, and for what."""

    daemon_threads = True

    def __init__(self) -> None:
        self.connections = 0
        self.paths: list[str] = []
        self.page = ""
        super().__init__(("127.0.0.1", 0), TrapHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()


class TrapHandler(BaseHTTPRequestHandler):
    server: Trap

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        body = self.server.page.encode() if self.path == "/control" else b""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def trap() -> Iterator[Trap]:
    with Trap() as trap:
        thread = threading.Thread(target=trap.serve_forever)
        thread.start()
        yield trap
        trap.shutdown()
        thread.join()


ALIVE = """\
<!doctype html><html><head>
<base href="TRAP/">
<link rel=stylesheet href="TRAP/link"><link rel=preconnect href="TRAP/">
<link rel=preload as=image href="TRAP/preload"><link rel=icon href="TRAP/icon">
<style>@import "TRAP/import"; p { background: url("TRAP/background") }
@font-face { font-family: f; src: url("TRAP/font") } p { font-family: f }</style>
<script src="TRAP/script"></script>
<script>fetch("TRAP/fetch", {mode: "no-cors"}); parent.document.title = "owned"</script>
</head><body onload="fetch('TRAP/onload', {mode: 'no-cors'})">
<p id=p>text</p><a id=a href="javascript:fetch('TRAP/javascript')">link</a>
<img src="TRAP/image"><img srcset="TRAP/srcset 1x">
<img src="data:," onerror="fetch('TRAP/onerror', {mode: 'no-cors'})">
<picture><source srcset="TRAP/picture"><img></picture>
<svg><image href="TRAP/svg"></image><script>fetch("TRAP/svgs", {mode: "no-cors"})</script></svg>
<video src="TRAP/video" poster="TRAP/poster" autoplay></video><audio src="TRAP/audio"></audio>
<iframe src="TRAP/iframe"></iframe><iframe srcdoc="<img src='TRAP/srcdoc'>"></iframe>
<object data="TRAP/object"></object><embed src="TRAP/embed">
<input type=image src="TRAP/input" autofocus onfocus="fetch('TRAP/onfocus', {mode: 'no-cors'})">
<table background="TRAP/table"><tr><td>x</table>
<form id=form action="TRAP/form" method=post><button id=b>go</button></form>
</body></html>
"""
REFRESH = '<meta http-equiv=refresh content="0; url=TRAP/refresh">'


def test_html_is_inert(browser: Browser, trap: Trap) -> None:
    html = ALIVE.replace("TRAP", trap.url)
    trap.page = html
    browser.driver.get(f"{trap.url}/control")  # it is alive where nothing protects
    loaded = {"link", "preload", "import", "background", "script", "fetch", "onload", "image"}
    loaded |= {"srcset", "picture", "svg", "iframe", "srcdoc", "onerror", "input", "poster"}
    browser.until(lambda: {f"/{name}" for name in loaded} <= set(trap.paths))
    trap.page = REFRESH.replace("TRAP", trap.url)
    browser.driver.get(f"{trap.url}/control")
    browser.until(lambda: "/refresh" in trap.paths)
    browser.driver.get("about:blank")

    site = browser.site
    site.add(letter("hostile", "text", html.replace("<head>", f"<head>{trap.page}")))
    browser.driver.get(site.url)
    trap.paths.clear()
    before = trap.connections
    browser.open(1)
    browser.until(lambda: browser.all("#panel iframe"))
    browser.driver.switch_to.frame(browser.one("#panel iframe"))
    browser.until(lambda: browser.all("#p"))
    browser.until(lambda: browser.driver.execute_script("return document.readyState") == "complete")
    for click in ("#a", "#b"):
        browser.driver.execute_script("arguments[0].click()", browser.one(click))
        browser.one(click).click()
    assert browser.text("#p") == "text"
    browser.driver.switch_to.default_content()
    assert browser.driver.title == "(1) Mail · becket"
    with urllib.request.urlopen(f"{trap.url}/fence", timeout=PATIENCE) as response:
        response.read()  # who connected before, and never said a word, has been accepted before
    assert trap.connections == before + 1
    browser.driver.switch_to.new_window("tab")
    browser.driver.get(f"{trap.url}/fence")  # what was begun before has come before
    assert [path for path in trap.paths if path not in ("/fence", "/favicon.ico")] == []


def test_html_is_inert_when_opened_by_itself(browser: Browser, trap: Trap) -> None:
    site = browser.site
    site.add(letter("hostile", "text", ALIVE.replace("TRAP", trap.url)))
    browser.driver.get(f"{site.url}api/messages/1/html")
    browser.until(lambda: browser.all("#p"))
    browser.driver.get(f"{trap.url}/fence")
    assert [path for path in trap.paths if path not in ("/fence", "/favicon.ico")] == []


def test_images_that_came_with_it_are_shown(browser: Browser) -> None:
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c4944415408d763f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
    )
    message = letter(html='<img id=i src="cid:one@a">')
    message.get_payload()[1].add_related(png, "image", "png", cid="<one@a>")
    browser.site.add(message)
    browser.open(1)
    browser.until(lambda: browser.all("#panel iframe"))
    browser.driver.switch_to.frame(browser.one("#panel iframe"))
    browser.until(lambda: browser.all("#i") and browser.one("#i").get_property("complete"))
    assert browser.one("#i").get_property("naturalWidth") == 1
    browser.driver.switch_to.default_content()


def test_a_link_opens_a_page_of_its_own(browser: Browser, trap: Trap) -> None:
    browser.site.add(letter(html=f'<a id=a href="{trap.url}/linked">link</a>'))
    browser.open(1)
    browser.until(lambda: browser.all("#panel iframe"))
    browser.driver.switch_to.frame(browser.one("#panel iframe"))
    browser.until(lambda: browser.all("#a"))
    browser.one("#a").click()
    browser.until(lambda: "/linked" in trap.paths)
    browser.until(lambda: len(browser.driver.window_handles) == 2)
    browser.driver.switch_to.window(browser.driver.window_handles[-1])
    assert browser.driver.execute_script("return window.opener") is None
    assert browser.driver.execute_script("return document.referrer") == ""


def test_another_sites_page_learns_nothing(browser: Browser, trap: Trap) -> None:
    site = browser.site
    site.add(letter("secret"))
    browser.driver.get(f"{trap.url}/fence")
    said = browser.driver.execute_async_script(
        """
        const [url, done] = arguments, said = [];
        const ask = async (options) => {
            try { said.push(await (await fetch(url + "api/messages", options)).text()); }
            catch (error) { said.push(error.name); }
        };
        (async () => {
            await ask({});
            await ask({mode: "no-cors"});
            await ask({method: "DELETE"});
            await ask({method: "POST", mode: "no-cors"});
            done(said);
        })();
        """,
        site.url,
    )
    assert "secret" not in "".join(said)
    assert said.count("TypeError") >= 3
    assert len(site.memory) == 1


def test_a_page_that_lost_its_server_says_so(chromium: Any) -> None:
    memory = Memory()
    with Page(memory).running("tcp://127.0.0.1:0") as [endpoint]:
        browser = Browser(chromium, Site(memory, endpoint))
    browser.until(lambda: browser.text("#live") == "Connection lost")
    memory.add(letter("meanwhile").as_bytes(), "", [])
    with Page(memory).running(endpoint):
        browser.wait_listed("meanwhile")
        browser.until(lambda: browser.text("#live") == "Live")
        chromium.get("about:blank")


SIZES = {"wide": (1280, 900), "narrow": (420, 800)}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_can_be_read(browser: Browser, size: str, theme: str) -> None:
    """Nothing sticks out, everything has a name, and text stands out from its ground (WCAG AA)."""
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    message = letter("subject " * 40, "text", "<p>HTML")
    message.add_attachment(b"x", maintype="a", subtype="b", filename="a" * 100)
    browser.site.add(message)
    try:
        for view in (None, "html", "text", "files", "headers", "source"):
            if view == "html":
                browser.open(1)
            if view:
                browser.choose(view)
            measured = browser.driver.execute_script(MEASURE)
            assert measured == {"wide": False, "nameless": [], "faint": []}, view
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


MEASURE = r"""
const all = [...document.querySelectorAll("body *")];
const shown = all.filter((e) => e.checkVisibility({visibilityProperty: true}));
const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const color = (text) => text.match(/[\d.]+/g).map(Number);
const ground = (e) => {
    for (; e; e = e.parentElement) {
        const found = color(getComputedStyle(e).backgroundColor);
        if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
};
const contrast = (e) => {
    const two = [color(getComputedStyle(e).color), ground(e)];
    const [x, y] = two.map(luminance).sort((m, n) => n - m);
    return (x + 0.05) / (y + 0.05);
};
const name = (e) => e.textContent.trim() || e.ariaLabel || e.title || e.labels?.length;
const says = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
const faint = (e) => says(e) && !e.matches(":disabled") && contrast(e) < 4.5;
return {
    wide: document.documentElement.scrollWidth > innerWidth,
    nameless: shown.filter((e) => e.matches("a, button, input, iframe") && !name(e))
        .map((e) => e.outerHTML),
    faint: shown.filter(faint).map((e) => e.outerHTML.slice(0, 200)),
};
"""
