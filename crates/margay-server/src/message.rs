//! The messages of a request: roles, texts, and pictures that are not decoded yet.

use crate::{
    fields::{Fields, kind, shown},
    problem::Problem,
    tools,
};
use margay::Calls;
use serde_json::Value;

/// A message.
#[derive(Debug, PartialEq)]
pub(crate) struct Said {
    /// `system`, `user` or `assistant`.
    pub(crate) role: &'static str,
    pub(crate) parts: Vec<Part>,
}

/// A part of a message.
#[derive(Debug, PartialEq)]
pub(crate) enum Part {
    Text(String),
    /// A picture, and where it stands in the request.
    Picture {
        place: String,
        data: Data,
    },
}

/// Where a picture's bytes are.
#[derive(Debug, PartialEq)]
pub(crate) enum Data {
    /// Here.
    Base64(String),
    /// At an address of http or https.
    Address(String),
    /// Here, as they were fetched.
    Bytes(Vec<u8>),
}

/// Reads `messages`. Those of the system in front are joined: models know one.
pub(crate) fn messages(fields: &mut Fields) -> Result<Vec<Said>, Problem> {
    let list = fields.list("messages")?.ok_or_else(|| Problem::bad("messages", "is missing"))?;
    if list.is_empty() {
        return Err(Problem::bad("messages", "is empty"));
    }
    let mut all: Vec<Said> = vec![];
    // Calls that were made, and whether the last message tells what one gave back.
    let (mut calls, mut after_tool) = (vec![], false);
    for (at, value) in list.into_iter().enumerate() {
        let mut fields = Fields::of(value, format!("messages[{at}]"))?;
        let role = role(&mut fields)?;
        let said = match role {
            Role::Tool => given_back(fields, &calls)?,
            Role::Plain(role) => message(role, fields, &mut calls)?,
        };
        let tool = matches!(role, Role::Tool);
        match all.as_mut_slice() {
            [first] if first.role == "system" && said.role == "system" => {
                first.parts.push(Part::Text("\n\n".to_owned()));
                first.parts.extend(said.parts);
            }
            // What the calls of one answer gave back is one turn.
            [.., last] if tool && after_tool => {
                last.parts.push(Part::Text("\n".to_owned()));
                last.parts.extend(said.parts);
            }
            _ => all.push(said),
        }
        after_tool = tool;
    }
    Ok(all)
}

#[derive(Clone, Copy)]
enum Role {
    Plain(&'static str),
    Tool,
}

fn role(fields: &mut Fields) -> Result<Role, Problem> {
    Ok(Role::Plain(match fields.needed_text("role")?.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" => return Ok(Role::Tool),
        other => {
            let what =
                format!("is {:?}; known are system, developer, user, assistant and tool", shown(other));
            return Err(Problem::bad(fields.place("role"), what));
        }
    }))
}

/// What a function gave back: the model is told it as a user's turn.
fn given_back(mut fields: Fields, calls: &[String]) -> Result<Said, Problem> {
    let id = fields.needed_text("tool_call_id")?;
    if !calls.contains(&id) {
        let what = format!("is {:?}, which no tool_calls of an earlier message have", shown(&id));
        return Err(Problem::bad(fields.place("tool_call_id"), what));
    }
    let place = fields.place("content");
    let parts = parts(&mut fields)?.ok_or_else(|| Problem::bad(&place, "is missing"))?;
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Text(more) => text += &more,
            Part::Picture { place, .. } => {
                return Err(Problem::bad(
                    place,
                    "is a picture that a tool gave back; send it in a message of the user's",
                ));
            }
        }
    }
    fields.finish()?;
    Ok(Said { role: "user", parts: vec![Part::Text(Calls::response(&text))] })
}

/// The parts of a message; `None` where it has none.
fn parts(fields: &mut Fields) -> Result<Option<Vec<Part>>, Problem> {
    let place = fields.place("content");
    Ok(Some(match fields.take("content") {
        None => return Ok(None),
        Some(Value::String(text)) => vec![Part::Text(text)],
        Some(Value::Array(list)) => {
            let read = |(at, value)| part(Fields::of(value, format!("{place}[{at}]"))?);
            list.into_iter().enumerate().map(read).collect::<Result<_, _>>()?
        }
        Some(other) => {
            return Err(Problem::bad(
                place,
                format!("must be a string or a list of parts, not {}", kind(&other)),
            ));
        }
    }))
}

