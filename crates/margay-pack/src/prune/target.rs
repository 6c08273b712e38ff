//! What goes: weights by a pattern, or whole parts.

use crate::PackError;
use margay_graph::Stage;
use margay_quant::pruning::Pattern;
use std::{fmt, str::FromStr};

/// Weights of a group at most: hardware knows 4 and 8, papers go to 32.
const MOST_GROUP: usize = 256;

/// What goes.
#[derive(Clone, Debug, PartialEq)]
pub enum PruneTarget {
    /// Single weights of the matrices of attention, feed-forward layers and projector, which become zeros.
    Weights {
        /// How they are spread.
        pattern: Pattern,
        /// In which programs.
        stages: Vec<Stage>,
    },
    /// Whole parts.
    Parts(Parts),
}

/// Whole parts that go.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts {
    /// Of the decoder's query heads; those that share keys and values go together.
    pub heads: Option<Amount>,
    /// Of the channels of the decoder's feed-forward layers.
    pub channels: Option<Amount>,
    /// Of those of the vision encoder.
    pub encoder_channels: Option<Amount>,
    /// Layers of the decoder.
    pub layers: usize,
}

/// How many parts go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// So many.
    Count(usize),
    /// This part of them, 0 to 1.
    Share(f64),
}

impl Amount {
    /// How many of `all` go: a share as the nearest number.
    ///
    /// # Errors
    /// [`PackError::Prune`] where none or all would go; `what` are they, for people.
    pub(super) fn of(self, all: usize, what: &str) -> Result<usize, PackError> {
        let gone = match self {
            Amount::Count(count) => count,
            Amount::Share(share) => (share.clamp(0.0, 1.0) * all as f64).round() as usize,
        };
        let refuse = |why: &str| Err(PackError::Prune { what: format!("{self} of {all} {what} {why}") });
        match gone {
            0 => refuse("is none"),
            gone if gone >= all => refuse("leaves none"),
            gone => Ok(gone),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Count(count) => write!(f, "{count}"),
            Amount::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

impl FromStr for Amount {
    type Err = PackError;

    /// `4`, or `25%`.
    fn from_str(text: &str) -> Result<Self, PackError> {
        let bad = || PackError::Prune { what: format!("{text:?} is no number; write it as in 4 or 25%") };
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.trim().parse().map_err(|_| bad())?;
                if !(percent > 0.0 && percent < 100.0) {
                    let what = format!("{text} is not between 0% and 100%");
                    return Err(PackError::Prune { what });
                }
                Ok(Amount::Share(percent / 100.0))
            }
            None => text.parse().map(Amount::Count).map_err(|_| bad()),
        }
    }
}

impl PruneTarget {
    /// Programs that change.
    pub(super) fn stages(&self) -> Vec<Stage> {
        match self {
            PruneTarget::Weights { stages, .. } => stages.clone(),
            PruneTarget::Parts(parts) => {
                parts.encoder_channels.map_or(vec![Stage::Text], |_| vec![Stage::Encode, Stage::Text])
            }
        }
    }

    pub(super) fn takes_layers(&self) -> bool {
        matches!(self, PruneTarget::Parts(parts) if parts.layers > 0)
    }

    /// Whether the method is asked anything; layers have a score of their own.
    pub(super) fn scores_weights_or_parts(&self) -> bool {
        match self {
            PruneTarget::Weights { .. } => true,
            PruneTarget::Parts(parts) => {
                parts.heads.is_some() || parts.channels.is_some() || parts.encoder_channels.is_some()
            }
        }
    }

    pub(super) fn check(&self) -> Result<(), PackError> {
        let refuse = |what: String| Err(PackError::Prune { what });
        match self {
            PruneTarget::Weights { pattern, stages } => {
                if stages.is_empty() {
                    return refuse("no stage is named".to_owned());
                }
                check_pattern(*pattern, &format!("{pattern:?}"))
            }
            PruneTarget::Parts(parts) if *parts == Parts::default() => {
                refuse("nothing is to go: say a pattern, heads, channels or layers".to_owned())
            }
            PruneTarget::Parts(_) => Ok(()),
        }
    }
}

/// `0.5` of each matrix, `row:0.5` of each of its rows, or `2:4`, two kept of four neighbours.
///
/// # Errors
/// [`PackError::Prune`] where it is none of these, or keeps nothing or everything.
pub fn parse_pattern(text: &str) -> Result<Pattern, PackError> {
    let bad = || PackError::Prune {
        what: format!("{text:?} is no pattern; write 0.5 (of each matrix), row:0.5 (of each row) or 2:4"),
    };
    let part = |part: &str| part.parse::<f64>().map_err(|_| bad());
    let pattern = match text.split_once(':') {
        None => Pattern::Tensor(part(text)?),
        Some(("row", of)) => Pattern::Row(part(of)?),
        Some((keep, of)) => {
            Pattern::Groups { keep: keep.parse().map_err(|_| bad())?, of: of.parse().map_err(|_| bad())? }
        }
    };
    check_pattern(pattern, text)?;
    Ok(pattern)
}

fn check_pattern(pattern: Pattern, text: &str) -> Result<(), PackError> {
    let refuse = |what: String| Err(PackError::Prune { what });
    match pattern {
        Pattern::Tensor(part) | Pattern::Row(part) if !(part > 0.0 && part < 1.0) => {
            refuse(format!("the pattern {text}: a part that goes lies between 0 and 1"))
        }
        Pattern::Groups { keep, of } if keep == 0 || keep >= of => {
            refuse(format!("the pattern {text} keeps {keep} of {of}; it must keep some, and fewer than all"))
        }
        Pattern::Groups { of, .. } if of > MOST_GROUP => {
            refuse(format!("the pattern {text}: groups of {of} are larger than {MOST_GROUP}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_amounts_are_read_and_others_refused() {
        assert_eq!(parse_pattern("0.5").unwrap(), Pattern::Tensor(0.5));
        assert_eq!(parse_pattern("row:0.25").unwrap(), Pattern::Row(0.25));
        assert_eq!(parse_pattern("2:4").unwrap(), Pattern::Groups { keep: 2, of: 4 });
        for wrong in
            ["", "0", "1", "-0.5", "NaN", "row:", "row:1.0", "4:2", "4:4", "0:4", "2:1000", "a:4", "2:4:8"]
        {
            let error = parse_pattern(wrong).unwrap_err().to_string();
            assert!(error.contains("pattern"), "{wrong}: {error}");
        }
        assert_eq!("3".parse::<Amount>().unwrap(), Amount::Count(3));
        assert_eq!("25%".parse::<Amount>().unwrap(), Amount::Share(0.25));
        for wrong in ["", "%", "-1", "0%", "100%", "NaN%", "x"] {
            assert!(wrong.parse::<Amount>().is_err(), "{wrong}");
        }
        assert_eq!(Amount::Share(0.25).of(10, "heads").unwrap(), 3);
        for (amount, part) in
            [(Amount::Count(0), "none"), (Amount::Count(8), "leaves none"), (Amount::Share(0.01), "none")]
        {
            let error = amount.of(8, "heads").unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("8 heads"), "{error}");
        }
    }
}
