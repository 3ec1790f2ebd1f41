"""Who may call: keys, tenants, quotas and what is told to whom, over the service in this process."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.responses import Response
from typer.testing import CliRunner

from infra.errors import BadInputError
from pipeline.cli import app as command
from serving.app import build_application, tenants_allowed
from serving.authentication import Authentication
from serving.config import ServingConfig
from serving.launch import checked_access
from serving.metrics import IngressMetrics
from serving.middleware import RequestContext
from serving.rate import Access
from serving.tenants import KeyRing, TenantConfig, key_hash, new_key, tenants_of_environment
from tests.unit.serving_helpers import LIMITS, LocalService, check_problem, picture, play

ZEROS, ONES = "0" * 64, "1" * 64
KEYS = {name: new_key()[0] for name in ("ant", "bee")}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


def tenant(name: str, **more: Any) -> TenantConfig:
    return TenantConfig(name=name, key_sha256=(key_hash(KEYS[name].encode()),), **more)


@pytest.fixture
def config(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> ServingConfig:
    monkeypatch.delenv("HYPERCLIP_TENANTS", raising=False)
    return config.rebuilt(tenants=(tenant("ant"), tenant("bee")))


def test_a_key_is_asked_for_and_nothing_is_told_without_one(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        calls = [
            ("POST", "/v1/tasks"), ("GET", f"/v1/tasks/{'a' * 52}"), ("GET", "/v1/models"), ("POST", "/v1/embed/text"),
            ("GET", "/nothing"), ("POST", "/v1/classify"),
        ]  # fmt: skip
        for method, path in calls:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "hck_wrong"}, {"authorization": "Basic eDp5"}):
                response = await local.http.request(method, path, headers=headers, content=b"x")
                check_problem(response, 401)
                assert response.headers["www-authenticate"].startswith("Bearer")
        check_problem(await local.http.get("/v1/models", headers={"authorization": "Bearer " + "k" * 100_000}), 401)
        for path in ("/healthz", "/", "/app.js", "/openapi.json"):
            assert (await local.http.get(path)).status_code == 200, path
        document = (await local.http.get("/openapi.json")).json()
        assert set(document["components"]["securitySchemes"]) == {name for way in document["security"] for name in way}
        assert (
            document["paths"]["/healthz"]["get"]["security"] == [] and "security" not in document["paths"]["/v1/models"]["get"]
        )
        check_problem(await local.http.get("/metrics"), 404)  # it names the tenants
        check_problem(await local.http.get("/metrics", headers=bearer("ant")), 404)
        for headers in (bearer("ant"), {"x-api-key": KEYS["ant"]}, {"Authorization": f"bearer {KEYS['ant']}"}):
            assert (await local.http.get("/v1/models", headers=headers)).status_code == 200

    play(config, scenario)


def test_the_task_of_another_tenant_does_not_exist(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        body = {"labels": ["cat", "dog"]}
        made = {name: (await local.http.post("/v1/tasks", json=body, headers=bearer(name))).json()["task_id"] for name in KEYS}
        assert made["ant"] != made["bee"]
        path = f"/v1/tasks/{made['ant']}"  # this replica has it in its memory
        for method, call in (("GET", path), ("DELETE", path), ("GET", f"{path}/export"), ("POST", f"{path}/classify")):
            refused = await local.http.request(method, call, headers=bearer("bee"), content=picture(0))
            unknown = await local.http.request(
                method, call.replace(made["ant"], "b" * 52), headers=bearer("bee"), content=picture(0)
            )
            assert check_problem(refused, 404) == check_problem(unknown, 404)
        answer = await local.http.post(f"{path}/classify", headers=bearer("ant"), content=picture(0))
        assert answer.status_code == 200

    play(config, scenario)


def test_a_tenant_that_asks_too_much_is_told_when_to_come_back(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        get = [await local.http.get("/v1/models", headers=bearer("ant")) for _ in range(4)]
        assert [response.status_code for response in get] == [200, 200, 429, 429]
        assert check_problem(get[2], 429)["type"].endswith(":rate_limited")
        assert " a second that this tenant may make" in get[2].json()["detail"]
        assert int(get[2].headers["retry-after"]) >= 5
        assert (await local.http.get("/v1/models", headers=bearer("bee"))).status_code == 200
        send = [
            await local.http.post("/v1/embed/image", files=[("images", picture(0))] * 3, headers=bearer("bee")) for _ in "ab"
        ]
        assert [response.status_code for response in send] == [200, 429]
        assert check_problem(send[1], 429)["type"].endswith(":images_limited")
        assert int(send[1].headers["retry-after"]) >= 20

    slow = (tenant("ant", requests_per_s=0.1, burst_s=20), tenant("bee", images_per_s=0.1, burst_s=10))
    play(config.rebuilt(tenants=slow), scenario)


def test_one_tenant_cannot_hold_every_place(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        release = asyncio.Event()

        async def held() -> Any:
            yield b'{"labels": '
            await release.wait()
            yield b'["cat"]}'

        head = {"content-type": "application/json", **bearer("ant")}
        waiting = [asyncio.create_task(local.http.post("/v1/tasks", content=held(), headers=head)) for _ in range(2)]
        for _ in range(20):
            await asyncio.sleep(0)
        refused = await local.http.get("/v1/models", headers=bearer("ant"))
        assert check_problem(refused, 429)["type"].endswith(":tenant_busy")
        assert (await local.http.get("/v1/models", headers=bearer("bee"))).status_code == 200
        release.set()
        assert [(await response).status_code for response in waiting] == [200, 200]
        assert (await local.http.get("/v1/models", headers=bearer("ant"))).status_code == 200

    play(config.rebuilt(limits=LIMITS.rebuilt(max_requests_in_flight=4)), scenario)


def test_without_keys_a_name_that_was_pointed_at_this_machine_is_refused() -> None:
    served: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        served.append(scope["path"])
        await Response("served")(scope, receive, send)

    async def status(host: str, access: Access, path: str = "/v1/tasks") -> int:
        guard = Authentication(app, access=access, open_paths=frozenset(("/healthz",)))
        guarded = RequestContext(guard, metrics=IngressMetrics())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://x") as http:
            return (await http.get(path, headers={"host": host})).status_code

    async def scenario() -> None:
        local, anonymous = Access((), LIMITS, local_only=True), Access((), LIMITS)
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.0.0.1", "[::1]:8000", "[::1]", "127.0.0.2"):
            assert await status(host, local) == 200, host
        for host in (
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "x@localhost",
            "::1",
        ):
            for path in ("/v1/tasks", "/", "/healthz", "/metrics"):
                assert await status(host, local, path) == 403, host
            assert await status(host, anonymous) == 200
        assert (
            await status("10.0.0.7:8000", Access((tenant("ant"),), LIMITS), "/healthz") == 200
        )  # a probe, by the pod's address

    asyncio.run(scenario())


def test_without_keys_nobody_but_loopback_is_served(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    without = config.rebuilt(tenants=())
    with pytest.raises(BadInputError, match="serve-key"):
        build_application(without)
    for host in ("0.0.0.0", "192.0.2.1", "::", "some-name"):
        with pytest.raises(BadInputError, match="open to other machines"):
            checked_access(without.rebuilt(host=host))
        assert checked_access(config.rebuilt(host=host)).tenants == config.tenants
        assert checked_access(without.rebuilt(host=host, allow_anonymous=True)).tenants == ()
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        assert checked_access(without.rebuilt(host=host)).local_only
        assert not checked_access(without.rebuilt(host=host, allow_anonymous=True)).local_only
        assert not checked_access(config.rebuilt(host=host)).local_only
    monkeypatch.setenv("HYPERCLIP_TENANTS", json.dumps([tenant("bee").model_dump()]))
    assert tenants_allowed(without) == (tenant("bee"),)
    assert checked_access(without.rebuilt(host="0.0.0.0")).tenants == (tenant("bee"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{name: a, key_sha256: [hck_abcdefgh]}]", "0.key_sha256.0"),
        ("[{name: A/../b, key_sha256: []}]", "0.name"),
        ("name: a", "(top)"),
        ("[", "not valid YAML"),
        (f"[{{name: a, key_sha256: ['{ZEROS}']}}, {{name: a, key_sha256: ['{ONES}']}}]", "two tenants have the name 'a'"),
        (f"[{{name: a, key_sha256: ['{ZEROS}']}}, {{name: b, key_sha256: ['{ZEROS}']}}]", "a key is there twice"),
    ],
)
def test_wrong_tenants_are_refused_without_repeating_a_key(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCLIP_TENANTS", text)
    with pytest.raises(BadInputError) as raised:
        tenants_of_environment()
    assert said in str(raised.value) and "hck_" not in str(raised.value)


def test_a_configuration_does_not_take_a_key_or_two_equal_names(config: ServingConfig) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        TenantConfig(name="a", key_sha256=("hck_x",))
    with pytest.raises(ValidationError, match="name 'ant'"):
        config.rebuilt(tenants=(tenant("ant"), TenantConfig(name="ant", key_sha256=("0" * 64,))))


def test_the_command_prints_a_key_and_its_hash() -> None:
    run = CliRunner().invoke(command, ["serve-key", "ant"])
    assert run.exit_code == 0, run.output
    words = run.output.split()
    key = next(word for word in words if word.startswith("hck_"))
    assert key_hash(key.encode()) in run.output
    ring = KeyRing([TenantConfig(name="ant", key_sha256=(key_hash(key.encode()),))])
    assert ring.tenant(key.encode()) == "ant" and ring.tenant(key.encode()[:-1]) is None
