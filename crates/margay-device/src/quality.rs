//! What a model keeps of its answers in fewer bits, from measured tables alone.

use crate::{DeviceError, error::profile};
use margay_tensor::DType;
use serde::Deserialize;
use std::collections::BTreeMap;

const NANO: &str = include_str!("../quality/nano.toml");

/// Right answers by bits of a side of the model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    /// Percent of right answers in float.
    pub original: f64,
    /// Which model and table.
    pub source: String,
    vision: BTreeMap<String, f64>,
    text: BTreeMap<String, f64>,
    both: BTreeMap<String, f64>,
    visual_tokens: VisualTokens,
}

/// Right answers by the share of visual tokens that the decoder sees.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct VisualTokens {
    /// With all of them, of the model that these were measured on.
    original: f64,
    /// Percent of the tokens that stay, and of the answers that are right.
    merge: BTreeMap<String, f64>,
}

/// Bits that the table files a format under; `Some(None)` is float, which changes nothing; `None` was not measured.
pub fn bits(dtype: DType) -> Option<Option<u32>> {
    use DType::*;
    Some(match dtype {
        F32 | F16 | BF16 => None,
        Q8_0 => Some(8),
        Q6_K => Some(6),
        Q5_0 | Q5_1 | Q5_K => Some(5),
        Q4_0 | Q4_1 | Q4_K => Some(4),
        Q3_K => Some(3),
        Q2_K => Some(2),
        _ => return None,
    })
}

impl Quality {
    /// The table of margay-nano, the only model of which Margay has one.
    ///
    /// # Errors
    /// [`DeviceError::Profile`] where the file breaks its rules.
    pub fn nano() -> Result<Self, DeviceError> {
        toml::from_str(NANO).map_err(|e| profile("nano", e.to_string()))
    }

    /// Percent that is kept of the original's right answers, at most 100, with so many bits on each side (`None` is float).
    /// Both sides in the same bits were measured together; of others the parts that are kept are multiplied.
    ///
    /// ```
    /// let nano = margay_device::Quality::nano()?;
    /// assert_eq!(nano.kept(None, None), Some(100.0));
    /// assert!((nano.kept(Some(2), Some(2)).unwrap() - 100.0 * 84.7 / 96.79).abs() < 1e-9);
    /// assert_eq!(nano.kept(Some(1), None), None);
    /// # Ok::<(), margay_device::DeviceError>(())
    /// ```
    pub fn kept(&self, text: Option<u32>, vision: Option<u32>) -> Option<f64> {
        let part = |side: &BTreeMap<String, f64>, bits: u32| {
            Some((side.get(&bits.to_string())? / self.original).min(1.0))
        };
        let kept = match (text, vision) {
            (Some(a), Some(b)) if a == b => part(&self.both, a)?,
            (a, b) => {
                let text = a.map_or(Some(1.0), |bits| part(&self.text, bits))?;
                text * b.map_or(Some(1.0), |bits| part(&self.vision, bits))?
            }
        };
        Some(kept * 100.0)
    }

    /// Percent that is kept of right answers where so many percent of a picture's visual tokens stay, merged; `None` was not
    /// measured. Together with fewer bits, which nobody measured, the parts multiply.
    pub fn kept_of_tokens(&self, percent: u32) -> Option<f64> {
        let table = &self.visual_tokens;
        if percent >= 100 {
            return Some(100.0);
        }
        Some((table.merge.get(&percent.to_string())? / table.original).min(1.0) * 100.0)
    }

    /// Percents of visual tokens that were measured, most first.
    pub fn token_shares(&self) -> Vec<u32> {
        let mut shares: Vec<u32> =
            self.visual_tokens.merge.keys().filter_map(|share| share.parse().ok()).collect();
        shares.sort_unstable_by(|a, b| b.cmp(a));
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_page() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/quantization.md");
        let page = std::fs::read_to_string(page).unwrap();
        let nano = Quality::nano().unwrap();
        assert!(page.contains(&format!("{}% of 2308", nano.original)));
        for (head, side) in
            [("**Vision side**", &nano.vision), ("**Decoder**", &nano.text), ("**Both**", &nano.both)]
        {
            let table = page.split(head).nth(1).unwrap();
            let rows = table.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
            let rows = rows.take_while(|line| line.starts_with('|'));
            let read: BTreeMap<String, f64> = rows
                .map(|row| {
                    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                    let first = |cell: &str| cell.split(' ').next().unwrap().to_owned();
                    (first(cells[1]), first(cells[2]).parse().unwrap())
                })
                .collect();
            assert_eq!(&read, side, "{head}");
        }
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/sessions.md");
        let page = std::fs::read_to_string(page).unwrap();
        let table = page.split("| tokens that stay | merge |").nth(1).unwrap();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let read: BTreeMap<String, f64> = rows
            .map(|row| {
                let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_end_matches('%')).collect();
                (cells[1].to_owned(), cells[2].parse().unwrap())
            })
            .collect();
        assert_eq!(read["all"], nano.visual_tokens.original);
        assert_eq!(nano.token_shares(), [75, 50, 25, 11]);
        assert!(nano.visual_tokens.merge.iter().all(|(share, right)| read[share] == *right));
        assert!((nano.kept_of_tokens(50).unwrap() - 100.0 * 92.9 / 96.9).abs() < 1e-9);
        assert_eq!((nano.kept_of_tokens(100), nano.kept_of_tokens(60)), (Some(100.0), None));
    }
}
