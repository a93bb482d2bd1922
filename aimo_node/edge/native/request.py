"""The native request: an endpoint by its address, and that endpoint's body."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from aimo_node.domain.ids import Endpoint, PeerId, is_peer_id
from aimo_node.edge.json_body import check
from aimo_node.edge.openai.chat import ChatCall, read_call
from aimo_node.errors import InvalidRequest, ProviderNotFound

ENDPOINTS: Final = {"/v1/chat/completions": Endpoint.CHAT}
"""What may be asked, by the address it has in OpenAI's API."""


class NativeRequest(Struct):
    """The body of ``POST /v1/request/{provider_id}``."""

    endpoint: str
    body: dict[str, Any]


def read_native(value: dict[str, Any]) -> ChatCall:
    """Validate a native request object.

    Raises:
        InvalidRequest: a field does not fit; ``param`` names it.
        InvalidMessageFormat: it holds what JSON cannot carry on.
    """
    request = check(value, NativeRequest)
    if request.endpoint not in ENDPOINTS:
        raise InvalidRequest(
            f"Unknown endpoint; there are {', '.join(ENDPOINTS)}.", param="endpoint"
        )
    return read_call(request.body, "body")


def read_provider(text: str) -> PeerId:
    """The provider an address names.

    Raises:
        ProviderNotFound: this cannot be anybody's peer id.
    """
    if not is_peer_id(text):
        raise ProviderNotFound("That is no peer id; GET /v1/providers lists them.")
    return PeerId(text)
