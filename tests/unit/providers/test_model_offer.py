"""Which of an upstream's models are offered, under which names, and what of them."""

import pytest

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import Feature
from aimo_node.errors import EngineStartFailed
from aimo_node.protocol import limits
from providers.upstreams.model_list import ListedModel
from providers.upstreams.model_offer import (
    DEFAULT_ENDPOINTS,
    DEFAULT_FEATURES,
    MODELS_MAX,
    NAMES_BYTES_MAX,
    Wish,
    described,
    first_offer,
    next_offer,
    on_trust,
)

ONE, TWO, THREE = ListedModel("one"), ListedModel("two"), ListedModel("three")


def test_model_is_chosen_by_name_or_because_it_is_the_only_one():
    assert first_offer(Wish(model="two"), [ONE, TWO]) == {"two": TWO}
    assert first_offer(Wish(), [ONE]) == {"one": ONE}
    assert first_offer(Wish(served_name="mine"), [ONE]) == {"mine": ONE}


def test_model_that_is_not_there_is_refused_with_what_is():
    with pytest.raises(EngineStartFailed, match=r"no model 'twoo' \(did you mean two\?\)"):
        first_offer(Wish(model="twoo"), [ONE, TWO])
    with pytest.raises(EngineStartFailed, match="no model 'twoo'"):
        first_offer(Wish(models={"a": "one", "b": "twoo"}), [ONE, TWO])
    with pytest.raises(EngineStartFailed, match="it offers nothing"):
        first_offer(Wish(model="x"), [])
    many = [ListedModel(f"m{number}") for number in range(25)]
    with pytest.raises(EngineStartFailed, match="m19 and 5 more"):
        first_offer(Wish(model="x"), many)


def test_one_of_several_has_to_be_named():
    with pytest.raises(EngineStartFailed, match=r"name one of .* or \* for all: one, two"):
        first_offer(Wish(), [ONE, TWO])


def test_names_are_mapped():
    wish = Wish(models={"fast": "one", "also-fast": "one", "two": "two"})
    assert first_offer(wish, [TWO, ONE]) == {"fast": ONE, "also-fast": ONE, "two": TWO}


def test_star_takes_all():
    assert first_offer(Wish(model="*"), [TWO, ONE]) == {"one": ONE, "two": TWO}
    assert first_offer(Wish(model="*"), []) == {}


def test_star_takes_no_more_than_a_descriptor_holds():
    assert MODELS_MAX == limits.DESCRIPTOR_MODELS_MAX
    many = [ListedModel(f"m{number:03}") for number in range(MODELS_MAX + 1)]
    kept = first_offer(Wish(model="*"), many[::-1])
    assert list(kept) == [model.name for model in many[:MODELS_MAX]]
    long = [ListedModel(str(number) + "n" * 249) for number in range(10, 60)]
    kept = first_offer(Wish(model="*"), long)
    assert sum(len(name) for name in kept) <= NAMES_BYTES_MAX < 251 * (len(kept) + 1)


def test_what_is_gone_vanishes_and_what_is_back_or_new_appears():
    wish = Wish(models={"a": "one", "b": "two"})
    assert next_offer(wish, [ONE], {}) == {"a": ONE}
    assert next_offer(wish, [ONE, TWO], {"a": ONE}) == {"a": ONE, "b": TWO}
    assert next_offer(Wish(model="*"), [ONE, THREE], {"one": ONE, "two": TWO}).keys() == {
        "one",
        "three",
    }
    assert next_offer(Wish(model="one"), [TWO], {"one": ONE}) == {}


def test_only_model_is_kept_when_it_gets_company_and_followed_when_it_changes():
    assert next_offer(Wish(), [TWO, ONE], {"one": ONE}) == {"one": ONE}
    assert next_offer(Wish(), [TWO], {"one": ONE}) == {"two": TWO}
    assert next_offer(Wish(), [TWO, THREE], {"one": ONE}) == {}


def test_upstream_without_a_list_is_trusted_for_what_is_named():
    assert on_trust(Wish(model="one", served_name="mine")) == {"mine": ONE}
    assert on_trust(Wish(models={"a": "one"})) == {"a": ONE}
    assert on_trust(Wish(model="*")) == {}
    assert on_trust(Wish()) == {}


def test_owner_wins_over_the_list_and_the_list_over_the_defaults():
    listed = ListedModel("m", "", 100, (Endpoint.CHAT,), (Feature.VISION,), (Feature.TOOLS,))
    (model,) = described(Wish(), {"m": listed})
    assert (model.context_tokens, model.endpoints) == (100, (Endpoint.CHAT,))
    assert model.features == (Feature.JSON_SCHEMA, Feature.LOGPROBS, Feature.VISION)
    assert not model.digest
    said = Wish(endpoints=(Endpoint.EMBEDDINGS,), features=(), context_tokens=5)
    (model,) = described(said, {"m": listed})
    assert (model.context_tokens, model.endpoints, model.features) == (
        5,
        (Endpoint.EMBEDDINGS,),
        (),
    )
    (model,) = described(Wish(), {"m": ListedModel("m")})
    assert (model.endpoints, model.features) == (DEFAULT_ENDPOINTS, DEFAULT_FEATURES)


def test_model_for_embeddings_has_no_features_of_a_chat():
    (model,) = described(Wish(), {"m": ListedModel("m", endpoints=(Endpoint.EMBEDDINGS,))})
    assert model.features == ()
