"""Optuna's own tests of storages, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optuna.testing.pytest_storages import StorageTestCase

from hpo.storage.open import open_storage
from hpo.storage.rdb import StudyStorage


class TestStudyStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, url: str) -> Iterator[StudyStorage]:
        storage = open_storage(url, worker="me")
        yield storage
        storage.engine.dispose()
