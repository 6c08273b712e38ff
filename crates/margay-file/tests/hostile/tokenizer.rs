//! Broken `tokenizer.model` files.

use crate::{Case, Format};

/// A protobuf field with a length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

/// A whole, right piece.
fn piece() -> Vec<u8> {
    field(1, &[&field(1, b"a")[..], &[0x15, 0, 0, 0, 0]].concat())
}

pub(crate) fn cases() -> Vec<Case> {
    // A trainer_spec with one field of two bytes as its tag.
    let trainer = |tag: &[u8], value: &[u8]| [piece(), field(2, &[tag, value].concat())].concat();
    let start = piece().len();
    let case =
        |name, bytes: Vec<u8>, offset, says| Case::new(name, Format::TokenizerModel, bytes, offset, says);
    vec![
        case("tokenizer_empty", vec![], 0, &["pieces"]),
        case("tokenizer_without_pieces", field(3, b""), 2, &["pieces"]),
        case("varint_too_long", vec![0xff; 11], 0, &["field tag", "64 bits"]),
        case(
            "varint_above_64_bits",
            [vec![0x50], vec![0xff; 9], vec![0x02]].concat(),
            1,
            &["value", "64 bits"],
        ),
        case("varint_cut_off", vec![0x0a, 0x80], 1, &["length", "cut off"]),
        case("field_length_past_end", vec![0x0a, 100, 0], 1, &["length of field 1", "100"]),
        case(
            "field_length_2_63",
            [vec![0x0a], vec![0x80; 9], vec![0x01]].concat(),
            1,
            &["length of field 1", "9223372036854775808"],
        ),
        case(
            "piece_length_past_piece",
            [field(1, &[0x0a, 50, b'a']), vec![0; 100]].concat(),
            3,
            &["piece", "50"],
        ),
        case("field_number_0", vec![0x02, 0], 0, &["field tag", "number 0"]),
        case("group", vec![0x0b, 0x0c], 0, &["field tag", "wire type 3"]),
        case("fixed_cut_off", vec![0x0d, 1, 2], 1, &["field in model", "4 bytes"]),
        case("piece_is_no_message", vec![0x08, 1], 1, &["piece", "varint"]),
        case("piece_text_no_utf8", field(1, &field(1, b"\xff\xfe")), 4, &["text of a piece", "UTF-8"]),
        case("piece_text_empty", field(1, &field(1, b"")), 2, &["text of a piece", "empty"]),
        case("piece_score_is_text", field(1, &field(2, b"1.0")), 4, &["score of a piece", "four bytes"]),
        case(
            "piece_type_9",
            field(1, &[&field(1, b"a")[..], &[0x18, 9]].concat()),
            6,
            &["type of a piece", "is 9"],
        ),
        case("model_type_7", trainer(&[0x18], &[7]), start + 3, &["model_type", "is 7"]),
        case("byte_fallback_2", trainer(&[0x98, 0x02], &[2]), start + 4, &["byte_fallback", "is 2"]),
        case(
            "bos_id_below_minus_1",
            trainer(&[0xc8, 0x02], &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            start + 4,
            &["bos_id", "is -2"],
        ),
    ]
}

/// A small, right vocabulary with all settings.
pub(crate) fn valid() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, text) in ["<unk>", "<s>", "</s>", "<0x0A>", "\u{2581}a", "\u{2581}the", "b"].iter().enumerate() {
        let mut piece = field(1, text.as_bytes());
        piece.push(0x15);
        piece.extend((-(i as f32)).to_le_bytes());
        piece.extend([0x18, [2, 3, 3, 6, 1, 1, 1][i]]);
        bytes.extend(field(1, &piece));
    }
    // model_type BPE, byte_fallback, pad_id -1
    let trainer = [&[0x18, 2, 0x98, 0x02, 1, 0xd8, 0x02][..], &[0xff; 9], &[1]].concat();
    bytes.extend(field(2, &trainer));
    bytes.extend(field(3, &[&field(1, b"identity")[..], &[0x18, 1, 0x20, 0, 0x28, 1]].concat()));
    bytes
}

#[test]
fn the_valid_vocabulary_is_read_in_full() {
    use margay_file::tokenizer_model::{Algorithm, PieceType, TokenizerModel};
    let model = TokenizerModel::from_bytes(&valid()).unwrap();
    assert_eq!(model.pieces.len(), 7);
    assert_eq!((model.pieces[4].text.as_str(), model.pieces[4].score), ("\u{2581}a", -4.0));
    assert_eq!(model.pieces[3].piece_type, PieceType::Byte);
    assert_eq!(model.algorithm, Algorithm::Bpe);
    assert!(model.byte_fallback && model.add_dummy_prefix && !model.remove_extra_whitespaces);
    assert_eq!((model.unk_id, model.bos_id, model.eos_id, model.pad_id), (0, 1, 2, -1));
    assert_eq!(model.normalizer_name, "identity");
}
