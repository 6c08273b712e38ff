//! Reads a GGUF file's head. Tensor data is not touched.

use std::fmt;

use margay_tensor::{Shape, Storage};

use super::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, Entry, FORMAT, Inner, MAGIC, Metadata, Strings, Value,
    ValueType, align_up, types::dtype_from_id, value::LENGTH_BYTES,
};
use crate::{
    FileError, TensorInfo,
    cursor::Cursor,
    error::{Quoted, shown_shape},
    limits,
};

/// Fewest bytes of a metadata entry: key length, one byte of key, type, one byte of value.
const MIN_METADATA_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;

/// Fewest bytes of a tensor's description: name length, one byte of name, rank, one size, type, offset.
const MIN_TENSOR_ENTRY_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

pub(super) fn read(bytes: Storage) -> Result<Inner, FileError> {
    let mut cursor = Cursor::new(FORMAT, bytes.as_bytes());
    let version = read_version(&mut cursor)?;
    let tensor_count =
        read_count(&mut cursor, "number of tensors", MIN_TENSOR_ENTRY_BYTES, limits::MAX_TENSORS)?;
    let entry_count = read_count(
        &mut cursor,
        "number of metadata entries",
        MIN_METADATA_ENTRY_BYTES,
        limits::MAX_METADATA_ENTRIES,
    )?;
    let metadata = read_metadata(&mut cursor, &bytes, entry_count)?;
    let alignment = read_alignment(&cursor, &metadata)?;
    let names_at = cursor.at();
    let mut described = Vec::new();
    for i in 0..tensor_count {
        described.push(read_tensor(&mut cursor, i, alignment)?);
    }
    let tensors = place_tensors(&cursor, bytes.len(), alignment, described)?;
    let by_name = sort_by_name(&cursor, &tensors, names_at)?;
    Ok(Inner { version, alignment, metadata: metadata.map, tensors, by_name, bytes })
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, FileError> {
    let magic = cursor.take(4, format_args!("magic"))?;
    if magic != MAGIC {
        let why = format!("is \"{}\", expected \"GGUF\"", magic.escape_ascii());
        return Err(cursor.malformed(0, "magic", why));
    }
    let version = cursor.u32(format_args!("version"))?;
    let unsupported =
        |why: String| FileError::Unsupported { format: FORMAT, field: "version".to_owned(), offset: 4, why };
    match version {
        2 | 3 => Ok(version),
        0 => Err(cursor.malformed(4, "version", "is 0")),
        v if v & 0xffff == 0 => {
            let why = format!(
                "is {} with its bytes swapped: a big-endian file; convert it again for little-endian",
                v.swap_bytes()
            );
            Err(unsupported(why))
        }
        1 => {
            Err(unsupported("is 1, which was replaced in 2023; convert the original model again".to_owned()))
        }
        v => Err(unsupported(format!("is {v}; this program reads 2 and 3"))),
    }
}

/// A count of entries that each take at least `min_bytes` of what follows.
fn read_count(cursor: &mut Cursor<'_>, what: &str, min_bytes: u64, limit: u64) -> Result<u64, FileError> {
    let at = cursor.at();
    let count = cursor.i64(format_args!("{what}"))?;
    let Ok(count) = u64::try_from(count) else {
        return Err(cursor.malformed(at, what, format!("is {count}")));
    };
    let room = cursor.remaining() / min_bytes;
    if count > room {
        return Err(cursor.malformed(
            at,
            what,
            format!("is {count}, the rest of the file has room for {room} at most"),
        ));
    }
    if count > limit {
        return Err(cursor.malformed(at, what, format!("is {count}, the limit is {limit}")));
    }
    Ok(count)
}

/// Text with its length before it.
fn read_text<'a>(
    cursor: &mut Cursor<'a>,
    limit: u64,
    field: fmt::Arguments<'_>,
) -> Result<&'a str, FileError> {
    let at = cursor.at();
    let len = cursor.u64(format_args!("length of {field}"))?;
    if len > cursor.remaining() {
        let why = format!("is {len} bytes, the file has {} left", cursor.remaining());
        return Err(cursor.malformed(at, format_args!("length of {field}"), why));
    }
    if len > limit {
        let why = format!("is {len} bytes, the limit is {limit}");
        return Err(cursor.malformed(at, format_args!("length of {field}"), why));
    }
    let start = cursor.at();
    let bytes = cursor.take(len, field)?;
    std::str::from_utf8(bytes).map_err(|e| {
        let why = format!("is no UTF-8 ({e})");
        cursor.malformed(start + e.valid_up_to(), field, why)
    })
}

