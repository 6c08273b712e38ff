//! The ordered map of a GGUF file's metadata, with getters that say what is wrong.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use super::value::{Array, Strings, Value};
use crate::{FileError, error::clip};

/// Keys and values in the order of the file.
///
/// Integers are accepted in any width that holds them: writers disagree on whether a count is `u32`, `i32` or `u64`.
///
/// ```
/// use margay_file::gguf::Metadata;
/// let mut meta = Metadata::new();
/// meta.insert("llama.block_count", 24u64);
/// assert_eq!(meta.u32("llama.block_count").unwrap(), 24);
/// assert_eq!(meta.opt_f32("llama.rope.freq_base").unwrap(), None);
/// let err = meta.str("llama.block_count").unwrap_err().to_string();
/// assert_eq!(err, "the metadata key \"llama.block_count\" holds u64 24, expected string");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(Arc<str>, Value)>,
    index: HashMap<Arc<str>, usize>,
}

macro_rules! integer_getters {
    ($($name:ident, $opt:ident, $plain:ty);*) => {$(
        #[doc = concat!("That integer, of any stored width, as `", stringify!($plain), "`.")]
        ///
        /// # Errors
        /// [`FileError::MissingKey`], [`FileError::WrongType`] or [`FileError::OutOfRange`].
        pub fn $name(&self, key: &str) -> Result<$plain, FileError> {
            self.$opt(key)?.ok_or_else(|| missing(key))
        }

        #[doc = concat!("That integer, of any stored width, as `", stringify!($plain), "`; `None` where the key is absent.")]
        ///
        /// # Errors
        /// [`FileError::WrongType`] or [`FileError::OutOfRange`].
        pub fn $opt(&self, key: &str) -> Result<Option<$plain>, FileError> {
            let Some(value) = self.get(key) else { return Ok(None) };
            let number = value.as_integer().ok_or_else(|| wrong_type(key, "an integer", value))?;
            let fitted = <$plain>::try_from(number).map_err(|_| out_of_range(key, stringify!($plain), number))?;
            Ok(Some(fitted))
        }
    )*};
}

macro_rules! required {
    ($($name:ident, $opt:ident, $out:ty, $what:literal);*) => {$(
        #[doc = concat!("That ", $what, ".")]
        ///
        /// # Errors
        /// [`FileError::MissingKey`], [`FileError::WrongType`] or [`FileError::OutOfRange`].
        pub fn $name(&self, key: &str) -> Result<$out, FileError> {
            self.$opt(key)?.ok_or_else(|| missing(key))
        }
    )*};
}

impl Metadata {
    /// No entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    /// True where the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// Sets `key`, at the end where it is new, and gives back what it held before.
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) -> Option<Value> {
        let value = value.into();
        if let Some(&i) = self.index.get(key) {
            return Some(std::mem::replace(&mut self.entries[i].1, value));
        }
        let key: Arc<str> = key.into();
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// Takes `key` out. The others keep their order.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.index.remove(key)?;
        for place in self.index.values_mut().filter(|place| **place > at) {
            *place -= 1;
        }
        Some(self.entries.remove(at).1)
    }

    integer_getters! {
        u32, opt_u32, u32;
        i32, opt_i32, i32;
        u64, opt_u64, u64;
        i64, opt_i64, i64;
        usize, opt_usize, usize
    }

    required! {
        f32, opt_f32, f32, "number as `f32`";
        f64, opt_f64, f64, "number as `f64`";
        bool, opt_bool, bool, "truth value";
        str, opt_str, &str, "text";
        strings, opt_strings, &Strings, "array of texts";
        f32s, opt_f32s, Cow<'_, [f32]>, "array of numbers as `f32`";
        i32s, opt_i32s, Cow<'_, [i32]>, "array of integers, of any stored width, as `i32`"
    }

    /// That number as `f32`: a float of any width, or an integer; `None` where the key is absent.
    ///
    /// # Errors
    /// [`FileError::WrongType`], or [`FileError::OutOfRange`] where a finite `f64` would become infinite.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>, FileError> {
        let Some(wide) = self.opt_f64(key)? else { return Ok(None) };
        let narrow = wide as f32;
        if wide.is_finite() && !narrow.is_finite() {
            return Err(out_of_range(key, "f32", wide));
        }
        Ok(Some(narrow))
    }

    /// That number as `f64`: a float of any width, or an integer; `None` where the key is absent.
    ///
    /// # Errors
    /// [`FileError::WrongType`].
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>, FileError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
        number.map(Some).ok_or_else(|| wrong_type(key, "a number", value))
    }

    /// That truth value; `None` where the key is absent.
    ///
    /// # Errors
    /// [`FileError::WrongType`].
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, FileError> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(key, "bool", other)),
        }
    }

    /// That text; `None` where the key is absent.
    ///
    /// # Errors
    /// [`FileError::WrongType`].
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, FileError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| wrong_type(key, "string", value))
    }

    /// That array of texts; `None` where the key is absent.
    ///
    /// # Errors
    /// [`FileError::WrongType`].
    pub fn opt_strings(&self, key: &str) -> Result<Option<&Strings>, FileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(items))) => Ok(Some(items)),
            Some(other) => Err(wrong_type(key, "an array of strings", other)),
        }
    }

    /// That array of floats, of any width; `None` where the key is absent.
    ///
    /// # Errors
    /// [`FileError::WrongType`].
    pub fn opt_f32s(&self, key: &str) -> Result<Option<Cow<'_, [f32]>>, FileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::F32(items))) => Ok(Some(Cow::Borrowed(items))),
            Some(Value::Array(Array::F64(items))) => Ok(Some(items.iter().map(|&v| v as f32).collect())),
            Some(other) => Err(wrong_type(key, "an array of floats", other)),
        }
    }

    /// That array of integers, of any width that fits `i32`; `None` where the key is absent.
    ///
    /// # Errors
    /// [`FileError::WrongType`] or [`FileError::OutOfRange`].
    pub fn opt_i32s(&self, key: &str) -> Result<Option<Cow<'_, [i32]>>, FileError> {
        fn narrow<T: Copy + Into<i128>>(key: &str, items: &[T]) -> Result<Vec<i32>, FileError> {
            let fit =
                |&item: &T| i32::try_from(item.into()).map_err(|_| out_of_range(key, "i32", item.into()));
            items.iter().map(fit).collect()
        }
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Array(array) = value else { return Err(wrong_type(key, "an array of integers", value)) };
        let items = match array {
            Array::I32(items) => return Ok(Some(Cow::Borrowed(items))),
            Array::U8(items) => narrow(key, items)?,
            Array::I8(items) => narrow(key, items)?,
            Array::U16(items) => narrow(key, items)?,
            Array::I16(items) => narrow(key, items)?,
            Array::U32(items) => narrow(key, items)?,
            Array::U64(items) => narrow(key, items)?,
            Array::I64(items) => narrow(key, items)?,
            Array::F32(_) | Array::F64(_) | Array::Bool(_) | Array::String(_) => {
                return Err(wrong_type(key, "an array of integers", value));
            }
        };
        Ok(Some(Cow::Owned(items)))
    }
}

