//! How much a file may claim. Bytes from disk are hostile: what a file says of itself is held against these limits
//! and against the number of bytes that are really there, before anything is allocated for it.

/// Metadata entries of a GGUF file. Real models have 20 to 100.
pub const MAX_METADATA_ENTRIES: u64 = 16_384;

/// Tensors of one file. The largest public models have a few thousand.
pub const MAX_TENSORS: u64 = 65_536;

/// Bytes of a metadata key. Source: the GGUF specification (2^16 - 1).
pub const MAX_KEY_BYTES: u64 = 65_535;

/// Bytes of one metadata string. The longest ones known are whole `tokenizer.json` files of 30 MB.
pub const MAX_STRING_BYTES: u64 = 64 << 20;

/// Bytes of one metadata array as stored, string lengths included. A vocabulary of 256 thousand tokens takes 5 MB.
pub const MAX_ARRAY_BYTES: u64 = 64 << 20;

/// Bytes of a tensor name in GGUF. Source: ggml's `GGML_MAX_NAME` is 64 with the closing zero.
pub const MAX_TENSOR_NAME_BYTES: u64 = 63;

/// Dimensions of a tensor in GGUF. Source: ggml's `GGML_MAX_DIMS`.
pub const MAX_GGUF_DIMS: u32 = 4;

/// Dimensions of a tensor in safetensors. The format knows no limit; no layer has more than six.
pub const MAX_SAFETENSORS_DIMS: usize = 8;

/// Largest `general.alignment`. Files use 32; larger than a huge page makes no sense and wastes the disk.
pub const MAX_ALIGNMENT: u32 = 1 << 20;

/// Bytes of a safetensors header. A thousand tensors take about 150 kB.
pub const MAX_SAFETENSORS_HEADER_BYTES: u64 = 16 << 20;

/// Brackets within brackets of a safetensors header: the object of tensors, a tensor's object, its shape.
pub const MAX_SAFETENSORS_NESTING: usize = 3;

/// Bytes of a JSON file that describes a model (`config.json`, `*_config.json`, chat templates, shard index).
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Bytes of `tokenizer.json` and `tokenizer.model`. The largest public ones have 35 MB.
pub const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// Pieces of a SentencePiece vocabulary. The largest public ones have 262 thousand.
pub const MAX_TOKENIZER_PIECES: u64 = 1 << 20;

/// Shards of one checkpoint. The largest public checkpoints have about 200.
pub const MAX_SHARDS: usize = 1024;

/// Files of a folder that are looked at when a model or its vision part is searched for. Download folders are large.
pub const MAX_FOLDER_ENTRIES: usize = 65_536;

/// Bytes of a name or form in a packed file. Names are those of GGUF; forms are a dozen words.
pub const MAX_PACKED_TEXT_BYTES: u16 = 255;

/// Parts of one weight of a packed file: codes, scales, and room for more.
pub const MAX_PACKED_PARTS: u8 = 8;

/// Bytes of a packed file's table. A thousand weights take about 150 kB.
pub const MAX_PACKED_TABLE_BYTES: u64 = 16 << 20;

/// Bytes of the journal of an unfinished file: a line of at most 30 bytes for each tensor, and the key.
pub const MAX_JOURNAL_BYTES: u64 = 4 << 20;
