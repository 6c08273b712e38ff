//! Visual tokens of frames in few bytes: some in 8 bits, those behind them as 4-bit differences from these.

use crate::{Error, rows::RowFormat};
use margay_tensor::DType;
use std::sync::Arc;

/// A difference as large as this share of what it is a difference from (in root mean square) would be rounded as coarsely as
/// the tokens themselves: the frame is kept whole instead.
const CUT: f32 = 0.5;

/// Encodes frames one behind the other.
pub(super) struct Coder {
    key_format: RowFormat,
    difference_format: RowFormat,
    key_every: usize,
    key: Option<Arc<[u8]>>,
    /// Frames since it, and itself.
    since: usize,
}

/// The visual tokens of a frame.
pub(super) struct Coded {
    /// In 8 bits: its own, or those it is a difference from.
    key: Arc<[u8]>,
    /// In 4 bits.
    difference: Option<Box<[u8]>>,
}

impl Coder {
    /// For tokens of `width` numbers; every so many-th frame is kept whole.
    pub(super) fn new(width: usize, key_every: usize) -> Self {
        let [key_format, difference_format] =
            [DType::Q8_0, DType::Q4_0].map(|dtype| RowFormat::new(dtype, width));
        Coder { key_format, difference_format, key_every, key: None, since: 0 }
    }

    /// [V, width]
    pub(super) fn encode(&mut self, rows: &[f32]) -> Result<Coded, Error> {
        if let Some(key) = self.key.clone().filter(|_| self.since < self.key_every) {
            let mut base = vec![];
            self.key_format.append(&key, &mut base)?;
            if base.len() == rows.len() {
                let difference: Vec<f32> = rows.iter().zip(&base).map(|(row, base)| row - base).collect();
                let square = |rows: &[f32]| rows.iter().map(|x| x * x).sum::<f32>();
                if square(&difference) < CUT * CUT * square(&base) {
                    self.since += 1;
                    let difference = Some(self.difference_format.pack(&difference)?.into_boxed_slice());
                    return Ok(Coded { key, difference });
                }
            }
        }
        let key: Arc<[u8]> = self.key_format.pack(rows)?.into();
        (self.key, self.since) = (Some(key.clone()), 1);
        Ok(Coded { key, difference: None })
    }

    pub(super) fn decode(&self, coded: &Coded) -> Result<Vec<f32>, Error> {
        let mut rows = vec![];
        self.key_format.append(&coded.key, &mut rows)?;
        if let Some(difference) = &coded.difference {
            let mut changes = vec![];
            self.difference_format.append(difference, &mut changes)?;
            rows.iter_mut().zip(changes).for_each(|(row, difference)| *row += difference);
        }
        Ok(rows)
    }
}

/// Bytes of frames one behind the other, those that several share counted once.
pub(super) fn bytes<'c>(frames: impl Iterator<Item = &'c Coded>) -> usize {
    let mut last: Option<&Arc<[u8]>> = None;
    let mut bytes = 0;
    for frame in frames {
        if last.is_none_or(|last| !Arc::ptr_eq(last, &frame.key)) {
            bytes += frame.key.len();
        }
        bytes += frame.difference.as_ref().map_or(0, |difference| difference.len());
        last = Some(&frame.key);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(seed: f32) -> Vec<f32> {
        (0..9 * 64).map(|i| (i as f32 * 0.37).sin() + seed * (i as f32 * 1.7).cos()).collect()
    }

    /// 8 bits are off by half a step of the largest of a block, 4-bit differences by half a step of theirs, an eighth.
    #[test]
    fn whole_frames_take_8_bits_and_differences_4_of_what_differs() {
        let mut coder = Coder::new(64, 3);
        let mut coded = vec![];
        for (at, seed) in [0.0, 0.02, 0.04, 0.06, 0.08].into_iter().enumerate() {
            let frame = coder.encode(&rows(seed)).unwrap();
            assert_eq!(frame.difference.is_none(), at % 3 == 0, "{at}");
            let decoded = coder.decode(&frame).unwrap();
            let off = decoded.iter().zip(rows(seed)).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            let whole = 0.5 * 1.1 / 127.0 + 1e-3;
            assert!(off <= if at % 3 == 0 { whole } else { 0.1 / 8.0 + 1e-3 }, "{at}: {off}");
            coded.push(frame);
        }
        // 34 and 18 bytes a block of 32.
        assert_eq!(bytes(coded.iter()), 18 * (2 * 34 + 3 * 18));
        // What came before the last whole frame is gone, but for the one that others are differences from.
        assert_eq!(bytes(coded[1..3].iter()), 18 * (34 + 2 * 18));
        assert!(coder.encode(&rows(9.0)).unwrap().difference.is_none(), "another scene");
        assert!(Coder::new(30, 2).encode(&rows(0.0)[..60]).is_ok());
    }
}
