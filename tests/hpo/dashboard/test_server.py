"""The dashboard as it is served: what it shows, and that nothing changes unless asked for."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo.artifacts.store import open_store
from hpo.dashboard.__main__ import main
from hpo.dashboard.app import LiveDashboard
from hpo.dashboard.middleware.read_only import reads
from hpo.dashboard.server import Address, check_exposure, guard, listen, read_token
from hpo.errors import UserError
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.storage.retry import Retry

Ask = Callable[..., Any]

REPO = Path(__file__).parents[3]
HERE = Address("127.0.0.1", "127.0.0.1", 8080, socket.AF_INET)
FILE = """
name = "s"
storage = "sqlite:///{path}"
[instances]
source = "drawn"
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
log = true
"""

# Every endpoint of the dashboard's release, with its methods other than GET and those GETs that
# were read and found to write nothing.  One that is missing here was not looked at yet.
READING = {
    "/",
    "/dashboard<:re:(/.*)?>",
    "/api/meta",
    "/api/studies",
    "/api/studies/<study_id:int>",
    "/api/studies/<study_id:int>/param_importances",
    "/api/studies/<study_id:int>/plot/<plot_type>",
    "/csv/<study_id:int>",
    "/favicon.ico",
    "/static/<filename:path>",
    "/incompatible-rdb-schema",
    "/artifacts/<study_id:int>/<artifact_id:re:[0-9a-fA-F-]+>",
    "/artifacts/<study_id:int>/<trial_id:int>/<artifact_id:re:[0-9a-fA-F-]+>",
}
NOTE = {"version": 1, "body": "a note"}
FILE_DATA = {"file": "data:text/html;base64," + base64.b64encode(b"<p>").decode(), "filename": "x"}
# What a request to each sends, and the status that it gets where writes are allowed.
WRITING: dict[tuple[str, str], tuple[object, int]] = {
    ("POST", "/api/studies"): ({"study_name": "new", "directions": ["minimize"]}, 201),
    ("PUT", "/api/studies/<study_id:int>/note"): (NOTE, 204),
    ("POST", "/api/studies/<study_id:int>/preference"): (
        {"mode": "ChooseWorst", "candidates": [0], "clicked": 0},
        204,
    ),
    ("PUT", "/api/studies/<study_id:int>/preference_feedback_component"): (
        {"output_type": "note"},
        204,
    ),
    ("DELETE", "/api/studies/<study_id:int>/preference/<history_id>"): (None, 404),
    ("POST", "/api/studies/<study_id:int>/preference/<history_id>"): (None, 404),
    ("POST", "/api/studies/<study_id:int>/<trial_id:int>/skip"): (None, 400),  # not preferential
    ("POST", "/api/trials/<trial_id:int>/user-attrs"): ({"user_attrs": {"a": 1}}, 204),
    ("PUT", "/api/studies/<study_id:int>/<trial_id:int>/note"): (NOTE, 204),
    ("POST", "/api/artifacts/<study_id:int>/<trial_id:int>"): (FILE_DATA, 201),
    ("POST", "/api/artifacts/<study_id:int>"): (FILE_DATA, 201),
    (
        "DELETE",
        "/api/artifacts/<study_id:int>/<trial_id:int>/<artifact_id:re:[0-9a-fA-F-]+>",
    ): (None, 204),
    ("DELETE", "/api/artifacts/<study_id:int>/<artifact_id:re:[0-9a-fA-F-]+>"): (None, 204),
    ("POST", "/api/trials/<trial_id:int>/tell"): ({"state": "Complete", "values": [0.5]}, 204),
    # These ask a paid service, of which there is none here.
    ("POST", "/api/llm/trial_filter_query"): ({"user_query": "x"}, 400),
    ("POST", "/api/llm/generate_plotly_graph_query"): ({"user_query": "x"}, 400),
    ("POST", "/api/llm/re_generate_plotly_graph_query"): ({"user_query": "x"}, 400),
    ("POST", "/incompatible-rdb-schema"): (None, 302),  # never so: the tables were checked
    ("POST", "/api/studies/<study_id:int>/rename"): ({"study_name": "renamed"}, 201),
    ("DELETE", "/api/studies/<study_id:int>"): ({"remove_associated_artifacts": True}, 204),
}


class Study:
    """A study called ``s``: trial 0 runs, and others are added as they are needed."""

    def __init__(self, url: str) -> None:
        self.storage: StudyStorage = open_storage(url, worker="me")
        self.storage.create_study("s", {}, [])
        self.study = load_study(self.storage, "s", optuna.samplers.RandomSampler(seed=0))
        self.id = self.study._study_id

    def begin(self) -> int:
        trial_id = self.storage.claim(self.id, None)
        assert isinstance(trial_id, int)
        return trial_id

    def add(self, loss: float, over_limit: float | None = None, old_form: bool = True) -> int:
        trial_id = self.begin()
        trial = optuna.Trial(self.study, trial_id)
        with self.storage.batch(trial_id) as writes:
            trial.suggest_float("lr", 1e-4, 1e-2, log=True)
            trial.set_user_attr("outcome", "complete")
            if over_limit is not None:
                trial.set_constraint("seconds over the limit", over_limit)
                if old_form:
                    writes.system_attrs["constraints"] = [over_limit]
            writes.state, writes.values = TrialState.COMPLETE, [loss]
        return trial_id

    def attach(self, trial_id: int, store: Path, name: str, kind: str, content: bytes) -> str:
        """An artifact as Optuna's ``upload_artifact`` leaves it, with any name and type."""
        artifact_id = f"00000000-0000-0000-0000-{len(list(store.iterdir())):012d}"
        (store / artifact_id).write_bytes(content)
        meta = {"artifact_id": artifact_id, "filename": name, "mimetype": kind, "encoding": None}
        self.storage.set_trial_system_attr(trial_id, f"artifacts:{artifact_id}", json.dumps(meta))
        return f"/artifacts/{self.id}/{trial_id}/{artifact_id}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "artifacts").mkdir()
    return tmp_path / "artifacts"


