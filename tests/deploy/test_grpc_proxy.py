"""Why docs/machines.md says no to Optuna's gRPC proxy: what would have to be different."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat

from hpo.storage.rdb import StudyStorage
from hpo.storage.tables import HEARTBEATS


def test_it_knows_neither_our_operations_nor_heartbeats() -> None:
    ours = {n for n, value in vars(StudyStorage).items() if n[0] != "_" and callable(value)}
    ours -= set(dir(BaseStorage))
    assert not ours & set(dir(GrpcStorageProxy))
    assert not issubclass(GrpcStorageProxy, BaseHeartbeat)
    assert {"claim", "batch", "beat", "reclaim", "release", "join"} <= ours


@pytest.mark.filterwarnings("ignore")  # experimental
def test_a_trial_that_runs_through_it_shows_no_sign_of_life(tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="needs grpcio and protobuf")
    from optuna.storages._grpc.server import make_server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    direct = RDBStorage(f"sqlite:///{tmp_path}/s.db", heartbeat_interval=1, grace_period=2)
    server = make_server(direct, "localhost", port)
    server.start()
    signs = []

    def look(trial: optuna.Trial) -> float:
        time.sleep(1.5)
        with direct.engine.connect() as c:
            query = sa.select(sa.func.count()).where(HEARTBEATS.c.trial_id == trial._trial_id)
            signs.append(c.execute(query).scalar())
        return 0.0

    proxy = GrpcStorageProxy(host="localhost", port=port)
    for name, storage in (("direct", direct), ("proxy", proxy)):
        optuna.create_study(study_name=name, storage=storage).optimize(look, n_trials=1)
    server.stop(None)
    assert signs == [1, 0]
