//! JSON objects whose members are taken one by one, so that what nobody takes is found and named with its place.

use crate::problem::Problem;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// What is left of an object. `null` counts as absent, as OpenAI's clients mean it.
#[derive(Debug)]
pub(crate) struct Fields {
    place: String,
    members: Map<String, Value>,
}

impl Fields {
    /// The object at `place`, which is empty at the top.
    pub(crate) fn of(value: Value, place: impl Into<String>) -> Result<Self, Problem> {
        let place = place.into();
        match value {
            Value::Object(members) => Ok(Fields { place, members }),
            other => Err(Problem::bad(place, format!("must be an object, not {}", kind(&other)))),
        }
    }

    /// Where a member stands.
    pub(crate) fn place(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a string", &other)),
        }
    }

    pub(crate) fn needed_text(&mut self, name: &str) -> Result<String, Problem> {
        self.text(name)?.ok_or_else(|| Problem::bad(self.place(name), "is missing"))
    }

    /// One of some words.
    pub(crate) fn word(&mut self, name: &str, known: &[&str]) -> Result<Option<String>, Problem> {
        let Some(word) = self.text(name)? else { return Ok(None) };
        if known.contains(&word.as_str()) {
            return Ok(Some(word));
        }
        let what = format!("is {:?}; here it can be {}", shown(&word), known.join(", "));
        Err(Problem::bad(self.place(name), what))
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(name, "true or false", &other)),
        }
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| self.wrong(name, "a number", &value))?;
        if range.contains(&number) {
            return Ok(Some(number as f32));
        }
        let what = format!("is {number} and must be between {} and {}", range.start(), range.end());
        Err(Problem::bad(self.place(name), what))
    }

    pub(crate) fn whole(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<usize>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(usize::try_from(number).ok()),
            _ if value.is_number() => {
                let what = format!(
                    "is {value} and must be a whole number between {} and {}",
                    range.start(),
                    range.end()
                );
                Err(Problem::bad(self.place(name), what))
            }
            _ => Err(self.wrong(name, "a whole number", &value)),
        }
    }

    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(name, "a list", &other)),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>, Problem> {
        let place = self.place(name);
        self.take(name).map(|value| Fields::of(value, place)).transpose()
    }

    /// Every member that is left, with its name; they are known then.
    pub(crate) fn rest(&mut self) -> impl Iterator<Item = (String, Value)> + use<> {
        std::mem::take(&mut self.members).into_iter()
    }

    /// Refuses what nobody took. A `null` that is unknown is refused as well: its name is most likely typed wrong.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(name) => {
                let place = self.place(shown(name));
                Err(Problem::bad(place, "is not a parameter that this server knows")
                    .with_code("unknown_parameter"))
            }
        }
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> Problem {
        Problem::bad(self.place(name), format!("must be {expected}, not {}", kind(found)))
    }
}

/// What a value is, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The beginning of a text that a client sent, short enough to be sent back.
pub(crate) fn shown(text: &str) -> &str {
    let end = text.char_indices().nth(64).map_or(text.len(), |(at, _)| at);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_nobody_takes_is_named_with_its_place() {
        let mut fields = Fields::of(json!({"a": {"b": 1, "c": 2}, "d": null}), "").unwrap();
        let mut inner = fields.object("a").unwrap().unwrap();
        assert_eq!(inner.whole("b", 0..=9).unwrap(), Some(1));
        assert_eq!(inner.finish().unwrap_err().param.as_deref(), Some("a.c"));
        assert_eq!(fields.text("d").unwrap(), None);
        fields.finish().unwrap();
    }

    #[test]
    fn what_is_of_another_kind_or_out_of_range_is_named() {
        let fields = || Fields::of(json!({"x": 3, "y": "z", "w": -1.5}), "p").unwrap();
        let said = |problem: Problem| problem.message;
        assert!(said(fields().text("x").unwrap_err()).contains("p.x must be a string, not a number"));
        assert!(said(fields().number("x", 0.0..=2.0).unwrap_err()).contains("p.x is 3"));
        assert!(said(fields().whole("w", 0..=2).unwrap_err()).contains("whole number between 0 and 2"));
        assert!(said(fields().word("y", &["a", "b"]).unwrap_err()).contains("a, b"));
        assert!(said(Fields::of(json!([]), "").unwrap_err()).contains("must be an object, not a list"));
    }
}
