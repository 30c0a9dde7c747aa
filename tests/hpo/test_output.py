"""What commands print, whoever reads it and whatever a database holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpo.errors import UserError, check_out, printable, write_whole

REPO = Path(__file__).parents[2]


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[31mred\x07\r\x9b\u202ex") == r"a\x1b[31mred\x07\r\x9b\u202ex"
    assert printable("0.1 ± 0.2, ᚦ\nnext") == "0.1 ± 0.2, ᚦ\nnext"


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = (
        f"from hpo.errors import UserError, run_command\ndef main():\n {code}\nrun_command(main)"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        env=dict(os.environ, PYTHONPATH=str(REPO), **variables),
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_output_without_the_characters_gets_question_marks() -> None:
    done = run("print('0.1 ± 0.2')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.1 ? 0.2\n", "")


def test_an_error_is_one_line_without_control_characters() -> None:
    done = run("raise UserError('study \\x1b[2J')")
    assert (done.returncode, done.stderr) == (2, "error: study \\x1b[2J\n")


def test_a_file_that_cannot_be_opened_is_one_line() -> None:
    done = run("open('/nowhere/at/all')")
    assert (done.returncode, done.stderr) == (
        2,
        "error: /nowhere/at/all: No such file or directory\n",
    )


def test_an_output_that_nobody_reads_any_more_ends_quietly() -> None:
    script = (
        "from hpo.errors import run_command\n"
        "def main():\n for i in range(100000): print('a line', i)\nrun_command(main)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=dict(os.environ, PYTHONPATH=str(REPO)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_only_regular_files_are_replaced_and_links_stay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path, told in (
        (tmp_path / "pipe", "is no regular file"),
        (tmp_path, "is a directory"),
        (tmp_path / "file" / "x", "file is no directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(UserError, match=told):
            check_out(path)
        with pytest.raises(UserError, match=told):
            write_whole(path, b"x")
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"content"
    write_whole(tmp_path / "new" / "deeper" / "y", b"z")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link", "new", "pipe"]