fn message(role: &'static str, mut fields: Fields, calls: &mut Vec<String>) -> Result<Said, Problem> {
    let mut parts = parts(&mut fields)?;
    if role == "assistant" {
        for (at, call) in fields.list("tool_calls")?.unwrap_or_default().into_iter().enumerate() {
            let place = fields.place(&format!("tool_calls[{at}]"));
            let (id, written) = tools::made(Fields::of(call, place)?)?;
            let parts = parts.get_or_insert_default();
            if !parts.is_empty() {
                parts.push(Part::Text("\n".to_owned()));
            }
            parts.push(Part::Text(written));
            calls.push(id);
        }
    }
    let parts = parts.ok_or_else(|| Problem::bad(fields.place("content"), "is missing"))?;
    if role != "user"
        && let Some(Part::Picture { place, .. }) =
            parts.iter().find(|part| matches!(part, Part::Picture { .. }))
    {
        return Err(Problem::bad(
            place,
            format!("is a picture in a message of the {role}'s; users send pictures"),
        ));
    }
    if role == "assistant" {
        what_answers_hold(&mut fields)?;
    }
    fields.finish()?;
    Ok(Said { role, parts })
}

/// What clients send back of an answer they got, where it says nothing.
fn what_answers_hold(fields: &mut Fields) -> Result<(), Problem> {
    for name in ["refusal", "audio", "function_call"] {
        if fields.take(name).is_some() {
            return Err(Problem::bad(fields.place(name), "is not supported"));
        }
    }
    if fields.list("annotations")?.is_some_and(|list| !list.is_empty()) {
        return Err(Problem::bad(fields.place("annotations"), "is not supported"));
    }
    Ok(())
}

pub(crate) fn part(mut fields: Fields) -> Result<Part, Problem> {
    let part = match fields.needed_text("type")?.as_str() {
        "text" => Part::Text(fields.needed_text("text")?),
        "image_url" => picture(&mut fields)?,
        other => {
            let what = format!("is {:?}; known are text and image_url", shown(other));
            return Err(Problem::bad(fields.place("type"), what));
        }
    };
    fields.finish()?;
    Ok(part)
}

fn picture(fields: &mut Fields) -> Result<Part, Problem> {
    let place = fields.place("image_url");
    let url = match fields.take("image_url") {
        None => return Err(Problem::bad(place, "is missing")),
        Some(Value::String(url)) => url,
        Some(value) => {
            let mut inner = Fields::of(value, &place)?;
            let url = inner.needed_text("url")?;
            let detail = inner.place("detail");
            if inner.word("detail", &["auto", "high", "low"])?.as_deref() == Some("low") {
                let what = "is low, and pictures are always taken as the model takes them; leave it out";
                return Err(Problem::bad(detail, what));
            }
            inner.finish()?;
            url
        }
    };
    Ok(Part::Picture { data: data_of(url, &place)?, place })
}

