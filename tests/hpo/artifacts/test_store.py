"""Where files of trials are kept: a directory, a bucket, nowhere; and when that fails."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from optuna.artifacts.exceptions import ArtifactNotFound

from hpo.artifacts import uploads as gallery_module
from hpo.artifacts.location import default_place
from hpo.artifacts.store import open_store
from hpo.artifacts.uploads import Gallery
from hpo.errors import UserError
from hpo.study.config import StudyConfig, load_study_file
from hpo.study.manifest import make_manifest

STUDY = """
name = "s"
storage = "sqlite:///s.db"
artifacts = "{artifacts}"
[instances]
source = "drawn"
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
"""


class Bucket(ThreadingHTTPServer):
    """The few of S3's requests that keep, give and remove an object."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refuses = False
        super().__init__(("127.0.0.1", 0), _Requests)

    @property
    def place(self) -> str:
        return f"s3://pictures?endpoint=http://127.0.0.1:{self.server_address[1]}"


class _Requests(BaseHTTPRequestHandler):
    server: Bucket
    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"x"')
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        assert "chunked" not in self.headers.get("Content-Encoding", "")  # not all know it
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            code = b"<Error><Code>AccessDenied</Code><Message>not for you</Message></Error>"
            return self._answer(403, code)
        self.server.objects[self.path] = content
        self._answer(200)

    def do_GET(self) -> None:
        found = self.server.objects.get(self.path)
        if found is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        self._answer(200, found)

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.path, None)
        self._answer(204)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    pytest.importorskip("boto3", reason="needs boto3: pip install -e '.[s3]'")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with Bucket() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was told so far."""
    told: list[str] = []
    monkeypatch.setattr(gallery_module, "warn", told.append)
    return told


class TestPlaces:
    def test_beside_the_sqlite_file_unless_it_is_named(self) -> None:
        assert default_place("s", "sqlite:////data/a.db") == "/data/a-artifacts"
        assert default_place("s", "sqlite:///a.db") == "a-artifacts"
        assert default_place("s", "/data/a.db.gz") == "/data/a-artifacts"
        assert default_place("s", "sqlite:///a.db.gz") == "a-artifacts"
        assert default_place("s", "postgresql://u:p@host/db") == "s-artifacts"

    def test_what_a_command_was_given_beats_the_study_file(self, tmp_path: Path) -> None:
        file = tmp_path / "s.toml"
        file.write_text(STUDY.format(artifacts="pictures"))
        config = load_study_file(str(file))
        assert config.artifacts_place() == "pictures"
        assert config.artifacts_place(option="none") == "none"

    @pytest.mark.parametrize(
        "place", ["", "ftp://x", "s3://", "s3://b/prefix", "s3://b?region=x", "s3://k:s@b"]
    )
    def test_what_names_no_store_is_told_in_a_line(self, place: str, tmp_path: Path) -> None:
        file = tmp_path / "s.toml"
        file.write_text(STUDY.format(artifacts=place))
        with pytest.raises(UserError, match="artifacts") as error:
            load_study_file(str(file))
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="artifacts"):
            open_store(place)

    def test_none_keeps_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        gallery = Gallery("none")
        assert not gallery.is_on
        assert gallery.keep("a.png", lambda: pytest.fail("drawn for nothing")) is None
        assert list(tmp_path.iterdir()) == []


class TestFolder:
    def test_gives_what_it_was_given(self, tmp_path: Path) -> None:
        kept = Gallery(str(tmp_path / "new" / "folder")).keep("thorn-0.png", lambda: b"picture")
        assert kept is not None
        store = open_store(str(tmp_path / "new" / "folder"))
        assert store is not None
        assert store.open_reader(kept.id).read() == b"picture"
        ((key, link),) = kept.link.items()
        assert key == f"artifacts:{kept.id}"
        assert json.loads(link) == {
            "artifact_id": kept.id,
            "filename": "thorn-0.png",
            "mimetype": "image/png",
            "encoding": None,
        }

    def test_ids_do_not_leave_it(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path / "a"))
        assert store is not None
        for escape in ("../b", "/tmp/b"):
            with pytest.raises(ValueError):
                store.write(escape, io.BytesIO(b"x"))

    def test_half_a_file_is_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full(io.BytesIO):
            def read(self, *_: object) -> bytes:
                if self.tell():
                    raise OSError(28, "No space left on device")
                return super().read(3)

        store = open_store(str(tmp_path / "a"))
        assert store is not None
        with pytest.raises(OSError, match="No space left"):
            store.write("ab-1", Full(b"123456"))
        assert list((tmp_path / "a").iterdir()) == []


class TestBucket:
    def test_gives_what_it_was_given(self, bucket: Bucket) -> None:
        kept = Gallery(bucket.place).keep("thorn-0.png", lambda: b"picture")
        assert kept is not None
        assert bucket.objects == {f"/pictures/{kept.id}": b"picture"}
        store = open_store(bucket.place)
        assert store is not None
        assert store.open_reader(kept.id).read() == b"picture"
        store.remove(kept.id)
        assert bucket.objects == {}
        with pytest.raises(ArtifactNotFound):
            store.open_reader(kept.id)

    def test_a_refusal_is_an_os_error(self, bucket: Bucket) -> None:
        bucket.refuses = True
        store = open_store(bucket.place)
        assert store is not None
        with pytest.raises(OSError, match="not for you"):
            store.write("ab-1", io.BytesIO(b"x"))

    def test_a_bucket_that_is_away_is_an_os_error(self, bucket: Bucket) -> None:
        bucket.shutdown()
        bucket.server_close()
        store = open_store(bucket.place)
        assert store is not None
        with pytest.raises(OSError, match="Could not connect"):
            store.open_reader("ab-1")


class TestTroubles:
    def test_are_told_once_and_rested_from(
        self, tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("no directory")
        gallery = Gallery(str(tmp_path / "file"))
        now = [1000.0]
        monkeypatch.setattr(gallery_module.time, "monotonic", lambda: now[0])
        drawn = []

        def draw() -> bytes:
            drawn.append(now[0])
            return b"x"

        for now[0] in (1000.0, 1001.0, 1200.0, 2000.0):
            assert gallery.keep("a.png", draw) is None
        assert drawn == [1000.0, 2000.0]
        assert len(warnings) == 1
        assert str(tmp_path / "file") in warnings[0]
        (tmp_path / "file").unlink()
        now[0] = 3000.0
        assert gallery.keep("a.png", draw) is not None

    def test_a_drawing_that_fails_is_one_too(self, tmp_path: Path, warnings: list[str]) -> None:
        def draw() -> bytes:
            raise RuntimeError("out of memory")

        assert Gallery(str(tmp_path)).keep("a.png", draw) is None
        assert "out of memory" in warnings[0]


def test_where_files_are_is_no_part_of_the_manifest() -> None:
    config = load_study_file(str(Path(__file__).parents[2] / "cheap.toml"))
    other = StudyConfig.model_validate({**config.model_dump(), "artifacts": "elsewhere"})
    problem = config.load_problem(None)
    assert make_manifest(config, problem) == make_manifest(other, problem)
