//! Calls of functions in an answer.
//!
//! They are written, told and read as Qwen2.5's own template does, which follows NousResearch's Hermes: functions as JSON
//! within `<tools>`, a call as JSON within `<tool_call>`, what came back within `<tool_response>`. Models that were trained on
//! another notation, or on none, are held to it by the form of the answer. Source: Qwen2.5, `tokenizer_config.json`,
//! `chat_template`.

use super::{FormError, grammar::written_plainly};
use serde_json::{Value, json};
use std::fmt::Write;

const OPEN: &str = "<tool_call>\n";
const CLOSE: &str = "\n</tool_call>";

/// A function that an answer may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// JSON schema of its arguments, which are an object.
    pub parameters: Value,
}

/// Which functions an answer may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls {
    /// At least one.
    pub functions: Vec<Function>,
    /// Nothing but calls: at least one, and no words.
    pub needed: bool,
    /// More than one call.
    pub several: bool,
}

impl Calls {
    /// What the system's message says of the functions.
    pub fn words(functions: &[Function]) -> String {
        let mut text = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided \
                        with function signatures within <tools></tools> XML tags:\n<tools>"
            .to_owned();
        for Function { name, description, parameters } in functions {
            let mut function = json!({ "name": name, "parameters": parameters });
            if let Some(description) = description {
                function["description"] = json!(description);
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{}", json!({ "type": "function", "function": function }));
        }
        text + "\n</tools>\n\nFor each function call, return a json object with function name and arguments within \
                <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": \
                <args-json-object>}\n</tool_call>"
    }

    /// A call as a model writes it; `arguments` is JSON.
    pub fn call(name: &str, arguments: &str) -> String {
        format!("{OPEN}{{\"name\": {}, \"arguments\": {arguments}}}{CLOSE}", json!(name))
    }

    /// What a function gave back, as the model is told.
    pub fn response(text: &str) -> String {
        format!("<tool_response>\n{text}\n</tool_response>")
    }

    /// The grammar of such an answer.
    pub(super) fn lark(&self) -> Result<String, FormError> {
        let refuse = |what: String| Err(FormError::Form { what });
        if self.functions.is_empty() {
            return refuse("there is no function to call".to_owned());
        }
        // Behind the words of a call, which end with its first tag, stands its JSON.
        let mut lark = match (self.needed, self.several) {
            (true, false) => format!("start: {0} call\n", literal(OPEN)),
            (true, true) => format!("start: {0} call ({1} {0} call)*\n", literal(OPEN), literal("\n")),
            (false, false) => "start: words call | rest\n".to_owned(),
            (false, true) => "start: (words call)* rest\n".to_owned(),
        };
        if !self.needed {
            lark += "words[lazy]: /(.|\\n)*<tool_call>\\n/\nrest: /(.|\\n)*/\n";
        }
        let names: Vec<String> = (0..self.functions.len()).map(|at| format!("call_{at}")).collect();
        let _ = writeln!(lark, "call: ({}) {}", names.join(" | "), literal(CLOSE));
        for (function, rule) in self.functions.iter().zip(&names) {
            let Function { name, parameters, .. } = function;
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
                return refuse(format!("the name of a function is letters, digits, _ and -, not {name:?}"));
            }
            let head = literal(&format!("{{\"name\": \"{name}\", \"arguments\": "));
            let arguments = written_plainly(parameters.clone());
            let _ = writeln!(lark, "{rule}: {head} %json {arguments} {}", literal("}"));
        }
        Ok(lark)
    }
}

/// A text as Lark writes it.
fn literal(text: &str) -> String {
    json!(text).to_string()
}

/// Reads an answer with calls in it, piece by piece.
#[derive(Clone, Debug, Default)]
pub struct CallReader {
    held: String,
    calling: bool,
    /// Whether words came last.
    saying: bool,
}

/// What is read of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum CallPiece {
    /// Words.
    Text(String),
    /// A call.
    Call {
        /// The function.
        name: String,
        /// JSON of its arguments.
        arguments: String,
    },
}

