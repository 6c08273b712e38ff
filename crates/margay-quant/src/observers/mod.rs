//! One file an observer: what range of the numbers that pass by deserves codes.
//!
//! An [`Observer`] sees batches and then tells a range; [`Params`] turn a range into scale and zero point. [`Calibration`]
//! keeps one observer a tensor, channel or group, for parameters that stay fixed; [`dynamic`] takes them from the numbers at
//! hand, for instance per token at run time.

use crate::{QuantError, search::nearest_int, stats::same};

mod entropy;
mod histogram;
mod min_max;
mod moving_average;
mod mse;
mod percentile;

pub use entropy::Entropy;
pub use histogram::{BINS, Histogram};
pub use min_max::MinMax;
pub use moving_average::MovingAverage;
pub use mse::Mse;
pub use percentile::Percentile;

/// Looks at numbers and tells which range of them deserves codes.
pub trait Observer: Send {
    /// Takes in a batch. Numbers that are not finite are passed over.
    fn observe(&mut self, batch: &[f32]);

    /// The range to keep, the same both ways where `symmetric`; zero lies within. None where nothing was seen.
    fn range(&self, symmetric: bool) -> Option<(f32, f32)>;
}

/// A kind of observer.
pub struct Kind {
    /// The name users type.
    pub id: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Makes one, for codes of that many bits.
    pub make: fn(bits: u32) -> Box<dyn Observer>,
}

/// Every observer there is. One line a file of this folder (the histogram is what several of them see).
pub const OBSERVERS: &[Kind] = &[
    Kind { id: "min_max", about: "everything that was seen", make: |_| Box::new(MinMax::default()) },
    Kind {
        id: "moving_average",
        about: "an average of each batch's extremes, later batches counting more",
        make: |_| Box::new(MovingAverage::new(0.9)),
    },
    Kind {
        id: "percentile",
        about: "all but one number in ten thousand",
        make: |_| Box::new(Percentile::new(0.9999)),
    },
    Kind {
        id: "entropy",
        about: "the range whose codes tell the most about the distribution",
        make: |bits| Box::new(Entropy::new(bits)),
    },
    Kind {
        id: "mse",
        about: "the range whose codes are off by the least square",
        make: |bits| Box::new(Mse::new(bits)),
    },
];

/// The observer of that name.
pub fn observer(id: &str) -> Option<&'static Kind> {
    OBSERVERS.iter().find(|kind| kind.id == id)
}

/// Who shares a range, of activations `[tokens, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Everything.
    Tensor,
    /// Each column.
    Channel,
    /// Each row.
    Token,
    /// Each run of this many columns of a row; the last may be shorter.
    Group(usize),
}

/// Scale and zero point: `y = scale * (code - zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// From one code to the next; 1 for a range of only zero.
    pub scale: f32,
    /// The code of zero.
    pub zero: i32,
    /// The lowest code.
    pub low: i32,
    /// The highest code.
    pub high: i32,
}

impl Params {
    /// For a range that contains zero and codes of 2 to 16 bits: from `-2^(b-1) + 1` around zero where `symmetric`, else
    /// from 0.
    pub fn of_range((min, max): (f32, f32), bits: u32, symmetric: bool) -> Self {
        let bits = bits.clamp(2, 16);
        if symmetric {
            let high = (1 << (bits - 1)) - 1;
            let largest = max.max(-min);
            let scale = if largest > 0.0 { largest / high as f32 } else { 1.0 };
            return Self { scale, zero: 0, low: -high, high };
        }
        let high = (1 << bits) - 1;
        // Halves first: the whole range of float32 is wider than its largest number.
        let scale = (max.max(0.0) / 2.0 - min.min(0.0) / 2.0) / (high as f32 / 2.0);
        let scale = if scale > 0.0 { scale } else { 1.0 };
        let zero = nearest_int((-min.min(0.0) / scale).min(high as f32)).clamp(0, high);
        Self { scale, zero, low: 0, high }
    }

    /// The code of `x`.
    pub fn code(&self, x: f32) -> i32 {
        let reach = 2.0 * (self.high - self.low) as f32;
        (nearest_int((x / self.scale).clamp(-reach, reach)) + self.zero).clamp(self.low, self.high)
    }

