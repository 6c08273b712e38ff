//! Functions that an answer may call: `tools`, `tool_choice`, `parallel_tool_calls`, and what answers say of calls.
//!
//! Source: OpenAI API reference, "Create chat completion", `tools`; "The chat completion object", `tool_calls`.

use crate::{
    fields::{Fields, kind, shown},
    problem::Problem,
};
use margay::{CallPiece, Calls, Form, Function};
use serde_json::{Value, json};

/// Functions of a request at most, as OpenAI has it.
const MOST_TOOLS: usize = 128;
/// Characters of a function's name at most.
const LONGEST_NAME: usize = 64;

/// The functions of a request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tools {
    /// None where none may be called.
    functions: Vec<Function>,
    needed: bool,
    several: bool,
}

impl Tools {
    /// Reads what a request says of functions.
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, Problem> {
        let list = fields.list("tools")?.unwrap_or_default();
        if list.len() > MOST_TOOLS {
            let what = format!("holds {} functions, and {MOST_TOOLS} is the most", list.len());
            return Err(Problem::bad("tools", what));
        }
        let mut functions: Vec<Function> = vec![];
        for (at, value) in list.into_iter().enumerate() {
            let function = function(Fields::of(value, format!("tools[{at}]"))?)?;
            if functions.iter().any(|other| other.name == function.name) {
                return Err(Problem::bad(
                    format!("tools[{at}].function.name"),
                    format!("is {:?} a second time", function.name),
                ));
            }
            functions.push(function);
        }
        let several = fields.flag("parallel_tool_calls")?.unwrap_or(true);
        let mut tools = Tools { functions, needed: false, several };
        tools.choose(fields.take("tool_choice"))?;
        Ok(tools)
    }

    fn choose(&mut self, choice: Option<Value>) -> Result<(), Problem> {
        let word = match choice {
            None => return Ok(()),
            Some(Value::String(word)) => word,
            Some(Value::Object(object)) => {
                let mut fields = Fields::of(Value::Object(object), "tool_choice")?;
                fields.word("type", &["function"])?;
                let mut inner = fields
                    .object("function")?
                    .ok_or_else(|| Problem::bad("tool_choice.function", "is missing"))?;
                let name = inner.needed_text("name")?;
                inner.finish()?;
                fields.finish()?;
                self.functions.retain(|function| function.name == name);
                if self.functions.is_empty() {
                    let what = format!("is {:?}, and no function of tools is called so", shown(&name));
                    return Err(Problem::bad("tool_choice.function.name", what));
                }
                (self.needed, self.several) = (true, false);
                return Ok(());
            }
            Some(other) => {
                let what = format!("must be none, auto, required or a function, not {}", kind(&other));
                return Err(Problem::bad("tool_choice", what));
            }
        };
        match word.as_str() {
            "none" => self.functions.clear(),
            "auto" => {}
            "required" if self.functions.is_empty() => {
                return Err(Problem::bad("tool_choice", "is required, and there are no tools"));
            }
            "required" => self.needed = true,
            other => {
                let what =
                    format!("is {:?}; here it can be none, auto, required or a function", shown(other));
                return Err(Problem::bad("tool_choice", what));
            }
        }
        Ok(())
    }

    /// Whether an answer may call any.
    pub(crate) fn any(&self) -> bool {
        !self.functions.is_empty()
    }

    /// What the model is told of them.
    pub(crate) fn words(&self) -> Option<String> {
        self.any().then(|| Calls::words(&self.functions))
    }

    /// The form of an answer that may call them.
    pub(crate) fn form(&self) -> Option<Form> {
        let Tools { functions, needed, several } = self;
        self.any()
            .then(|| Form::Calls(Calls { functions: functions.clone(), needed: *needed, several: *several }))
    }
}

fn function(mut fields: Fields) -> Result<Function, Problem> {
    fields.word("type", &["function"])?;
    let place = fields.place("function");
    let mut inner = fields.object("function")?.ok_or_else(|| Problem::bad(place, "is missing"))?;
    fields.finish()?;
    let name = inner.needed_text("name")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(plain) {
        let what = format!("is {:?}; it can be up to {LONGEST_NAME} letters, digits, _ and -", shown(&name));
        return Err(Problem::bad(inner.place("name"), what));
    }
    let description = inner.text("description")?;
    let parameters = match inner.take("parameters") {
        None => json!({ "type": "object", "properties": {}, "additionalProperties": false }),
        Some(schema @ Value::Object(_)) => schema,
        Some(other) => {
            return Err(Problem::bad(
                inner.place("parameters"),
                format!("must be a schema, not {}", kind(&other)),
            ));
        }
    };
    // Arguments are held to their schema either way.
    inner.flag("strict")?;
    inner.finish()?;
    Ok(Function { name, description, parameters })
}