impl CallReader {
    /// Takes the next piece of the answer, and gives what can be told by now.
    pub fn push(&mut self, piece: &str) -> Vec<CallPiece> {
        self.held += piece;
        let mut told = vec![];
        loop {
            let mark = if self.calling { CLOSE } else { OPEN };
            let Some(at) = self.held.find(mark) else { break };
            let mut before: String = self.held.drain(..at + mark.len()).collect();
            before.truncate(at);
            if self.calling {
                told.extend(read(&before));
                self.saying = false;
            } else {
                told.extend(self.words(before));
            }
            self.calling = !self.calling;
        }
        if !self.calling {
            // The end may be the beginning of a call.
            let begins = |n: &usize| self.held.ends_with(&OPEN[..*n]);
            let keep = (1..OPEN.len()).rev().find(begins).unwrap_or(0);
            let ready = self.held.len() - keep;
            // White space behind a call is what parts it from the next, as far as is known.
            if self.saying || !self.held[..ready].trim().is_empty() {
                let ready = self.held.drain(..ready).collect();
                told.extend(self.words(ready));
            }
        }
        told
    }

    /// What was held back until the end. A call that was broken off is no call, and none of the words.
    pub fn finish(mut self) -> Option<CallPiece> {
        let rest = std::mem::take(&mut self.held);
        if self.calling { None } else { self.words(rest) }
    }

    /// Words, but for white space that stands alone.
    fn words(&mut self, text: String) -> Option<CallPiece> {
        let said = !text.is_empty() && (self.saying || !text.trim().is_empty());
        self.saying |= said;
        said.then_some(CallPiece::Text(text))
    }
}

fn read(call: &str) -> Option<CallPiece> {
    let value: Value = serde_json::from_str(call).ok()?;
    let name = value.get("name")?.as_str()?.to_owned();
    Some(CallPiece::Call { name, arguments: value.get("arguments")?.to_string() })
}

/// The words and the calls of a whole answer.
pub fn called(answer: &str) -> Vec<CallPiece> {
    let mut reader = CallReader::default();
    let mut pieces = reader.push(answer);
    pieces.extend(reader.finish());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> CallPiece {
        CallPiece::Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    fn text(text: &str) -> CallPiece {
        CallPiece::Text(text.to_owned())
    }

    /// However it is cut into pieces.
    #[test]
    fn calls_are_told_from_words() {
        let two = format!("{}\n{}", Calls::call("a", "{\"x\":1}"), Calls::call("b-2", "{}"));
        for (answer, expected) in [
            ("It is red.".to_owned(), vec![text("It is red.")]),
            ("1 < 2 <tool".to_owned(), vec![text("1 < 2 <tool")]),
            (two.clone(), vec![call("a", "{\"x\":1}"), call("b-2", "{}")]),
            (
                format!("Let me look.\n{two}"),
                vec![text("Let me look.\n"), call("a", "{\"x\":1}"), call("b-2", "{}")],
            ),
            ("<tool_call>\n{\"name\": \"a\", \"argum".to_owned(), vec![]),
            ("<tool_call>\nnonsense\n</tool_call>".to_owned(), vec![]),
            (format!("{}\n\nDone", Calls::call("a", "{}")), vec![call("a", "{}"), text("\n\nDone")]),
        ] {
            for size in [1, 2, 3, 5, 8, answer.len()] {
                let mut reader = CallReader::default();
                let letters: Vec<char> = answer.chars().collect();
                let mut pieces: Vec<CallPiece> = letters
                    .chunks(size)
                    .flat_map(|piece| reader.push(&piece.iter().collect::<String>()))
                    .collect();
                pieces.extend(reader.finish());
                let joined = pieces.into_iter().fold(vec![], |mut all: Vec<CallPiece>, piece| {
                    match (all.last_mut(), piece) {
                        (Some(CallPiece::Text(before)), CallPiece::Text(more)) => *before += &more,
                        (_, piece) => all.push(piece),
                    }
                    all
                });
                assert_eq!(joined, expected, "{answer} by {size}");
            }
        }
    }

    #[test]
    fn names_that_would_break_the_grammar_are_refused() {
        let calls = |name: &str| Calls {
            functions: vec![Function { name: name.to_owned(), description: None, parameters: json!({}) }],
            needed: true,
            several: false,
        };
        for name in ["", "a b", "a\"b", "ü", "a\n"] {
            assert!(calls(name).lark().is_err(), "{name:?}");
        }
        assert!(Calls { functions: vec![], ..calls("x") }.lark().is_err());
        assert!(calls("a_B-9").lark().unwrap().contains("a_B-9"));
    }
}