struct ReadMetadata {
    map: Metadata,
    /// Where the value of `general.alignment` starts.
    alignment_at: usize,
}

fn read_metadata(cursor: &mut Cursor<'_>, file: &Storage, count: u64) -> Result<ReadMetadata, FileError> {
    let (mut map, mut alignment_at) = (Metadata::new(), 0);
    for i in 0..count {
        let at = cursor.at();
        let key = read_text(cursor, limits::MAX_KEY_BYTES, format_args!("key of metadata entry {i}"))?;
        if key.is_empty() {
            return Err(cursor.malformed(at, format_args!("key of metadata entry {i}"), "is empty"));
        }
        if map.contains(key) {
            let field = format!("key {} of metadata entry {i}", Quoted(key));
            return Err(cursor.malformed(at, field, "occurs twice"));
        }
        let value_type = read_value_type(cursor, format_args!("value type of {}", Quoted(key)))?;
        if key == ALIGNMENT_KEY {
            alignment_at = cursor.at();
        }
        let value = read_value(cursor, file, value_type, key)?;
        map.insert(key, value);
    }
    Ok(ReadMetadata { map, alignment_at })
}

fn read_value_type(cursor: &mut Cursor<'_>, field: fmt::Arguments<'_>) -> Result<ValueType, FileError> {
    let at = cursor.at();
    let id = cursor.u32(field)?;
    ValueType::from_id(id).ok_or_else(|| cursor.malformed(at, field, format!("is {id}, known are 0 to 12")))
}

fn read_value(
    cursor: &mut Cursor<'_>,
    file: &Storage,
    value_type: ValueType,
    key: &str,
) -> Result<Value, FileError> {
    let key = Quoted(key);
    let field = format_args!("value of {key}");
    Ok(match value_type {
        ValueType::U8 => Value::U8(cursor.u8(field)?),
        ValueType::I8 => Value::I8(cursor.i8(field)?),
        ValueType::U16 => Value::U16(cursor.u16(field)?),
        ValueType::I16 => Value::I16(cursor.i16(field)?),
        ValueType::U32 => Value::U32(cursor.u32(field)?),
        ValueType::I32 => Value::I32(cursor.i32(field)?),
        ValueType::U64 => Value::U64(cursor.u64(field)?),
        ValueType::I64 => Value::I64(cursor.i64(field)?),
        ValueType::F32 => Value::F32(cursor.f32(field)?),
        ValueType::F64 => Value::F64(cursor.f64(field)?),
        ValueType::Bool => {
            let at = cursor.at();
            let byte = cursor.u8(field)?;
            Value::Bool(
                truth(byte)
                    .ok_or_else(|| cursor.malformed(at, field, format!("is {byte}, expected 0 or 1")))?,
            )
        }
        ValueType::String => Value::String(read_text(cursor, limits::MAX_STRING_BYTES, field)?.to_owned()),
        ValueType::Array => Value::Array(read_array(cursor, file, &key)?),
    })
}

