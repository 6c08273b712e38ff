//! GGUF, safetensors and Hugging Face folders: bytes on disk to named tensors and metadata, and back.
