"""Fixed questions and answers: greetings, the model itself, and AIMO Node."""

import random

from scripts.demo_model.turns import State, Turn, ask

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Hi!",
            "Hello.",
            "Hello!",
            "Hi there!",
            "Hey!",
            "Good morning.",
            "Good evening.",
            "Hello there!",
        ),
        "Hello! How can I help you?",
    ),
    (("Thanks!", "Thank you.", "Thank you very much!", "Great, thanks."), "You are welcome!"),
    (("Bye!", "Goodbye.", "See you later.", "Good night."), "Goodbye! See you soon."),
    (("How are you?", "How are you doing?", "How do you do?"), "I am fine, thank you."),
    (
        ("Are you there?", "Ping.", "Are you alive?", "This is a test.", "Test."),
        "Yes, I am here and ready.",
    ),
)
ABILITIES = (
    "add numbers, count, repeat words, spell, write JSON, tell stories, call tools and "
    "answer questions about AIMO Node"
)
PROJECT: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Who are you?", "What is your name?", "What are you?", "Introduce yourself."),
        "I am Tiny, a small demo model that comes with AIMO Node.",
    ),
    (
        (
            "What can you do?",
            "How can you help me?",
            "What are you able to do?",
            "Help.",
            "Help me!",
        ),
        f"I can {ABILITIES}.",
    ),
    (
        (
            "What is AIMO Node?",
            "Tell me about AIMO Node.",
            "What does AIMO Node do?",
            "Explain AIMO Node.",
            "What is aimo node?",
            "What is this project?",
        ),
        "AIMO Node is a peer-to-peer routing mesh for AI models. Consumers talk to an edge, and "
        "the edge finds a provider that serves the model.",
    ),
    (
        (
            "What is a relay?",
            "What does a relay do?",
            "Why do I need a relay?",
            "What are relays for?",
        ),
        "A relay is a public machine that helps peers behind NAT reach each other.",
    ),
    (
        ("What is a provider?", "What does a provider do?", "What are providers?"),
        "A provider is a peer that runs a local engine such as vLLM and serves its models to the "
        "mesh.",
    ),
    (
        (
            "What is the edge?",
            "What is an edge?",
            "What does the edge do?",
            "What does an edge do?",
        ),
        "The edge is the entry point of the mesh. It offers an OpenAI-compatible API, picks a "
        "provider and opens a libp2p link to it.",
    ),
    (
        ("What is a consumer?", "What does a consumer do?", "Who is a consumer?"),
        "A consumer is a client that sends prompts to an edge over an OpenAI-compatible API.",
    ),
    (
        (
            "How do I run a provider?",
            "How can I run a provider?",
            "How do I start a provider?",
            "How do I become a provider?",
        ),
        "Start a local engine such as vLLM, then start AIMO Node as a provider and point it to "
        "the engine.",
    ),
    (
        (
            "What is gossipsub used for?",
            "What is gossipsub?",
            "What does gossipsub do?",
            "Why do you use gossipsub?",
        ),
        "Gossipsub carries heartbeats between peers and is the fallback when no direct link "
        "exists.",
    ),
    (
        ("What is libp2p?", "What is libp2p used for?", "Why do you use libp2p?"),
        "Libp2p is the network library that peers use to open links to each other.",
    ),
    (
        ("What is vLLM?", "What is an engine?", "What does the engine do?"),
        "An engine such as vLLM runs a model on the machine of a provider.",
    ),
    (
        (
            "How does it work?",
            "How does AIMO Node work?",
            "How does a request travel?",
            "What happens to my prompt?",
        ),
        "Your client sends a prompt to an edge. The edge picks a provider and opens a libp2p "
        "link. The provider runs the model and streams the answer back.",
    ),
)


def small_talk(rng: random.Random, _: State) -> Turn:
    """Greetings and thanks."""
    prompts, answer = rng.choice(SMALL_TALK)
    return ask("small_talk", rng, prompts, answer)


def project(rng: random.Random, _: State) -> Turn:
    """Questions about AIMO Node and about the model itself."""
    prompts, answer = rng.choice(PROJECT)
    return ask("project", rng, prompts, answer)
