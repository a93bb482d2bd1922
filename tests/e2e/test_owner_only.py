"""An engine for its owner alone: served at the owner's loopback edge, unknown to the mesh."""

from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.fake_github import fake_github
from providers.copilot.credentials import CREDENTIAL_FILE, Credential, save_credential
from tests.e2e.http_client import CHAT_PATH, ask, chat
from tests.e2e.mesh import LOOPBACK, Mesh
from tests.e2e.node_process import NodeProcess, eventually

SEEN_SECONDS = 15.0
ENGINES = """
[[provider.engine]]
name = "copilot"

[[provider.engine]]
name = "echo"
model = "for-all"
"""


async def models_of(edge: NodeProcess) -> set[str]:
    listed = (await ask(edge.port, "GET", "/v1/models")).json["data"]
    return {model["id"] for model in listed}


async def test_the_owner_is_served_and_nobody_else_learns_of_it(own_mesh: Mesh):
    async with fake_github() as github:
        state = own_mesh.folder / "owner"
        state.mkdir(mode=0o700)
        credential = Credential(github.grant_login(), github_url=github.endpoint)
        save_credential(state / CREDENTIAL_FILE, credential)
        file = own_mesh.folder / "owner.toml"
        file.write_text(ENGINES)
        join = ("--join-file", str(own_mesh.join_file))
        flags = ("--config", str(file), "--http", "127.0.0.1:0", "--listen", LOOPBACK)
        owner = await own_mesh.start("owner", "up", *join, *flags).ready()
        private = await models_of(owner) - {"for-all"}
        assert private, "Copilot's models are there for the owner"
        stranger = await own_mesh.edge(name="stranger").ready()

        async def knows_the_other() -> bool:
            return "for-all" in await models_of(stranger)

        await eventually(knows_the_other, SEEN_SECONDS, "the mesh is not known", stranger)
        assert await models_of(stranger) == {"for-all"}
        views = (await ask(stranger.port, "GET", "/v1/providers")).json["data"]
        (view,) = views
        assert [engine["engine"] for engine in view["engines"]] == ["echo"]
        assert "copilot" not in str(views)

        model = min(private)
        body = chat(model, "hi") | {"stream": False}
        answer = await ask(owner.port, "POST", CHAT_PATH, body)
        assert answer.status == 200, answer.body
        assert answer.json["choices"][0]["message"]["content"] == "".join(scripts.WORDS)
        for name in (model, f"{owner.peer_id}:{model}"):
            refused = await ask(stranger.port, "POST", CHAT_PATH, chat(name, "hi"))
            assert refused.status == 404, refused.body
        direct = {"endpoint": CHAT_PATH, "body": body}
        refused = await ask(stranger.port, "POST", f"/v1/request/{owner.peer_id}", direct)
        assert refused.status == 404, "asked by name, the owner's node does not know it"


async def test_it_is_not_started_where_others_could_ask(own_mesh: Mesh):
    relay = await own_mesh.relay().ready()
    node = own_mesh.provider("gpt", name="generous", engine="copilot")
    assert await node.exit_code() == 2
    assert "serves its owner only" in node.log
    relay.assert_alive()