Serve = Callable[..., LiveDashboard]


@pytest.fixture
def serve(path: Path, store: Path) -> Iterator[Serve]:
    opened = []

    def serve(url: str = f"sqlite:///{path}") -> LiveDashboard:
        opened.append(
            LiveDashboard(url, "s", "python -m hpo.worker --study s", open_store(str(store)))
        )
        return opened[-1]

    yield serve
    for live in opened:
        live.close()


def contents(path: Path) -> dict[str, list[Any]]:
    engine = sa.create_engine(f"sqlite:///{path}")
    meta = sa.MetaData()
    meta.reflect(engine)
    with engine.connect() as c:
        rows = {t.name: list(map(tuple, c.execute(sa.select(t)))) for t in meta.sorted_tables}
    engine.dispose()
    return rows


def filled_in(rule: str, study: Study, trial_id: int) -> str:
    for name, value in (
        ("<study_id:int>", str(study.id)),
        ("<trial_id:int>", str(trial_id)),
        ("<artifact_id:re:[0-9a-fA-F-]+>", "ab-1"),
        ("<history_id>", "x"),
        ("<plot_type>", "edf"),
        ("<filename:path>", "bundle.js"),
        ("<:re:(/.*)?>", "/studies/1"),
    ):
        rule = rule.replace(name, value)
    assert "<" not in rule
    return rule


