//! Palettes: 1 to 8 bits a number that index a table of half-precision numbers, one table a row or a matrix.
//!
//! The table is found by weighted k-means in one dimension: optimal up to [`OPTIMAL_POINTS`] distinct numbers, from there on
//! Lloyd's iteration from evenly filled starts. Bytes: the tables, then the codes, each row packed from the lowest bit on
//! and filled up to a whole byte.
//! Source: Core ML Tools' palettization (bits, tables, order); optimal 1-D k-means by dynamic programming: Ckmeans.1d.dp
//! (Wang and Song 2011).

use half::f16;

use super::{MatrixFormat, Share, check, columns};
use crate::{Matrix, QuantError, stats::same};

/// Distinct numbers up to which the optimum is worth its quadratic cost.
pub const OPTIMAL_POINTS: usize = 256;

/// Rounds of Lloyd's iteration at most; it has settled long before on every weight looked at.
const ROUNDS: usize = 50;

/// The format.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// Bits a number, 1 to 8.
    pub bits: u32,
    /// Who shares a table.
    pub share: Share,
}

/// A number and how much it weighs.
type Point = (f32, f64);

/// The at most `clusters` numbers that stand for `points` with the least weighted squared error, in order; repeated to fill
/// the table. Points of no weight at all count the same.
pub fn centroids(points: &[Point], clusters: usize) -> Vec<f32> {
    let sorted = merged(points);
    let mut table = match sorted.len() {
        0 => vec![0.0],
        n if n <= clusters => sorted.iter().map(|point| point.0).collect(),
        n if n <= OPTIMAL_POINTS => optimal(&sorted, clusters),
        _ => lloyd(&sorted, clusters),
    };
    let last = table[table.len() - 1];
    table.resize(clusters, last);
    table
}

/// The points in order, equal ones as one of their joint weight.
fn merged(points: &[Point]) -> Vec<Point> {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let weightless = sorted.iter().all(|point| point.1 <= 0.0);
    let mut merged: Vec<Point> = Vec::new();
    for (x, weight) in sorted {
        // A little weight for each keeps every number within reach of some centroid.
        let weight = if weightless { 1.0 } else { weight.max(1e-12) };
        match merged.last_mut() {
            Some(last) if last.0 == x => last.1 += weight,
            _ => merged.push((x, weight)),
        }
    }
    merged
}

/// Running sums of weight, weight times x and weight times x², by which the cost of any run is had at once.
struct Sums(Vec<[f64; 3]>);

impl Sums {
    fn new(points: &[Point]) -> Self {
        let mut sums = vec![[0.0; 3]];
        for &(x, w) in points {
            let (x, [a, b, c]) = (f64::from(x), sums[sums.len() - 1]);
            sums.push([a + w, b + w * x, c + w * x * x]);
        }
        Self(sums)
    }

    fn run(&self, from: usize, to: usize) -> [f64; 3] {
        std::array::from_fn(|i| self.0[to][i] - self.0[from][i])
    }

    /// Weighted squared distance of the points `from..to` from their mean.
    fn cost(&self, from: usize, to: usize) -> f64 {
        let [w, wx, wx2] = self.run(from, to);
        (wx2 - wx * wx / w).max(0.0)
    }

    fn mean(&self, from: usize, to: usize) -> f32 {
        let [w, wx, _] = self.run(from, to);
        (wx / w) as f32
    }
}

/// The best clusters of sorted points: those of the first n points into k runs follow from those into k - 1.
fn optimal(points: &[Point], clusters: usize) -> Vec<f32> {
    let (n, sums) = (points.len(), Sums::new(points));
    let mut costs: Vec<f64> = (0..=n).map(|to| if to == 0 { 0.0 } else { sums.cost(0, to) }).collect();
    let mut cuts = vec![vec![0; n + 1]];
    for k in 1..clusters {
        let (mut next, mut cut) = (vec![f64::INFINITY; n + 1], vec![0; n + 1]);
        for to in k + 1..=n {
            for (from, before) in costs.iter().enumerate().take(to).skip(k) {
                let cost = before + sums.cost(from, to);
                if cost < next[to] {
                    (next[to], cut[to]) = (cost, from);
                }
            }
        }
        costs = next;
        cuts.push(cut);
    }
    let (mut table, mut to) = (Vec::with_capacity(clusters), n);
    for cut in cuts.iter().rev() {
        table.push(sums.mean(cut[to], to));
        to = cut[to];
    }
    table.reverse();
    table
}

