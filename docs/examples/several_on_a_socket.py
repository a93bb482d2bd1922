"""Two requests at a time over one WebSocket, and a third one that is cancelled.

pip install websockets
python several_on_a_socket.py [BASE_URL [KEY]]
"""

import json
import sys

from websockets.sync.client import connect

QUESTIONS = {"sum": "What is 3+4?", "capital": "What is the capital of France?"}

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
headers = {"Authorization": f"Bearer {sys.argv[2]}"} if len(sys.argv) > 2 else {}


def request(name: str, question: str) -> str:
    """A chat request with an id of our choice."""
    body = {
        "model": "tiny",
        "stream": True,
        "messages": [{"role": "user", "content": question}],
    }
    message = {"type": "request", "id": name, "endpoint": "/v1/chat/completions", "body": body}
    return json.dumps(message)


answers = dict.fromkeys(QUESTIONS, "")
waiting = {*QUESTIONS, "story"}
with connect(base_url.replace("http", "ws", 1) + "/stream", additional_headers=headers) as socket:
    for name, question in QUESTIONS.items():
        socket.send(request(name, question))
    socket.send(request("story", "Tell me a sea story about Ada and a kite."))
    socket.send(json.dumps({"type": "cancel", "id": "story"}))
    while waiting:
        message = json.loads(socket.recv())
        name = message["id"]
        if message["type"] == "chunk":
            choices = message["data"]["choices"]
            if choices and name in answers:
                answers[name] += choices[0]["delta"].get("content") or ""
            continue
        waiting.remove(name)  # exactly one of done, cancelled and error
        sys.stdout.write(f"{name}: {message['type']} {answers.get(name, '')}\n")
