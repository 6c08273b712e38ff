//! Values of GGUF metadata.

use std::fmt;

use margay_tensor::Storage;

/// One metadata value: any of the thirteen types of GGUF.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variant's name is its type")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array. Arrays of arrays are not part of what runtimes accept, hence not of this type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variant's name is its element type")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Strings),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Type of a value or of an array's elements, with its number in the file. Source: ggml's `gguf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the variant's name is its type")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// All types in the order of their numbers.
    pub const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// Number of the type in the file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// The type of that number.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.id() == id)
    }

    /// Name as messages show it.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Fewest bytes one value takes in the file: its size, or that of a string's or array's head.
    pub(crate) fn min_bytes(self) -> u64 {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
            ValueType::Array => 12,
        }
    }
}

impl Value {
    /// Type of the value.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The number, of any integer type.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The number, of any floating-point type.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    /// The text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(v) => Some(v),
            _ => None,
        }
    }
}

/// Short form for people: long text and long arrays are cut.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(v) => write!(f, "{}", crate::error::Quoted(v)),
            Value::Array(v) => write!(f, "{v}"),
        }
    }
}

macro_rules! per_array {
    ($array:expr, $items:ident => $body:expr) => {
        match $array {
            Array::U8($items) => $body,
            Array::I8($items) => $body,
            Array::U16($items) => $body,
            Array::I16($items) => $body,
            Array::U32($items) => $body,
            Array::I32($items) => $body,
            Array::F32($items) => $body,
            Array::Bool($items) => $body,
            Array::String($items) => $body,
            Array::U64($items) => $body,
            Array::I64($items) => $body,
            Array::F64($items) => $body,
        }
    };
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        per_array!(self, items => items.len())
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Type of the elements.
    pub fn element_type(&self) -> ValueType {
        match self {
            Array::U8(_) => ValueType::U8,
            Array::I8(_) => ValueType::I8,
            Array::U16(_) => ValueType::U16,
            Array::I16(_) => ValueType::I16,
            Array::U32(_) => ValueType::U32,
            Array::I32(_) => ValueType::I32,
            Array::F32(_) => ValueType::F32,
            Array::Bool(_) => ValueType::Bool,
            Array::String(_) => ValueType::String,
            Array::U64(_) => ValueType::U64,
            Array::I64(_) => ValueType::I64,
            Array::F64(_) => ValueType::F64,
        }
    }
}

/// Elements of an array that its short form shows.
const SHOWN_ELEMENTS: usize = 8;

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] [", self.element_type().name(), self.len())?;
        per_array!(self, items => {
            for (i, item) in items.iter().take(SHOWN_ELEMENTS).enumerate() {
                write!(f, "{}{item:?}", if i == 0 { "" } else { ", " })?;
            }
        });
        f.write_str(if self.len() > SHOWN_ELEMENTS { ", ...]" } else { "]" })
    }
}

/// Many strings, kept as a GGUF file keeps them: each a little-endian `u64` length and that many bytes of UTF-8. An
/// array read from a file borrows the file's bytes, so that a vocabulary of 256 thousand tokens costs one pass and
/// four bytes a token.
#[derive(Clone)]
pub struct Strings {
    bytes: Storage,
    /// Where each text starts in `bytes`; it ends eight bytes before the next one, or at the end.
    starts: Vec<u32>,
}

/// Bytes of the length before each string.
pub(crate) const LENGTH_BYTES: usize = 8;

impl Strings {
    /// Strings over checked bytes: every start follows its length, every text is UTF-8.
    pub(crate) fn from_checked(bytes: Storage, starts: Vec<u32>) -> Self {
        Strings { bytes, starts }
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// That string, or `None` beyond the end. A text that is no UTF-8 any more, because its file was overwritten after
    /// it was checked, reads as empty.
    pub fn get(&self, index: usize) -> Option<&str> {
        let start = *self.starts.get(index)? as usize;
        let end = self.starts.get(index + 1).map_or(self.bytes.len(), |&next| next as usize - LENGTH_BYTES);
        Some(std::str::from_utf8(&self.encoded()[start..end]).unwrap_or_default())
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }

    /// The strings as the file stores them.
    pub(crate) fn encoded(&self) -> &[u8] {
        self.bytes.as_bytes()
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    /// # Panics
    /// Where the strings together take 4 GiB or more; [`crate::limits::MAX_ARRAY_BYTES`] is what a file may hold.
    fn from_iter<I: IntoIterator<Item = S>>(items: I) -> Self {
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for item in items {
            let text = item.as_ref().as_bytes();
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            starts.push(u32::try_from(bytes.len()).expect("invariant: string arrays stay below 4 GiB"));
            bytes.extend_from_slice(text);
        }
        Strings { bytes: Storage::from_bytes(&bytes), starts }
    }
}

impl PartialEq for Strings {
    fn eq(&self, other: &Self) -> bool {
        self.bytes.as_bytes() == other.bytes.as_bytes()
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

macro_rules! from_plain {
    ($($plain:ty => $variant:ident),*) => {$(
        impl From<$plain> for Value {
            fn from(value: $plain) -> Self {
                Value::$variant(value)
            }
        }
        impl From<Vec<$plain>> for Value {
            fn from(items: Vec<$plain>) -> Self {
                Value::Array(Array::$variant(items))
            }
        }
    )*};
}

from_plain!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool);

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::String(value)
    }
}

impl From<Strings> for Value {
    fn from(items: Strings) -> Self {
        Value::Array(Array::String(items))
    }
}

impl From<Vec<String>> for Value {
    fn from(items: Vec<String>) -> Self {
        items.into_iter().collect::<Strings>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_give_back_what_went_in() {
        let texts = ["", "a", "", "日本", "x\u{0}y", ""];
        let strings: Strings = texts.iter().collect();
        assert_eq!(strings.iter().collect::<Vec<_>>(), texts);
        assert_eq!(strings.get(6), None);
        assert!(Strings::from_iter([""; 0]).is_empty());
    }

    #[test]
    fn long_values_are_shown_short() {
        let text = Value::from("x".repeat(10_000)).to_string();
        assert!(text.len() < 200 && text.ends_with("...\""), "{text}");
        assert_eq!(Value::from(vec![1u32, 2]).to_string(), "u32[2] [1, 2]");
        assert!(Value::from(vec![0i8; 100]).to_string().ends_with("0, ...]"));
    }
}
