//! Broken GGUF files.

use crate::{Case, Format};

/// Writes the parts of a GGUF file, right or wrong.
#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    marked: usize,
}

// Value types and tensor types by their numbers in the file.
const U8: u32 = 0;
const U32: u32 = 4;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const F64_VALUE: u32 = 12;
const F32: u32 = 0;
const Q4_0: u32 = 2;
const F64: u32 = 28;

impl File {
    /// Magic and version 3, then the counts.
    fn new(tensors: i64, entries: i64) -> Self {
        Self::versioned(3).i64(tensors).i64(entries)
    }

    fn versioned(version: u32) -> Self {
        File::default().raw(b"GGUF").u32(version)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn i64(self, value: i64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    /// Key and type of a metadata entry.
    fn key(self, key: &str, value_type: u32) -> Self {
        self.text(key).u32(value_type)
    }

    /// A whole, right entry.
    fn architecture(self) -> Self {
        self.key("general.architecture", STRING).text("llama")
    }

    /// Name and sizes of a tensor (`ne`, contiguous first).
    fn tensor(self, name: &str, ne: &[i64]) -> Self {
        let file = self.text(name).u32(ne.len() as u32);
        ne.iter().fold(file, |file, &n| file.i64(n))
    }

    /// The broken field starts here.
    fn mark(mut self) -> Self {
        self.marked = self.bytes.len();
        self
    }

    fn pad(mut self, alignment: usize) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
        self
    }

    fn zeros(mut self, count: usize) -> Self {
        self.bytes.resize(self.bytes.len() + count, 0);
        self
    }

    fn case(self, name: &'static str, says: &'static [&'static str]) -> Case {
        Case::new(name, Format::Gguf, self.bytes, self.marked, says)
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = head();
    cases.extend(metadata());
    cases.extend(arrays());
    cases.extend(alignments());
    cases.extend(descriptions());
    cases.extend(placement());
    cases.extend(cut_off());
    cases
}

fn head() -> Vec<Case> {
    vec![
        File::default().mark().raw(b"GGML").zeros(60).case("magic_wrong", &["magic", "GGML"]),
        File::default().mark().case("file_empty", &["magic", "0 left"]),
        File::default()
            .raw(b"GGUF")
            .mark()
            .u32(1)
            .zeros(60)
            .case("version_1", &["version", "is 1", "convert"]),
        File::default().raw(b"GGUF").mark().u32(0).zeros(60).case("version_0", &["version", "is 0"]),
        File::default()
            .raw(b"GGUF")
            .mark()
            .u32(3u32.swap_bytes())
            .zeros(60)
            .case("big_endian", &["version", "big-endian"]),
        File::default().raw(b"GGUF").mark().u32(4).zeros(60).case("version_future", &["version", "is 4"]),
        // CVE-2024-21836: header.n_tensors
        File::versioned(3)
            .mark()
            .i64(i64::MAX)
            .i64(0)
            .zeros(60)
            .case("tensor_count_huge", &["number of tensors"]),
        File::versioned(3)
            .mark()
            .i64(-1)
            .i64(0)
            .zeros(60)
            .case("tensor_count_negative", &["number of tensors", "-1"]),
        File::versioned(3)
            .mark()
            .i64(3)
            .i64(0)
            .zeros(80)
            .case("tensor_count_beyond_room", &["number of tensors", "room for 2"]),
        File::versioned(3)
            .mark()
            .i64(65_537)
            .i64(0)
            .zeros(40 * 65_537)
            .case("tensor_count_beyond_limit", &["number of tensors", "limit is 65536"]),
        // CVE-2024-21825, CVE-2024-25664: header.n_kv
        File::versioned(3)
            .i64(0)
            .mark()
            .i64(i64::MAX)
            .zeros(60)
            .case("entry_count_huge", &["number of metadata entries"]),
        File::versioned(3)
            .i64(0)
            .mark()
            .i64(i64::MIN)
            .zeros(60)
            .case("entry_count_negative", &["number of metadata entries", "-9223372036854775808"]),
        File::versioned(3)
            .i64(0)
            .mark()
            .i64(1 << 20)
            .zeros(1000)
            .case("entry_count_beyond_room", &["number of metadata entries", "room"]),
        File::versioned(3)
            .i64(0)
            .mark()
            .i64(20_000)
            .zeros(20_000 * 20)
            .case("entry_count_beyond_limit", &["number of metadata entries", "limit is 16384"]),
    ]
}

fn metadata() -> Vec<Case> {
    vec![
        // CVE-2024-23496, CVE-2024-25665: gguf_fread_str
        File::new(0, 1).mark().u64(1000).zeros(60).case("key_length_past_end", &["length of key", "1000"]),
        File::new(0, 1)
            .mark()
            .u64(1 << 63)
            .zeros(60)
            .case("key_length_2_63", &["length of key", "9223372036854775808"]),
        File::new(0, 1).mark().u64(u64::MAX).zeros(60).case("key_length_max", &["length of key"]),
        File::new(0, 1)
            .mark()
            .text(&"k".repeat(65_536))
            .u32(U8)
            .zeros(9)
            .case("key_too_long", &["length of key", "limit is 65535"]),
        File::new(0, 1).mark().key("", U8).zeros(60).case("key_empty", &["key of metadata entry 0", "empty"]),
        File::new(0, 1)
            .u64(3)
            .raw(b"a")
            .mark()
            .raw(b"\xff\xfe")
            .u32(U8)
            .zeros(60)
            .case("key_no_utf8", &["key of metadata entry 0", "UTF-8"]),
        File::new(0, 2)
            .key("k", U8)
            .raw(&[1])
            .mark()
            .key("k", U8)
            .raw(&[2])
            .case("key_twice", &["key \"k\"", "twice"]),
        // ggml PR 1516: 1 GiB from a file of 160 bytes
        File::new(0, 1)
            .key("k", STRING)
            .mark()
            .u64(1 << 30)
            .zeros(115)
            .case("string_1_gib_from_160_bytes", &["length of value of \"k\"", "1073741824"]),
        File::new(0, 1)
            .key("k", STRING)
            .mark()
            .u64(u64::MAX)
            .zeros(60)
            .case("string_length_max", &["length of value of \"k\""]),
        // CVE-2025-49847: a length that is negative as a 32-bit number
        File::new(0, 1)
            .key("k", STRING)
            .mark()
            .u64(0xffff_ffff)
            .zeros(60)
            .case("string_length_32_bit_negative", &["length of value of \"k\""]),
        File::new(0, 1)
            .key("k", STRING)
            .u64(4)
            .raw(b"ab")
            .mark()
            .raw(b"\xc3\x28")
            .case("string_no_utf8", &["value of \"k\"", "UTF-8"]),
        // CVE-2024-23605: value types
        File::new(0, 1)
            .text("k")
            .mark()
            .u32(13)
            .zeros(60)
            .case("value_type_unknown", &["value type of \"k\"", "13"]),
        File::new(0, 1)
            .text("k")
            .mark()
            .u32(u32::MAX)
            .zeros(60)
            .case("value_type_negative", &["value type of \"k\""]),
        File::new(0, 1).key("k", BOOL).mark().raw(&[2]).zeros(60).case("bool_2", &["value of \"k\"", "is 2"]),
    ]
}

fn arrays() -> Vec<Case> {
    let array = |element| File::new(0, 1).key("k", ARRAY).u32(element).mark();
    vec![
        // huggingface.js PR 2028: 2^63 elements, an endless loop
        array(U8).u64(1 << 63).zeros(60).case("array_count_2_63", &["element count of \"k\""]),
        // CVE-2024-25667: the product of count and element size wraps
        array(F64_VALUE)
            .u64((1 << 61) + 1)
            .zeros(60)
            .case("array_size_overflow", &["element count of \"k\"", "2305843009213693953"]),
        array(U32).u64(16).zeros(63).case("array_one_byte_short", &["element count of \"k\"", "63 bytes"]),
        array(STRING).u64(1 << 40).zeros(60).case("array_of_strings_huge", &["element count of \"k\""]),
        array(STRING)
            .u64(2)
            .text("a")
            .mark()
            .u64(100)
            .zeros(20)
            .case("array_string_past_end", &["element 1 of \"k\"", "100"]),
        array(STRING)
            .u64(2)
            .text("a")
            .u64(2)
            .mark()
            .raw(b"\xf0\x28")
            .case("array_string_no_utf8", &["element 1 of \"k\"", "UTF-8"]),
        array(BOOL)
            .u64(3)
            .raw(&[0, 1])
            .mark()
            .raw(&[7])
            .case("array_bool_7", &["element 2 of \"k\"", "is 7"]),
        // huggingface.js PR 2028: unbounded recursion
        File::new(0, 1)
            .key("k", ARRAY)
            .mark()
            .u32(ARRAY)
            .u64(1)
            .u32(ARRAY)
            .u64(1)
            .zeros(60)
            .case("array_of_arrays", &["element type of \"k\"", "arrays of arrays"]),
        File::new(0, 1)
            .key("k", ARRAY)
            .mark()
            .u32(99)
            .u64(1)
            .zeros(60)
            .case("array_type_unknown", &["element type of \"k\"", "99"]),
    ]
}

fn alignments() -> Vec<Case> {
    let alignment = |value_type| File::new(0, 1).key("general.alignment", value_type).mark();
    vec![
        alignment(U32).u32(0).case("alignment_0", &["general.alignment", "is 0"]),
        alignment(U32).u32(24).case("alignment_24", &["general.alignment", "power of two"]),
        // llama.cpp PR 24263
        alignment(U32).u32(1 << 30).case("alignment_2_30", &["general.alignment", "limit"]),
        alignment(U64).u64(32).case("alignment_of_wrong_type", &["general.alignment", "u64"]),
    ]
}

fn descriptions() -> Vec<Case> {
    let named = || File::new(1, 1).architecture().text("w");
    let sized = |ne: &[i64]| {
        let file = named().u32(ne.len() as u32).mark();
        ne.iter().fold(file, |file, &n| file.i64(n))
    };
    let typed = || File::new(1, 1).architecture().tensor("w", &[32, 1]).mark();
    let finish = |file: File| file.u32(F32).u64(0).pad(32).zeros(128);
    vec![
        // CVE-2024-21802, gguf-tools issue 25: n_dims above the array's size
        named()
            .mark()
            .u32(0)
            .u32(F32)
            .u64(0)
            .zeros(60)
            .case("rank_0", &["number of dimensions of \"w\"", "is 0"]),
        named().mark().u32(5).zeros(60).case("rank_5", &["number of dimensions of \"w\"", "is 5"]),
        named()
            .mark()
            .u32(u32::MAX)
            .zeros(60)
            .case("rank_max", &["number of dimensions of \"w\"", "4294967295"]),
        // llama.cpp PR 26318: division by zero
        finish(sized(&[0])).case("size_0", &["dimension 0 of \"w\"", "is 0"]),
        finish(named().u32(2).i64(32).mark().i64(-4))
            .case("size_negative", &["dimension 1 of \"w\"", "is -4"]),
        finish(sized(&[1 << 32, 1 << 32, 1 << 32]))
            .case("size_product_overflow", &["dimensions of \"w\"", "overflow"]),
        // CVE-2026-33298: elements fit 64 bits, their bytes do not
        sized(&[1 << 31, 1 << 31])
            .u32(F64)
            .u64(0)
            .pad(32)
            .zeros(128)
            .case("size_bytes_overflow", &["dimensions of \"w\"", "overflow"]),
        sized(&[33])
            .u32(Q4_0)
            .u64(0)
            .pad(32)
            .zeros(128)
            .case("row_no_multiple_of_block", &["dimensions of \"w\"", "32-element block"]),
        typed().u32(4).u64(0).pad(32).zeros(128).case("type_removed_q4_2", &["type of \"w\"", "Q4_2"]),
        typed()
            .u32(31)
            .u64(0)
            .pad(32)
            .zeros(128)
            .case("type_removed_repacked", &["type of \"w\"", "Q4_0_4_4"]),
        typed().u32(15).u64(0).pad(32).zeros(128).case("type_internal", &["type of \"w\"", "Q8_K"]),
        typed().u32(40).u64(0).pad(32).zeros(128).case("type_nvfp4", &["type of \"w\"", "NVFP4"]),
        typed().u32(999).u64(0).pad(32).zeros(128).case("type_unknown", &["type of \"w\"", "999"]),
        typed()
            .u32(u32::MAX)
            .u64(0)
            .pad(32)
            .zeros(128)
            .case("type_negative", &["type of \"w\"", "4294967295"]),
        File::new(1, 0)
            .mark()
            .tensor("", &[32])
            .u32(F32)
            .u64(0)
            .pad(32)
            .zeros(128)
            .case("name_empty", &["name of tensor 0", "empty"]),
        finish(File::new(1, 0).mark().tensor(&"n".repeat(64), &[32]))
            .case("name_too_long", &["name of tensor 0", "limit is 63"]),
        finish(File::new(1, 0).mark().tensor("a\0b", &[32]))
            .case("name_with_nul", &["name of tensor 0", "control"]),
        finish(File::new(1, 0).u64(2).mark().raw(b"\xff\xff").u32(1).i64(32))
            .case("name_no_utf8", &["name of tensor 0", "UTF-8"]),
        File::new(1, 0)
            .mark()
            .u64(1 << 40)
            .zeros(60)
            .case("name_length_past_end", &["length of name of tensor 0"]),
        // Entries point at one another's data through the name.
        File::new(2, 0)
            .mark()
            .tensor("w", &[8])
            .u32(F32)
            .u64(0)
            .tensor("w", &[8])
            .u32(F32)
            .u64(32)
            .pad(32)
            .zeros(64)
            .case("name_twice", &["name \"w\"", "twice"]),
    ]
}

fn placement() -> Vec<Case> {
    let one = |ne: &[i64]| File::new(1, 1).architecture().tensor("w", ne).u32(F32).mark();
    let two = |first: &[i64], second: &[i64]| {
        File::new(2, 0).tensor("a", first).u32(F32).u64(0).tensor("b", second).u32(F32).mark()
    };
    vec![
        one(&[8]).u64(4).pad(32).zeros(64).case("offset_unaligned", &["offset of \"w\"", "alignment 32"]),
        one(&[8])
            .u64(1 << 20)
            .pad(32)
            .zeros(64)
            .case("offset_past_end", &["offset of \"w\"", "beyond the file"]),
        one(&[8])
            .u64(u64::MAX - 31)
            .pad(32)
            .zeros(64)
            .case("offset_overflow", &["offset of \"w\"", "beyond the file"]),
        one(&[8]).u64(64).pad(32).zeros(64).case("offset_at_end", &["offset of \"w\"", "beyond the file"]),
        two(&[16], &[16])
            .u64(32)
            .pad(32)
            .zeros(256)
            .case("data_overlaps", &["offset of \"b\"", "overlaps the data of \"a\""]),
        two(&[8], &[8]).u64(0).pad(32).zeros(256).case("data_shared", &["offset of \"b\"", "overlaps"]),
        // CVE-2025-53630 and its bypass CVE-2026-27940: the sum of padded sizes wraps
        File::new(2, 0)
            .tensor("a", &[(1 << 61) - 8])
            .u32(F32)
            .mark()
            .u64(0)
            .tensor("b", &[(1 << 61) - 8])
            .u32(F32)
            .u64((1 << 63) - 32)
            .pad(32)
            .zeros(256)
            .case("data_sum_overflow", &["offset of \"a\"", "beyond the file"]),
        // CVE-2026-7482: sizes larger than the data that is there
        one(&[1024, 1024])
            .u64(0)
            .pad(32)
            .zeros(64)
            .case("sizes_larger_than_data", &["offset of \"w\"", "4194304 bytes"]),
        one(&[16]).u64(0).pad(32).zeros(63).case("data_one_byte_short", &["offset of \"w\"", "cut off"]),
    ]
}

fn cut_off() -> Vec<Case> {
    vec![
        File::default().raw(b"GGUF").mark().raw(&[3, 0]).case("cut_in_version", &["version", "2 left"]),
        File::versioned(3).mark().u32(0).case("cut_in_tensor_count", &["number of tensors", "4 left"]),
        File::new(0, 1)
            .text("longer")
            .mark()
            .raw(&[4])
            .zeros(2)
            .case("cut_in_value_type", &["value type of \"longer\"", "3 left"]),
        File::new(0, 1)
            .key("longer", U64)
            .mark()
            .zeros(7)
            .case("cut_in_value", &["value of \"longer\"", "7 left"]),
        File::new(1, 0)
            .text("w")
            .u32(3)
            .i64(8)
            .i64(8)
            .mark()
            .zeros(7)
            .case("cut_in_sizes", &["dimension 2 of \"w\"", "7 left"]),
        File::new(1, 0)
            .tensor("w", &[8])
            .u32(F32)
            .mark()
            .zeros(7)
            .case("cut_in_offset", &["offset of \"w\"", "7 left"]),
    ]
}