/// A local optimum: runs of even weight to start with, then means and middles in turn.
fn lloyd(points: &[Point], clusters: usize) -> Vec<f32> {
    let sums = Sums::new(points);
    let total = sums.0[points.len()][0];
    let mut cuts: Vec<usize> = (0..=clusters)
        .map(|k| sums.0.partition_point(|sum| sum[0] < total * k as f64 / clusters as f64).min(points.len()))
        .collect();
    cuts[clusters] = points.len();
    let mut table = vec![0.0; clusters];
    for _ in 0..ROUNDS {
        for k in 0..clusters {
            // An empty run takes the number at its place, which the next round may fill.
            table[k] = if cuts[k] < cuts[k + 1] {
                sums.mean(cuts[k], cuts[k + 1])
            } else {
                points[cuts[k].min(points.len() - 1)].0
            };
        }
        table.sort_by(f32::total_cmp);
        let mut moved = cuts.clone();
        for k in 1..clusters {
            let middle = (f64::from(table[k - 1]) + f64::from(table[k])) / 2.0;
            moved[k] = points.partition_point(|point| f64::from(point.0) < middle);
        }
        if moved == cuts {
            break;
        }
        cuts = moved;
    }
    table
}

impl Palette {
    fn entries(&self) -> usize {
        1 << self.bits.clamp(1, 8)
    }

    fn tables(&self, rows: usize) -> usize {
        match self.share {
            Share::Tensor => 1,
            Share::Row => rows,
        }
    }

    fn row_bytes(&self, cols: usize) -> Option<usize> {
        Some(cols.checked_mul(self.bits.clamp(1, 8) as usize)?.div_ceil(8))
    }
}

impl MatrixFormat for Palette {
    fn id(&self) -> &'static str {
        const NAMES: [[&str; 8]; 2] = [
            ["palette1", "palette2", "palette3", "palette4", "palette5", "palette6", "palette7", "palette8"],
            [
                "palette1-channel",
                "palette2-channel",
                "palette3-channel",
                "palette4-channel",
                "palette5-channel",
                "palette6-channel",
                "palette7-channel",
                "palette8-channel",
            ],
        ];
        NAMES[usize::from(self.share == Share::Row)][self.bits.clamp(1, 8) as usize - 1]
    }

    fn size_bytes(&self, rows: usize, cols: usize) -> Option<usize> {
        let tables = self.tables(rows).checked_mul(2 * self.entries())?;
        rows.checked_mul(self.row_bytes(cols)?)?.checked_add(tables)
    }

    fn encode(&self, weight: Matrix<'_>, importance: Option<&[f32]>) -> Result<Vec<u8>, QuantError> {
        check(weight, importance)?;
        let each = weight.values.len().checked_div(self.tables(weight.rows)).unwrap_or(0).max(1);
        let point = |(i, x): (usize, &f32)| {
            (*x, importance.map_or(1.0, |importance| f64::from(importance[i % weight.cols])))
        };
        let mut packed = Vec::new();
        let mut tables: Vec<Vec<f32>> = Vec::new();
        for values in weight.values.chunks(each) {
            let points: Vec<Point> = values.iter().enumerate().map(point).collect();
            // Beyond half precision the largest that it has must do.
            let half = |x: f32| f16::from_f32(x.clamp(-65504.0, 65504.0));
            let table: Vec<f16> = centroids(&points, self.entries()).into_iter().map(half).collect();
            packed.extend(table.iter().flat_map(|x| x.to_le_bytes()));
            tables.push(table.iter().map(|x| x.to_f32()).collect());
        }
        packed.resize(self.tables(weight.rows) * 2 * self.entries(), 0);
        let bits = self.bits.clamp(1, 8);
        for (r, row) in weight.iter_rows().enumerate() {
            let table = &tables[r * weight.cols / each];
            let (mut pending, mut filled) = (0u32, 0);
            for &x in row {
                pending |= nearest(table, x) << filled;
                filled += bits;
                if filled >= 8 {
                    packed.push(pending as u8);
                    (pending, filled) = (pending >> 8, filled - 8);
                }
            }
            if filled > 0 {
                packed.push(pending as u8);
            }
        }
        Ok(packed)
    }

    fn decode(&self, packed: &[u8], rows: usize, out: &mut [f32]) -> Result<(), QuantError> {
        let cols = columns(rows, out.len())?;
        same("bytes of a packed matrix", self.size_bytes(rows, cols).unwrap_or(usize::MAX), packed.len())?;
        let (bits, entries) = (self.bits.clamp(1, 8) as usize, self.entries());
        let (tables, codes) = packed.split_at(self.tables(rows) * 2 * entries);
        let row_bytes = (cols * bits).div_ceil(8).max(1);
        for (r, (out, codes)) in out.chunks_mut(cols.max(1)).zip(codes.chunks(row_bytes)).enumerate() {
            let table = if self.share == Share::Row { r } else { 0 };
            let table = tables[table * 2 * entries..][..2 * entries].as_chunks().0;
            for (j, y) in out.iter_mut().enumerate() {
                let (at, shift) = (j * bits / 8, j * bits % 8);
                let two = u32::from(codes[at]) | u32::from(codes.get(at + 1).copied().unwrap_or(0)) << 8;
                *y = f16::from_le_bytes(table[(two >> shift) as usize & (entries - 1)]).to_f32();
            }
        }
        Ok(())
    }
}

