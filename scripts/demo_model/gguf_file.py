"""Reads a Llama's safetensors and writes them as GGUF, tensor by tensor."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Config = dict[str, Any]
Tensor = npt.NDArray[np.float32]

PRE_TOKENIZER = "smollm"  # single digits, then the GPT-2 split: what training.py builds
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
LAYER_NAMES = {  # name in safetensors: name in GGUF
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file (BF16 or F32) as float32."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    header.pop("__metadata__", None)
    return {name: _read_tensor(body, entry) for name, entry in header.items()}


def _read_tensor(body: bytes, entry: dict[str, Any]) -> Tensor:
    """One tensor as float32.

    Raises:
        ValueError: the tensor is neither BF16 nor F32.
    """
    start, end = entry["data_offsets"]
    if entry["dtype"] == "BF16":
        # A bfloat16 is the upper half of a float32.
        halves = np.frombuffer(body[start:end], np.uint16).astype(np.uint32)
        flat = (halves << 16).view(np.float32)
    elif entry["dtype"] == "F32":
        flat = np.frombuffer(body[start:end], np.float32)
    else:
        raise ValueError(f"dtype {entry['dtype']} is not supported")
    return flat.reshape(entry["shape"])


def _interleave(weight: Tensor, heads: int) -> Tensor:
    """Reorder rotary rows: transformers keeps halves, llama.cpp keeps pairs."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _add_config(writer: gguf.GGUFWriter, config: Config, file_type: str) -> None:
    """The sizes of the model."""
    rope = config.get("rope_parameters") or config
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(FILE_TYPES[file_type])


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: Config) -> None:
    """Vocabulary, merges, special tokens and chat template.

    Raises:
        ValueError: the vocabulary does not number its tokens without holes.
    """
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    if [index for _, index in vocabulary] != list(range(config["vocab_size"])):
        raise ValueError("the token ids have holes")
    kinds = [
        gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL
        for _, index in vocabulary
    ]
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(value=False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _tensor_adder(writer: gguf.GGUFWriter, file_type: str) -> Callable[[str, Tensor], None]:
    """A function that adds a tensor in the right type; vectors stay in float32."""

    def add(name: str, tensor: Tensor) -> None:
        tensor = np.ascontiguousarray(tensor, np.float32)
        if tensor.ndim == 1 or file_type == "F32":
            writer.add_tensor(name, tensor)
        elif file_type == "F16":
            writer.add_tensor(name, tensor.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)

    return add


def _add_tensors(
    writer: gguf.GGUFWriter, tensors: dict[str, Tensor], config: Config, file_type: str
) -> None:
    """All weights under their GGUF names."""
    add = _tensor_adder(writer, file_type)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    add("token_embd.weight", tensors["model.embed_tokens.weight"])
    add("output_norm.weight", tensors["model.norm.weight"])
    if "lm_head.weight" in tensors:
        add("output.weight", tensors["lm_head.weight"])
    for layer in range(config["num_hidden_layers"]):
        for source, target in LAYER_NAMES.items():
            tensor = tensors[f"model.layers.{layer}.{source}.weight"]
            if target in heads:
                tensor = _interleave(tensor, heads[target])
            add(f"blk.{layer}.{target}.weight", tensor)


def export(folder: Path, target: Path, file_type: str, name: str) -> None:
    """Write the GGUF file.

    Args:
        folder: holds config.json, model.safetensors, tokenizer.json and chat_template.jinja.
        target: the file to write; an old one is replaced.
        file_type: a key of FILE_TYPES.
        name: the model's name inside the file.

    Raises:
        ValueError: a tensor type or a vocabulary that cannot be exported.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(name)
    _add_config(writer, config, file_type)
    _add_tokenizer(writer, folder, config)
    _add_tensors(writer, read_tensors(folder / "model.safetensors"), config, file_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
