"""Task addresses, the task store and what an ingress remembers of it."""

import asyncio
from pathlib import Path

import pytest
import torch

from infra.errors import BadInputError, CorruptArtefactError
from serving.config import ServingConfig
from serving.limits import ServingLimits
from serving.schemas import TaskRequest
from serving.task_cache import TaskCache
from serving.task_record import TaskRecord, is_task_id, make_record, specialization_id, task_id
from serving.task_requests import TaskRequests
from serving.task_store import ENCODER_NAME, NotSpecializedError, TaskStore
from serving.task_sweep import sweep_encoders
from tests.unit.serving_helpers import LocalService, make_bundle, play
from training.bundle import Bundle, load_bundle
from training.specialize import specialize


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(make_bundle(tmp_path_factory.mktemp("model") / "bundle"))


def record_of(*labels: str, templates: list[str] | None = None, pinned_version: str | None = None) -> TaskRecord:
    return make_record(tenant="default", labels=labels, templates=templates, pinned_version=pinned_version)


def test_addresses_never_change() -> None:
    # clients keep these: another value would lose every task ever made
    assert record_of("cat", "dog").task_id == "c7qi5fh5zgspueinn3d27jdjqm7435u3wmyqrtug3vrztizwpiza"
    assert (
        record_of("café", "Ω", templates=["a {}"], pinned_version="3").task_id
        == "awjnzpmubbgyojfumggtfobgfo4jysoiqpts4xqgjm6uetihzr5q"
    )
    assert (
        specialization_id("c7qi5fh5zgspueinn3d27jdjqm7435u3wmyqrtug3vrztizwpiza", "0" * 64)
        == "a08e27a5e555feb348322b820ec559ded7d4c422343f45b637b3d007e7b587d6"
    )


def test_the_same_names_in_another_spelling_are_the_same_task() -> None:
    decomposed = "cafe\N{COMBINING ACUTE ACCENT}"
    assert record_of(f"  {decomposed} ", "tea").task_id == record_of("café", "tea").task_id


@pytest.mark.parametrize(
    "other",
    [
        record_of("dog", "cat"),  # the order is that of the scores
        record_of("Cat", "dog"),
        record_of("cat", "dog", templates=["{}"]),  # stays, when the next champion has other templates
        record_of("cat", "dog", pinned_version="1"),
        make_record(tenant="another", labels=["cat", "dog"], templates=None, pinned_version=None),
    ],
)
def test_every_part_of_a_task_counts(other: TaskRecord) -> None:
    assert other.task_id != record_of("cat", "dog").task_id


def test_only_addresses_become_paths(tmp_path: Path) -> None:
    assert is_task_id(record_of("cat").task_id)
    for text in ("", "../" * 10, "A" * 52, "a" * 51, "a" * 53, "a" * 52 + "\n"):
        assert not is_task_id(text)
        with pytest.raises(BadInputError, match="not a task id"):
            TaskStore(str(tmp_path)).get(text, tenant="default")


def test_a_stored_task_is_found_after_a_restart_and_gone_after_deletion(tmp_path: Path, bundle: Bundle) -> None:
    record = record_of("cat", "dog")
    encoder = specialize(bundle, record.labels)
    store = TaskStore(str(tmp_path))
    for _ in range(2):  # twice is as good as once
        store.put(record)
        specialization = store.put_encoder(record.task_id, encoder, bundle)
    store.put_package(record.task_id, specialization, b"zip")

    restarted = TaskStore(str(tmp_path))
    assert restarted.get(record.task_id, tenant="default") == record
    found = restarted.get_encoder(record.task_id, specialization, bundle)
    assert found.task == encoder.task
    assert torch.equal(found.delta, encoder.delta)
    assert torch.equal(found.text_features, encoder.text_features)
    assert restarted.get_package(record.task_id, specialization) == b"zip"
    assert restarted.get(record.task_id, tenant="another") is None

    restarted.delete(record.task_id, tenant="default")
    restarted.delete(record.task_id, tenant="default")
    assert store.get(record.task_id, tenant="default") is None
    assert not store.has_encoder(record.task_id, specialization)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_damaged_encoder_counts_as_absent(tmp_path: Path, bundle: Bundle) -> None:
    record = record_of("cat")
    store = TaskStore(str(tmp_path))
    specialization = store.put_encoder(record.task_id, specialize(bundle, record.labels), bundle)
    (path,) = tmp_path.rglob(ENCODER_NAME)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(NotSpecializedError, match=specialization):
        store.get_encoder(record.task_id, specialization, bundle)


def test_encoders_of_models_that_are_served_no_more_are_swept(root: str, tmp_path: Path, bundle: Bundle) -> None:
    other = load_bundle(make_bundle(tmp_path / "other", seed=1))
    store, records = TaskStore(root), [record_of("cat"), record_of("dog")]
    for record in records:
        store.put(record)
        for model in (bundle, other):
            store.put_package(
                record.task_id, store.put_encoder(record.task_id, specialize(model, record.labels), model), b"zip"
            )
    assert sweep_encoders(store, digests={bundle.digest, other.digest, "0" * 64}) == 0
    assert sweep_encoders(store, digests={other.digest, "0" * 64}) == 2
    for record in records:
        assert store.get(record.task_id, tenant="default") == record
        kept, gone = [specialization_id(record.task_id, model.digest) for model in (other, bundle)]
        assert store.get_encoder(record.task_id, kept, other).task.labels == record.labels
        assert store.get_package(record.task_id, kept) == b"zip"
        assert not store.has_encoder(record.task_id, gone) and store.get_package(record.task_id, gone) is None
        assert store.specializations(record.task_id) == [kept]
    assert sweep_encoders(store, digests={other.digest}) == 0


