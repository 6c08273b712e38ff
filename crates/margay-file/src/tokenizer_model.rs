//! The vocabulary of SentencePiece (`tokenizer.model`), as plain data.
//!
//! The file is a protobuf message `ModelProto`. Source of field numbers and defaults: `sentencepiece_model.proto` in
//! the SentencePiece repository; of the wire format: the Protocol Buffers encoding guide.

use crate::{FileError, cursor::Cursor, error::Quoted, limits};

/// The name of this format in messages.
const FORMAT: &str = "tokenizer.model";

/// What the algorithm was that made the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the field's own names")]
pub enum Algorithm {
    Unigram,
    Bpe,
    Word,
    Char,
}

/// What a piece stands for. The numbers are those of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the field's own names")]
pub enum PieceType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// One entry of the vocabulary; its place is its id.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Text, with `▁` for a space.
    pub text: String,
    /// Log probability (unigram) or rank (BPE, higher merges first).
    pub score: f32,
    /// What it stands for.
    pub piece_type: PieceType,
}

/// A whole vocabulary with the settings that tokenizing needs.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerModel {
    /// Pieces in the order of their ids.
    pub pieces: Vec<Piece>,
    /// How the pieces are to be applied.
    pub algorithm: Algorithm,
    /// Unknown text becomes `<0x..>` pieces.
    pub byte_fallback: bool,
    /// Id of the unknown piece.
    pub unk_id: i32,
    /// Id of the piece at the beginning, -1 for none.
    pub bos_id: i32,
    /// Id of the piece at the end, -1 for none.
    pub eos_id: i32,
    /// Id of padding, -1 for none.
    pub pad_id: i32,
    /// A space is put before the text.
    pub add_dummy_prefix: bool,
    /// Spaces at both ends go, and runs of them become one.
    pub remove_extra_whitespaces: bool,
    /// Spaces become `▁`.
    pub escape_whitespaces: bool,
    /// Name of the normalisation rules: `identity` for the LLaMA family, `nmt_nfkc` and others elsewhere.
    pub normalizer_name: String,
}

impl TokenizerModel {
    /// Settings of a message that says nothing.
    fn defaults() -> Self {
        TokenizerModel {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            unk_id: 0,
            bos_id: 1,
            eos_id: 2,
            pad_id: -1,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
            normalizer_name: String::new(),
        }
    }

    /// Reads a `tokenizer.model` file.
    ///
    /// # Errors
    /// [`FileError::Malformed`] where the bytes break the wire format or hold no vocabulary.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FileError> {
        let mut model = Self::defaults();
        let mut message = Message::new(bytes, 0);
        while let Some(field) = message.next("model")? {
            match field.number {
                1 => {
                    if model.pieces.len() as u64 == limits::MAX_TOKENIZER_PIECES {
                        let why = format!("is one more than the limit of {}", limits::MAX_TOKENIZER_PIECES);
                        return Err(field.malformed("piece", why));
                    }
                    let piece = read_piece(field.bytes("piece")?, field.at, model.pieces.len())?;
                    model.pieces.push(piece);
                }
                2 => model.read_trainer_spec(field.bytes("trainer_spec")?, field.at)?,
                3 => model.read_normalizer_spec(field.bytes("normalizer_spec")?, field.at)?,
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(malformed(bytes.len(), "pieces".to_owned(), "there are none".to_owned()));
        }
        Ok(model)
    }

