"""Stream an answer through an edge with the openai SDK, and show who gave it.

pip install openai
python stream_openai.py [BASE_URL [KEY]]
"""

import sys

from openai import OpenAI

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
key = sys.argv[2] if len(sys.argv) > 2 else "none"

client = OpenAI(base_url=base_url, api_key=key)
raw = client.chat.completions.with_raw_response.create(
    model="tiny",
    messages=[{"role": "user", "content": "What is 3+4?"}],
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in raw.parse():
    if chunk.choices:
        sys.stdout.write(chunk.choices[0].delta.content or "")
        sys.stdout.flush()
    if chunk.usage:
        sys.stdout.write(f"\n{chunk.usage.completion_tokens} tokens")
provider, path = raw.headers["x-aimo-provider"], raw.headers["x-aimo-path"]
sys.stdout.write(f" from {provider}, path {path}\n")