fn truth(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn read_array(cursor: &mut Cursor<'_>, file: &Storage, key: &Quoted<'_>) -> Result<Array, FileError> {
    let type_at = cursor.at();
    let element = read_value_type(cursor, format_args!("element type of {key}"))?;
    if element == ValueType::Array {
        let field = format_args!("element type of {key}");
        return Err(cursor.malformed(type_at, field, "is 9: arrays of arrays are not accepted"));
    }
    let at = cursor.at();
    let field = format_args!("element count of {key}");
    let count = cursor.u64(field)?;
    let size = count.checked_mul(element.min_bytes());
    let Some(size) = size.filter(|&size| size <= cursor.remaining()) else {
        let (name, left) = (element.name(), cursor.remaining());
        let why = format!("is {count}: so many {name} do not fit the {left} bytes that are left");
        return Err(cursor.malformed(at, field, why));
    };
    if size > limits::MAX_ARRAY_BYTES {
        let why = format!("is {count} ({size} bytes), the limit is {} bytes", limits::MAX_ARRAY_BYTES);
        return Err(cursor.malformed(at, field, why));
    }
    if element == ValueType::String {
        return Ok(Array::String(read_strings(cursor, file, count, key)?));
    }
    let start = cursor.at();
    let bytes = cursor.take(size, format_args!("elements of {key}"))?;
    Ok(match element {
        ValueType::U8 => Array::U8(bytes.to_vec()),
        ValueType::I8 => Array::I8(decode(bytes, i8::from_le_bytes)),
        ValueType::U16 => Array::U16(decode(bytes, u16::from_le_bytes)),
        ValueType::I16 => Array::I16(decode(bytes, i16::from_le_bytes)),
        ValueType::U32 => Array::U32(decode(bytes, u32::from_le_bytes)),
        ValueType::I32 => Array::I32(decode(bytes, i32::from_le_bytes)),
        ValueType::U64 => Array::U64(decode(bytes, u64::from_le_bytes)),
        ValueType::I64 => Array::I64(decode(bytes, i64::from_le_bytes)),
        ValueType::F32 => Array::F32(decode(bytes, f32::from_le_bytes)),
        ValueType::F64 => Array::F64(decode(bytes, f64::from_le_bytes)),
        ValueType::Bool | ValueType::String | ValueType::Array => {
            if let Some(i) = bytes.iter().position(|&byte| byte > 1) {
                let why = format!("is {}, expected 0 or 1", bytes[i]);
                return Err(cursor.malformed(start + i, format_args!("element {i} of {key}"), why));
            }
            Array::Bool(bytes.iter().map(|&byte| byte == 1).collect())
        }
    })
}

fn decode<T, const N: usize>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| from(chunk)).collect()
}

/// Checks `count` strings and borrows them. Their heads are known to fit the file.
fn read_strings(
    cursor: &mut Cursor<'_>,
    file: &Storage,
    count: u64,
    key: &Quoted<'_>,
) -> Result<Strings, FileError> {
    let base = cursor.at();
    let mut starts = Vec::with_capacity(count as usize);
    for i in 0..count {
        let at = cursor.at();
        let text = read_text(cursor, limits::MAX_STRING_BYTES, format_args!("element {i} of {key}"))?;
        let start = at - base + LENGTH_BYTES;
        if (start + text.len()) as u64 > limits::MAX_ARRAY_BYTES {
            let why = format!("ends beyond the limit of {} bytes for an array", limits::MAX_ARRAY_BYTES);
            return Err(cursor.malformed(at, format_args!("element {i} of {key}"), why));
        }
        starts.push(start as u32);
    }
    let bytes = file.slice(base..cursor.at()).expect("invariant: the cursor stays within the file");
    Ok(Strings::from_checked(bytes, starts))
}

fn read_alignment(cursor: &Cursor<'_>, metadata: &ReadMetadata) -> Result<u32, FileError> {
    let broken = |why: String| cursor.malformed(metadata.alignment_at, ALIGNMENT_KEY, why);
    match metadata.map.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(value)) if value.is_power_of_two() && value <= limits::MAX_ALIGNMENT => Ok(value),
        Some(&Value::U32(value)) if value.is_power_of_two() => {
            Err(broken(format!("is {value}, the limit is {}", limits::MAX_ALIGNMENT)))
        }
        Some(&Value::U32(value)) => Err(broken(format!("is {value}, expected a power of two"))),
        Some(other) => Err(broken(format!("has type {}, expected u32", other.value_type().name()))),
    }
}

/// A tensor's description as read: where its data lies is not checked yet.
struct Described {
    name: Box<str>,
    info: TensorInfo,
    size: usize,
    offset: u64,
    /// Where the offset is written in the file.
    offset_at: usize,
}

