"""Turn a Llama folder (safetensors, tokenizer, template) into a GGUF file.

Needs only numpy and gguf: no torch and no network. The same folder gives the same bytes.
"""

import argparse
from pathlib import Path

from scripts.demo_model.needs import require

TYPES = ("F32", "F16", "Q8_0")


def main() -> None:
    """Read the options and write the file."""
    parser = argparse.ArgumentParser(description="Turn a Llama folder into a GGUF file.")
    parser.add_argument("folder", type=Path, help="folder with the safetensors")
    parser.add_argument("target", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=TYPES, default="Q8_0")
    parser.add_argument("--name", default="AIMO Tiny", help="name written in the file")
    args = parser.parse_args()
    require("numpy", "gguf")
    from scripts.demo_model.gguf_file import export  # noqa: PLC0415 - only after the check above

    export(args.folder, args.target, args.type, args.name)
    print(f"{args.target}: {args.target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