class TestEndpoints:
    def test_each_endpoint_of_this_release_was_looked_at(self, serve: Serve) -> None:
        app: Any = serve().app
        routes = {(route.method, route.rule) for route in app.routes}
        assert routes == {("GET", rule) for rule in READING} | set(WRITING)

    def test_the_reading_ones_read(self, path: Path, serve: Serve, ask: Ask) -> None:
        study = Study(f"sqlite:///{path}")
        trial_id = study.add(0.5)
        app = guard(serve(), HERE)
        before = contents(path)
        for rule in READING:
            url = filled_in(rule, study, trial_id)
            assert reads(url)
            assert ask(app, url).status not in (403, 405), url
            assert ask(app, url, "HEAD").body == b""
        assert contents(path) == before

    def test_the_writing_ones_are_refused(self, path: Path, serve: Serve, ask: Ask) -> None:
        study = Study(f"sqlite:///{path}")
        trial_id = study.begin()
        app = guard(serve(), HERE)
        before = contents(path)
        for (method, rule), (content, _) in WRITING.items():
            url = filled_in(rule, study, trial_id)
            for spelt in (url, url + "/", url + "?_method=GET"):
                answer = ask(app, spelt, method, content, HTTP_X_HTTP_METHOD_OVERRIDE="GET")
                assert answer.status == 403, (method, spelt)
                assert "--allow-writes" in answer.json["reason"]
        assert contents(path) == before

    def test_they_work_where_writes_are_allowed(
        self, path: Path, store: Path, serve: Serve, ask: Ask
    ) -> None:
        study = Study(f"sqlite:///{path}")
        trial_id = study.begin()
        (store / "ab-1").write_text("x")
        app = guard(serve(), HERE, allow_writes=True)
        for (method, rule), (content, status) in WRITING.items():
            if "<artifact_id" in rule:
                (store / "ab-1").write_text("x")
            if (method, rule) == ("DELETE", "/api/studies/<study_id:int>"):
                assert [t.value for t in load_study(study.storage, "renamed").trials] == [0.5]
                study.id = study.storage.get_study_id_from_name("renamed")
            answer = ask(app, filled_in(rule, study, trial_id), method, content)
            assert answer.status == status, (method, rule, answer.body)
        names = [s.study_name for s in study.storage.get_all_studies()]
        assert names == ["new"]

    def test_other_sites_can_not_write_even_then(self, path: Path, serve: Serve, ask: Ask) -> None:
        study = Study(f"sqlite:///{path}")
        app = guard(serve(), HERE, allow_writes=True)
        url = f"/api/studies/{study.id}"
        assert ask(app, url, "DELETE", HTTP_ORIGIN="https://evil.example").status == 403
        assert study.study.user_attrs == {}


