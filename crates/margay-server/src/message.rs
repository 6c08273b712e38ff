//! The messages of a request: roles, texts, and pictures that are not decoded yet.

use crate::{
    fields::{Fields, kind, shown},
    problem::Problem,
};
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
    /// A picture as base64, and where it stands in the request.
    Picture {
        place: String,
        base64: String,
    },
}

/// Reads `messages`. Those of the system in front are joined: models know one.
pub(crate) fn messages(fields: &mut Fields) -> Result<Vec<Said>, Problem> {
    let list = fields.list("messages")?.ok_or_else(|| Problem::bad("messages", "is missing"))?;
    if list.is_empty() {
        return Err(Problem::bad("messages", "is empty"));
    }
    let mut all: Vec<Said> = vec![];
    for (at, value) in list.into_iter().enumerate() {
        let said = message(Fields::of(value, format!("messages[{at}]"))?)?;
        match all.as_mut_slice() {
            [first] if first.role == "system" && said.role == "system" => {
                first.parts.push(Part::Text("\n\n".to_owned()));
                first.parts.extend(said.parts);
            }
            _ => all.push(said),
        }
    }
    Ok(all)
}

fn message(mut fields: Fields) -> Result<Said, Problem> {
    let role = match fields.needed_text("role")?.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" | "function" => {
            return Err(Problem::bad(fields.place("role"), "is a tool's, and tools are not supported yet")
                .with_code("unsupported_parameter"));
        }
        other => {
            let what = format!("is {:?}; known are system, developer, user and assistant", shown(other));
            return Err(Problem::bad(fields.place("role"), what));
        }
    };
    let place = fields.place("content");
    let parts = match fields.take("content") {
        None => return Err(Problem::bad(place, "is missing")),
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
    };
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
    for name in ["tool_calls", "annotations"] {
        if fields.list(name)?.is_some_and(|list| !list.is_empty()) {
            return Err(Problem::bad(fields.place(name), "is not supported"));
        }
    }
    Ok(())
}

fn part(mut fields: Fields) -> Result<Part, Problem> {
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
    Ok(Part::Picture { base64: data_of(url, &place)?, place })
}

/// The base64 text of a `data:` address. Source: RFC 2397.
fn data_of(mut url: String, place: &str) -> Result<String, Problem> {
    let bad = |what: &str| Err(Problem::bad(place, what).with_code("invalid_image_url"));
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    match scheme.as_str() {
        "data" => {}
        "http" | "https" => {
            return bad(
                "is an address on the network, and this server fetches nothing; send the picture itself as \
                        data:image/...;base64,...",
            );
        }
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
    Ok(url.split_off(comma + 1))
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
            base64: data.to_owned(),
        };
        assert_eq!(said[1].parts, [picture(0, "AA=="), text("x"), picture(2, "BB")]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let user = |part: Value| json!([{"role": "user", "content": [part]}]);
        let url = |url: &str| user(json!({"type": "image_url", "image_url": {"url": url}}));
        for (list, param, says) in [
            (json!([]), "messages", "empty"),
            (json!([{"role": "king", "content": "x"}]), "messages[0].role", "king"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].role", "not supported yet"),
            (json!([{"role": "user"}]), "messages[0].content", "missing"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content", "list of parts"),
            (json!([{"role": "user", "content": "x", "name": "y"}]), "messages[0].name", "not a parameter"),
            (user(json!({"type": "input_audio"})), "messages[0].content[0].type", "input_audio"),
            (url("https://example.org/a.png"), "messages[0].content[0].image_url", "fetches nothing"),
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