def test_a_service_with_a_new_model_removes_what_the_old_one_made(
    config: ServingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.deployments.hypernetwork.MAX_SWEEP_INTERVAL_S", 0.05)
    later = config.rebuilt(bundle_uri=str(make_bundle(tmp_path / "later", seed=1)), task_ttl_s=3600)
    store, made = TaskStore(config.task_store_uri), []

    async def create(local: LocalService) -> None:
        made.append((await local.http.post("/v1/tasks", json={"labels": ["cat", "dog"]})).json())

    async def create_and_wait(local: LocalService) -> None:
        await create(local)
        async with asyncio.timeout(30):
            while store.specializations(made[1]["task_id"]) != [made[1]["specialization_id"]]:
                await asyncio.sleep(0.02)

    play(config, create)
    play(later, create_and_wait)
    assert made[0]["task_id"] == made[1]["task_id"] and made[0]["specialization_id"] != made[1]["specialization_id"]


def test_an_encoder_of_another_model_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    record = record_of("cat")
    store = TaskStore(str(tmp_path / "tasks"))
    specialization = store.put_encoder(record.task_id, specialize(bundle, record.labels), bundle)
    other = load_bundle(make_bundle(tmp_path / "other", seed=1))
    with pytest.raises(NotSpecializedError, match="was made by model"):
        store.get_encoder(record.task_id, specialization, other)


def test_a_record_that_is_not_the_task_of_its_address_is_refused(tmp_path: Path) -> None:
    record = record_of("cat")
    store = TaskStore(str(tmp_path))
    store.put(record)
    (path,) = tmp_path.rglob("*.json")
    path.write_text(record.rebuilt(labels=("dog",)).model_dump_json())
    with pytest.raises(CorruptArtefactError, match="holds another task"):
        store.get(record.task_id, tenant="default")


def test_a_remembered_task_expires_however_often_it_is_used() -> None:
    now = 0.0
    cache = TaskCache(ttl_s=10, clock=lambda: now)
    record = record_of("cat")
    cache.put(record)
    now = 9.0
    assert cache.get(record.task_id) == record
    cache.put(record)
    now = 10.0
    assert cache.get(record.task_id) is None


def test_memory_for_tasks_is_bounded_by_their_labels() -> None:
    cache = TaskCache(ttl_s=10, clock=lambda: 0.0, max_labels=4)
    first, second, third = record_of("a", "b"), record_of("c", "d"), record_of("e")
    cache.put(first)
    cache.put(second)
    assert cache.get(first.task_id) == first  # so the second is the least recently used
    cache.put(third)
    assert cache.get(second.task_id) is None
    assert cache.get(first.task_id) and cache.get(third.task_id)


def test_task_id_takes_lists_and_tuples_alike() -> None:
    as_list = task_id(tenant="t", labels=["a"], templates=["{}"], pinned_version=None)
    assert as_list == task_id(tenant="t", labels=("a",), templates=("{}",), pinned_version=None)


def test_a_request_that_was_checked_before_gives_the_same_record() -> None:
    requests = TaskRequests(ServingLimits(max_labels=3), max_labels=4)
    first = requests.record(TaskRequest(labels=(" a", "b")), "t")
    assert first == make_record(tenant="t", labels=["a", "b"], templates=None, pinned_version=None)
    assert requests.record(TaskRequest(labels=(" a", "b")), "t") is first
    others = [
        requests.record(TaskRequest(labels=("a", "b")), "t"),  # the same task, asked for in another spelling
        requests.record(TaskRequest(labels=(" a", "b")), "u"),
        requests.record(TaskRequest(labels=(" a", "b"), templates=("{}",)), "t"),
        requests.record(TaskRequest(labels=(" a", "b"), pinned_version="1"), "t"),
    ]
    assert [other.task_id == first.task_id for other in others] == [True, False, False, False]
    assert requests.record(TaskRequest(labels=(" a", "b")), "t") is not first  # memory is bounded by the labels
    for labels in (("a", "a"), ("a", "b", "c", "d"), ()):
        for _ in range(2):  # a refusal is not remembered as anything else
            with pytest.raises(BadInputError):
                requests.record(TaskRequest(labels=labels), "t")


def test_what_is_ready_is_known_for_each_model_and_as_long_as_the_task() -> None:
    now = 0.0
    cache = TaskCache(ttl_s=10, clock=lambda: now)
    record = record_of("cat")
    cache.put_ready(record, digest="x")
    assert cache.is_ready(record.task_id, digest="x") and not cache.is_ready(record.task_id, digest="y")
    now = 9.0
    cache.put_ready(record, digest="y")
    assert cache.is_ready(record.task_id, digest="y")
    now = 10.0
    assert not cache.is_ready(record.task_id, digest="x")
    cache.put_ready(record, digest="y")
    assert not cache.is_ready(record.task_id, digest="x")
    cache.forget(record.task_id)
    assert not cache.is_ready(record.task_id, digest="y")