class TestStudies:
    def test_both_kinds_of_databases_are_shown(self, url: str, serve: Serve, ask: Ask) -> None:
        study = Study(url)
        study.add(0.5)
        study.begin()
        app = guard(serve(url), HERE)
        (summary,) = ask(app, "/api/studies").json["study_summaries"]
        assert summary["study_name"] == "s"
        detail = ask(app, f"/api/studies/{study.id}").json
        assert [t["state"] for t in detail["trials"]] == ["Complete", "Running"]
        assert [t["number"] for t in detail["best_trials"]] == [0]
        assert ask(app, "/api/studies/99").status == 404
        assert "0.5" in ask(app, f"/csv/{study.id}").text
        assert ask(app, "/").headers["location"] == f"/dashboard/studies/{study.id}"

    def test_an_empty_database_opens_and_waits(self, path: Path, serve: Serve, ask: Ask) -> None:
        live = serve()
        app = guard(live, HERE)
        assert not live.study_is_there
        assert ask(app, "/api/studies").json == {"study_summaries": []}
        assert ask(app, "/dashboard").status == 200
        page = ask(app, "/")
        assert page.status == 200
        assert "waits for its first worker" in page.text
        assert "python -m hpo.worker --study s" in page.text
        study = Study(f"sqlite:///{path}")
        assert live.study_is_there
        assert ask(app, "/").headers["location"] == f"/dashboard/studies/{study.id}"

    def test_an_infeasible_trial_is_never_best(self, path: Path, serve: Serve, ask: Ask) -> None:
        study = Study(f"sqlite:///{path}")

        def best() -> list[int]:
            # The dashboard keeps what it read for seconds: a new one each time.
            detail = ask(guard(serve(), HERE), f"/api/studies/{study.id}").json
            assert [bool(max(t["constraints"], default=0) > 0) for t in detail["trials"]] == [
                i < 2 for i in range(len(detail["trials"]))
            ]
            return [t["number"] for t in detail["best_trials"]]

        study.add(0.1, over_limit=3.0)
        study.add(0.2, over_limit=1.0, old_form=False)
        assert best() == []
        study.add(0.4, over_limit=-1.0)
        study.add(0.3)
        assert best() == [3]

    def test_a_file_that_is_removed_or_replaced_is_noticed(
        self, path: Path, serve: Serve, ask: Ask
    ) -> None:
        def remove() -> None:
            for file in path.parent.glob("s.db*"):
                file.unlink()

        study = Study(f"sqlite:///{path}")
        study.add(0.1)
        app = guard(serve(), HERE)
        assert len(ask(app, f"/api/studies/{study.id}").json["trials"]) == 1
        study.storage.engine.dispose()
        remove()
        answer = ask(app, f"/api/studies/{study.id}")
        assert answer.status == 503
        assert "is gone" in answer.json["reason"]
        assert not path.exists()
        again = Study(f"sqlite:///{path}")
        again.add(0.2)
        again.add(0.3)
        assert again.id == study.id
        trials = ask(app, f"/api/studies/{study.id}").json["trials"]
        assert [t["values"] for t in trials] == [[0.2], [0.3]]

    def test_what_a_trial_gets_while_it_runs_and_as_it_ends_is_shown_at_once(
        self, path: Path, serve: Serve, ask: Ask, store: Path
    ) -> None:
        study = Study(f"sqlite:///{path}")
        trial_id = study.begin()
        live = serve()
        assert len(live.storage.get_all_trials(study.id)) == 1
        study.attach(trial_id, store, "a.png", "image/png", b"x")
        study.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
        (trial,) = live.storage.get_all_trials(study.id)
        assert trial.state == TrialState.COMPLETE
        assert [key for key in trial.system_attrs if key.startswith("artifacts:")]

    def test_a_study_is_read_by_many_while_it_is_written(
        self, path: Path, serve: Serve, ask: Ask
    ) -> None:
        study = Study(f"sqlite:///{path}")
        app = guard(serve(), HERE)
        problems: list[str] = []
        done = threading.Event()

        def look() -> None:
            seen = 0
            while not done.is_set():
                for url in (f"/api/studies/{study.id}", f"/csv/{study.id}", "/api/studies"):
                    answer = ask(app, url)
                    if answer.status != 200:
                        problems.append(f"{url}: {answer.status} {answer.text[:200]}")
                        return
                trials = ask(app, f"/api/studies/{study.id}").json["trials"]
                numbers = [t["number"] for t in trials]
                if numbers != list(range(len(numbers))):
                    problems.append(f"numbers {numbers}")
                if len(numbers) < seen:
                    problems.append(f"{len(numbers)} trials after {seen}")
                seen = len(numbers)

        readers = [threading.Thread(target=look) for _ in range(4)]
        for reader in readers:
            reader.start()
        for i in range(40):
            study.add(0.5 + i)
        done.set()
        for reader in readers:
            reader.join()
        assert problems == []
        app = guard(serve(), HERE)
        assert len(ask(app, f"/api/studies/{study.id}").json["trials"]) == 40

    def test_a_database_that_is_away_is_told_in_one_line(
        self, path: Path, serve: Serve, ask: Ask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = Study(f"sqlite:///{path}")
        app = guard(serve(), HERE)

        def away(self: Retry, _: object) -> None:
            raise UserError(f"{self.name}: connection refused")

        monkeypatch.setattr(Retry, "call", away)
        for url in ("/", "/api/studies", f"/api/studies/{study.id}"):
            answer = ask(app, url)
            assert answer.status == 503
            assert answer.json == {"reason": f"sqlite:///{path}: connection refused"}
        assert ask(app, f"/csv/{study.id}").status == 503


class TestArtifacts:
    def test_they_never_run(self, path: Path, store: Path, serve: Serve, ask: Ask) -> None:
        study = Study(f"sqlite:///{path}")
        trial_id = study.begin()
        app = guard(serve(), HERE)
        content = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
        for name, kind, is_picture in (
            ("a.png", "image/png", True),
            ("a.png", "text/html", False),
            ("a.html", "text/html", False),
            ("a.svg", "image/svg+xml", False),
            ("../../a.svg", "IMAGE/SVG+XML", False),
            ('a"; filename="b.html', "text/html; charset=utf-8", False),
            ("a\r\nX: y", "image/png, text/html", False),
            ("ᚱ.xhtml", "application/xhtml+xml", False),
            ("a.js", "text/javascript", False),
        ):
            answer = ask(app, study.attach(trial_id, store, name, kind, content))
            assert (answer.status, answer.body) == (200, content), (name, kind)
            headers = answer.headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")
            assert "access-control-allow-origin" not in headers
            if is_picture:
                assert headers["content-type"] == kind
                assert "content-disposition" not in headers
            else:
                assert headers["content-type"] == "application/octet-stream", (name, kind)
                assert headers["content-disposition"] == "attachment"

    def test_a_type_that_would_split_the_headers_is_an_error(
        self, path: Path, store: Path, serve: Serve, ask: Ask
    ) -> None:
        study = Study(f"sqlite:///{path}")
        url = study.attach(study.begin(), store, "a", "text/html\r\nX: y", b"x")
        answer = ask(guard(serve(), HERE), url, **{"wsgi.errors": io.StringIO()})
        assert answer.status == 500
        assert "x" not in answer.headers

    def test_only_what_belongs_to_a_trial_is_served(
        self, path: Path, store: Path, serve: Serve, ask: Ask
    ) -> None:
        study = Study(f"sqlite:///{path}")
        trial_id = study.begin()
        url = study.attach(trial_id, store, "a.png", "image/png", b"x")
        (store / "dead-beef").write_bytes(b"nobody's")
        app = guard(serve(), HERE)
        for other in (
            f"/artifacts/{study.id}/{trial_id}/dead-beef",
            f"/artifacts/{study.id}/{trial_id + 1}/{url.split('/')[-1]}",
            f"/artifacts/99/{trial_id}/dead-beef",
            f"/artifacts/{study.id}/dead-beef",
            f"/artifacts/{study.id}/{trial_id}/..%2fs.db",
            f"/artifacts/{study.id}/{trial_id}/../../s.db",
            "/artifacts/../s.db",
        ):
            assert ask(app, other).status in (400, 404), other
        next(store.glob("0000*")).unlink()
        assert ask(app, url).status == 404

    def test_files_beside_the_static_ones_stay_hidden(self, serve: Serve, ask: Ask) -> None:
        live = serve()
        for path_of in ("/static/../_app.py", "/static/%2e%2e/_app.py", "/static/..%2f_app.py"):
            assert ask(guard(live, HERE), path_of).status == 400, path_of
            assert ask(live.app, path_of).status in (403, 404), path_of


class TestGuards:
    def test_each_response_carries_the_headers(self, path: Path, serve: Serve, ask: Ask) -> None:
        study = Study(f"sqlite:///{path}")
        live = serve()
        token = {"token": "t"}
        key = {"HTTP_AUTHORIZATION": "Bearer t"}
        for app, path_of, environ in (
            (guard(live, HERE), "/", {}),
            (guard(live, HERE), "/dashboard", {}),
            (guard(live, HERE), "/static/bundle.js", {"HTTP_ACCEPT_ENCODING": "gzip"}),
            (guard(live, HERE), f"/csv/{study.id}", {}),
            (guard(live, HERE), "/nothing", {}),
            (guard(live, HERE), "/dashboard", {"HTTP_HOST": "evil.example"}),
            (guard(live, HERE), "/a//b", {}),
            (guard(live, HERE, allow_writes=True), "/nothing", {}),
            (guard(live, HERE, **token), "/dashboard", {}),
            (guard(live, HERE, **token), "/dashboard", {"HTTP_ACCEPT": "text/html"}),
            (guard(live, HERE, **token), "/login", {"HTTP_ACCEPT": "text/html"}),
            (guard(live, HERE, **token), "/dashboard", key),
        ):
            headers = ask(app, path_of, **environ).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]

    def test_the_dashboard_comes_after_host_and_token(self, serve: Serve, ask: Ask) -> None:
        app = guard(serve(), HERE, token="t", allowed_hosts=["lab.example"])
        key = {"HTTP_AUTHORIZATION": "Bearer t"}
        assert ask(app, "/api/studies").status == 401
        assert ask(app, "/api/studies", **key).status == 200
        assert ask(app, "/api/studies", HTTP_HOST="lab.example", **key).status == 200
        assert ask(app, "/api/studies", HTTP_HOST="evil.example", **key).status == 403
        assert ask(app, "/api/studies", "POST", **key).status == 403
        form = ask(app, "/login", "POST", "token=t", HTTP_ORIGIN="https://evil.example")
        assert form.status == 403
        assert (
            "runes_dashboard_8080=" in ask(app, "/login", "POST", "token=t").headers["set-cookie"]
        )