    fn read_trainer_spec(&mut self, bytes: &[u8], at: usize) -> Result<(), FileError> {
        let mut message = Message::new(bytes, at);
        while let Some(field) = message.next("trainer_spec")? {
            match field.number {
                3 => {
                    self.algorithm = match field.varint("model_type")? {
                        1 => Algorithm::Unigram,
                        2 => Algorithm::Bpe,
                        3 => Algorithm::Word,
                        4 => Algorithm::Char,
                        other => {
                            return Err(
                                field.malformed("model_type", format!("is {other}, known are 1 to 4"))
                            );
                        }
                    }
                }
                35 => self.byte_fallback = field.truth("byte_fallback")?,
                40 => self.unk_id = field.id("unk_id")?,
                41 => self.bos_id = field.id("bos_id")?,
                42 => self.eos_id = field.id("eos_id")?,
                43 => self.pad_id = field.id("pad_id")?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer_spec(&mut self, bytes: &[u8], at: usize) -> Result<(), FileError> {
        let mut message = Message::new(bytes, at);
        while let Some(field) = message.next("normalizer_spec")? {
            match field.number {
                1 => self.normalizer_name = field.text("normalizer name")?.to_owned(),
                3 => self.add_dummy_prefix = field.truth("add_dummy_prefix")?,
                4 => self.remove_extra_whitespaces = field.truth("remove_extra_whitespaces")?,
                5 => self.escape_whitespaces = field.truth("escape_whitespaces")?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn read_piece(bytes: &[u8], at: usize, id: usize) -> Result<Piece, FileError> {
    let mut piece = Piece { text: String::new(), score: 0.0, piece_type: PieceType::Normal };
    let mut message = Message::new(bytes, at);
    while let Some(field) = message.next("piece")? {
        match field.number {
            1 => piece.text = field.text("text of a piece")?.to_owned(),
            2 => piece.score = field.float("score of a piece")?,
            3 => {
                piece.piece_type = match field.varint("type of a piece")? {
                    1 => PieceType::Normal,
                    2 => PieceType::Unknown,
                    3 => PieceType::Control,
                    4 => PieceType::UserDefined,
                    5 => PieceType::Unused,
                    6 => PieceType::Byte,
                    other => {
                        let why =
                            format!("is {other}, known are 1 to 6 (piece {id}, {})", Quoted(&piece.text));
                        return Err(field.malformed("type of a piece", why));
                    }
                }
            }
            _ => {}
        }
    }
    if piece.text.is_empty() {
        return Err(malformed(at, "text of a piece".to_owned(), format!("is empty or absent (piece {id})")));
    }
    Ok(piece)
}

/// Fields of one message, in order.
struct Message<'a> {
    cursor: Cursor<'a>,
    /// Where the message starts in the file.
    base: usize,
}

/// One field: its number, its value, and where the value starts in the file.
struct Field<'a> {
    number: u64,
    value: Wire<'a>,
    at: usize,
}

enum Wire<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

impl<'a> Message<'a> {
    fn new(bytes: &'a [u8], base: usize) -> Self {
        Message { cursor: Cursor::new(FORMAT, bytes), base }
    }

    fn next(&mut self, what: &str) -> Result<Option<Field<'a>>, FileError> {
        if self.cursor.remaining() == 0 {
            return Ok(None);
        }
        let tag_at = self.base + self.cursor.at();
        let tag = self.varint(what, "field tag")?;
        let (number, wire_type) = (tag >> 3, tag & 7);
        if number == 0 {
            return Err(malformed(tag_at, format!("field tag in {what}"), "has field number 0".to_owned()));
        }
        let mut at = self.base + self.cursor.at();
        let value = match wire_type {
            0 => Wire::Varint(self.varint(what, "value")?),
            1 => {
                self.take(8, what)?;
                Wire::Fixed64
            }
            2 => {
                let length = self.varint(what, "length")?;
                if length > self.cursor.remaining() {
                    let why = format!("is {length} bytes, {what} has {} left", self.cursor.remaining());
                    return Err(malformed(at, format!("length of field {number} in {what}"), why));
                }
                at = self.base + self.cursor.at();
                Wire::Bytes(self.take(length, what)?)
            }
            5 => Wire::Fixed32(self.take(4, what)?.iter().rev().fold(0, |n, &byte| n << 8 | u32::from(byte))),
            other => {
                let why = format!("has wire type {other}, known are 0, 1, 2 and 5");
                return Err(malformed(tag_at, format!("field tag {number} in {what}"), why));
            }
        };
        Ok(Some(Field { number, value, at }))
    }

    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], FileError> {
        let at = self.base + self.cursor.at();
        self.cursor.take(count, format_args!("field in {what}")).map_err(|_| {
            malformed(
                at,
                format!("field in {what}"),
                format!("needs {count} bytes, {} are left", self.cursor.remaining()),
            )
        })
    }

    /// A number of seven bits a byte, at most ten bytes.
    fn varint(&mut self, what: &str, part: &str) -> Result<u64, FileError> {
        let at = self.base + self.cursor.at();
        let broken = |why: &str| malformed(at, format!("{part} in {what}"), why.to_owned());
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte =
                self.cursor.u8(format_args!("{part}")).map_err(|_| broken("is a varint that is cut off"))?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(broken("is a varint longer than 64 bits"))
    }
}

impl<'a> Field<'a> {
    fn malformed(&self, what: &str, why: String) -> FileError {
        malformed(self.at, what.to_owned(), why)
    }

    fn wrong(&self, what: &str, expected: &str) -> FileError {
        let got = match self.value {
            Wire::Varint(_) => "a varint",
            Wire::Fixed32(_) => "four bytes",
            Wire::Fixed64 => "eight bytes",
            Wire::Bytes(_) => "a length and bytes",
        };
        self.malformed(what, format!("is {got}, expected {expected}"))
    }

    fn bytes(&self, what: &str) -> Result<&'a [u8], FileError> {
        match self.value {
            Wire::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong(what, "a length and bytes")),
        }
    }

    fn text(&self, what: &str) -> Result<&'a str, FileError> {
        let bytes = self.bytes(what)?;
        if bytes.len() as u64 > limits::MAX_KEY_BYTES {
            let why = format!("is {} bytes, the limit is {}", bytes.len(), limits::MAX_KEY_BYTES);
            return Err(self.malformed(what, why));
        }
        std::str::from_utf8(bytes).map_err(|e| self.malformed(what, format!("is no UTF-8 ({e})")))
    }

    fn varint(&self, what: &str) -> Result<u64, FileError> {
        match self.value {
            Wire::Varint(value) => Ok(value),
            _ => Err(self.wrong(what, "a varint")),
        }
    }

    fn float(&self, what: &str) -> Result<f32, FileError> {
        match self.value {
            Wire::Fixed32(bits) => Ok(f32::from_bits(bits)),
            _ => Err(self.wrong(what, "four bytes")),
        }
    }

    fn truth(&self, what: &str) -> Result<bool, FileError> {
        match self.varint(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.malformed(what, format!("is {other}, expected 0 or 1"))),
        }
    }

    /// A piece's id, -1 for none: a negative `int32` is stored as 64 bits.
    fn id(&self, what: &str) -> Result<i32, FileError> {
        let value = self.varint(what)? as i64;
        match i32::try_from(value) {
            Ok(id) if id >= -1 => Ok(id),
            _ => Err(self.malformed(what, format!("is {value}, expected -1 or an id"))),
        }
    }
}

fn malformed(offset: usize, field: String, why: String) -> FileError {
    FileError::Malformed { format: FORMAT, field, offset: offset as u64, why }
}