/// Equal keys with equal values in equal order.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<K: AsRef<str>, V: Into<Value>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut meta = Metadata::new();
        for (key, value) in entries {
            meta.insert(key.as_ref(), value);
        }
        meta
    }
}

fn missing(key: &str) -> FileError {
    FileError::MissingKey { key: clip(key) }
}

fn wrong_type(key: &str, expected: &'static str, value: &Value) -> FileError {
    let got = match value {
        Value::Array(_) => clip(&value.to_string()),
        _ => format!("{} {}", value.value_type().name(), clip(&value.to_string())),
    };
    FileError::WrongType { key: clip(key), expected, got }
}

fn out_of_range(key: &str, expected: &'static str, got: impl std::fmt::Display) -> FileError {
    FileError::OutOfRange { key: clip(key), expected, got: got.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_any_width_are_read_where_they_fit() {
        let widths: [Value; 8] = [
            7u8.into(),
            7i8.into(),
            7u16.into(),
            7i16.into(),
            7u32.into(),
            7i32.into(),
            7u64.into(),
            7i64.into(),
        ];
        for value in widths {
            let meta = Metadata::from_iter([("k", value)]);
            assert_eq!(meta.u32("k").unwrap(), 7);
            assert_eq!(meta.i64("k").unwrap(), 7);
            assert_eq!(meta.usize("k").unwrap(), 7);
            assert_eq!(meta.f32("k").unwrap(), 7.0);
        }
        let meta = Metadata::from_iter([("k", Value::I32(-1)), ("big", Value::U64(u64::MAX))]);
        assert_eq!(
            meta.u32("k").unwrap_err().to_string(),
            "the metadata key \"k\" holds -1, which is no u32"
        );
        assert!(matches!(meta.i64("big").unwrap_err(), FileError::OutOfRange { .. }));
        assert_eq!(meta.u64("big").unwrap(), u64::MAX);
    }

    #[test]
    fn wrong_types_and_missing_keys_are_named() {
        let meta = Metadata::from_iter([
            ("s", Value::from("x")),
            ("a", vec![1.5f32].into()),
            ("i", vec![1u64 << 40].into()),
        ]);
        assert_eq!(meta.u32("t").unwrap_err().to_string(), "the metadata key \"t\" is missing");
        assert!(matches!(meta.bool("s").unwrap_err(), FileError::WrongType { expected: "bool", .. }));
        assert!(matches!(meta.i32s("a").unwrap_err(), FileError::WrongType { .. }));
        assert!(matches!(meta.i32s("i").unwrap_err(), FileError::OutOfRange { .. }));
        assert_eq!(meta.f32s("a").unwrap()[..], [1.5]);
        assert!(meta.opt_strings("a").is_err());
    }

    #[test]
    fn order_survives_replacing_and_removing() {
        let mut meta = Metadata::from_iter([("a", 1u32), ("b", 2), ("c", 3)]);
        assert_eq!(meta.insert("a", 9u32), Some(Value::U32(1)));
        assert_eq!(meta.remove("b"), Some(Value::U32(2)));
        assert_eq!(meta.remove("b"), None);
        meta.insert("b", 4u32);
        let order: Vec<_> = meta.iter().map(|(key, value)| (key, value.as_integer().unwrap())).collect();
        assert_eq!(order, [("a", 9), ("c", 3), ("b", 4)]);
        assert_eq!(meta.u32("c").unwrap(), 3);
    }

    #[test]
    fn doubles_beyond_f32_are_refused() {
        let meta = Metadata::from_iter([("big", 1e300f64), ("inf", f64::INFINITY)]);
        assert!(matches!(meta.f32("big").unwrap_err(), FileError::OutOfRange { .. }));
        assert_eq!(meta.f32("inf").unwrap(), f32::INFINITY);
    }
}
