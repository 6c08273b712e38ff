//! Broken safetensors files.

use crate::{Case, Format};

/// A file with this text as its head.
fn file(head: &str, data: usize) -> Vec<u8> {
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.extend(head.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A case whose broken field starts where `mark` is found in the head.
fn at(name: &'static str, head: &str, data: usize, mark: &str, says: &'static [&'static str]) -> Case {
    let offset = 8 + head.find(mark).expect("the mark is in the head");
    Case::new(name, Format::SafeTensors, file(head, data), offset, says)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = heads();
    cases.extend(descriptions());
    cases.extend(placement());
    cases
}

fn heads() -> Vec<Case> {
    let case = |name, bytes, offset, says| Case::new(name, Format::SafeTensors, bytes, offset, says);
    let claim = |length: u64, rest: usize| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.resize(8 + rest, b' ');
        bytes
    };
    let nested = |depth: usize| format!("{{\"a\":{}", "[".repeat(depth));
    vec![
        case("safetensors_empty", vec![], 0, &["header length", "0 left"]),
        case("header_length_cut_off", vec![8, 0, 0], 0, &["header length", "3 left"]),
        case("header_length_past_end", claim(100, 99), 0, &["header length", "is 100 bytes"]),
        case("header_length_max", claim(u64::MAX, 99), 0, &["header length"]),
        case("header_length_100_mb", claim(100_000_000, 99), 0, &["header length", "100000000"]),
        case("header_beyond_limit", claim(17 << 20, 17 << 20), 0, &["header length", "limit is 16777216"]),
        case("header_length_0", claim(0, 0), 8, &["header", "JSON"]),
        case("header_no_json", file("not json", 0), 9, &["header", "JSON"]),
        case("header_no_object", file("[1, 2]", 0), 8, &["header", "JSON"]),
        case("header_followed_by_text", file("{} x", 0), 11, &["header", "JSON"]),
        case("header_deep_nesting", file(&nested(100_000), 0), 15, &["header", "nested deeper than 3"]),
        case("metadata_no_text", file(r#"{"__metadata__":{"a":1}}"#, 0), 29, &["__metadata__", "JSON"]),
    ]
}

fn descriptions() -> Vec<Case> {
    let offsets = r#","data_offsets":[0,8]}}"#;
    let shape = |shape: &str| format!(r#"{{"w":{{"dtype":"F32","shape":{shape}{offsets}"#);
    let broken =
        |name, head: &str, offset, says| Case::new(name, Format::SafeTensors, file(head, 8), offset, says);
    vec![
        at(
            "dtype_f8",
            &format!(r#"{{"w":{{"dtype":"F8_E4M3","shape":[8]{offsets}"#),
            8,
            r#"{"dtype"#,
            &["dtype of \"w\"", "F8_E4M3"],
        ),
        at(
            "dtype_unknown",
            &format!(r#"{{"w":{{"dtype":"Q9","shape":[8]{offsets}"#),
            8,
            r#"{"dtype"#,
            &["dtype of \"w\"", "Q9"],
        ),
        at(
            "shape_product_overflow",
            &shape("[4294967296,4294967296,4294967296]"),
            8,
            r#"{"dtype"#,
            &["shape of \"w\"", "overflow"],
        ),
        at(
            "shape_bytes_overflow",
            &shape("[4611686018427387904]"),
            8,
            r#"{"dtype"#,
            &["shape of \"w\"", "overflow"],
        ),
        broken("shape_nested", &shape("[[2]]"), 37, &["header", "nested deeper than 3"]),
        broken("shape_negative", &shape("[-1]"), 38, &["description of \"w\"", "-1"]),
        broken("shape_fraction", &shape("[1.5]"), 39, &["description of \"w\"", "1.5"]),
        broken("shape_above_64_bits", &shape("[18446744073709551616]"), 56, &["description of \"w\""]),
        broken("shape_of_nine", &shape("[1,1,1,1,1,1,1,1,1]"), 54, &["description of \"w\"", "8 sizes"]),
        broken(
            "description_unknown_field",
            &format!(r#"{{"w":{{"x":1,"dtype":"F32","shape":[2]{offsets}"#),
            16,
            &["description of \"w\"", "x"],
        ),
        broken(
            "description_without_shape",
            &format!(r#"{{"w":{{"dtype":"F32"{offsets}"#),
            48,
            &["description of \"w\"", "shape"],
        ),
        broken(
            "offsets_of_three",
            r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}"#,
            60,
            &["description of \"w\""],
        ),
    ]
}

fn placement() -> Vec<Case> {
    let one = |offsets: &str| format!(r#"{{"w":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{first}}},"b":{{"shape":[2],"dtype":"F32","data_offsets":{second}}}}}"#
        )
    };
    let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"shape":[1],"dtype":"U8","data_offsets":[1,2]}}"#;
    let covered = one("[0,8]");
    let end = 8 + covered.len() + 8;
    vec![
        at("offsets_reversed", &one("[8,0]"), 8, r#"{"dtype"#, &["data_offsets of \"w\"", "[8, 0]"]),
        at(
            "offsets_beyond_data",
            &one("[8,16]"),
            8,
            r#"{"dtype"#,
            &["data_offsets of \"w\"", "8 bytes of data"],
        ),
        at(
            "offsets_max",
            &one("[18446744073709551607,18446744073709551615]"),
            8,
            r#"{"dtype"#,
            &["data_offsets of \"w\""],
        ),
        at(
            "offsets_not_the_shapes",
            &one("[0,4]"),
            8,
            r#"{"dtype"#,
            &["data_offsets of \"w\"", "takes 8 bytes"],
        ),
        at(
            "tensors_overlap",
            &two("[0,8]", "[4,12]"),
            16,
            r#"{"shape"#,
            &["data_offsets of \"b\"", "overlap"],
        ),
        at(
            "tensors_with_a_hole",
            &two("[0,8]", "[12,20]"),
            20,
            r#"{"shape"#,
            &["data_offsets of \"b\"", "hole"],
        ),
        at("tensor_twice", twice, 2, r#"{"shape"#, &["name \"a\"", "twice"]),
        Case::new("data_of_no_tensor", Format::SafeTensors, file(&covered, 9), end, &["data", "1 bytes"]),
    ]
}