/// What an address is of; of `data:` the base64 text in it. Source: RFC 2397.
fn data_of(mut url: String, place: &str) -> Result<Data, Problem> {
    let bad = |what: &str| Err(Problem::bad(place, what).with_code("invalid_image_url"));
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    match scheme.as_str() {
        "data" => {}
        // Whether it may be fetched the server's options say.
        "http" | "https" => return Ok(Data::Address(url)),
        "file" => {
            return bad(
                "is a file's, and this server opens no files for its callers; send the picture itself",
            );
        }
        _ => return bad("must begin with data:image/"),
    }
    let Some(comma) = url.find(',') else { return bad("has no comma between its head and its data") };
    let head = url[..comma].to_ascii_lowercase();
    if !head.ends_with(";base64") {
        return bad("is not base64: its head must end with ;base64");
    }
    if !head.starts_with("data:image/") && head != "data:application/octet-stream;base64" {
        return bad("is no picture: it must begin with data:image/");
    }
    Ok(Data::Base64(url.split_off(comma + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(list: Value) -> Result<Vec<Said>, Problem> {
        messages(&mut Fields::of(json!({ "messages": list }), "").unwrap())
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    #[test]
    fn parts_keep_their_order_and_systems_in_front_are_one() {
        let said = read(json!([
            {"role": "developer", "content": "a"},
            {"role": "system", "content": "b"},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": "DATA:image/jpeg;charset=x;BASE64,BB"}]},
            {"role": "assistant", "content": "y", "refusal": null, "tool_calls": []},
            {"role": "user", "content": "z"},
        ]))
        .unwrap();
        assert_eq!(said.len(), 4);
        assert_eq!(said[0].parts, [text("a"), text("\n\n"), text("b")]);
        let picture = |at: usize, data: &str| Part::Picture {
            place: format!("messages[2].content[{at}].image_url"),
            data: Data::Base64(data.to_owned()),
        };
        assert_eq!(said[1].parts, [picture(0, "AA=="), text("x"), picture(2, "BB")]);
    }

    #[test]
    fn calls_and_what_they_gave_back_are_turns_as_the_model_writes_and_is_told_them() {
        let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "look", "arguments": "{\"at\": 1}"}});
        let said = read(json!([
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": null, "tool_calls": [call("a"), call("b")]},
            {"role": "tool", "tool_call_id": "a", "content": "red"},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "blue"}]},
            {"role": "user", "content": "y"},
        ]))
        .unwrap();
        let roles: Vec<_> = said.iter().map(|said| said.role).collect();
        assert_eq!(roles, ["user", "assistant", "user", "user"]);
        let written = Calls::call("look", "{\"at\":1}");
        assert_eq!(said[1].parts, [text(&written), text("\n"), text(&written)]);
        assert_eq!(
            said[2].parts,
            [text(&Calls::response("red")), text("\n"), text(&Calls::response("blue"))]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let user = |part: Value| json!([{"role": "user", "content": [part]}]);
        let url = |url: &str| user(json!({"type": "image_url", "image_url": {"url": url}}));
        for (list, param, says) in [
            (json!([]), "messages", "empty"),
            (json!([{"role": "king", "content": "x"}]), "messages[0].role", "king"),
            (json!([{"role": "function", "content": "x"}]), "messages[0].role", "function"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id", "missing"),
            (
                json!([{"role": "tool", "content": "x", "tool_call_id": "c"}]),
                "messages[0].tool_call_id",
                "no tool_calls",
            ),
            (
                json!([{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}]}]),
                "messages[0].tool_calls[0].function.arguments",
                "not JSON",
            ),
            (json!([{"role": "user"}]), "messages[0].content", "missing"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content", "list of parts"),
            (json!([{"role": "user", "content": "x", "name": "y"}]), "messages[0].name", "not a parameter"),
            (user(json!({"type": "input_audio"})), "messages[0].content[0].type", "input_audio"),
            (url("file:///etc/passwd"), "messages[0].content[0].image_url", "opens no files"),
            (url("/etc/passwd"), "messages[0].content[0].image_url", "data:image/"),
            (url("data:text/html;base64,AA"), "messages[0].content[0].image_url", "no picture"),
            (url("data:image/png,AA"), "messages[0].content[0].image_url", ";base64"),
            (url("data:image/png;base64"), "messages[0].content[0].image_url", "comma"),
            (
                user(
                    json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,A", "detail": "low"}}),
                ),
                "messages[0].content[0].image_url.detail",
                "low",
            ),
            (
                json!([{"role": "assistant", "content": [{"type": "image_url", "image_url": "data:image/png;base64,"}]}]),
                "messages[0].content[0].image_url",
                "users send pictures",
            ),
        ] {
            let problem = read(list).unwrap_err();
            assert_eq!(problem.param.as_deref(), Some(param), "{}", problem.message);
            assert!(problem.message.contains(says), "{}", problem.message);
        }
    }
}