    /// What `x` comes back as.
    pub fn round(&self, x: f32) -> f32 {
        self.scale * (self.code(x) - self.zero) as f32
    }
}

/// Observers of one activation, for parameters that stay fixed.
pub struct Calibration {
    granularity: Granularity,
    columns: usize,
    observers: Vec<Box<dyn Observer>>,
    bits: u32,
}

impl Calibration {
    /// For activations `[tokens, columns]` and codes of `bits`.
    ///
    /// # Errors
    /// [`QuantError::Missing`] for parameters per token, which cannot be known before the token: [`dynamic`] finds them.
    pub fn new(kind: &Kind, granularity: Granularity, columns: usize, bits: u32) -> Result<Self, QuantError> {
        let count = match granularity {
            Granularity::Tensor => 1,
            Granularity::Channel => columns,
            Granularity::Group(size) => columns.div_ceil(size.max(1)),
            Granularity::Token => {
                return Err(QuantError::Missing { what: "the tokens themselves", why: "a range per token" });
            }
        };
        let observers = (0..count).map(|_| (kind.make)(bits)).collect();
        Ok(Self { granularity, columns, observers, bits })
    }

    /// Takes in rows `[n, columns]`.
    ///
    /// # Errors
    /// [`QuantError::Size`] where they are no whole rows.
    pub fn observe(&mut self, rows: &[f32]) -> Result<(), QuantError> {
        let columns = self.columns.max(1);
        same("numbers of whole rows", rows.len().next_multiple_of(columns), rows.len())?;
        match self.granularity {
            Granularity::Channel => {
                let mut column = Vec::with_capacity(rows.len() / columns);
                for (j, observer) in self.observers.iter_mut().enumerate() {
                    column.clear();
                    column.extend(rows.iter().skip(j).step_by(columns));
                    observer.observe(&column);
                }
            }
            Granularity::Group(size) => {
                let size = size.max(1);
                let mut group = Vec::new();
                for (g, observer) in self.observers.iter_mut().enumerate() {
                    group.clear();
                    let at = g * size..((g + 1) * size).min(columns);
                    rows.chunks(columns).for_each(|row| group.extend_from_slice(&row[at.clone()]));
                    observer.observe(&group);
                }
            }
            Granularity::Tensor | Granularity::Token => {
                self.observers.iter_mut().for_each(|observer| observer.observe(rows));
            }
        }
        Ok(())
    }

    /// Scale and zero point of each tensor, channel or group, in order. None where it saw nothing.
    pub fn params(&self, symmetric: bool) -> Vec<Option<Params>> {
        let of = |range| Params::of_range(range, self.bits, symmetric);
        self.observers.iter().map(|observer| observer.range(symmetric).map(of)).collect()
    }
}

/// Scales and zero points from the numbers at hand, rows `[n, columns]`: one for everything, a column, a row, or a group of
/// each row in turn.
///
/// # Errors
/// [`QuantError::Size`] where they are no whole rows.
pub fn dynamic(
    rows: &[f32],
    columns: usize,
    granularity: Granularity,
    bits: u32,
    symmetric: bool,
) -> Result<Vec<Params>, QuantError> {
    let columns = columns.max(1);
    same("numbers of whole rows", rows.len().next_multiple_of(columns), rows.len())?;
    let of = |numbers: &mut dyn Iterator<Item = f32>| {
        let (mut min, mut max) = (0.0f32, 0.0f32);
        numbers.filter(|x| x.is_finite()).for_each(|x| (min, max) = (min.min(x), max.max(x)));
        Params::of_range((min, max), bits, symmetric)
    };
    Ok(match granularity {
        Granularity::Tensor => vec![of(&mut rows.iter().copied())],
        Granularity::Channel => {
            (0..columns).map(|j| of(&mut rows.iter().copied().skip(j).step_by(columns))).collect()
        }
        Granularity::Token => rows.chunks(columns).map(|row| of(&mut row.iter().copied())).collect(),
        Granularity::Group(size) => rows
            .chunks(columns)
            .flat_map(|row| row.chunks(size.max(1)))
            .map(|group| of(&mut group.iter().copied()))
            .collect(),
    })
}