/// The code of the entry of a sorted table that is nearest to `x`; the lower of two equally near.
fn nearest(table: &[f32], x: f32) -> u32 {
    let upper = table.partition_point(|&entry| entry < x);
    let lower = upper.saturating_sub(1);
    if upper == table.len() || (upper > 0 && x - table[lower] <= table[upper] - x) {
        lower as u32
    } else {
        upper as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cost(points: &[Point], table: &[f32]) -> f64 {
        let off = |x: f32| {
            table.iter().map(|c| (f64::from(x) - f64::from(*c)).powi(2)).fold(f64::INFINITY, f64::min)
        };
        points.iter().map(|&(x, w)| w * off(x)).sum()
    }

    /// Every way of cutting the sorted points into runs.
    fn brute_force(points: &[Point], clusters: usize) -> f64 {
        let sorted = merged(points);
        let sums = Sums::new(&sorted);
        fn best(sums: &Sums, from: usize, n: usize, clusters: usize) -> f64 {
            if clusters == 1 || from == n {
                return if from == n { 0.0 } else { sums.cost(from, n) };
            }
            (from + 1..=n)
                .map(|to| sums.cost(from, to) + best(sums, to, n, clusters - 1))
                .fold(f64::INFINITY, f64::min)
        }
        best(&sums, 0, sorted.len(), clusters)
    }

    proptest! {
        #[test]
        fn few_numbers_are_clustered_optimally(
            points in prop::collection::vec((-10.0f32..10.0, 0.1f64..5.0), 1..10),
            clusters in 1usize..5,
        ) {
            let table = centroids(&points, clusters);
            prop_assert_eq!(table.len(), clusters);
            let (got, least) = (cost(&points, &table), brute_force(&points, clusters));
            prop_assert!(got <= least + 1e-6, "{got} {least}");
        }

        #[test]
        fn lloyd_comes_near_the_optimum(points in prop::collection::vec(-10.0f32..10.0, 100..200)) {
            let points: Vec<Point> = points.into_iter().map(|x| (x, 1.0)).collect();
            let sorted = merged(&points);
            let (local, least) = (cost(&points, &lloyd(&sorted, 8)), cost(&points, &optimal(&sorted, 8)));
            // Lloyd stops at a local optimum.
            prop_assert!(local >= least - 1e-6 && local <= 1.6 * least, "{local} {least}");
        }
    }

    #[test]
    fn as_many_numbers_as_entries_come_back_in_half_precision() {
        let values: Vec<f32> = (0..3 * 29).map(|i| ((i * 5) % 16) as f32 * 0.25 - 2.0).collect();
        for share in [Share::Row, Share::Tensor] {
            let palette = Palette { bits: 4, share };
            let packed = palette.encode(Matrix::new(&values, 3, 29).unwrap(), None).unwrap();
            let mut back = vec![0.0; values.len()];
            palette.decode(&packed, 3, &mut back).unwrap();
            assert_eq!(back, values);
        }
    }

    #[test]
    fn important_columns_get_the_entries() {
        let values: Vec<f32> =
            (0..64).map(|j| if j % 2 == 0 { (j as f32 * 0.7).sin() } else { 9.0 + j as f32 }).collect();
        let importance: Vec<f32> = (0..64).map(|j| if j % 2 == 0 { 1.0 } else { 0.0 }).collect();
        let weight = Matrix::new(&values, 1, 64).unwrap();
        let palette = Palette { bits: 3, share: Share::Row };
        let error = |weights: Option<&[f32]>| {
            let mut back = vec![0.0; 64];
            palette.decode(&palette.encode(weight, weights).unwrap(), 1, &mut back).unwrap();
            values.iter().zip(&back).step_by(2).map(|(x, y)| (x - y).powi(2)).sum::<f32>()
        };
        assert!(error(Some(&importance)) < 0.5 * error(None));
    }

    #[test]
    fn the_nearest_entry_is_found() {
        let table = [-1.0, 0.0, 0.5, 0.5];
        for (x, code) in [(-9.0, 0), (-0.5, 0), (-0.4, 1), (0.25, 1), (0.26, 2), (0.5, 2), (9.0, 3)] {
            assert_eq!(nearest(&table, x), code, "{x}");
        }
    }
}
