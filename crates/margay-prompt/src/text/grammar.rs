//! Answers of a given form: which tokens may come next under a JSON schema, a regular expression or a grammar.

use super::{Calls, Tokenizer};
use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};
use serde_json::{Value, json};
use std::sync::Arc;
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

/// The form of an answer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Form {
    /// Any JSON object.
    Json,
    /// JSON that a schema accepts.
    JsonSchema(Value),
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// A text of a grammar in Lark's notation, as `llguidance` reads it.
    Lark(String),
    /// A text with calls of functions in it, or nothing but those.
    Calls(Calls),
}

/// Why an answer cannot have a form.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormError {
    /// A form that cannot be understood, or that is too large.
    #[error("the form of the answer: {what}")]
    Form {
        /// What is wrong with it.
        what: String,
    },
    /// A vocabulary that has no end of an answer, so that it could not be told from one that goes on.
    #[error("the vocabulary has no token that ends an answer, so that answers cannot be given a form")]
    NoEnd,
}

/// The forms that answers of one vocabulary can have. Made once: it looks at every token.
pub struct Forms {
    factory: ParserFactory,
    stops: Arc<[u32]>,
}

impl Forms {
    /// Looks at the vocabulary.
    ///
    /// # Errors
    /// [`FormError::NoEnd`]; [`FormError::Form`] for a vocabulary that the library refuses.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, FormError> {
        let stops: Arc<[u32]> = tokenizer.stop_ids().into();
        let end = *stops.first().ok_or(FormError::NoEnd)?;
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id);
                // No text is made of control tokens.
                if tokenizer.is_control(id) {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat()
                } else {
                    bytes
                }
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(refused)?;
        factory.quiet();
        // What a message of the library quotes may be a person's own words.
        factory.limits_mut().verbose_errors = false;
        Ok(Forms { factory, stops })
    }

    /// An answer that has not begun.
    ///
    /// # Errors
    /// [`FormError::Form`] saying what is wrong with it.
    pub fn begin(&self, form: &Form) -> Result<FormedAnswer, FormError> {
        let grammar = match form {
            Form::Json => TopLevelGrammar::from_json_schema(written_plainly(json!({"type": "object"}))),
            Form::JsonSchema(schema) => TopLevelGrammar::from_json_schema(written_plainly(schema.clone())),
            Form::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Form::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
            Form::Calls(calls) => TopLevelGrammar::from_lark(calls.lark()?),
        };
        let parser = self.factory.create_parser(grammar).map_err(refused)?;
        Ok(FormedAnswer { matcher: Matcher::new(Ok(parser)), stops: self.stops.clone() })
    }
}

/// An answer as far as it has come.
pub struct FormedAnswer {
    matcher: Matcher,
    stops: Arc<[u32]>,
}

impl Clone for FormedAnswer {
    /// One that goes on apart from this one.
    fn clone(&self) -> Self {
        FormedAnswer { matcher: self.matcher.deep_clone(), stops: self.stops.clone() }
    }
}

impl FormedAnswer {
    /// Makes every token impossible that may not come next: its logit becomes negative infinity. The tokens that end an answer
    /// are possible where the form is complete.
    ///
    /// # Errors
    /// [`FormError::Form`] where the form asks for more work than the library allows.
    pub fn forbid(&mut self, logits: &mut [f32]) -> Result<(), FormError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(refused)?;
        let words = mask.as_slice();
        let allowed = |id: usize| words.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
        let ends = self.stops.first().is_some_and(|end| allowed(*end as usize));
        for (id, logit) in logits.iter_mut().enumerate() {
            let may = allowed(id) || ends && self.stops.contains(&(id as u32));
            if !may {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes a token that [`FormedAnswer::forbid`] left.
    ///
    /// # Errors
    /// [`FormError::Form`] for another one.
    pub fn accept(&mut self, token: u32) -> Result<(), FormError> {
        self.matcher.consume_token(token).map_err(refused)
    }

    /// True where nothing but its end can come next.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

/// JSON on one line, with a space behind commas and colons, unless the schema says otherwise: a model that is free to write
/// white space may write nothing else.
pub(super) fn written_plainly(mut schema: Value) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        let plain = || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        schema.entry("x-guidance").or_insert_with(plain);
    }
    schema
}

fn refused(error: impl std::fmt::Display) -> FormError {
    // The first line; what follows are the library's own traces.
    let what = format!("{error:#}");
    FormError::Form { what: what.lines().next().unwrap_or_default().chars().take(500).collect() }
}
