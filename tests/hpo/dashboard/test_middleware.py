"""The layers between a browser and the dashboard, each alone and without a database."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest

from hpo.dashboard.middleware.headers import DASHBOARD_POLICY, STRICT_POLICY, is_plain, safe_headers
from hpo.dashboard.middleware.hosts import host_name, known_hosts
from hpo.dashboard.middleware.login import STAYS_S, Guesses, Login
from hpo.dashboard.middleware.read_only import read_only, reads

Ask = Callable[..., Any]
PAGE = {"HTTP_ACCEPT": "text/html,application/xhtml+xml,*/*;q=0.8"}


def answering(*headers: tuple[str, str], status: str = "200 OK") -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, list(headers))
        return [b"inside"]

    return app


INSIDE = answering(("Content-Type", "text/plain"))


class TestReadOnly:
    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"])
    @pytest.mark.parametrize("path", ["/", "/dashboard", "/api/studies", "/api/new"])
    def test_what_is_no_get_is_refused(self, ask: Ask, method: str, path: str) -> None:
        answer = ask(read_only(INSIDE), path, method)
        assert answer.status == 403
        assert "--allow-writes" in answer.json["reason"]

    @pytest.mark.parametrize("path", ["/", "/dashboard/studies/1", "/api/studies/1/", "/csv/3"])
    def test_what_is_known_to_read_passes(self, ask: Ask, path: str) -> None:
        assert ask(read_only(INSIDE), path).body == b"inside"
        assert ask(read_only(INSIDE), path, "HEAD").status == 200

    @pytest.mark.parametrize(
        "path", ["/api/new", "/api/studies/1/delete", "/dashboards", "/artifacts/1/2/3/4", "/csv"]
    )
    def test_a_get_that_is_not_known_is_not_passed_on(self, ask: Ask, path: str) -> None:
        assert not reads(path)
        assert ask(read_only(INSIDE), path).status == 404

    def test_people_see_a_page_and_programs_json(self, ask: Ask) -> None:
        page = ask(read_only(INSIDE), "/dashboard", "POST", **PAGE)
        assert page.status == 403
        assert page.headers["content-type"].startswith("text/html")
        assert "This dashboard is read-only." in page.text
        call = ask(read_only(INSIDE), "/api/studies", "POST", **PAGE)
        assert call.headers["content-type"] == "application/json"


class TestHeaders:
    def test_each_response_is_confined(self, ask: Ask) -> None:
        for path in ("/", "/dashboard", "/api/meta", "/static/bundle.js", "/artifacts/1/a", "/..."):
            for status in ("200 OK", "302 Found", "404 Not Found", "500 Internal Server Error"):
                headers = ask(safe_headers(answering(status=status)), path).headers
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["referrer-policy"] == "same-origin"
                assert "frame-ancestors 'none'" in headers["content-security-policy"]
                assert headers["x-frame-options"] == "DENY"
                assert headers["cross-origin-resource-policy"] == "same-origin"

    def test_only_the_dashboard_may_run_its_script_and_nothing_foreign_loads(
        self, ask: Ask
    ) -> None:
        weak = answering(("Content-Security-Policy", "default-src *"))
        for path in ("/dashboard", "/dashboard/", "/dashboard/studies/1"):
            policy = ask(safe_headers(weak), path).headers["content-security-policy"]
            assert policy == DASHBOARD_POLICY
        for path in ("/api/studies", "/dashboards", "/static/x.html", "/csv/1"):
            policy = ask(safe_headers(INSIDE), path).headers["content-security-policy"]
            assert policy == STRICT_POLICY
        sources = set(re.findall(r"\S+", DASHBOARD_POLICY.replace(";", " ")))
        assert not [s for s in sources if "." in s or "*" in s or s in ("http:", "https:")]
        (scripts,) = re.findall(r"script-src ([^;]*)", DASHBOARD_POLICY)
        assert scripts == "'self' 'unsafe-eval'"

    @pytest.mark.parametrize(
        "kind",
        [
            "text/html",
            "image/svg+xml",
            "image/svg+xml; charset=utf-8",
            "application/xhtml+xml",
            "text/xml",
            "text/javascript",
            "application/pdf",
            "image/png, text/html",
            "image/pngx",
            "text/html;image/png",
            "",
            "None",
        ],
    )
    def test_artifacts_are_downloads(self, ask: Ask, kind: str) -> None:
        app = answering(
            ("Content-Type", kind),
            ("Content-Disposition", 'inline; filename="x.html"'),
            ("Access-Control-Allow-Origin", "*"),
        )
        for path in ("/artifacts/1/ab-1", "/artifacts/1/2/ab-1"):
            headers = ask(safe_headers(app), path).headers
            assert headers["content-disposition"] == "attachment"
            assert headers["content-type"] == "application/octet-stream"
            assert headers["content-security-policy"].startswith("sandbox;")
            assert "access-control-allow-origin" not in headers

    @pytest.mark.parametrize(
        ("kind", "sent"),
        [
            ("image/png", "image/png"),
            ("IMAGE/JPEG", "image/jpeg"),
            ("image/webp; x=text/html", "image/webp"),
            ("image/gif", "image/gif"),
        ],
    )
    def test_pictures_are_shown_but_never_run(self, ask: Ask, kind: str, sent: str) -> None:
        app = answering(("Content-Type", kind))
        headers = ask(safe_headers(app), "/artifacts/1/2/ab-1").headers
        assert headers["content-type"] == sent
        assert "content-disposition" not in headers
        assert headers["content-security-policy"].startswith("sandbox;")

    @pytest.mark.parametrize(
        "path",
        [
            "/static/../_app.py",
            "/static/..%2f_app.py",
            "/static/%2e%2e/_app.py",
            "/static/..%5c_app.py",
            "//artifacts/1/2/ab",
            "/%ffartifacts/1/2/ab",
            "/art%c0%afifacts/1",
            "/dashboard/./x",
            "/static/a%00.js",
            "/csv/1%0d%0aX: y",
        ],
    )
    def test_paths_that_layers_could_read_differently_are_refused(
        self, ask: Ask, path: str
    ) -> None:
        answer = ask(safe_headers(INSIDE), path)
        assert answer.status == 400
        assert answer.headers["x-content-type-options"] == "nosniff"

    def test_other_paths_are_plain(self) -> None:
        for path in ("", "/", "/dashboard/studies/1/", "/static/a..b.js"):
            assert is_plain(path)
        assert is_plain("/ᚱ".encode().decode("latin-1"))


class TestHosts:
    @pytest.mark.parametrize(
        ("header", "name"),
        [
            ("localhost", "localhost"),
            ("LocalHost:8080", "localhost"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:8080", "::1"),
            ("[::1]", "::1"),
            ("me.example.", "me.example"),
            ("", None),
            ("a:b", None),
            ("a, b", None),
            ("a@b", None),
            ("a b", None),
            ("::1", None),
            ("a:123456", None),
            ("a:65536", None),
            ("<b>", None),
            ("[:::::]", ":::::"),
            ("ᚱ.example", None),
            ("[::1", None),
        ],
    )
    def test_the_name_is_read_from_the_header(self, header: str, name: str | None) -> None:
        assert host_name(header) == name

    @pytest.mark.parametrize(
        ("header", "status"),
        [
            ("127.0.0.1:8080", 200),
            ("localhost:9000", 200),  # through a tunnel
            ("[::1]:8080", 200),
            ("LAB.example", 200),
            ("lab.example.:80", 200),
            ("evil.example", 403),
            ("127.0.0.1.evil.example:8080", 403),
            ("lab.example.evil.example", 403),
            ("10.0.0.1", 403),
            ("", 400),
            ("localhost, evil.example", 400),
        ],
    )
    def test_only_known_names_are_answered(self, ask: Ask, header: str, status: int) -> None:
        app = known_hosts(INSIDE, ["Lab.example"])
        assert ask(app, "/", HTTP_HOST=header).status == status

    def test_a_server_on_all_addresses_answers_to_each(self, ask: Ask) -> None:
        app = known_hosts(INSIDE, [], any_address=True)
        assert ask(app, "/", HTTP_HOST="10.0.0.1:8080").status == 200
        assert ask(app, "/", HTTP_HOST="[fe80::1]:8080").status == 200
        assert ask(app, "/", HTTP_HOST="evil.example").status == 403

    def test_the_refusal_says_what_to_do_and_holds_no_markup(self, ask: Ask) -> None:
        answer = ask(known_hosts(INSIDE, []), "/", HTTP_HOST="evil.example", **PAGE)
        assert "--allowed-host evil.example" in answer.text
        answer = ask(known_hosts(INSIDE, []), "/", HTTP_HOST="<b>evil", **PAGE)
        assert answer.status == 400
        assert "<b>" not in answer.text

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),  # a program
            ({"HTTP_ORIGIN": "http://127.0.0.1:8080"}, 200),
            ({"HTTP_ORIGIN": "https://127.0.0.1:8080"}, 200),  # behind a proxy
            ({"HTTP_ORIGIN": "http://127.0.0.1:8081"}, 403),
            ({"HTTP_ORIGIN": "https://evil.example"}, 403),
            ({"HTTP_ORIGIN": "null"}, 403),
            ({"HTTP_ORIGIN": "http://[::1"}, 403),
            ({"HTTP_SEC_FETCH_SITE": "same-origin"}, 200),
            ({"HTTP_SEC_FETCH_SITE": "same-site"}, 403),
            ({"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_ORIGIN": "http://127.0.0.1:8080"}, 403),
        ],
    )
    def test_changes_come_from_own_pages(
        self, ask: Ask, headers: dict[str, str], status: int
    ) -> None:
        assert ask(known_hosts(INSIDE, []), "/api/studies", "POST", **headers).status == status
        assert ask(known_hosts(INSIDE, []), "/api/studies", **headers).status == 200


TOKEN = "correct-horse"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def login(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Login:
    monkeypatch.setattr("itsdangerous.timed.time", SimpleNamespace(time=clock))
    return Login(INSIDE, TOKEN, "name", Guesses(limit=3, window_s=60.0, clock=clock))


def form(token: str, then: str = "/dashboard") -> str:
    return urlencode({"token": token, "next": then})


def cookie_of(ask: Ask, login: Login, **environ: str) -> str:
    answer = ask(login, "/login", "POST", form(TOKEN), **environ)
    assert answer.status == 303
    return str(answer.headers["set-cookie"])


class TestLogin:
    def test_without_the_token_nothing_is_shown(self, ask: Ask, login: Login) -> None:
        for path in ("/", "/dashboard", "/api/studies", "/static/bundle.js", "/artifacts/1/a"):
            answer = ask(login, path)
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith("Bearer ")
            assert ask(login, path, "DELETE").status == 401
        page = ask(login, "/dashboard/studies/1?a=b&c=d", **PAGE)
        assert page.status == 303
        assert (
            page.headers["location"] == f"/login?next={quote('/dashboard/studies/1?a=b&c=d', '')}"
        )

    def test_the_page_asks_for_it_and_leads_back(self, ask: Ask, login: Login) -> None:
        page = ask(safe_headers(login), "/login?next=/dashboard/studies/1", **PAGE)
        assert page.status == 200
        assert 'type="password"' in page.text
        assert 'value="/dashboard/studies/1"' in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "form-action 'self'" in policy

    def test_the_right_token_gives_a_cookie_that_lets_in(self, ask: Ask, login: Login) -> None:
        answer = ask(login, "/login", "POST", form(TOKEN, "/dashboard/studies/1"))
        assert (answer.status, answer.headers["location"]) == (303, "/dashboard/studies/1")
        value, *flags = answer.headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=Strict", "Path=/", f"Max-Age={STAYS_S}"} <= set(flags)
        assert not [flag for flag in flags if flag.startswith("Domain")]
        assert TOKEN not in value
        assert value.startswith("name=")
        assert ask(login, "/api/studies", HTTP_COOKIE=f"a=b; {value}; c").body == b"inside"
        assert ask(login, "/login", HTTP_COOKIE=value).headers["location"] == "/"

    def test_over_https_the_cookie_is_for_https_only(self, ask: Ask, login: Login) -> None:
        assert "; Secure" in cookie_of(ask, login, **{"wsgi.url_scheme": "https"})
        assert "; Secure" not in cookie_of(ask, login)
        # Only a server that knows its proxy turns this header into the scheme.
        assert "; Secure" not in cookie_of(ask, login, HTTP_X_FORWARDED_PROTO="https")

    def test_a_cookie_ends_and_can_not_be_made_up(
        self, ask: Ask, login: Login, clock: Clock
    ) -> None:
        made = clock.now
        value = cookie_of(ask, login).split(";")[0]
        clock.now += 1
        what, at, code = value.removeprefix("name=").split(".")
        later = cookie_of(ask, login).split(";")[0].split(".")[1]
        assert later != at
        flipped = ("0" if code[0] != "0" else "1") + code[1:]
        for forged in (
            f"{what}.{later}.{code}",
            f"{what}.{at}.{flipped}",
            f"{what}.{at}",
            f"{what}.{at}.",
            f"other.{at}.{code}",
            f"..{code}",
            TOKEN,
            "",
            "ÿ.ÿ.ÿ",
        ):
            assert ask(login, "/", HTTP_COOKIE=f"name={forged}").status == 401, forged
        assert ask(login, "/", HTTP_COOKIE=value.replace("name", "other")).status == 401
        # A restart, or another token, ends all sessions.
        assert ask(Login(INSIDE, TOKEN, "name"), "/", HTTP_COOKIE=value).status == 401
        clock.now = made + STAYS_S
        assert ask(login, "/", HTTP_COOKIE=value).status == 200
        clock.now = made + STAYS_S + 1
        assert ask(login, "/", HTTP_COOKIE=value).status == 401
        clock.now = made - 1
        assert ask(login, "/", HTTP_COOKIE=value).status == 401, "a session of the future"

    def test_one_good_cookie_of_several_lets_in(self, ask: Ask, login: Login) -> None:
        value = cookie_of(ask, login).split(";")[0]
        assert ask(login, "/", HTTP_COOKIE=f"name=x; {value}; name=y").status == 200

    @pytest.mark.parametrize("wrong", ["", "correct-hors", "correct-horse2", "CORRECT-HORSE", "ᚱ"])
    def test_a_wrong_token_is_refused(self, ask: Ask, login: Login, wrong: str) -> None:
        answer = ask(login, "/login", "POST", form(wrong), **PAGE)
        assert answer.status == 401
        assert "set-cookie" not in answer.headers
        assert "not the token" in answer.text
        sent = f"Bearer {wrong}".encode().decode("latin-1")
        assert ask(login, "/api/studies", HTTP_AUTHORIZATION=sent).status == 401

    def test_programs_send_it_in_a_header(self, ask: Ask, login: Login) -> None:
        for sent in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
            assert ask(login, "/api/studies", HTTP_AUTHORIZATION=sent).body == b"inside"
        for sent in (f"Basic {TOKEN}", TOKEN, "Bearer"):
            assert ask(login, "/api/studies", HTTP_AUTHORIZATION=sent).status == 401
        odd = 'a="b", c=='
        sent = f"Bearer {odd.replace(' ', '')}"
        assert ask(Login(INSIDE, sent[7:]), "/", HTTP_AUTHORIZATION=sent).status == 200
        other = Login(INSIDE, "ᚱᚢᚾ")
        sent = "Bearer ᚱᚢᚾ".encode().decode("latin-1")
        assert ask(other, "/", HTTP_AUTHORIZATION=sent).status == 200

    def test_guessing_is_slow(self, ask: Ask, login: Login, clock: Clock) -> None:
        value = cookie_of(ask, login).split(";")[0]
        for guess in range(3):
            clock.now += 1
            assert ask(login, "/login", "POST", form(str(guess))).status == 401
        answer = ask(login, "/login", "POST", form(TOKEN))
        assert answer.status == 429
        assert answer.headers["retry-after"] == "58"
        bearer = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
        assert ask(login, "/api/meta", **bearer).status == 429
        # Who is in stays in, and others may try.
        assert ask(login, "/api/meta", HTTP_COOKIE=value).status == 200
        assert ask(login, "/api/meta", REMOTE_ADDR="10.0.0.2", **bearer).status == 200
        clock.now += 58.5
        assert ask(login, "/api/meta", **bearer).status == 200

    @pytest.mark.parametrize(
        "then", ["//evil.example", "https://evil.example", "/\\evil.example", "x", "", "/a\r\nX: y"]
    )
    def test_nobody_is_led_elsewhere(self, ask: Ask, login: Login, then: str) -> None:
        answer = ask(login, "/login", "POST", form(TOKEN, then))
        assert answer.headers["location"] == "/"
        page = ask(login, f"/login?next={quote(then, '')}", **PAGE)
        assert 'name="next" value="/"' in page.text

    @pytest.mark.parametrize(
        "content",
        ["", "token", f"token={TOKEN}&x=" + "y" * 9000, "&".join("abcdefghijk"), "token=%ff"],
    )
    def test_odd_forms_are_wrong_tokens(self, ask: Ask, login: Login, content: str) -> None:
        assert ask(login, "/login", "POST", content).status == 401

    def test_what_passes_keeps_its_body(self, ask: Ask) -> None:
        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [])
            return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]

        layers = safe_headers(known_hosts(Login(app, TOKEN), []))
        content = "x=" + "y" * 100_000  # an artifact, say: more than a form may have
        sent = ask(layers, "/api/x", "POST", content, HTTP_AUTHORIZATION=f"Bearer {TOKEN}")
        assert sent.body == content.encode()

    def test_markup_stays_text(self, ask: Ask, login: Login) -> None:
        page = ask(login, "/login?next=" + quote('/"><script>alert(1)</script>'), **PAGE)
        assert "<script>" not in page.text