fn read_tensor(cursor: &mut Cursor<'_>, i: u64, alignment: u32) -> Result<Described, FileError> {
    let name_at = cursor.at();
    let name = read_text(cursor, limits::MAX_TENSOR_NAME_BYTES, format_args!("name of tensor {i}"))?;
    if name.is_empty() || name.contains(char::is_control) {
        let why = format!("is {}: empty, or with control characters", Quoted(name));
        return Err(cursor.malformed(name_at, format_args!("name of tensor {i}"), why));
    }
    let shown = Quoted(name);
    let rank_at = cursor.at();
    let rank = cursor.u32(format_args!("number of dimensions of {shown}"))?;
    if !(1..=limits::MAX_GGUF_DIMS).contains(&rank) {
        let why = format!("is {rank}, expected 1 to {}", limits::MAX_GGUF_DIMS);
        return Err(cursor.malformed(rank_at, format_args!("number of dimensions of {shown}"), why));
    }
    let shape_at = cursor.at();
    let mut dims = Vec::with_capacity(rank as usize);
    for d in 0..rank {
        let at = cursor.at();
        let field = format_args!("dimension {d} of {shown}");
        let ne = cursor.i64(field)?;
        match usize::try_from(ne) {
            Ok(ne) if ne > 0 => dims.push(ne),
            _ => return Err(cursor.malformed(at, field, format!("is {ne}, expected at least 1"))),
        }
    }
    // The file lists the contiguous dimension first.
    dims.reverse();
    let type_at = cursor.at();
    let id = cursor.u32(format_args!("type of {shown}"))?;
    let dtype = dtype_from_id(id).map_err(|why| FileError::Unsupported {
        format: FORMAT,
        field: format!("type of {shown}"),
        offset: type_at as u64,
        why,
    })?;
    let info = TensorInfo { dtype, shape: Shape::from(dims) };
    let size = info.size_bytes();
    let size = size.map_err(|e| cursor.malformed(shape_at, format_args!("dimensions of {shown}"), e))?;
    let offset_at = cursor.at();
    let offset = cursor.u64(format_args!("offset of {shown}"))?;
    if offset % u64::from(alignment) != 0 {
        let why = format!("is {offset}, no multiple of the alignment {alignment}");
        return Err(cursor.malformed(offset_at, format_args!("offset of {shown}"), why));
    }
    Ok(Described { name: name.into(), info, size, offset, offset_at })
}

/// Finds where each tensor's bytes lie, and that they lie within the file and do not overlap.
fn place_tensors(
    cursor: &Cursor<'_>,
    file_len: usize,
    alignment: u32,
    described: Vec<Described>,
) -> Result<Vec<Entry>, FileError> {
    // A file without tensors may end right after its metadata.
    let data_start = align_up(cursor.at() as u64, alignment);
    let mut spans = Vec::with_capacity(described.len());
    let mut entries = Vec::with_capacity(described.len());
    for tensor in described {
        let start = data_start.and_then(|start| start.checked_add(tensor.offset));
        let end = start.and_then(|start| start.checked_add(tensor.size as u64));
        let (Some(start), Some(end)) = (start, end.filter(|&end| end <= file_len as u64)) else {
            let why = format!(
                "is {}: the {} bytes of {} {} from there end beyond the file's {file_len} bytes (is it cut off?)",
                tensor.offset,
                tensor.size,
                tensor.info.dtype,
                shown_shape(&tensor.info.shape),
            );
            return Err(cursor.malformed(
                tensor.offset_at,
                format_args!("offset of {}", Quoted(&tensor.name)),
                why,
            ));
        };
        // Both are at most the length of a slice, hence fit usize.
        let range = start as usize..end as usize;
        spans.push((range.start, range.end, tensor.offset_at, entries.len() as u32));
        entries.push(Entry { name: tensor.name, info: tensor.info, range });
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        let (&(_, end, _, first), &(start, _, offset_at, second)) = (&pair[0], &pair[1]);
        if start < end {
            let (first, second) = (&entries[first as usize].name, &entries[second as usize].name);
            let why = format!("overlaps the data of {}", Quoted(first));
            return Err(cursor.malformed(offset_at, format_args!("offset of {}", Quoted(second)), why));
        }
    }
    Ok(entries)
}

/// Places sorted by name; a name that occurs twice is refused.
fn sort_by_name(cursor: &Cursor<'_>, tensors: &[Entry], names_at: usize) -> Result<Vec<u32>, FileError> {
    let name = |i: u32| &*tensors[i as usize].name;
    let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
    order.sort_unstable_by_key(|&i| name(i));
    for pair in order.windows(2) {
        if name(pair[0]) == name(pair[1]) {
            let field = format!("name {} of tensors {} and {}", Quoted(name(pair[0])), pair[0], pair[1]);
            return Err(cursor.malformed(names_at, field, "occurs twice"));
        }
    }
    Ok(order)
}
