"""How much work a stage is: operations and bytes, read from the file by `margay inspect`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    # Operations of one prompt token in matrices, 2 a multiply-add, the output head not among them.
    prompt_operations: float
    # Bytes of weights read for one decoded token: all but the token embeddings.
    weight_bytes: float
    # Bytes of keys and values in 16 bits that one token of context adds to those read.
    cache_bytes: float
    # Operations of one picture; None without a vision file, or where Margay does not know the model.
    encode_operations: float | None
    project_operations: float | None
    # The type of most of the encoder's weights.
    encoder_type: str | None
    file_bytes: int


def of_inspection(inspection: dict) -> Work:
    """From `margay inspect --tensors --json`."""
    tensors = inspection["tensors"]
    text = [t for t in tensors if not t["name"].startswith(("v.", "mm."))]
    # A decoded token reads one row of the embeddings, and all of them where they are the output head as well.
    tied = all(t["name"] != "output.weight" for t in text)
    read = [t for t in text if tied or t["name"] != "token_embd.weight"]
    matrices = [t for t in read if len(t["shape"]) == 2 and t["name"] not in ("output.weight", "token_embd.weight")]
    values = sum(t["shape"][0] * t["shape"][1] for t in matrices)
    meta = {entry["key"]: entry["value"] for entry in inspection["metadata"]}
    first = next(entry["value"] for entry in inspection["metadata"] if entry["key"] == "general.architecture")
    layers, width, heads = (
        meta[f"{first}.{key}"] for key in ("block_count", "embedding_length", "attention.head_count")
    )
    kv_heads = meta.get(f"{first}.attention.head_count_kv", heads)
    work = inspection["work"] or {}
    encoder = [t for t in tensors if t["name"].startswith("v.blk.0.ffn_up.weight")]
    return Work(
        prompt_operations=2 * values,
        weight_bytes=sum(t["bytes"] for t in read),
        cache_bytes=2 * 2 * layers * width * kv_heads / heads,
        encode_operations=work.get("encode_operations"),
        project_operations=work.get("project_operations"),
        encoder_type=encoder[0]["type"] if encoder else None,
        file_bytes=sum(file["bytes"] for file in inspection["files"]),
    )