/// A call that an earlier answer made, as the model wrote it, and its id.
pub(crate) fn made(mut fields: Fields) -> Result<(String, String), Problem> {
    let id = fields.needed_text("id")?;
    fields.word("type", &["function"])?;
    let place = fields.place("function");
    let mut inner = fields.object("function")?.ok_or_else(|| Problem::bad(place, "is missing"))?;
    fields.finish()?;
    let (name, arguments) = (inner.needed_text("name")?, inner.needed_text("arguments")?);
    let place = inner.place("arguments");
    inner.finish()?;
    let parsed: Value =
        serde_json::from_str(&arguments).map_err(|e| Problem::bad(place, format!("is not JSON: {e}")))?;
    Ok((id, Calls::call(&name, &parsed.to_string())))
}

/// A call in an answer; with its number among the answer's where it is streamed.
pub(crate) fn told(id: &str, name: &str, arguments: &str, number: Option<usize>) -> Value {
    let function = json!({ "name": name, "arguments": arguments });
    match number {
        Some(index) => json!({ "index": index, "id": id, "type": "function", "function": function }),
        None => json!({ "id": id, "type": "function", "function": function }),
    }
}

/// The id of a call: of the answer's own id, which answer of the request, and which call of it.
pub(crate) fn id(answer: &str, index: usize, number: usize) -> String {
    format!("call_{}_{index}_{number}", answer.trim_start_matches("chatcmpl-"))
}

/// What an answer says and calls: its words, null where there are none beside calls, and the calls.
pub(crate) fn split(answer: &str, id_of: impl Fn(usize) -> String) -> (Value, Vec<Value>) {
    let (mut words, mut calls) = (String::new(), vec![]);
    for piece in margay::called(answer) {
        match piece {
            CallPiece::Text(text) => words += &text,
            CallPiece::Call { name, arguments } => {
                calls.push(told(&id_of(calls.len()), &name, &arguments, None));
            }
        }
    }
    let words = words.trim_end();
    let content = if words.is_empty() && !calls.is_empty() { Value::Null } else { json!(words) };
    (content, calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Tools, Problem> {
        let mut fields = Fields::of(value, "").unwrap();
        let tools = Tools::read(&mut fields)?;
        fields.finish()?;
        Ok(tools)
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
    }

    #[test]
    fn what_may_and_must_be_called_follows_the_choice() {
        let of =
            |choice: Value| read(json!({"tools": [tool("a"), tool("b")], "tool_choice": choice})).unwrap();
        assert!(!of(json!("none")).any() && of(json!("none")).form().is_none());
        let auto = of(json!("auto"));
        assert_eq!((auto.functions.len(), auto.needed, auto.several), (2, false, true));
        assert!(of(json!("required")).needed);
        let named = of(json!({"type": "function", "function": {"name": "b"}}));
        assert_eq!((named.functions[0].name.as_str(), named.functions.len(), named.needed), ("b", 1, true));
        assert!(named.words().unwrap().contains("\"name\":\"b\""));
        assert!(!read(json!({"tools": [tool("a")], "parallel_tool_calls": false})).unwrap().several);
        assert!(!read(json!({})).unwrap().any());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (value, param) in [
            (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tools": [tool("a b")]}), "tools[0].function.name"),
            (json!({"tools": [tool("a"), tool("a")]}), "tools[1].function.name"),
            (
                json!({"tools": [{"function": {"name": "a", "parameters": 3}}]}),
                "tools[0].function.parameters",
            ),
            (json!({"tools": [{"function": {"name": "a", "x": 3}}]}), "tools[0].function.x"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tool_choice": "always"}), "tool_choice"),
            (
                json!({"tool_choice": {"type": "function", "function": {"name": "z"}}}),
                "tool_choice.function.name",
            ),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().param.as_deref(), Some(param), "{value}");
        }
    }

    #[test]
    fn an_answer_is_split_into_words_and_calls() {
        let answer = format!("Let me see.\n{}", Calls::call("look", "{\"at\":\"sign\"}"));
        let (content, calls) = split(&answer, |number| id("chatcmpl-7", 0, number));
        assert_eq!(content, "Let me see.");
        assert_eq!(
            calls,
            [json!({"id": "call_7_0_0", "type": "function",
                "function": {"name": "look", "arguments": "{\"at\":\"sign\"}"}})]
        );
        assert_eq!(split(&Calls::call("look", "{}"), |_| String::new()).0, Value::Null);
        assert_eq!(split("", |_| String::new()), (json!(""), vec![]));
    }
}