class TestCommand:
    @pytest.fixture
    def file(self, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        for name in ("RUNES_STORAGE", "RUNES_DASHBOARD_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "s.toml").write_text(FILE.format(path=path))
        return str(tmp_path / "s.toml")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--port", "70000"], "--port is 70000"),
            (["--artifacts", "/nowhere"], "--artifacts: /nowhere is no directory"),
            (["--host", "no such host"], "--host no such host is no address"),
            (["--host", "192.0.2.1", "--port", "0"], "--host of this machine's"),
            (["--proxy", "*"], "write the IP address"),
            (["--port", "0", "--allowed-host", "http://a/"], "--allowed-host is 'http://a/'"),
            (["--port", "0", "--allowed-host", "my_host"], "write a name such as lab.example"),
            (["--token-file", "/nowhere"], "--token-file /nowhere: No such file"),
            (["--token-file", "/dev/null"], "holds no token"),
            (["--token-file", "/dev/null", "--no-token"], "exclude each other"),
            (["--host", "0.0.0.0", "--port", "0"], "--host 0.0.0.0 lets other machines in"),
            (["--host", "::", "--port", "0"], "--host :: lets other machines in"),
            (["--proxy", "--port", "0"], "--proxy lets other machines in"),
            (["--storage", "mysql://x", "--port", "0"], "storage is on mysql"),
            (["--storage", "sqlite:////no/where.db", "--port", "0"], "can't open sqlite:////no/wh"),
        ],
    )
    def test_mistakes_are_told_in_one_line(
        self, file: str, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
        with pytest.raises(UserError) as caught:
            main(["--study", file, *options])
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_token_opens_the_server_to_others(self) -> None:
        others = Address("0.0.0.0", "0.0.0.0", 1, socket.AF_INET)
        check_exposure(HERE, None, False, None)
        check_exposure(others, "t", False, None)
        check_exposure(others, None, True, None)
        check_exposure(HERE, "t", False, "127.0.0.1")
        with pytest.raises(UserError):
            check_exposure(others, None, False, None)

    def test_the_token_comes_from_a_file_or_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "token").write_text("of-file\n")
        monkeypatch.setenv("RUNES_DASHBOARD_TOKEN", "of-environment")
        assert read_token(tmp_path / "token", False) == "of-file"
        assert "RUNES_DASHBOARD_TOKEN" not in os.environ
        monkeypatch.setenv("RUNES_DASHBOARD_TOKEN", "of-environment")
        assert read_token(None, False) == "of-environment"
        monkeypatch.setenv("RUNES_DASHBOARD_TOKEN", "of-environment")
        assert read_token(None, True) is None
        assert read_token(None, False) is None
        for words in ("", "two words", "two\nlines"):
            monkeypatch.setenv("RUNES_DASHBOARD_TOKEN", words)
            with pytest.raises(UserError, match="holds no token"):
                read_token(None, False)

    def test_a_port_that_is_taken_is_told(self) -> None:
        address, listener = listen("127.0.0.1", 0)
        with listener:
            words = f"port {address.port} of 127.0.0.1 is taken; write another, such as --port"
            with pytest.raises(UserError, match=words):
                listen("127.0.0.1", address.port)

    def test_addresses_as_browsers_write_them(self) -> None:
        assert HERE.url() == "http://127.0.0.1:8080/"
        assert Address("::1", "::1", 1, socket.AF_INET6).url() == "http://[::1]:1/"
        everywhere = Address("0.0.0.0", "0.0.0.0", 1, socket.AF_INET)
        assert everywhere.url() == f"http://{socket.gethostname()}:1/"
        assert everywhere.url(here=True) == "http://127.0.0.1:1/"

    def test_a_real_server_from_start_to_end(self, file: str, path: Path) -> None:
        server = subprocess.Popen(
            [sys.executable, "-m", "hpo.dashboard", "--study", file, "--port", "0", "--proxy"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, PYTHONPATH=str(REPO), RUNES_DASHBOARD_TOKEN="secret-token"),
            text=True,
        )
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline() for _ in range(3)]
            assert lines[0] == f"study s in sqlite:///{path}, read-only; Ctrl-C ends it\n"
            assert "waits for its first worker" in lines[1]
            url = lines[2].strip()
            assert url.startswith("http://127.0.0.1:")

            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{url}api/studies")
            assert refused.value.code == 401
            refused.value.close()

            def answer(path_of: str, data: bytes | None = None, **headers: str) -> Any:
                request = urllib.request.Request(url + path_of, data, headers)
                request.add_header("Authorization", "Bearer secret-token")
                return urllib.request.build_opener(NoRedirect).open(request, timeout=30)

            Study(f"sqlite:///{path}")
            with answer("api/studies") as response:
                assert len(json.load(response)["study_summaries"]) == 1
                assert "Server" not in response.headers
            with answer("static/bundle.js") as response:
                assert response.headers.get_content_type().endswith("javascript")
            # Host is what the proxy passed on; its word for https is believed.
            forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
            with answer("login", b"token=secret-token", **forwarded) as response:
                assert response.status == 303
                assert response.headers["Location"] == "/"
                assert "; Secure" in response.headers["Set-Cookie"]

            port = url.rstrip("/").rpartition(":")[2]
            second = subprocess.run(
                [sys.executable, "-m", "hpo.dashboard", "--study", file, "--port", port],
                capture_output=True,
                env=dict(os.environ, PYTHONPATH=str(REPO)),
                text=True,
            )
            assert second.returncode == 2
            assert second.stderr.startswith(f"error: port {port} of 127.0.0.1 is taken")
            assert second.stderr.count("\n") == 1

            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0
            assert server.stdout.read() == ""
        finally:
            server.kill()
            server.communicate()

    def test_ctrl_c_ends_it_with_success(self, file: str) -> None:
        server = subprocess.Popen(
            [sys.executable, "-m", "hpo.dashboard", "--study", file, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=str(REPO)),
            text=True,
        )
        try:
            assert server.stdout is not None
            while not server.stdout.readline().startswith("http"):
                pass
            server.send_signal(signal.SIGINT)
            assert server.communicate(timeout=20) == ("", "")
            assert server.returncode == 0
        finally:
            server.kill()
            server.communicate()


