//! A number that says where it comes from.

use serde::{Deserialize, Serialize};

/// A number with its origin. In a profile: `{ value = 19.25, source = ".." }` or `{ value = 0.5, assumed = ".." }`; one with
/// neither is refused.
///
/// ```
/// use margay_device::Stated;
/// #[derive(serde::Deserialize)]
/// struct Battery { watt_hours: Stated }
/// let read = |text| toml::from_str::<Battery>(text);
/// let known = read(r#"watt_hours = { value = 19.25, source = "label" }"#).unwrap();
/// assert_eq!((known.watt_hours.value, known.watt_hours.assumed()), (19.25, false));
/// assert!(read("watt_hours = { value = 19.25 }").is_err());
/// assert!(read("watt_hours = 19.25").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Stated {
    /// The number, in the unit that its name says.
    pub value: f64,
    /// Whence.
    pub origin: Origin,
}

/// Where a number comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Published or measured: where.
    Source(String),
    /// Nobody published it: why this number.
    Assumed(String),
}

impl Stated {
    /// A number that was measured or published.
    pub fn source(value: f64, source: impl Into<String>) -> Self {
        Stated { value, origin: Origin::Source(source.into()) }
    }

    /// A number that is assumed.
    pub fn assume(value: f64, why: impl Into<String>) -> Self {
        Stated { value, origin: Origin::Assumed(why.into()) }
    }

    /// Whether nobody published it.
    pub fn assumed(&self) -> bool {
        matches!(self.origin, Origin::Assumed(_))
    }

    /// The same origin with another number.
    #[must_use]
    pub(crate) fn with(&self, value: f64) -> Self {
        Stated { value, origin: self.origin.clone() }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assumed: Option<String>,
}

impl TryFrom<Written> for Stated {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { value, source, assumed } = written;
        if !value.is_finite() || value < 0.0 {
            return Err(format!("{value} is no size: a finite number that is not negative is needed"));
        }
        let said = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.trim().is_empty());
        match (said(&source), said(&assumed)) {
            (true, false) => Ok(Stated::source(value, source.unwrap_or_default())),
            (false, true) => Ok(Stated::assume(value, assumed.unwrap_or_default())),
            (false, false) => {
                Err(format!("the value {value} says neither source = \"..\" nor assumed = \"..\""))
            }
            (true, true) => Err(format!("the value {value} is said to be both published and assumed")),
        }
    }
}

impl From<Stated> for Written {
    fn from(stated: Stated) -> Self {
        let (source, assumed) = match stated.origin {
            Origin::Source(text) => (Some(text), None),
            Origin::Assumed(text) => (None, Some(text)),
        };
        Written { value: stated.value, source, assumed }
    }
}
