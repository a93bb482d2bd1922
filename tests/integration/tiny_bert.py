"""Makes an encoder of a few thousand numbers, which embeds text, if not very well."""

import array
import json
import random
import struct

from tests.integration.minilm_gguf import LAYER, convert

HIDDEN, FORWARD, CONTEXT = 32, 64, 64
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "a", "cat", "##s"]


def make_tiny_bert(folder):
    """Write a model folder and a GGUF file into `folder`; the file."""
    config = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": FORWARD,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": CONTEXT,
        "type_vocab_size": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    _write_safetensors(folder / "model.safetensors", dict(_shapes()))
    target = folder / "tiny-bert.gguf"
    convert(folder, target)
    return target


def _shapes():
    yield "embeddings.word_embeddings.weight", [len(WORDS), HIDDEN]
    yield "embeddings.position_embeddings.weight", [CONTEXT, HIDDEN]
    yield "embeddings.token_type_embeddings.weight", [2, HIDDEN]
    yield "embeddings.LayerNorm.weight", [HIDDEN]
    yield "embeddings.LayerNorm.bias", [HIDDEN]
    for name in LAYER:
        wide = FORWARD if name == "intermediate.dense" else HIDDEN
        deep = FORWARD if name == "output.dense" else HIDDEN
        is_norm = name.endswith("LayerNorm")
        yield f"encoder.layer.0.{name}.weight", [HIDDEN] if is_norm else [wide, deep]
        yield f"encoder.layer.0.{name}.bias", [wide]


def _write_safetensors(path, shapes):
    chance = random.Random(1)
    head, data = {}, b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        numbers = array.array("f", (chance.gauss(0, 0.3) for _ in range(count)))
        start = len(data)
        data += numbers.tobytes()
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    written = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + data)
