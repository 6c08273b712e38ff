//! What calibration remembers of the inputs of a linear map.
//!
//! Text and visual tokens are kept apart: a picture brings hundreds of tokens that resemble each other and carry
//! smaller gradients, and a mean over both is a mean over the picture.

use crate::{Factor, Hessian, QuantError};

/// What was seen of one kind of token, per input column: each `[in]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenStats {
    /// Tokens seen.
    pub tokens: u64,
    /// Mean of |x|.
    pub mean_abs: Vec<f32>,
    /// Mean of x²: the importance that importance matrices hold.
    pub mean_square: Vec<f32>,
    /// Largest |x|.
    pub max_abs: Vec<f32>,
}

impl TokenStats {
    /// Nothing seen yet, for `columns` inputs.
    pub fn new(columns: usize) -> Self {
        let zeros = vec![0.0; columns];
        Self { tokens: 0, mean_abs: zeros.clone(), mean_square: zeros.clone(), max_abs: zeros }
    }

    /// Takes in what `other` saw, as if both had seen everything.
    ///
    /// # Errors
    /// [`QuantError::Size`] where the columns differ.
    pub fn merge(&mut self, other: &Self) -> Result<(), QuantError> {
        same("columns of statistics", self.mean_abs.len(), other.mean_abs.len())?;
        let tokens = self.tokens.saturating_add(other.tokens);
        if other.tokens == 0 {
            return Ok(());
        }
        let share = other.tokens as f64 / tokens as f64;
        let blend = |mine: &mut [f32], theirs: &[f32]| {
            for (a, b) in mine.iter_mut().zip(theirs) {
                *a = (f64::from(*a) + (f64::from(*b) - f64::from(*a)) * share) as f32;
            }
        };
        blend(&mut self.mean_abs, &other.mean_abs);
        blend(&mut self.mean_square, &other.mean_square);
        for (a, b) in self.max_abs.iter_mut().zip(&other.max_abs) {
            *a = a.max(*b);
        }
        self.tokens = tokens;
        Ok(())
    }
}

/// Whole rows of the input, kept to compare outputs on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// The rows, one after the other: `[n, in]`.
    pub rows: Vec<f32>,
    /// Which rows are visual tokens: `[n]`.
    pub visual: Vec<bool>,
    /// How much each row's error matters: `[n]`, mean 1; 1 where unknown.
    pub importance: Vec<f32>,
}

impl Sample {
    /// Rows kept.
    pub fn len(&self) -> usize {
        self.visual.len()
    }

    /// True where no row was kept.
    pub fn is_empty(&self) -> bool {
        self.visual.is_empty()
    }
}

/// What calibration saw at the input of one linear map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputStats {
    /// Input features.
    pub columns: usize,
    /// Of text tokens.
    pub text: TokenStats,
    /// Of visual tokens.
    pub visual: TokenStats,
    /// A few hundred rows, maybe none.
    pub sample: Sample,
    /// The sum of x xᵀ over the tokens, where it was asked for.
    pub hessian: Option<Hessian>,
    /// What a method has made of the Hessian, in its place.
    pub factor: Option<Factor>,
    /// How much an error at a visual token matters beside one at a text token: MBQ's ratio of their mean gradients; 1
    /// where unknown.
    pub visual_weight: f32,
}

impl InputStats {
    /// Nothing seen yet, for `columns` inputs; no Hessian.
    pub fn new(columns: usize) -> Self {
        Self {
            columns,
            text: TokenStats::new(columns),
            visual: TokenStats::new(columns),
            sample: Sample::default(),
            hessian: None,
            factor: None,
            visual_weight: 1.0,
        }
    }

    /// As [`Self::new`], and sums the Hessian as well: `columns² / 2` numbers.
    pub fn with_hessian(columns: usize) -> Self {
        Self { hessian: Some(Hessian::new(columns)), ..Self::new(columns) }
    }

    /// Takes in `rows` `[n, in]`, of which `visual` `[n]` says which are visual tokens. Means, largest magnitudes and the
    /// Hessian (where there is one) grow; the sample does not, see [`Self::keep`].
    ///
    /// # Errors
    /// [`QuantError::Size`] where the sizes do not agree, [`QuantError::NotFinite`] for NaN and infinities.
    pub fn add(&mut self, rows: &[f32], visual: &[bool]) -> Result<(), QuantError> {
        self.add_weighted(rows, visual, None)
    }

