//! Visual tokens of pictures that were encoded before: in memory, and where a folder is given, behind it in files.

use crate::{Error, image::ImageDigest, image_files::ImageFiles, report::PictureReport, rows::RowFormat};
use margay_tensor::DType;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, sync::Arc};

/// Formats that visual tokens can be kept in.
pub(crate) const TYPES: [DType; 4] = [DType::F32, DType::F16, DType::Q8_0, DType::Q4_0];

/// Bounded; what was used longest ago goes first. One model's: a picture alone says what its visual tokens are.
pub(crate) struct ImageCache {
    format: RowFormat,
    most_bytes: usize,
    bytes: usize,
    clock: u64,
    entries: HashMap<ImageDigest, Entry>,
    files: Option<ImageFiles>,
    note: Option<String>,
}

struct Entry {
    rows: Arc<[u8]>,
    seen: Seen,
    used: u64,
}

/// What a picture became.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Seen {
    /// Visual tokens of each of its tiles.
    pub counts: Vec<usize>,
    /// Visual tokens at the model's own resolution, where it was seen at a lower one; else 0.
    pub whole: usize,
    /// What to tell of it.
    pub report: PictureReport,
}

impl ImageCache {
    /// For rows of `width` columns, kept in `dtype` or, where blocks do not fit the width, in the format that stands in
    /// for it.
    ///
    /// # Errors
    /// [`Error::Option`] for a format that visual tokens are not kept in.
    pub(crate) fn new(dtype: DType, width: usize, most_bytes: usize) -> Result<Self, Error> {
        if !TYPES.contains(&dtype) {
            let known = TYPES.map(DType::name).join(", ");
            let what = format!("{} is none of {known}", dtype.name());
            return Err(Error::Option { option: "image cache type", what });
        }
        let format = RowFormat::new(dtype, width);
        let entries = HashMap::new();
        Ok(ImageCache { format, most_bytes, bytes: 0, clock: 0, entries, files: None, note: None })
    }

    /// With files behind it.
    pub(crate) fn with_files(self, files: ImageFiles) -> Self {
        ImageCache { files: Some(files), ..self }
    }

    /// Bytes kept.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends the visual tokens of a picture to `out`, where they are kept; says what it became.
    pub(crate) fn read(&mut self, picture: &ImageDigest, out: &mut Vec<f32>) -> Result<Option<Seen>, Error> {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(picture) {
            entry.used = self.clock;
            self.format.append(&entry.rows, out)?;
            return Ok(Some(entry.seen.clone()));
        }
        let Some((rows, seen)) = self.read_file(picture) else { return Ok(None) };
        self.format.append(&rows, out)?;
        self.insert(*picture, rows, &seen);
        Ok(Some(seen))
    }

    /// Keeps the visual tokens of a picture, [V, E], where they fit; and gives `rows` the values that will be read, so that
    /// an answer does not depend on whether its picture was seen before. A folder that cannot be written is no longer used:
    /// [`ImageCache::note`].
    pub(crate) fn keep(&mut self, picture: ImageDigest, rows: &mut [f32], seen: &Seen) -> Result<(), Error> {
        if self.most_bytes == 0 && self.files.is_none() {
            return Ok(());
        }
        let bytes = self.format.pack(rows)?;
        self.format.unpack(&bytes, rows)?;
        if let Some(files) = &self.files {
            let about = serde_json::to_string(seen).expect("invariant: numbers and words become JSON");
            // The answer needs no file.
            if let Err(e) = files.keep(&picture, &bytes, &about) {
                self.note = Some(format!("pictures are no longer kept in files: {e}"));
                self.files = None;
            }
        }
        self.insert(picture, bytes, seen);
        Ok(())
    }

    /// Whether a picture's visual tokens are in memory.
    pub(crate) fn holds(&self, picture: &ImageDigest) -> bool {
        self.entries.contains_key(picture)
    }

    /// What a person should know.
    pub(crate) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// What a file says of a picture, where that can be.
    fn read_file(&self, picture: &ImageDigest) -> Option<(Vec<u8>, Seen)> {
        let (rows, about) = self.files.as_ref()?.read(picture)?;
        let seen: Seen = serde_json::from_str(&about).ok()?;
        let count = seen.counts.iter().try_fold(0usize, |sum, count| sum.checked_add(*count))?;
        (count.checked_mul(self.format.row_bytes()) == Some(rows.len())).then_some((rows, seen))
    }

    fn insert(&mut self, picture: ImageDigest, bytes: Vec<u8>, seen: &Seen) {
        self.clock += 1;
        if bytes.len() > self.most_bytes || self.entries.contains_key(&picture) {
            return;
        }
        while self.bytes + bytes.len() > self.most_bytes {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key);
            let Some(gone) = oldest.and_then(|key| self.entries.remove(&key)) else { break };
            self.bytes -= gone.rows.len();
        }
        self.bytes += bytes.len();
        self.entries.insert(picture, Entry { rows: bytes.into(), seen: seen.clone(), used: self.clock });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cache: &mut ImageCache, picture: u8) -> Option<Vec<f32>> {
        let mut out = vec![7.0];
        cache.read(&[picture; 32], &mut out).unwrap().map(|_| out[1..].to_vec())
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        // Two rows of 4 floats are 32 bytes: three pictures fit.
        let mut cache = ImageCache::new(DType::F32, 4, 100).unwrap();
        let rows = |picture: u8| vec![f32::from(picture); 8];
        for picture in 1..=3 {
            cache.keep([picture; 32], &mut rows(picture), &Seen::default()).unwrap();
        }
        assert_eq!(read(&mut cache, 1), Some(rows(1)));
        cache.keep([4; 32], &mut rows(4), &Seen::default()).unwrap();
        assert_eq!((read(&mut cache, 2), cache.bytes()), (None, 96));
        assert_eq!([1, 3, 4].map(|picture| read(&mut cache, picture)), [1, 3, 4].map(|p| Some(rows(p))));
        // What is larger than the cache is not kept, and pushes nothing out.
        cache.keep([5; 32], &mut [0.0; 40], &Seen::default()).unwrap();
        assert_eq!((read(&mut cache, 5), cache.bytes()), (None, 96));
    }

    #[test]
    fn rows_are_given_the_values_that_are_read_later() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
        for dtype in TYPES {
            let mut cache = ImageCache::new(dtype, 32, 1 << 20).unwrap();
            let mut rows = values.clone();
            cache.keep([1; 32], &mut rows, &Seen::default()).unwrap();
            assert_eq!(read(&mut cache, 1), Some(rows.clone()), "{dtype:?}");
            assert_eq!(rows == values, dtype == DType::F32, "{dtype:?}");
            let off = rows.iter().zip(&values).fold(0.0, |most, (a, b)| f32::max(most, (a - b).abs()));
            let bound = match dtype {
                DType::F32 => 0.0,
                DType::F16 => 5e-4,
                DType::Q8_0 => 0.5 / 127.0 + 5e-4,
                _ => 1.0 / 8.0 + 1e-3,
            };
            assert!(off <= bound, "{dtype:?} is off by {off}");
        }
        assert!(ImageCache::new(DType::Q6_K, 256, 1).is_err());
        // Blocks of 32 do not fit 30 columns.
        let mut cache = ImageCache::new(DType::Q4_0, 30, 1 << 20).unwrap();
        let mut rows = vec![0.5; 60];
        cache.keep([1; 32], &mut rows, &Seen::default()).unwrap();
        assert_eq!(read(&mut cache, 1), Some(rows));
    }
}
