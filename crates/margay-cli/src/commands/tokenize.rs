//! `margay tokenize`: text to token ids and back.

use crate::{
    Outcome, Usage,
    answering::{only, question_from_stdin},
    hub, output,
};
use clap::Args;
use margay::{
    Model,
    rooms::{
        file::open_model,
        prompt::text::{EncodeOptions, Tokenizer, TokenizerError},
    },
    tokenizer_of,
};
use serde_json::json;
use std::{path::PathBuf, sync::Arc};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay tokenize \"Is there a red circle?\"          ids and pieces of the built-in model
  margay tokenize llava.gguf \"USER: hi\" --bos --json
  margay tokenize llava.gguf - < question.txt       text from stdin
  margay tokenize llava.gguf --decode 1,3148,1001";

/// Show the tokens of a text, or the text of tokens
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Tokenize {
    /// The model, where it is not the built-in one, and the text; - reads it from stdin
    #[arg(value_name = "MODEL] [TEXT", num_args = 0..=2)]
    words: Vec<String>,
    /// The model: a GGUF file or a Hugging Face folder
    #[arg(long, short = 'm', value_name = "PATH")]
    model: Option<PathBuf>,
    /// Show the text of these token ids
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    decode: Option<Vec<u32>>,
    /// Put the begin-of-sequence token in front
    #[arg(long, conflicts_with = "decode")]
    bos: bool,
    /// Read control tokens that the text writes out as such
    #[arg(long, conflicts_with = "decode")]
    special: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Tokenize {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let mut words = self.words.into_iter();
        let (model, text) = match (words.next(), words.next(), self.decode.is_some()) {
            (model, None, true) => (model, None),
            (text, None, false) => (None, text),
            (model, text, false) => (model, text),
            (_, Some(_), true) => {
                return Err(Usage("--decode takes ids; a text beside it has no meaning".to_owned()).into());
            }
        };
        if self.decode.is_none() && text.is_none() {
            return Err(Usage("give a text, - for stdin, or --decode with ids".to_owned()).into());
        }
        let model = only(model.map(PathBuf::from), self.model, "the model")?;
        let text = match text {
            Some(dash) if dash == "-" => Some(question_from_stdin()?),
            text => text,
        };
        let tokenizer = match &model {
            // The vocabulary alone: a model of an unknown family can still be looked into.
            Some(path) => Arc::new(tokenizer_of(&open_model(hub::local(path)?, None)?)?),
            None => Model::nano_source()?.tokenizer,
        };
        if let Some(ids) = self.decode {
            decode(&tokenizer, &ids, self.json)?;
        } else {
            let options = EncodeOptions { bos: self.bos, special: self.special, prefix_space: None };
            show(&tokenizer, &tokenizer.encode(&text.unwrap_or_default(), options)?, self.json)?;
        }
        Ok(Outcome::Done)
    }
}

fn pieces<'t>(tokenizer: &'t Tokenizer, ids: &[u32]) -> Vec<&'t str> {
    // An id may be a hole of the vocabulary: it has no piece.
    ids.iter().map(|id| tokenizer.token_text(*id).unwrap_or_default()).collect()
}

fn show(tokenizer: &Tokenizer, ids: &[u32], json: bool) -> anyhow::Result<()> {
    let pieces = pieces(tokenizer, ids);
    if json {
        return output::json(&json!({ "ids": ids, "pieces": pieces }));
    }
    let row = |(id, piece): (&u32, &&str)| {
        let kind = if tokenizer.is_control(*id) { "  (control)" } else { "" };
        vec![format!("{id:>7}"), format!("{piece:?}{kind}")]
    };
    let rows = ids.iter().zip(&pieces).map(row).collect();
    output::text(&output::table_of_words(&["     id", "piece"], rows))?;
    output::aside(&format!("{} tokens", ids.len()));
    Ok(())
}

fn decode(tokenizer: &Tokenizer, ids: &[u32], json: bool) -> anyhow::Result<()> {
    let size = tokenizer.vocab_size();
    if let Some(&id) = ids.iter().find(|id| **id as usize >= size) {
        return Err(TokenizerError::UnknownId { id, size }.into());
    }
    let text = tokenizer.decode(ids, false);
    if json {
        return output::json(&json!({ "ids": ids, "pieces": pieces(tokenizer, ids), "text": text }));
    }
    output::answer(&format!("{text}\n"))
}