    /// As [`Self::add`], with how much each token's error matters `[n]`, mean 1, for the Hessian.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_weighted(
        &mut self,
        rows: &[f32],
        visual: &[bool],
        importance: Option<&[f32]>,
    ) -> Result<(), QuantError> {
        self.check(rows, visual)?;
        for (stats, kind) in [(&mut self.text, false), (&mut self.visual, true)] {
            let of_kind =
                rows.chunks_exact(self.columns.max(1)).zip(visual).filter(|(_, visual)| **visual == kind);
            stats.merge(&summarize(of_kind.map(|(row, _)| row), self.columns))?;
        }
        match &mut self.hessian {
            Some(hessian) => hessian.add(rows, importance),
            None => Ok(()),
        }
    }

    /// Keeps `rows` `[n, in]` as part of the sample, with how much each matters where that is known.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn keep(
        &mut self,
        rows: &[f32],
        visual: &[bool],
        importance: Option<&[f32]>,
    ) -> Result<(), QuantError> {
        self.check(rows, visual)?;
        if let Some(importance) = importance {
            same("importances of rows", visual.len(), importance.len())?;
        }
        self.sample.rows.extend_from_slice(rows);
        self.sample.visual.extend_from_slice(visual);
        match importance {
            Some(importance) => self.sample.importance.extend_from_slice(importance),
            None => self.sample.importance.resize(self.sample.visual.len(), 1.0),
        }
        Ok(())
    }

    /// Takes in what `other` saw, its sample and Hessian included. The weight of visual tokens stays this one's.
    ///
    /// # Errors
    /// [`QuantError::Size`] where the columns differ; [`QuantError::Missing`] where only one of the two has a Hessian.
    pub fn merge(&mut self, other: &Self) -> Result<(), QuantError> {
        same("columns of statistics", self.columns, other.columns)?;
        match (&mut self.hessian, &other.hessian) {
            (Some(mine), Some(theirs)) => mine.merge(theirs)?,
            (None, None) => {}
            _ => {
                return Err(QuantError::Missing {
                    what: "a Hessian",
                    why: "merging statistics of which one has it",
                });
            }
        }
        self.text.merge(&other.text)?;
        self.visual.merge(&other.visual)?;
        self.sample.rows.extend_from_slice(&other.sample.rows);
        self.sample.visual.extend_from_slice(&other.sample.visual);
        self.sample.importance.extend_from_slice(&other.sample.importance);
        Ok(())
    }

    /// Forgets what was seen of some columns, as if each token had been zero there.
    ///
    /// # Panics
    /// For a column beyond the last.
    pub fn clear(&mut self, columns: &[usize]) {
        for stats in [&mut self.text, &mut self.visual] {
            for &column in columns {
                stats.mean_abs[column] = 0.0;
                stats.mean_square[column] = 0.0;
                stats.max_abs[column] = 0.0;
            }
        }
        for row in self.sample.rows.chunks_exact_mut(self.columns.max(1)) {
            columns.iter().for_each(|&column| row[column] = 0.0);
        }
        if let Some(hessian) = &mut self.hessian {
            hessian.clear(columns);
        }
    }

    /// Tokens of both kinds.
    pub fn tokens(&self) -> u64 {
        self.text.tokens.saturating_add(self.visual.tokens)
    }

    /// Statistics over both kinds of token, each token counting the same.
    pub fn all(&self) -> TokenStats {
        let mut all = self.text.clone();
        all.merge(&self.visual).expect("invariant: both kinds have the same columns");
        all
    }

    /// Mean of x² per column, a visual token counting [`Self::visual_weight`] times: the importance of the columns.
    pub fn importance(&self) -> Vec<f32> {
        let (text, visual) =
            (self.text.tokens as f64, self.visual.tokens as f64 * f64::from(self.visual_weight.max(0.0)));
        let total = (text + visual).max(f64::MIN_POSITIVE);
        let mean = |(t, v): (&f32, &f32)| ((f64::from(*t) * text + f64::from(*v) * visual) / total) as f32;
        self.text.mean_square.iter().zip(&self.visual.mean_square).map(mean).collect()
    }

    fn check(&self, rows: &[f32], visual: &[bool]) -> Result<(), QuantError> {
        same("numbers of input rows", visual.len().saturating_mul(self.columns), rows.len())?;
        match rows.iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(at) => Err(QuantError::NotFinite {
                value: rows[at],
                row: at / self.columns,
                column: at % self.columns,
            }),
        }
    }
}

pub(crate) fn same(what: &'static str, expected: usize, got: usize) -> Result<(), QuantError> {
    if expected == got { Ok(()) } else { Err(QuantError::Size { what, expected, got }) }
}