class NoRedirect(urllib.request.HTTPErrorProcessor):
    def http_response(self, request: Any, response: Any) -> Any:
        return response


class TestOddities:
    @pytest.mark.parametrize(
        ("asked", "status"),
        [
            ("/api/studies/{huge}", 404),
            ("/api/studies/{huge}/param_importances", 404),
            ("/csv/{huge}", 404),
            ("/artifacts/{huge}/1/ab-1", 404),
            ("/api/studies/{id}?after=abc", 400),
            ("/api/studies/{id}?after=1.5", 400),
            ("/api/studies/{id}?after={huge}", 400),
            ("/api/studies/{id}?after=-1", 400),
            ("/api/studies/{id}?after=1", 200),
        ],
    )
    def test_numbers_that_no_database_has_are_no_error_of_the_server(
        self, path: Path, serve: Serve, ask: Ask, asked: str, status: int
    ) -> None:
        study = Study(f"sqlite:///{path}")
        study.add(1.0)
        answer = ask(serve(), asked.format(huge="1" * 23, id=study.id))
        assert answer.status == status, answer.text
        assert status == 200 or answer.json["reason"]

    def test_a_plot_that_needs_plotly_says_so(
        self, path: Path, serve: Serve, ask: Ask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = Study(f"sqlite:///{path}")
        monkeypatch.setattr("hpo.dashboard.app.find_spec", lambda name: None)
        answer = ask(serve(), f"/api/studies/{study.id}/plot/contour")
        assert answer.status == 501
        assert "Plotly is not installed" in answer.json["reason"]

    def test_attributes_of_wrong_types_do_not_hide_a_study(
        self, path: Path, serve: Serve, ask: Ask
    ) -> None:
        study = Study(f"sqlite:///{path}")
        for key, value in (
            ("constraints", "abc"),
            ("constraints", 7),
            ("fixed_params", [1]),
            ("artifacts:x", "nope"),
            ("artifacts:y", 5),
        ):
            trial_id = study.add(1.0)
            with sa.create_engine(f"sqlite:///{path}").begin() as c:
                c.exec_driver_sql(
                    "INSERT INTO trial_system_attributes (trial_id, key, value_json) "
                    "VALUES (?, ?, ?) ON CONFLICT (trial_id, key) "
                    "DO UPDATE SET value_json = excluded.value_json",
                    (trial_id, key, json.dumps(value)),
                )
        answer = ask(serve(), f"/api/studies/{study.id}")
        assert answer.status == 200, answer.text
        assert len(answer.json["trials"]) == 5