fn summarize<'a>(rows: impl Iterator<Item = &'a [f32]>, columns: usize) -> TokenStats {
    let mut stats = TokenStats::new(columns);
    let (mut sum_abs, mut sum_square) = (vec![0.0f64; columns], vec![0.0f64; columns]);
    for row in rows {
        stats.tokens += 1;
        for (j, &x) in row.iter().enumerate() {
            sum_abs[j] += f64::from(x.abs());
            sum_square[j] += f64::from(x) * f64::from(x);
            stats.max_abs[j] = stats.max_abs[j].max(x.abs());
        }
    }
    let count = stats.tokens.max(1) as f64;
    for j in 0..columns {
        stats.mean_abs[j] = (sum_abs[j] / count) as f32;
        stats.mean_square[j] = (sum_square[j] / count) as f32;
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Means in float32 after several merges.
    const CLOSE: f32 = 1e-5;

    fn rows(n: usize, columns: usize) -> (Vec<f32>, Vec<bool>) {
        let rows = (0..n * columns).map(|i| (i as f32 * 0.71).sin() * (1.0 + (i % 5) as f32)).collect();
        (rows, (0..n).map(|i| i % 3 == 0).collect())
    }

    #[test]
    fn batches_and_merges_see_what_one_batch_sees() {
        let (columns, n) = (7, 30);
        let (x, visual) = rows(n, columns);
        let mut whole = InputStats::with_hessian(columns);
        whole.add(&x, &visual).unwrap();
        let (mut first, mut second) = (InputStats::with_hessian(columns), InputStats::with_hessian(columns));
        first.add(&x[..10 * columns], &visual[..10]).unwrap();
        second.add(&x[10 * columns..12 * columns], &visual[10..12]).unwrap();
        second.add(&x[12 * columns..], &visual[12..]).unwrap();
        first.merge(&second).unwrap();
        assert_eq!((first.tokens(), first.visual.tokens), (30, 10));
        assert_eq!(first.all().max_abs, whole.all().max_abs);
        for (a, b) in [
            (first.all().mean_abs, whole.all().mean_abs),
            (first.importance(), whole.importance()),
            (first.text.mean_square, whole.text.mean_square),
        ] {
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= CLOSE * b.abs()), "{a:?} {b:?}");
        }
        let (a, b) = (first.hessian.unwrap(), whole.hessian.unwrap());
        assert_eq!(a.tokens(), 30);
        for i in 0..columns {
            for j in i..columns {
                assert!((a.at(i, j) - b.at(i, j)).abs() <= CLOSE * 300.0);
            }
        }
    }

    #[test]
    fn the_weight_of_visual_tokens_shifts_the_importance() {
        let mut stats = InputStats::new(2);
        stats.add(&[1.0, 0.0, 0.0, 1.0, 0.0, 1.0], &[false, true, true]).unwrap();
        assert_eq!(stats.importance(), [1.0 / 3.0, 2.0 / 3.0]);
        stats.visual_weight = 0.5;
        assert_eq!(stats.importance(), [0.5, 0.5]);
        stats.visual_weight = 0.0;
        assert_eq!(stats.importance(), [1.0, 0.0]);
    }

    #[test]
    fn hostile_input_is_refused_and_changes_nothing() {
        let mut stats = InputStats::new(2);
        let before = stats.clone();
        let nan = stats.add(&[0.0, 1.0, 2.0, f32::NAN], &[false, true]).unwrap_err();
        assert!(matches!(nan, QuantError::NotFinite { row: 1, column: 1, .. }));
        assert!(stats.add(&[0.0; 3], &[false]).is_err());
        assert!(stats.keep(&[0.0; 2], &[false], Some(&[1.0, 1.0])).is_err());
        assert!(stats.merge(&InputStats::new(3)).is_err());
        assert!(stats.merge(&InputStats::with_hessian(2)).is_err());
        assert_eq!(stats, before);
    }

    #[test]
    fn kept_rows_matter_one_where_nothing_else_is_known() {
        let mut stats = InputStats::new(2);
        stats.keep(&[1.0, 2.0], &[true], Some(&[0.25])).unwrap();
        stats.keep(&[3.0, 4.0, 5.0, 6.0], &[false, true], None).unwrap();
        assert_eq!(stats.sample.importance, [0.25, 1.0, 1.0]);
        assert_eq!((stats.sample.len(), stats.sample.rows.len()), (3, 6));
        assert_eq!(stats.tokens(), 0);
    }
}
